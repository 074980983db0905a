//! `pfs ls`.

use std::{cmp::Reverse, path::PathBuf, str::FromStr};

use clap::ValueEnum;
use pfs::{
    explain::{ListingRow, RowState, listing},
    name::Glob,
};
use serde_json::json;

use super::{
    Context, Ending,
    output::{age, bytes, print, print_json, table, timestamp},
};

/// List the images of a store.
///
/// SIZE is what an image needs, UNIQUE what deleting this tag alone would give back.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs ls /srv/oci\n  pfs ls -q /srv/oci\n  pfs ls --dangling /srv/oci\n  pfs ls --filter 'tag=app-*' --sort unique /srv/oci\n  pfs ls --json /srv/oci"
)]
pub struct Args {
    /// The layout directory.
    store: Option<PathBuf>,
    /// Only entries without a name that are in no tagged index, and neither mounted nor pinned.
    #[arg(long)]
    dangling: bool,
    /// Only what fits all of these: tag=GLOB, kind=puzzlefs|image|index|damaged, mounted=yes|no, pinned=yes|no,
    /// dangling=yes|no.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// The order: by name, or the largest, the one with most bytes of its own, or the oldest first; without it, as in
    /// the index.
    #[arg(long, value_enum)]
    sort: Option<Order>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    Name,
    Size,
    Unique,
    Age,
}

/// One condition on a row.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Filter {
    Tag(Glob),
    Kind(String),
    Mounted(bool),
    Pinned(bool),
    Dangling(bool),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in tag=app-*")?;
        match key {
            "tag" | "reference" => Ok(Self::Tag(value.parse().unwrap_or_else(|never| match never {}))),
            "kind" => Ok(Self::Kind(value.into())),
            "mounted" => Ok(Self::Mounted(yes_or_no(value)?)),
            "pinned" => Ok(Self::Pinned(yes_or_no(value)?)),
            "dangling" => Ok(Self::Dangling(yes_or_no(value)?)),
            _ => Err("the keys are tag, kind, mounted, pinned and dangling".into()),
        }
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("write yes or no".into()),
    }
}

impl Filter {
    fn fits(&self, row: &ListingRow) -> bool {
        match self {
            Self::Tag(glob) => row.tag.as_ref().is_some_and(|tag| glob.matches(tag.as_str())),
            Self::Kind(kind) => kind_of(row) == kind,
            Self::Mounted(wanted) => (row.mounts > 0) == *wanted,
            Self::Pinned(wanted) => (row.pins > 0) == *wanted,
            Self::Dangling(wanted) => row.dangling == *wanted,
        }
    }
}

pub fn run(context: &Context, args: Args) -> Ending {
    let json = args.json;
    act(context, args).map_err(|failure| failure.json(json))
}

fn act(context: &Context, args: Args) -> Ending {
    let store = context.open(args.store.as_ref())?;
    let now = context.now_seconds();
    let mut listing = listing(&store, now)?;
    let fits = |row: &ListingRow| (!args.dangling || row.dangling) && args.filter.iter().all(|filter| filter.fits(row));
    listing.rows.retain(fits);
    sort(&mut listing.rows, args.sort);
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
        let rows = listing.rows.iter().map(|row| row_text(row, now)).collect();
        let header = ["TAG", "DIGEST", "KIND", "SIZE", "UNIQUE", "MOUNTS", "PINS", "AGE"];
        print(&table(&header, &[3, 4, 5, 6, 7], rows))?;
        for row in &listing.rows {
            if let RowState::Broken(error) = &row.state {
                anstream::eprintln!("damaged: {error}");
            }
        }
    }
    Ok(0)
}

/// What has no such number comes last.
fn sort(rows: &mut [ListingRow], order: Option<Order>) {
    let sizes = |row: &ListingRow| match row.state {
        RowState::Known { size, unique, .. } => Some((size, unique)),
        RowState::Broken(_) => None,
    };
    match order {
        None => {}
        Some(Order::Name) => rows.sort_by_key(|row| (row.tag.is_none(), row.tag.clone())),
        Some(Order::Size) => rows.sort_by_key(|row| Reverse(sizes(row).map(|(size, _)| size))),
        Some(Order::Unique) => rows.sort_by_key(|row| Reverse(sizes(row).map(|(_, unique)| unique))),
        Some(Order::Age) => rows.sort_by_key(|row| (row.created_seconds.is_none(), row.created_seconds)),
    }
}

fn kind_of(row: &ListingRow) -> &'static str {
    match &row.state {
        RowState::Known { kind, .. } => kind,
        RowState::Broken(_) => "damaged",
    }
}

fn row_text(row: &ListingRow, now: i64) -> Vec<String> {
    let (size, unique) = match &row.state {
        RowState::Known { size, unique, .. } => (bytes(*size), bytes(*unique)),
        RowState::Broken(_) => ("?".into(), "?".into()),
    };
    let hex = row.digest.rsplit(':').next().unwrap_or_default();
    let number = |number: u64| if number == 0 { "-".into() } else { number.to_string() };
    vec![
        row.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string),
        hex.chars().take(12).collect(),
        kind_of(row).into(),
        size,
        unique,
        number(row.mounts),
        number(row.pins),
        row.created_seconds.map_or_else(|| "?".into(), |seconds| age(now - seconds)),
    ]
}

fn row_document(row: &ListingRow) -> serde_json::Value {
    let mut document = json!({
        "tag": row.tag.as_ref().map(ToString::to_string),
        "digest": row.digest,
        "mounts": row.mounts,
        "pins": row.pins,
        "dangling": row.dangling,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_or_refused() {
        assert_eq!("tag=app-*".parse(), Ok(Filter::Tag("app-*".parse().unwrap())));
        assert_eq!("mounted=no".parse(), Ok(Filter::Mounted(false)));
        for bad in ["", "tag", "size=3", "pinned=maybe"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
