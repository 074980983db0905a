//! `pfs prune`.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    path::PathBuf,
    time::Duration,
};

use pfs::{
    delete::{DeleteOptions, DeletePlan},
    gc::Hold,
    name::{ByteCount, Glob},
    prune::{GoReason, KeepReason, PrunePlan, PrunePolicy, PruneRow, PruneVerdict, plan},
    store::Store,
};
use serde_json::json;

use super::{
    Context, Ending, Failure,
    duration::{duration, hold},
    output::{age, bytes, count, print, print_json, table, timestamp},
};

/// Remove tags by policy, and entries that dangle, and free what only they needed.
///
/// What is mounted or pinned always stays. Without a rule, only dangling entries go: those without a name that nothing
/// with a name has. Of the tags that no --keep rule keeps, --free takes those that free most, until it is enough; without
/// --free, all of them go, if --keep-last or --keep-within is given: with --keep-last 0, all that --keep-tag does not name.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs prune -n --explain --keep-last 5 /srv/oci\n  pfs prune --yes --keep-within 30d --keep-tag 'release-*' /srv/oci\n  pfs prune --yes --free 20GiB --keep-last 1 /srv/oci\n  pfs prune --yes /srv/oci"
)]
pub struct Args {
    /// The layout directory.
    store: Option<PathBuf>,
    /// Keep so many tags, the newest.
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
    /// Keep the tags that were set within this time, as in 12h or 30d.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    keep_within: Option<Duration>,
    /// Keep the tags that fit; * stands for any characters, ? for one. Alone it lets no tag go.
    #[arg(long, value_name = "GLOB")]
    keep_tag: Vec<Glob>,
    /// Remove only as many as it takes to free this much.
    #[arg(long, value_name = "SIZE")]
    free: Option<ByteCount>,
    /// Print what would be done, and write nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Tell of every entry why it stays or goes.
    #[arg(long)]
    explain: bool,
    /// Do not ask. Needed where stdin is no terminal.
    #[arg(short, long)]
    yes: bool,
    /// How long what falls free waits in quarantine, where pfs undo finds it: auto (not at all, or a day if there is evidence
    /// of another writer), or a duration, as in 7d.
    #[arg(long, value_name = "AGE", default_value = "auto", env = "PFS_HOLD", value_parser = hold)]
    hold: Hold,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    prune(context, &args).map_err(|failure| failure.json(args.json))
}

fn prune(context: &Context, args: &Args) -> Ending {
    let begun_nanoseconds = i64::try_from(jiff::Timestamp::now().as_nanosecond()).ok();
    let store = context.open(args.store.as_ref())?;
    let watch = context.progress(args.json);
    let now = context.now_seconds();
    let decided = plan(&store, &PrunePolicy { begun_nanoseconds, ..policy(args) }, now, &watch)?;
    let decisions = decided.decisions();
    let (delete, moved) = DeletePlan::of_decisions(
        &store,
        &decisions,
        DeleteOptions { hold: args.hold, ..DeleteOptions::default() },
        now,
    )?;
    if !moved.is_empty() {
        let names: Vec<_> = moved.iter().map(ToString::to_string).collect();
        let problem = format!("{} changed while the images were looked at; nothing was removed", names.join(", "));
        return Err(Failure::new(super::failure::Kind::Busy, anyhow::anyhow!(problem)).hint("try again"));
    }
    let outcome = match delete {
        None => Outcome::default(),
        Some(delete) if args.dry_run => {
            let (freed, _) = delete.preview(&store, now, &watch)?;
            Outcome { bytes: freed.freed_bytes(), blobs: freed.summary().go, waiting: freed.quarantine_bytes() }
        }
        Some(delete) => {
            watch.finish();
            if !is_agreed(args, &decided)? {
                return Ok(0);
            }
            let freed = delete.apply(&store, now, &watch)?.freed;
            Outcome { bytes: freed.freed_bytes, blobs: freed.freed.len() as u64, waiting: freed.held_bytes }
        }
    };
    watch.finish();
    match args.json {
        true => print_json(&document(args, &store, &decided, &outcome))?,
        false => print(&text(context, args, &decided, &outcome))?,
    }
    Ok(if decided.is_enough { 0 } else { 3 })
}

#[derive(Default)]
struct Outcome {
    bytes: u64,
    blobs: u64,
    waiting: u64,
}

fn policy(args: &Args) -> PrunePolicy {
    PrunePolicy {
        keep_last: args.keep_last,
        keep_within_seconds: args.keep_within.map(|within| within.as_secs()),
        keep_tags: args.keep_tag.clone(),
        free_bytes: args.free.map(|size| size.0),
        begun_nanoseconds: None,
    }
}

/// Asks on a terminal; elsewhere only --yes will do.
fn is_agreed(args: &Args, decided: &PrunePlan) -> Result<bool, Failure> {
    if args.yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        let problem = "stdin is no terminal, so nobody can be asked; nothing was removed".into();
        return Err(Failure::usage(problem).hint("-n shows what would go, --yes removes it"));
    }
    let names: Vec<_> = going(decided).map(name).collect();
    let (number, size) = (count(names.len() as u64, "entry"), bytes(decided.freed_bytes));
    anstream::eprint!("remove {number} and free {size}: {}? [y/N] ", names.join(", "));
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn going(decided: &PrunePlan) -> impl Iterator<Item = &PruneRow> {
    decided.rows.iter().filter(|row| matches!(row.verdict, PruneVerdict::Go(_)))
}

fn name(row: &PruneRow) -> String {
    row.tag.as_ref().map_or_else(|| row.digest.clone(), ToString::to_string)
}

fn short(row: &PruneRow) -> String {
    row.digest.rsplit(':').next().unwrap_or_default().chars().take(12).collect()
}

fn text(context: &Context, args: &Args, decided: &PrunePlan, outcome: &Outcome) -> String {
    if context.globals.quiet {
        return going(decided).map(|row| name(row) + "\n").collect();
    }
    let mut text = String::new();
    let (removed, freed) = if args.dry_run { ("would remove", "would free") } else { ("removed", "freed") };
    if args.explain {
        let rows = decided.rows.iter().map(|row| table_row(row, context.now_seconds())).collect();
        text += &table(&["TAG", "DIGEST", "AGE", "FREES", "", "WHY"], &[2, 3], rows);
    } else {
        for row in going(decided) {
            let _ = writeln!(text, "{removed} {} ({}): {}", name(row), short(row), reason(row));
        }
    }
    let _ = writeln!(text, "{freed} {} in {}", bytes(outcome.bytes), count(outcome.blobs, "blob"));
    if outcome.waiting > 0 {
        let _ = writeln!(text, "in quarantine: {} (pfs gc --now frees it at once)", bytes(outcome.waiting));
    }
    let hint = match args.keep_within {
        Some(within) => cut_off(context.now_seconds(), within),
        None if args.keep_last.is_none() && args.keep_tag.is_empty() && args.free.is_none() => {
            "note: no rule was given, so only dangling entries go; --keep-last and --keep-within are rules\n".into()
        }
        None => String::new(),
    };
    text += &hint;
    let has_no_rule = |row: &PruneRow| matches!(row.verdict, PruneVerdict::Keep(KeepReason::NoRule));
    if !args.keep_tag.is_empty() && decided.rows.iter().any(has_no_rule) {
        let _ = writeln!(text, "note: --keep-tag alone lets no tag go; with --keep-last 0 all the others go");
    }
    if let (Some(wanted), false) = (args.free, decided.is_enough) {
        let _ = writeln!(text, "not enough: {wanted} were wanted, and nothing else may go");
    }
    text
}

/// Which tags are old enough to go, as a date.
fn cut_off(now: i64, within: std::time::Duration) -> String {
    let at = now.checked_sub_unsigned(within.as_secs()).and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(String::new, |at| format!("--keep-within keeps the tags that were set since {at}\n"))
}

fn table_row(row: &PruneRow, now: i64) -> Vec<String> {
    let (word, frees) = match row.verdict {
        PruneVerdict::Keep(_) => ("keep", "-".into()),
        PruneVerdict::Go(_) => ("remove", bytes(row.frees)),
    };
    let age = row.created_seconds.map_or_else(|| "?".into(), |created| age(now - created));
    let tag = row.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string);
    vec![tag, short(row), age, frees, word.into(), reason(row)]
}

fn reason(row: &PruneRow) -> String {
    match &row.verdict {
        PruneVerdict::Go(GoReason::Dangling) => "dangling: it has no name and nothing uses it".into(),
        PruneVerdict::Go(GoReason::NotKept) => "no rule keeps it".into(),
        PruneVerdict::Go(GoReason::Frees) => "chosen by what it frees".into(),
        PruneVerdict::Keep(KeepReason::Mounted) => "mounted".into(),
        PruneVerdict::Keep(KeepReason::Pinned) => "pinned".into(),
        PruneVerdict::Keep(KeepReason::Ambiguous) => "its tag stands for several manifests".into(),
        PruneVerdict::Keep(KeepReason::NoTag) => "something with a name has it".into(),
        PruneVerdict::Keep(KeepReason::Tag(glob)) => format!("--keep-tag {glob}"),
        PruneVerdict::Keep(KeepReason::Last) => "--keep-last".into(),
        PruneVerdict::Keep(KeepReason::Within) => "--keep-within".into(),
        PruneVerdict::Keep(KeepReason::SetMeanwhile) => "its tag was set after this run had begun".into(),
        PruneVerdict::Keep(KeepReason::NoRule) => "no rule asks for tags to go".into(),
        PruneVerdict::Keep(KeepReason::Enough) => "enough is freed without it".into(),
        PruneVerdict::Keep(KeepReason::FreesNothing) => "it frees nothing unless others go too, and they stay".into(),
    }
}

fn document(args: &Args, store: &Store, decided: &PrunePlan, outcome: &Outcome) -> serde_json::Value {
    let row = |row: &PruneRow| {
        json!({
            "tag": row.tag.as_ref().map(ToString::to_string),
            "digest": row.digest,
            "created": row.created_seconds.and_then(timestamp),
            "goes": matches!(row.verdict, PruneVerdict::Go(_)),
            "reason": reason(row),
            "frees_bytes": row.frees,
        })
    };
    json!({
        "schema": "pfs.prune/1",
        "store": store.path(),
        "dry_run": args.dry_run,
        "entries": decided.rows.iter().map(row).collect::<Vec<_>>(),
        "enough": decided.is_enough,
        "freed_bytes": outcome.bytes,
        "freed_blobs": outcome.blobs,
        "quarantined_bytes": outcome.waiting,
    })
}
