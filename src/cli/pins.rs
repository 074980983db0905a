//! `pfs pins`.

use std::path::PathBuf;

use pfs::store::Pin;
use serde_json::json;

use super::{
    Context, Ending,
    output::{age, print, print_json, table},
    pin::{document, name},
};

/// List the pins of a store.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs pins /srv/oci\n  pfs pins --json /srv/oci\n  pfs -q pins /srv/oci")]
pub struct Args {
    /// The layout directory.
    store: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let store = context.open(args.store.as_ref()).map_err(|failure| failure.json(args.json))?;
    let now = context.now_seconds();
    let pins: Vec<Pin> = store.pins()?.into_iter().filter(|pin| !pin.is_over(now)).collect();
    if args.json {
        let pins: Vec<_> = pins.iter().map(document).collect();
        print_json(&json!({"schema": "pfs.pins/1", "store": store.path(), "pins": pins}))?;
    } else if context.globals.quiet {
        print(&pins.iter().map(|pin| name(pin) + "\n").collect::<String>())?;
    } else {
        print(&table(
            &["PINNED", "DIGEST", "SINCE", "UNTIL", "REASON"],
            &[2],
            pins.iter().map(|pin| row(pin, now)).collect(),
        ))?;
    }
    Ok(0)
}

fn row(pin: &Pin, now: i64) -> Vec<String> {
    vec![
        pin.tag.clone().unwrap_or_else(|| "<none>".into()),
        pin.digest.short(),
        age(now - pin.since.as_second()),
        pin.until.map_or_else(|| "unpinned".into(), |until| until.to_string()),
        pin.reason.clone().unwrap_or_default(),
    ]
}
