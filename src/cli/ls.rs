//! `pfs ls`.

use std::path::PathBuf;

use pfs::explain::{ListingRow, RowState, listing};
use serde_json::json;

use super::{
    Context, Ending,
    output::{age, bytes, print, print_json, table, timestamp},
};

/// List the images of a store.
///
/// SIZE is what an image needs, UNIQUE what deleting this tag alone would give back.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs ls /srv/oci\n  pfs ls -q /srv/oci\n  pfs ls --json /srv/oci")]
pub struct Args {
    /// The layout directory.
    store: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let json = args.json;
    act(context, args).map_err(|failure| failure.json(json))
}

fn act(context: &Context, args: Args) -> Ending {
    let store = context.open(args.store.as_ref())?;
    let listing = listing(&store)?;
    if args.json {
        let images: Vec<_> = listing.rows.iter().map(row_document).collect();
        print_json(&json!({
            "schema": "pfs.ls/1",
            "store": store.path(),
            "stored_bytes": listing.stored_bytes,
            "images": images,
        }))?;
    } else if context.globals.quiet {
        let names =
            listing.rows.iter().map(|row| row.tag.as_ref().map_or_else(|| row.digest.clone(), ToString::to_string));
        print(&names.map(|name| name + "\n").collect::<String>())?;
    } else {
        let now = context.now_seconds();
        let rows = listing.rows.iter().map(|row| row_text(row, now)).collect();
        print(&table(&["TAG", "DIGEST", "KIND", "SIZE", "UNIQUE", "MOUNTS", "AGE"], &[3, 4, 5, 6], rows))?;
        for row in &listing.rows {
            if let RowState::Broken(error) = &row.state {
                anstream::eprintln!("damaged: {error}");
            }
        }
    }
    Ok(0)
}

fn row_text(row: &ListingRow, now: i64) -> Vec<String> {
    let (kind, size, unique) = match &row.state {
        RowState::Known { kind, size, unique, .. } => (*kind, bytes(*size), bytes(*unique)),
        RowState::Broken(_) => ("damaged", "?".into(), "?".into()),
    };
    let hex = row.digest.rsplit(':').next().unwrap_or_default();
    vec![
        row.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string),
        hex.chars().take(12).collect(),
        kind.into(),
        size,
        unique,
        if row.mounts == 0 { "-".into() } else { row.mounts.to_string() },
        row.created_seconds.map_or_else(|| "?".into(), |seconds| age(now - seconds)),
    ]
}

fn row_document(row: &ListingRow) -> serde_json::Value {
    let mut document = json!({
        "tag": row.tag.as_ref().map(ToString::to_string),
        "digest": row.digest,
        "mounts": row.mounts,
        "created": row.created_seconds.and_then(timestamp),
    });
    match &row.state {
        RowState::Known { kind, size, unique, missing } => {
            document["kind"] = json!(kind);
            document["size_bytes"] = json!(size);
            document["unique_bytes"] = json!(unique);
            document["missing_blobs"] = json!(missing);
        }
        RowState::Broken(error) => {
            document["kind"] = json!("damaged");
            document["problem"] = json!(error.to_string());
        }
    }
    document
}
