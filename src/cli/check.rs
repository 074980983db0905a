//! `pfs check`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use pfs::{
    check::{CheckOptions, CheckReport, Repair, RepairAction, RepairOptions, Severity, check, repair},
    store::Store,
};
use serde_json::json;

use super::{
    Context, Ending, Failure,
    output::{bytes, count, print, print_json},
};

/// Check a store, or one image of it.
///
/// Reads every index, manifest and rootfs, and looks whether everything that they name is there. --data also hashes
/// every blob. Ends with 4 if something that an image needs is damaged or missing.
///
/// --repair sets blobs of wrong content aside in .pfs/damaged, and puts right copies back from quarantine and from the pins
/// of mounts. What is young, or open for writing, may become right yet: it is left alone, and said. What an earlier repair has set
/// aside and is right by now comes back. It invents nothing and deletes nothing, and checks again afterwards.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs check /srv/oci\n  pfs check --data /srv/oci\n  pfs check /srv/oci:app\n  pfs check --repair /srv/oci\n  pfs fsck --json /srv/oci"
)]
pub struct Args {
    /// A layout directory, or an image.
    #[arg(value_name = "STORE|REF")]
    subject: Option<String>,
    /// Hash every blob.
    #[arg(long)]
    data: bool,
    /// Repair the store as far as it can be, then check it with --data.
    #[arg(long)]
    repair: bool,
    /// How long ago a wrong blob must have been changed for --repair to set it aside.
    #[arg(long, value_name = "AGE", default_value = "10m", value_parser = super::duration::duration)]
    min_age: Duration,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let json = args.json;
    act(context, args).map_err(|failure| failure.json(json))
}

fn act(context: &Context, args: Args) -> Ending {
    let (store, selector) = subject(context, args.subject.as_deref())?;
    let watch = context.progress(args.json);
    let repairs = match (args.repair, &selector) {
        (true, Some(_)) => return Err(Failure::usage("--repair is for a whole store, not for one image of it".into())),
        (true, None) => repair(&store, &RepairOptions { min_age: args.min_age }, &watch)?,
        (false, _) => Vec::new(),
    };
    let report = check(&store, &CheckOptions { selector, data: args.data || args.repair }, &watch)?;
    watch.finish();
    if args.json {
        let mut document = document(&store, &report);
        if args.repair {
            document["repairs"] = repairs.iter().map(repair_document).collect();
        }
        print_json(&document)?;
    } else {
        let repairs: String = repairs.iter().map(|repair| repair_text(repair) + "\n").collect();
        print(&(repairs + &text(&report, context.globals.quiet)))?;
    }
    Ok(if report.is_sound() { 0 } else { 4 })
}

fn repair_text(repair: &Repair) -> String {
    let digest = repair.digest;
    match &repair.action {
        RepairAction::SetAside(path) => {
            format!("set aside: blob {digest}: its content is wrong; it is now {}", path.display())
        }
        RepairAction::LeftAlone(reason) => {
            format!("left alone: blob {digest}: its content is wrong, but {reason}; repair again later")
        }
        RepairAction::Healed(place) => format!("put back: blob {digest}: from {place}"),
        RepairAction::IndexRestored(path) => format!(
            "restored: index.json: it is text {} from the log again; what was there is now {}",
            digest.short(),
            path.display()
        ),
        RepairAction::NoCopy => format!("no copy: blob {digest}: it lies neither in quarantine nor among pins"),
    }
}

fn repair_document(repair: &Repair) -> serde_json::Value {
    let (action, place) = match &repair.action {
        RepairAction::SetAside(path) => ("set-aside", Some(path.display().to_string())),
        RepairAction::LeftAlone(reason) => ("left-alone", Some((*reason).to_owned())),
        RepairAction::Healed(place) => ("put-back", Some((*place).to_owned())),
        RepairAction::IndexRestored(path) => ("index-restored", Some(path.display().to_string())),
        RepairAction::NoCopy => ("no-copy", None),
    };
    json!({"digest": repair.digest, "action": action, "place": place})
}

/// A directory is a store, everything else a reference.
pub fn subject(context: &Context, text: Option<&str>) -> Result<(Store, Option<pfs::name::Selector>), Failure> {
    let Some(text) = text else { return Ok((context.open(None)?, None)) };
    let looks_like_reference = text.contains(':') || context.known_store().is_some();
    if Path::new(text).is_dir() || !looks_like_reference {
        return Ok((context.open(Some(&PathBuf::from(text)))?, None));
    }
    let reference = context.reference(text)?;
    Ok((Store::open(&reference.store)?, Some(reference.selector)))
}

fn text(report: &CheckReport, quiet: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        if !quiet || finding.severity == Severity::Damage {
            text += &format!("{}: {}: {}\n", word(finding.severity), finding.subject, finding.problem);
        }
    }
    if quiet {
        return text;
    }
    let hashed = match report.hashed {
        (0, _) => String::new(),
        (number, size) => format!(", {} hashed ({})", count(number, "blob"), bytes(size)),
    };
    let damaged = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
    let result = if damaged == 0 { "no damage".into() } else { format!("{damaged} damaged") };
    let entries = if report.entries == 1 { "1 entry".into() } else { format!("{} entries", report.entries) };
    text + &format!("checked {entries}{hashed}: {result}\n")
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Notice => "notice",
        Severity::Damage => "damage",
    }
}

fn document(store: &Store, report: &CheckReport) -> serde_json::Value {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({"severity": word(finding.severity), "subject": finding.subject, "problem": finding.problem})
        })
        .collect();
    json!({
        "schema": "pfs.check/1",
        "store": store.path(),
        "sound": report.is_sound(),
        "entries": report.entries,
        "hashed_blobs": report.hashed.0,
        "hashed_bytes": report.hashed.1,
        "findings": findings,
    })
}
