//! `pfs refs`.

use pfs::{
    explain::{ChunkRefs, Refs, Sharer, refs},
    image::WantedPlatform,
    name::ImageRef,
    store::Store,
};
use serde_json::json;

use super::{
    Context, Ending,
    output::{bytes, count, print, print_json, table},
};

/// Show which images share the chunks of an image, and how many images need each chunk.
///
/// A chunk that 1 image needs is this image's own.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs refs /srv/oci:app\n  pfs refs --json /srv/oci:app")]
pub struct Args {
    /// The image.
    #[arg(value_name = "REF")]
    reference: String,
    /// Which image of an index, as in linux/arm64. The default is that of this machine.
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<WantedPlatform>,
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
    let platform = args.platform.unwrap_or_else(WantedPlatform::here);
    let refs = refs(&store, &reference.selector, &platform)?;
    match args.json {
        true => print_json(&document(&reference, &refs))?,
        false => print(&text(&refs, context.globals.quiet))?,
    }
    Ok(0)
}

fn text(refs: &Refs, quiet: bool) -> String {
    let size = |chunk: &ChunkRefs| chunk.size.map_or_else(|| "missing".into(), bytes);
    let rows = refs.chunks.iter().map(|chunk| vec![chunk.digest.short(), size(chunk), chunk.images.to_string()]);
    let listed = table(&["CHUNK", "SIZE", "IMAGES"], &[1, 2], rows.collect());
    if quiet {
        return listed;
    }
    let own = refs.chunks.iter().filter(|chunk| chunk.images <= 1);
    let own_bytes = own.clone().filter_map(|chunk| chunk.size).sum();
    let all_bytes = refs.chunks.iter().filter_map(|chunk| chunk.size).sum();
    let all = count(refs.chunks.len() as u64, "chunk");
    let mut text = format!("{all}, {}; {} of them only here, {}\n", bytes(all_bytes), own.count(), bytes(own_bytes));
    if refs.unreadable > 0 {
        text += &format!("not known: what {} that cannot be read share\n", count(refs.unreadable, "image"));
    }
    let name = |sharer: &Sharer| match sharer.tags.is_empty() {
        true => "<none>".into(),
        false => sharer.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let rows = refs
        .sharers
        .iter()
        .map(|sharer| vec![name(sharer), sharer.digest.short(), sharer.chunks.to_string(), bytes(sharer.bytes)]);
    if !refs.sharers.is_empty() {
        text += &format!("\n{}", table(&["SHARED WITH", "DIGEST", "CHUNKS", "SIZE"], &[2, 3], rows.collect()));
    }
    format!("{text}\n{listed}")
}

fn document(reference: &ImageRef, refs: &Refs) -> serde_json::Value {
    let chunk = |chunk: &ChunkRefs| json!({"digest": chunk.digest, "size_bytes": chunk.size, "images": chunk.images});
    let sharer = |sharer: &Sharer| {
        let tags: Vec<_> = sharer.tags.iter().map(ToString::to_string).collect();
        json!({"digest": sharer.digest, "tags": tags, "chunks": sharer.chunks, "bytes": sharer.bytes})
    };
    json!({
        "schema": "pfs.refs/1",
        "image": reference.to_string(),
        "manifest": refs.manifest,
        "shared_with": refs.sharers.iter().map(sharer).collect::<Vec<_>>(),
        "unreadable_entries": refs.unreadable,
        "chunks": refs.chunks.iter().map(chunk).collect::<Vec<_>>(),
    })
}
