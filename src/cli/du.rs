//! `pfs du`.

use std::path::PathBuf;

use pfs::{
    explain::{Class, DiskUse, EntryUse, RowState, disk_use},
    format::DescriptorDigest,
    store::Store,
};
use serde_json::json;

use super::{
    Context, Ending, Failure,
    output::{bytes, count, print, print_json, table},
};

/// Tell who holds the bytes of a store.
///
/// First the images: what each needs, what of that other images need too, and what deleting it alone would give back.
/// Then all files of the directory by what they are there for; these rows add up to what du -sb says of it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs du /srv/oci\n  pfs du --json /srv/oci\n  pfs -s /srv/oci du")]
pub struct Args {
    /// The layout directory.
    store: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    du(context, &args).map_err(|failure| failure.json(args.json))
}

fn du(context: &Context, args: &Args) -> Ending {
    let store = context.open(args.store.as_ref())?;
    let watch = context.progress(args.json);
    let found = disk_use(&store, context.now_seconds(), &watch)?;
    watch.finish();
    match args.json {
        true => print_json(&document(&store, &found))?,
        false => show(&found, context.globals.quiet)?,
    }
    Ok(0)
}

fn show(found: &DiskUse, quiet: bool) -> Result<(), Failure> {
    if quiet {
        return print(&format!("{}\n", found.total_bytes));
    }
    let mut text = String::new();
    if !found.entries.is_empty() {
        let rows = found.entries.iter().map(entry_row).collect();
        text += &table(&["TAG", "DIGEST", "SIZE", "SHARED", "UNIQUE"], &[2, 3, 4], rows);
        text += "\n";
    }
    let rows = found.rows.iter().filter(|row| row.files > 0);
    let mut rows: Vec<_> =
        rows.map(|row| vec![words(row.class).into(), row.files.to_string(), bytes(row.bytes)]).collect();
    rows.push(vec!["all of it, as du -sb has it".into(), String::new(), bytes(found.total_bytes)]);
    text += &table(&["WHAT", "FILES", "SIZE"], &[1, 2], rows);
    if found.missing_blobs > 0 {
        text += &format!("missing: {} that images need (pfs check)\n", count(found.missing_blobs, "blob"));
    }
    print(&text)?;
    if let Some(unknown) = &found.unknown {
        anstream::eprintln!("note: {unknown}");
    }
    Ok(())
}

fn hex(digest: &DescriptorDigest) -> String {
    match digest {
        DescriptorDigest::Sha256(digest) => digest.to_oci(),
        DescriptorDigest::Other(text) => text.clone(),
    }
}

fn entry_row(entry: &EntryUse) -> Vec<String> {
    let (size, shared, unique) = match &entry.state {
        RowState::Known { size, unique, .. } => (bytes(*size), bytes(size - unique), bytes(*unique)),
        RowState::Broken(_) => ("damaged".into(), "?".into(), "?".into()),
    };
    let digest = hex(&entry.digest);
    let digest = digest.rsplit(':').next().unwrap_or_default().chars().take(12).collect();
    let tag = entry.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string);
    vec![tag, digest, size, shared, unique]
}

/// What a class is called for people.
fn words(class: Class) -> &'static str {
    match class {
        Class::Unique => "needed by one image",
        Class::Shared => "shared by several images",
        Class::Held => "held by mounts, pins, builds, other layouts",
        Class::Young => "young, may be an upload",
        Class::Garbage => "garbage, the next gc takes it",
        Class::Quarantine => "in quarantine",
        Class::Unknown => "unknown, not every image can be read",
        Class::Damaged => "damaged, set aside by check --repair",
        Class::Stranger => "not of the store",
        Class::Layout => "index and layout files",
        Class::State => "bookkeeping in .pfs",
        Class::Directory => "directories",
    }
}

/// What a class is called for machines.
fn key(class: Class) -> &'static str {
    match class {
        Class::Unique => "unique",
        Class::Shared => "shared",
        Class::Held => "held",
        Class::Young => "young",
        Class::Garbage => "garbage",
        Class::Quarantine => "quarantine",
        Class::Unknown => "unknown",
        Class::Damaged => "damaged",
        Class::Stranger => "strangers",
        Class::Layout => "layout",
        Class::State => "bookkeeping",
        Class::Directory => "directories",
    }
}

fn document(store: &Store, found: &DiskUse) -> serde_json::Value {
    let rows =
        found.rows.iter().map(|row| (key(row.class).to_owned(), json!({"files": row.files, "bytes": row.bytes})));
    json!({
        "schema": "pfs.du/1",
        "store": store.path(),
        "images": found.entries.iter().map(entry_document).collect::<Vec<_>>(),
        "rows": rows.collect::<serde_json::Map<_, _>>(),
        "total_bytes": found.total_bytes,
        "missing_blobs": found.missing_blobs,
        "unknown": found.unknown.as_ref().map(ToString::to_string),
    })
}

fn entry_document(entry: &EntryUse) -> serde_json::Value {
    let mut document = json!({"tag": entry.tag.as_ref().map(ToString::to_string), "digest": hex(&entry.digest)});
    match &entry.state {
        RowState::Known { size, unique, missing, .. } => {
            document["size_bytes"] = json!(size);
            document["shared_bytes"] = json!(size - unique);
            document["unique_bytes"] = json!(unique);
            document["missing_blobs"] = json!(missing);
        }
        RowState::Broken(error) => document["problem"] = json!(error.to_string()),
    }
    document
}
