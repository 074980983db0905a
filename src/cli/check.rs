//! `pfs check`.

use std::path::{Path, PathBuf};

use pfs::{
    check::{CheckOptions, CheckReport, Severity, check},
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
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs check /srv/oci\n  pfs check --data /srv/oci\n  pfs check /srv/oci:app\n  pfs fsck --json /srv/oci"
)]
pub struct Args {
    /// A layout directory, or an image.
    #[arg(value_name = "STORE|REF")]
    subject: Option<String>,
    /// Hash every blob.
    #[arg(long)]
    data: bool,
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
    let report = check(&store, &CheckOptions { selector, data: args.data }, &watch)?;
    watch.finish();
    match args.json {
        true => print_json(&document(&store, &report))?,
        false => print(&text(&report, context.globals.quiet))?,
    }
    Ok(if report.is_sound() { 0 } else { 4 })
}

/// A directory is a store, everything else a reference.
pub fn subject(context: &Context, text: Option<&str>) -> Result<(Store, Option<pfs::name::Selector>), Failure> {
    let Some(text) = text else { return Ok((context.open(None)?, None)) };
    let looks_like_reference = text.contains(':') || context.globals.store.is_some();
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
