//! `pfs unpin`.

use pfs::{pin::unpin, store::Store};
use serde_json::json;

use super::{
    Context, Ending,
    output::{print, print_json},
    pin::{document, name},
};

/// Take a pin back.
///
/// The image may have lost its tag: then the tag that was pinned, or the digest, still names the pin. Nothing is freed; what
/// only the pin kept falls to the next pfs gc.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs unpin /srv/oci:app\n  pfs unpin /srv/oci@sha256:0123456789ab")]
pub struct Args {
    /// The image.
    #[arg(value_name = "REF")]
    reference: String,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    take_back(context, &args).map_err(|failure| failure.json(args.json))
}

fn take_back(context: &Context, args: &Args) -> Ending {
    let reference = context.reference(&args.reference)?;
    let store = Store::open(&reference.store)?;
    let pin = unpin(&store, &reference.selector)?;
    if args.json {
        print_json(&json!({"schema": "pfs.unpin/1", "store": store.path(), "pin": document(&pin)}))?;
    } else if !context.globals.quiet {
        print(&format!("unpinned {} ({})\n", name(&pin), pin.digest.short()))?;
    }
    Ok(0)
}
