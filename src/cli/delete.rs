//! `pfs delete`.

use std::{fmt::Write, path::Path};

use pfs::{
    delete::{Conflict, DeleteError, DeleteOptions, DeletePlan, DeleteReport, KeptBytes, Target},
    gc::Hold,
    store::{ProcessEvidence, Store},
};
use serde_json::json;

use super::{
    Context, Ending,
    duration::hold,
    failure::{Failure, Kind, forget_hint},
    output::{age, bytes, count, print, print_json, unreadable_line},
};

/// Delete images: remove their tags and free what nothing else needs.
///
/// A mounted image is refused; --force removes its tag now and leaves its content until the mount ends.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs delete /srv/oci:app\n  pfs delete -n /srv/oci:app\n  pfs rm /srv/oci:old /srv/oci:older\n  pfs delete --force /srv/oci:app\n  pfs delete --hold 7d /srv/oci:app"
)]
pub struct Args {
    /// The images, all of one store.
    #[arg(value_name = "REF", required = true)]
    references: Vec<String>,
    /// Print what would be done, and write nothing.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Delete in spite of soft conflicts: a tag that is mounted, a digest with several tags, an image that is pinned
    /// (the pin goes too).
    #[arg(short, long)]
    force: bool,
    /// A tag that stands on several manifests goes from all of them.
    #[arg(long)]
    all: bool,
    /// Keep base images without a name that only a deleted image was built on.
    #[arg(long)]
    no_prune: bool,
    /// Remove the tags only; pfs gc frees their content later.
    #[arg(long)]
    keep_blobs: bool,
    /// How long what falls free waits in quarantine, where pfs undo finds it: auto (not at all, or a day if there is evidence
    /// of another writer), or a duration, as in 7d. 0 frees it at once.
    #[arg(long, value_name = "AGE", default_value = "auto", env = "PFS_HOLD", value_parser = hold)]
    hold: Hold,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    delete(context, &args).map_err(|failure| failure.json(args.json))
}

fn delete(context: &Context, args: &Args) -> Ending {
    let (path, references) = context.references(&args.references)?;
    let store = Store::open(&path)?;
    let watch = context.progress(args.json);
    let (force, all) = (args.force, args.all);
    let options = DeleteOptions { force, all, keep_blobs: args.keep_blobs, no_prune: args.no_prune, hold: args.hold };
    let selectors: Vec<_> = references.into_iter().map(|reference| reference.selector).collect();
    let now = context.now_seconds();
    let plan = DeletePlan::new(&store, &selectors, options, now).map_err(|error| failure(error, args, &path))?;
    let outcome = if args.dry_run {
        let mut outcome = Outcome { dry_run: true, targets: plan.targets().to_vec(), ..Outcome::default() };
        if !args.keep_blobs {
            let (freed, kept) = plan.preview(&store, now, &watch)?;
            let summary = freed.summary();
            (outcome.bytes, outcome.blobs) = (freed.freed_bytes(), summary.go);
            (outcome.held_bytes, outcome.held_blobs) = (freed.quarantine_bytes(), summary.condemned);
            outcome.evidence = freed.evidence().iter().map(ToString::to_string).collect();
            outcome.unreadable = freed.marks().processes.unreadable;
            outcome.hidden = hidden(&freed.marks().processes, args);
            outcome.held_seconds = freed.hold_seconds();
            outcome.kept = kept;
        }
        outcome
    } else {
        let mut outcome = Outcome::of(plan.apply(&store, now, &watch).map_err(|error| failure(error, args, &path))?);
        outcome.hidden = outcome.hidden.filter(|_| args.hold != Hold::Seconds(0));
        outcome
    };
    watch.finish();
    match args.json {
        true => print_json(&outcome.document(&store))?,
        false => print(&outcome.text(context.globals.quiet))?,
    }
    Ok(0)
}

/// The hint of a mounted image is a line that can be run as it is.
fn failure(error: DeleteError, args: &Args, store: &Path) -> Failure {
    match &error {
        DeleteError::Conflict(Conflict::Mounted { at, .. }) => {
            if let Some(hint) = at.iter().find_map(|at| forget_hint(at, store)) {
                return Failure::new(Kind::InUse, error).hint(hint);
            }
            let places: Vec<_> = at.iter().map(|at| at.mountpoint.display().to_string()).collect();
            let (places, references) = (places.join(" "), args.references.join(" "));
            let hint = format!(
                "pfs umount {places} && pfs delete {references}, or --force to untag it now and free its chunks after unmount"
            );
            Failure::new(Kind::InUse, error).hint(hint)
        }
        _ => error.into(),
    }
}

#[derive(Default)]
struct Outcome {
    dry_run: bool,
    targets: Vec<Target>,
    bytes: u64,
    blobs: u64,
    held_bytes: u64,
    held_blobs: u64,
    evidence: Vec<String>,
    held_seconds: u64,
    hidden: Option<String>,
    unreadable: u64,
    kept: Vec<KeptBytes>,
}

/// Why nothing is freed although nothing that can be seen needs it.
fn hidden(processes: &ProcessEvidence, args: &Args) -> Option<String> {
    processes.hidden.clone().filter(|_| args.hold != Hold::Seconds(0))
}

impl Outcome {
    fn of(report: DeleteReport) -> Self {
        Self {
            dry_run: false,
            targets: report.untagged,
            bytes: report.freed.freed_bytes,
            blobs: report.freed.freed.len() as u64,
            held_bytes: report.freed.held_bytes,
            held_blobs: report.freed.held.len() as u64,
            evidence: report.evidence.iter().map(ToString::to_string).collect(),
            held_seconds: report.freed.held_seconds,
            hidden: report.hidden,
            unreadable: report.unreadable,
            kept: report.kept,
        }
    }

    fn text(&self, quiet: bool) -> String {
        let (untagged, freed) = if self.dry_run { ("would untag", "would free") } else { ("untagged", "freed") };
        let mut text = String::new();
        for target in &self.targets {
            let digest = target.foreign_digest.clone().unwrap_or_else(|| target.digest.short());
            let names: Vec<_> = target.tags.iter().map(ToString::to_string).collect();
            let names = if names.is_empty() { "an entry without a tag".into() } else { names.join(", ") };
            let _ = writeln!(text, "{untagged} {names} ({digest})");
        }
        if quiet {
            return text;
        }
        let _ = writeln!(text, "{freed} {} in {}", bytes(self.bytes), count(self.blobs, "blob"));
        if self.held_blobs > 0 {
            let (number, size) = (count(self.held_blobs, "blob"), bytes(self.held_bytes));
            let time = match self.held_seconds {
                86_400 => "a day".into(),
                seconds => age(i64::try_from(seconds).unwrap_or(i64::MAX)),
            };
            let because = if self.evidence.is_empty() { "" } else { ", because" };
            let _ = writeln!(text, "in quarantine for {time}: {size} in {number} (pfs gc --now frees them){because}");
            for evidence in &self.evidence {
                let _ = writeln!(text, "  {evidence}");
            }
        }
        if let Some(why) = &self.hidden {
            let _ = writeln!(text, "kept what fell free: {why} (pfs gc --now frees it all the same)");
        }
        text += self.way_back();
        text += &unreadable_line(self.unreadable);
        for kept in &self.kept {
            let _ = writeln!(text, "kept {}: needed by {}", bytes(kept.bytes), kept.by);
        }
        text
    }

    /// Whether `undo` can still help, where somebody may count on it.
    fn way_back(&self) -> &'static str {
        match (self.dry_run, self.blobs, self.held_blobs) {
            (false, _, 1..) if !self.kept.is_empty() => {
                "pfs undo brings it back until then, unless what it shares is deleted meanwhile\n"
            }
            (false, 1.., 0) => "this is final: pfs undo cannot bring it back; --hold 7d would keep it for a week\n",
            (false, _, 1..) => "pfs undo brings it back until then\n",
            _ => "",
        }
    }

    fn document(&self, store: &Store) -> serde_json::Value {
        let untagged: Vec<_> = self
            .targets
            .iter()
            .map(|target| {
                let tags: Vec<_> = target.tags.iter().map(ToString::to_string).collect();
                let digest = target.foreign_digest.clone().unwrap_or_else(|| target.digest.to_oci());
                json!({"digest": digest, "tags": tags, "entries": target.places.len()})
            })
            .collect();
        let kept: Vec<_> = self.kept.iter().map(|kept| json!({"by": kept.by, "bytes": kept.bytes})).collect();
        json!({
            "schema": "pfs.delete/1",
            "store": store.path(),
            "dry_run": self.dry_run,
            "untagged": untagged,
            "freed_bytes": self.bytes,
            "freed_blobs": self.blobs,
            "quarantined_bytes": self.held_bytes,
            "quarantined_blobs": self.held_blobs,
            "evidence": self.evidence,
            "unreadable_processes": self.unreadable,
            "kept": kept,
        })
    }
}
