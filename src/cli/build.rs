//! `pfs build`.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use pfs::{
    build::{self, BuildOptions, BuildReport},
    codec::Encoding,
    name::{ByteCount, ImageRef, Selector},
    store::Store,
};
use serde_json::json;

use super::{
    Context, Ending, Failure, is_directory,
    output::{bytes, count, print, print_json},
};

/// Build an image of a directory, and tag it.
///
/// The image appears at once when everything is on stable storage, or not at all. The store is made if it does not exist.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs build ./rootfs /srv/oci:app\n  pfs build -c ./rootfs /srv/oci:app\n  pfs build -c --frame-size 4KiB ./rootfs /srv/oci:app"
)]
pub struct Args {
    /// The directory.
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// The tag to give it. A tag that exists moves to the new image.
    #[arg(value_name = "REF")]
    reference: String,
    /// Compress chunks with zstd.
    #[arg(short, long)]
    compress: bool,
    /// How much of a chunk is compressed as one frame.
    #[arg(long, value_name = "SIZE", requires = "compress")]
    frame_size: Option<ByteCount>,
    /// The zstd level, -7 to 19. Negative ones compress less, and are read faster.
    #[arg(long, requires = "compress", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=19))]
    level: Option<i32>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    act(context, &args).map_err(|failure| failure.json(args.json))
}

fn act(context: &Context, args: &Args) -> Ending {
    if let Some(failure) = swapped(context, args) {
        return Err(failure);
    }
    let reference = context.new_reference(&args.reference)?;
    let Selector::Tag(tag) = &reference.selector else {
        return Err(Failure::usage("an image is built under a tag, STORE:TAG, not under a digest".into()));
    };
    let options = BuildOptions { encoding: encoding(args)?, threads: threads() };
    if !args.source.is_dir() {
        let there = if args.source.exists() { "is not a directory" } else { "does not exist" };
        return Err(Failure::failed(format!("{} {there}", args.source.display())));
    }
    let store = open_or_make(context, &reference.store)?;
    let watch = context.progress(args.json);
    let mut progress = |done: build::BuildProgress| watch.bytes(done.done_bytes, done.total_bytes);
    let report = build::build(&args.source, &store, tag, &options, &mut progress)?;
    watch.finish();
    match (args.json, context.globals.quiet) {
        (true, _) => print_json(&document(&reference, &report))?,
        (false, true) => print(&format!("{}\n", report.manifest.0.to_oci()))?,
        (false, false) => print(&text(&reference, &report))?,
    }
    Ok(0)
}

/// What to say if the arguments have changed places.
fn swapped(context: &Context, args: &Args) -> Option<Failure> {
    let reference = args.source.to_str().filter(|_| !args.source.exists() && Path::new(&args.reference).is_dir())?;
    context.new_reference(reference).ok()?;
    let failure = Failure::usage("the directory comes first, then the image".into());
    Some(failure.hint(format!("pfs build {} {reference}", args.reference)))
}

/// A store that is made is announced, since its name may have been mistyped.
fn open_or_make(context: &Context, path: &Path) -> Result<Store, Failure> {
    if Store::is_at(path) || path.exists() {
        return Ok(Store::open_or_create(path)?);
    }
    let parent = path.parent().unwrap_or(path);
    if !is_directory(parent) {
        let problem = format!("{} does not exist, so no store can be made in it", parent.display());
        return Err(Failure::failed(problem).hint(format!("mkdir -p {}", parent.display())));
    }
    let store = Store::open_or_create(path)?;
    if !context.globals.quiet {
        anstream::eprintln!("made the store {}", path.display());
    }
    Ok(store)
}

fn encoding(args: &Args) -> Result<Encoding, Failure> {
    if !args.compress {
        return Ok(Encoding::Plain);
    }
    let frame_bytes = match args.frame_size {
        None => Encoding::FRAME_BYTES_DEFAULT,
        Some(ByteCount(size)) => u32::try_from(size)
            .ok()
            .filter(|size| *size >= 1024)
            .and_then(|size| size.try_into().ok())
            .ok_or_else(|| Failure::usage("a frame has 1 KiB to 4 GiB".into()))?,
    };
    Ok(Encoding::ZstdSeekable { level: args.level.unwrap_or(Encoding::LEVEL_DEFAULT), frame_bytes })
}

fn threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn text(reference: &ImageRef, report: &BuildReport) -> String {
    let stats = &report.stats;
    let mut text = format!(
        "built {reference} ({}): {} in {}\nnew: {} in {} of {}\n",
        report.manifest.0.short(),
        bytes(stats.decoded_bytes),
        count(stats.files, "file"),
        bytes(stats.new_chunk_bytes),
        stats.new_chunks,
        count(stats.chunks, "chunk"),
    );
    if let Some(store) = &report.left_out {
        text += &format!("left out: {}, which is the store itself\n", store.display());
    }
    if let Some(replaced) = &report.replaced {
        text += &format!("the tag stood on {} before; pfs gc frees what only that needed\n", replaced.0.short());
    }
    text
}

fn document(reference: &ImageRef, report: &BuildReport) -> serde_json::Value {
    let stats = &report.stats;
    json!({
        "schema": "pfs.build/1",
        "image": reference.to_string(),
        "manifest": report.manifest.0,
        "rootfs": report.rootfs.0,
        "left_out": report.left_out,
        "replaced": report.replaced.map(|replaced| replaced.0),
        "inodes": stats.inodes,
        "files": stats.files,
        "content_bytes": stats.decoded_bytes,
        "chunks": stats.chunks,
        "new_chunks": stats.new_chunks,
        "new_chunk_bytes": stats.new_chunk_bytes,
        "rootfs_bytes": stats.rootfs_bytes,
    })
}
