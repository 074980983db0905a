//! `pfs gc`.

use std::{
    collections::HashMap,
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use pfs::{
    gc::{self, Facts, GcPlan, GcReport, GcSummary, Hold, Holder, Policy, Roots, Verdict},
    graph::RootOrigin,
    name::ByteCount,
    store::{LeaseState, Store},
};
use serde_json::json;

use super::{
    Context, Ending, Failure,
    duration::{duration, hold},
    output::{age, bytes, count, print, print_json, unreadable_line},
};

/// Free the blobs that no image and no live mount needs.
///
/// Reads every image of the store first. If anything that an image needs cannot be read, nothing is freed. A blob that no
/// index has named since it came may be somebody's upload, so it is left alone until it is an hour old.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs gc -n /srv/oci\n  pfs gc /srv/oci\n  pfs gc --min-age 0 /srv/oci\n  pfs gc -n --exit-code -q /srv/oci"
)]
pub struct Args {
    /// The layout directories.
    #[arg(value_name = "STORE")]
    stores: Vec<PathBuf>,
    /// Print what would be done, and write nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Minimum age of blobs that no index has named since they came, as in 30min, 2h, 1d.
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = duration)]
    min_age: Duration,
    /// How long a blob waits in quarantine before it goes for good: auto (not at all, or 24 h if something speaks for another
    /// writer), or as in 2h.
    #[arg(long, value_name = "AGE", default_value = "auto", value_parser = hold)]
    hold: Hold,
    /// Free at once whatever speaks for another writer. What is mounted, pinned or needed again still stays.
    #[arg(long, conflicts_with = "hold")]
    now: bool,
    /// Stop when this much is freed, as in 5GiB.
    #[arg(long, value_name = "SIZE")]
    max_freed: Option<ByteCount>,
    /// Another layout that uses the same blob directory. May be given several times.
    #[arg(long, value_name = "LAYOUT")]
    also: Vec<PathBuf>,
    /// Layouts that use the same blob directory, as a pattern. May be given several times.
    #[arg(long, value_name = "GLOB")]
    roots: Vec<String>,
    /// With -n: end with 4 if there is something to free.
    #[arg(long)]
    exit_code: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let mut stores = args.stores.clone();
    stores.extend(context.known_store().filter(|_| args.stores.is_empty()));
    if stores.is_empty() {
        return Err(Failure::usage("which store? Name it, or set PFS_STORE".into()));
    }
    let mut documents = Vec::new();
    let mut ending = 0;
    let mut failures = Vec::new();
    for path in &stores {
        match collect(context, &args, path, &mut documents) {
            Ok(code) => ending = ending.max(code),
            Err(failure) => failures.push(failure.json(args.json)),
        }
    }
    if args.json && !documents.is_empty() {
        print_json(&json!({"schema": "pfs.gc/1", "dry_run": args.dry_run, "stores": documents}))?;
    }
    finish(ending, failures, stores.len(), context.globals.quiet)
}

/// One store of several that cannot be collected does not keep the others from it: that is partly done.
fn finish(ending: u8, mut failures: Vec<Failure>, stores: usize, quiet: bool) -> Ending {
    match failures.pop() {
        None => Ok(ending),
        Some(failure) if stores == 1 => Err(failure),
        Some(last) => {
            let all_failed = failures.len() + 1 == stores;
            failures.iter().chain([&last]).for_each(|failure| failure.print(quiet));
            Ok(if all_failed { last.code() } else { super::failure::PARTLY_DONE })
        }
    }
}

fn collect(context: &Context, args: &Args, path: &Path, documents: &mut Vec<serde_json::Value>) -> Ending {
    let store = Store::open(path)?;
    declare(&store, args)?;
    let watch = context.progress(args.json);
    let policy = Policy {
        min_age_seconds: args.min_age.as_secs(),
        max_freed: args.max_freed.map(|size| size.0),
        hold: if args.now { Hold::Seconds(0) } else { args.hold },
    };
    let now = context.now_seconds();
    let facts = Facts::gather(&store, Roots::Current, now, &watch)?;
    let leases = store.leases()?;
    let plan = gc::plan(facts, policy, now);
    let view = PlanView::new(&plan, &leases);
    let found = view.summary.go + view.summary.condemned + plan.freed_bytes() > 0 || !plan.stale().is_empty();
    if args.dry_run {
        watch.finish();
        match args.json {
            true => documents.push(view.document(&store, &plan, None)),
            false => print(&view.text(&plan, context.globals.quiet))?,
        }
        return Ok(if args.exit_code && found { 4 } else { 0 });
    }
    let planned = view.document(&store, &plan, None);
    let before = (view, plan_strangers(&plan));
    let report = gc::apply(plan, &store, now, &watch)?;
    watch.finish();
    if args.json {
        let mut document = planned;
        document["freed_bytes"] = json!(report.freed_bytes);
        document["freed_blobs"] = json!(report.freed.len());
        document["healed_blobs"] = json!(report.healed);
        document["restored_blobs"] = json!(report.restored.len());
        document["quarantined_blobs"] = json!(report.held.len());
        document["quarantined_bytes"] = json!(report.held_bytes);
        documents.push(document);
    } else {
        print(&before.0.done(&report, &before.1, context.globals.quiet))?;
    }
    Ok(0)
}

/// Tells the store of the layouts that were named. A pattern that finds nothing says that there are no others.
fn declare(store: &Store, args: &Args) -> Result<(), Failure> {
    for layout in &args.also {
        // skopeo makes layouts that have no blobs of their own.
        if !Store::is_at(layout) {
            Store::open(layout)?;
        }
    }
    if !args.also.is_empty() {
        store.declare_layouts(args.also.iter().cloned());
    }
    for pattern in &args.roots {
        let wrong = |cause: String| Failure::usage(format!("--roots {pattern}: {cause}"));
        let paths = glob::glob(pattern).map_err(|cause| wrong(cause.to_string()))?;
        let paths: Result<Vec<PathBuf>, _> = paths.collect();
        store.declare_layouts(paths.map_err(|cause| wrong(cause.to_string()))?);
    }
    Ok(())
}

fn plan_strangers(plan: &GcPlan) -> Vec<String> {
    let line = |stranger: &pfs::store::Stranger| {
        format!("left alone: {} ({}, {}): not a blob", stranger.path.display(), stranger.what, bytes(stranger.size))
    };
    plan.strangers().iter().map(line).collect()
}

/// A plan in words.
struct PlanView {
    summary: GcSummary,
    holders: HashMap<String, String>,
    hold: String,
    hidden: String,
}

impl PlanView {
    fn new(plan: &GcPlan, leases: &[LeaseState]) -> Self {
        let holders = leases.iter().filter_map(|lease| Some((lease.id.clone(), holder(lease)?))).collect();
        let hidden = plan.marks().processes.hidden.clone().unwrap_or_default();
        Self { summary: plan.summary(), holders, hold: hold_lines(plan), hidden }
    }

    /// Why something stays that a person might wonder about.
    fn kept_lines(&self, strangers: &[String]) -> String {
        let mut text = String::new();
        let summary = &self.summary;
        for held in &summary.held {
            let holder = self.holder(&held.holder);
            let _ = writeln!(text, "kept: {} in {}: in use by {holder}", bytes(held.bytes), count(held.blobs, "blob"));
        }
        if summary.young.0 > 0 {
            let age = age(i64::try_from(summary.youngest_seconds.unwrap_or(0)).unwrap_or(i64::MAX));
            let (number, size) = (count(summary.young.0, "blob"), bytes(summary.young.1));
            let _ = writeln!(
                text,
                "kept: {size} in {number}: no index has named them since they came, and the newest is {age} old, so they may be an upload (--min-age)"
            );
        }
        if summary.waiting.0 > 0 {
            let (number, size) = (count(summary.waiting.0, "blob"), bytes(summary.waiting.1));
            let left = age(i64::try_from(summary.waiting_seconds.unwrap_or(0)).unwrap_or(i64::MAX));
            let _ = writeln!(text, "in quarantine: {size} in {number}: the first may go in {left} (--now frees them)");
        }
        if summary.hidden.0 > 0 {
            let (number, size) = (count(summary.hidden.0, "blob"), bytes(summary.hidden.1));
            let _ = writeln!(text, "kept: {size} in {number}: {} (--now frees them all the same)", self.hidden);
        }
        if summary.over_limit.0 > 0 {
            let (number, size) = (count(summary.over_limit.0, "blob"), bytes(summary.over_limit.1));
            let _ = writeln!(text, "kept: {size} in {number}: the limit of --max-freed is reached");
        }
        if summary.restore > 0 {
            let _ = writeln!(text, "back from quarantine: {}: needed again", count(summary.restore, "blob"));
        }
        for line in strangers {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn holder(&self, holder: &Holder) -> String {
        match holder {
            Holder::Build => "a running build".into(),
            Holder::Root(RootOrigin::Lease(id)) => self.holders.get(id).unwrap_or(id).clone(),
            Holder::Root(origin) => origin.to_string(),
        }
    }

    fn text(&self, plan: &GcPlan, quiet: bool) -> String {
        if quiet {
            return plan.freed_bytes().to_string() + "\n";
        }
        let needed = format!("needed: {} in {}\n", bytes(self.summary.needed.1), count(self.summary.needed.0, "blob"));
        let stale = stale_line(plan);
        let freed = match plan.hold_seconds() {
            seconds if seconds > 0 && self.summary.condemned > 0 => format!(
                "would move {} to quarantine, and free {}\n",
                count(self.summary.condemned, "blob"),
                bytes(plan.freed_bytes()),
            ),
            _ => format!("would free {} in {}\n", bytes(plan.freed_bytes()), count(self.summary.go, "blob")),
        };
        needed + &self.kept_lines(&plan_strangers(plan)) + &self.hold + &stale + &freed
    }

    fn done(&self, report: &GcReport, strangers: &[String], quiet: bool) -> String {
        if quiet {
            return report.freed_bytes.to_string() + "\n";
        }
        let mut text = self.kept_lines(strangers) + &self.hold;
        if report.healed > 0 {
            let healed = count(report.healed, "blob");
            let _ = writeln!(text, "put back {healed} that another program had freed, from the pins of a mount");
        }
        if !report.held.is_empty() {
            let (number, size) = (count(report.held.len() as u64, "blob"), bytes(report.held_bytes));
            let _ = writeln!(text, "moved {size} in {number} to quarantine");
        }
        let (number, size) = (count(report.freed.len() as u64, "blob"), bytes(report.freed_bytes));
        text + &format!("freed {size} in {number}\n")
    }

    fn document(&self, store: &Store, plan: &GcPlan, report: Option<&GcReport>) -> serde_json::Value {
        let pair = |(blobs, size): (u64, u64)| json!({"blobs": blobs, "bytes": size});
        let held: Vec<_> = self
            .summary
            .held
            .iter()
            .map(|held| json!({"by": self.holder(&held.holder), "blobs": held.blobs, "bytes": held.bytes}))
            .collect();
        let condemned = |blob: &&pfs::gc::PlannedBlob| matches!(blob.verdict, Verdict::Condemn | Verdict::Purge);
        let blobs: Vec<_> = plan
            .blobs()
            .iter()
            .filter(condemned)
            .map(|blob| json!({"digest": blob.digest, "size_bytes": blob.stat.size}))
            .collect();
        json!({
            "store": store.path(),
            "freed_bytes": report.map_or(plan.freed_bytes(), |report| report.freed_bytes),
            "condemned": blobs,
            "needed": pair(self.summary.needed),
            "young": pair(self.summary.young),
            "hidden": pair(self.summary.hidden),
            "over_limit": pair(self.summary.over_limit),
            "waiting": pair(self.summary.waiting),
            "hold_seconds": plan.hold_seconds(),
            "evidence": plan.evidence().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "unreadable_processes": plan.marks().processes.unreadable,
            "held": held,
            "strangers": plan.strangers().iter().map(|stranger| stranger.path.display().to_string()).collect::<Vec<_>>(),
        })
    }
}

/// Why condemned blobs wait, if they do.
fn hold_lines(plan: &GcPlan) -> String {
    let mut text = unreadable_line(plan.marks().processes.unreadable);
    if plan.hold_seconds() > 0 && plan.quarantine_bytes() > 0 {
        let wait = age(i64::try_from(plan.hold_seconds()).unwrap_or(i64::MAX));
        let _ = writeln!(text, "what is condemned waits {wait} in quarantine (--now frees it at once):");
        for evidence in plan.evidence() {
            let _ = writeln!(text, "  {evidence}");
        }
    }
    text
}

fn stale_line(plan: &GcPlan) -> String {
    let size: u64 = plan.stale().iter().map(|stale| stale.bytes).sum();
    match plan.stale().len() as u64 {
        0 => String::new(),
        number => format!("left by programs that ended: {} in {}\n", bytes(size), count(number, "staging directory")),
    }
}

/// Who holds a lease, in words.
fn holder(lease: &LeaseState) -> Option<String> {
    let record = lease.record.as_ref()?;
    let place = record.mountpoint.as_ref().map(|path| format!("the mount at {}", path.display()));
    let what = place.unwrap_or_else(|| "a running build".into());
    let doubt = lease.foreign.as_ref();
    let doubt = doubt.map(|why| format!("; {why}: if it is, pfs mounts --forget {}", lease.id)).unwrap_or_default();
    Some(format!("{what} (pid {}, since {}{doubt})", record.pid, record.since))
}
