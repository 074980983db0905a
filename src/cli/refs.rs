//! `pfs refs`.

use pfs::{explain::refs, store::Store};
use serde_json::json;

use super::{
    Context, Ending,
    output::{bytes, print, print_json, table},
};

/// Print each chunk of an image with how many images need it.
///
/// A chunk with 1 is needed by this image only.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs refs /srv/oci:app\n  pfs refs --json /srv/oci:app")]
pub struct Args {
    /// The image.
    #[arg(value_name = "REF")]
    reference: String,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let json = args.json;
    act(context, args).map_err(|failure| failure.json(json))
}

fn act(context: &Context, args: Args) -> Ending {
    let reference = context.reference(&args.reference)?;
    let store = Store::open(&reference.store)?;
    let chunks = refs(&store, &reference.selector)?;
    if args.json {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| json!({"digest": chunk.digest, "size_bytes": chunk.size, "images": chunk.images}))
            .collect();
        print_json(&json!({"schema": "pfs.refs/1", "image": reference.to_string(), "chunks": chunks}))?;
        return Ok(0);
    }
    let rows = chunks.iter().map(|chunk| {
        let size = chunk.size.map_or_else(|| "missing".into(), bytes);
        vec![chunk.digest.to_string(), size, chunk.images.to_string()]
    });
    print(&table(&["CHUNK", "SIZE", "IMAGES"], &[1, 2], rows.collect()))?;
    Ok(0)
}
