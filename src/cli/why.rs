//! `pfs why`.

use std::fmt::Write;

use pfs::{
    explain::{Keeper, Why, why},
    gc::{Holder, KeepReason, Verdict},
    graph::RootOrigin,
    name::{ImageRef, is_digest_prefix},
    store::Store,
};
use serde_json::json;

use super::{
    Context, Ending, Failure,
    output::{age, bytes, print, print_json},
};

/// Tell what keeps a blob, or that nothing does.
///
/// Of an image, its manifest is explained. The way goes from the tag, mount or pin over the documents to the files that
/// have bytes of the blob.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs why /srv/oci@sha256:0123456789ab\n  pfs -s /srv/oci why 0123456789ab\n  pfs why /srv/oci:app\n  pfs why --json /srv/oci:app"
)]
pub struct Args {
    /// A blob, by its digest or the first 6 digits of it or more, or an image.
    #[arg(value_name = "DIGEST|REF")]
    subject: String,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    explain(context, &args).map_err(|failure| failure.json(args.json))
}

fn explain(context: &Context, args: &Args) -> Ending {
    let reference = subject(context, &args.subject)?;
    let store = Store::open(&reference.store)?;
    let watch = context.progress(args.json);
    let found = match why(&store, &reference.selector, context.now_seconds(), &watch) {
        // Digits alone may also be a tag.
        Err(_) if is_digest_prefix(&args.subject) => {
            why(&store, &context.reference(&args.subject)?.selector, context.now_seconds(), &watch)?
        }
        found => found?,
    };
    watch.finish();
    match args.json {
        true => print_json(&document(&store, &found))?,
        false => print(&text(&found, context.globals.quiet))?,
    }
    Ok(0)
}

/// Bare digits are a digest where the store is known.
fn subject(context: &Context, text: &str) -> Result<ImageRef, Failure> {
    match is_digest_prefix(text) && context.known_store().is_some() {
        true => context.reference(&format!("@{text}")),
        false => context.reference(text),
    }
}

fn text(found: &Why, quiet: bool) -> String {
    let mut text = String::new();
    if !quiet {
        let size = found.size.map_or_else(|| "not in blobs/".into(), bytes);
        let _ = writeln!(text, "blob {} ({size})", found.digest.to_oci());
    }
    for keeper in &found.keepers {
        let mut way = vec![holder(keeper)];
        way.extend(keeper.way.iter().cloned());
        let _ = writeln!(text, "kept by {}", way.join(" -> "));
        text += &files_text(keeper);
    }
    text + &fate(found) + "\n"
}

fn files_text(keeper: &Keeper) -> String {
    let mut text = String::new();
    for path in &keeper.files.some {
        let _ = writeln!(text, "  {}", path.escape_debug());
    }
    match keeper.files.count.saturating_sub(keeper.files.some.len() as u64) {
        0 if keeper.files.hidden => text += "  no path needs it: a layer above hides what did\n",
        0 => {}
        more => drop(writeln!(text, "  and {more} more")),
    }
    text
}

/// A root in words: where it is mounted and by whom, until when it is pinned and why.
fn holder(keeper: &Keeper) -> String {
    match (&keeper.lease, &keeper.pin) {
        (Some(lease), _) => {
            let place = lease.mountpoint.as_ref().map(|path| format!("the mount at {}", path.display()));
            format!("{} (pid {})", place.unwrap_or_else(|| "a mount".into()), lease.pid)
        }
        (None, Some(pin)) => {
            let until = pin.until.map(|until| format!(" until {until}")).unwrap_or_default();
            let reason = pin.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{}{until}{reason}", keeper.origin)
        }
        (None, None) => keeper.origin.to_string(),
    }
}

fn fate(found: &Why) -> String {
    let time = |seconds: u64| age(i64::try_from(seconds).unwrap_or(i64::MAX));
    if let Some(unknown) = &found.unknown {
        return format!("kept: {unknown}");
    }
    match &found.verdict {
        None => "it is not in the store".into(),
        Some(Verdict::Keep(KeepReason::Needed)) => "kept: an image needs it".into(),
        Some(Verdict::Keep(KeepReason::LimitReached | KeepReason::Hidden) | Verdict::Condemn) => {
            "kept by nothing: the next gc frees it".into()
        }
        Some(Verdict::Held(holders)) if holders.contains(&Holder::Build) => {
            "kept: a running build has claimed it".into()
        }
        Some(Verdict::Held(_)) => "kept: no image needs it, but it is in use".into(),
        Some(Verdict::Young(seconds)) => {
            format!(
                "kept for now: it is {} old and no index has named it since it came, so it may be an upload",
                time(*seconds)
            )
        }
        Some(Verdict::Restore) => "it lies in quarantine and is needed: the next gc puts it back".into(),
        Some(Verdict::Wait(seconds)) => {
            format!("kept by nothing: it lies in quarantine, and a gc in {} frees it", time(*seconds))
        }
        Some(Verdict::Purge) => "kept by nothing: it lies in quarantine, and the next gc frees it".into(),
    }
}

/// The fate in one word, for machines.
fn word(found: &Why) -> &'static str {
    match &found.verdict {
        _ if found.unknown.is_some() => "unknown",
        None => "missing",
        Some(Verdict::Keep(KeepReason::Needed)) => "needed",
        Some(Verdict::Keep(KeepReason::LimitReached | KeepReason::Hidden) | Verdict::Condemn) => "garbage",
        Some(Verdict::Held(_)) => "held",
        Some(Verdict::Young(_)) => "young",
        Some(Verdict::Restore) => "needed-in-quarantine",
        Some(Verdict::Wait(_) | Verdict::Purge) => "quarantine",
    }
}

fn document(store: &Store, found: &Why) -> serde_json::Value {
    let keepers: Vec<_> = found.keepers.iter().map(keeper_document).collect();
    json!({
        "schema": "pfs.why/1",
        "store": store.path(),
        "digest": found.digest,
        "size_bytes": found.size,
        "state": word(found),
        "explanation": fate(found),
        "keepers": keepers,
    })
}

fn keeper_document(keeper: &Keeper) -> serde_json::Value {
    let tag = match &keeper.origin {
        RootOrigin::Entry(_, tag) => tag.as_ref().map(ToString::to_string),
        _ => None,
    };
    json!({
        "root": keeper.origin.to_string(),
        "tag": tag,
        "mountpoint": keeper.lease.as_ref().and_then(|lease| lease.mountpoint.clone()),
        "pid": keeper.lease.as_ref().map(|lease| lease.pid),
        "pin": keeper.pin.as_ref().map(super::pin::document),
        "way": keeper.way,
        "files": keeper.files.some,
        "files_count": keeper.files.count,
        "hidden": keeper.files.hidden,
    })
}
