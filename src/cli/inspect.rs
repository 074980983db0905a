//! `pfs inspect`.

use std::{fmt::Write, os::unix::ffi::OsStrExt};

use pfs::{
    explain::{Inspection, inspect},
    format::ManifestVersion,
    image::WantedPlatform,
    store::Store,
    tree::{FileKind, Node},
};
use serde_json::json;

use super::{
    Context, Ending,
    output::{bytes, count, print, print_json},
};

/// Show one image: its manifest, its layers, what it holds and what it shares.
///
/// Visible chunks are those that some path needs; hidden ones are named only by what a layer above hides, or by the verity
/// table, and may be missing without harm.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs inspect /srv/oci:app\n  pfs inspect --files /srv/oci:app | less\n  pfs inspect --json /srv/oci:app"
)]
pub struct Args {
    /// The image.
    #[arg(value_name = "REF")]
    reference: String,
    /// Which image of an index, as in linux/arm64. The default is that of this machine.
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<WantedPlatform>,
    /// List every path too.
    #[arg(long)]
    files: bool,
    /// List the visible chunks too.
    #[arg(long)]
    chunks: bool,
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
    let platform = args.platform.clone().unwrap_or_else(WantedPlatform::here);
    let inspection = inspect(&store, &reference.selector, &platform)?;
    match args.json {
        true => print_json(&document(&inspection, &args))?,
        false => print(&text(&inspection, &args))?,
    }
    Ok(0)
}

fn version(inspection: &Inspection) -> u8 {
    match inspection.version {
        ManifestVersion::V2 => 2,
        ManifestVersion::V3 => 3,
    }
}

fn text(inspection: &Inspection, args: &Args) -> String {
    let tags: Vec<_> = inspection.tags.iter().map(ToString::to_string).collect();
    let chunks = |(number, size): (u64, u64), missing: usize| {
        let missing = if missing == 0 { String::new() } else { format!(", {missing} missing") };
        format!("{number}, {}{missing}", bytes(size))
    };
    let shared = inspection.stored_bytes - inspection.unique_bytes;
    let tags = match inspection.is_inside {
        true => format!("{} (of the index that it is in)", tags.join(", ")),
        false => tags.join(", "),
    };
    let unknown = match inspection.unreadable {
        0 => String::new(),
        number => format!("; what {} that cannot be read share is not known", count(number, "image")),
    };
    let rows = [
        ("tags", tags),
        ("manifest", inspection.manifest.0.to_oci()),
        ("rootfs", format!("{} ({})", inspection.rootfs.0.to_oci(), bytes(inspection.rootfs_bytes))),
        ("version", version(inspection).to_string()),
        ("content", format!("{} in {}", bytes(inspection.content_bytes), count(inspection.files, "file"))),
        ("inodes", format!("{}, {} of them directories", inspection.inodes, inspection.directories)),
        ("stored", bytes(inspection.stored_bytes)),
        ("  unique", format!("{} (what deleting it gives back{unknown})", bytes(inspection.unique_bytes))),
        ("  shared", bytes(shared)),
        ("visible chunks", chunks(inspection.visible_chunks, inspection.missing_visible.len())),
        ("hidden chunks", chunks(inspection.hidden_chunks, inspection.missing_hidden.len())),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:16}{value}");
    }
    for (at, layer) in inspection.layers.iter().enumerate() {
        let place = if at == 0 { "layer 0 (top)".into() } else { format!("layer {at}") };
        let (inodes, whiteouts, chunks) = (layer.inodes, layer.whiteouts, layer.chunks);
        let _ = writeln!(text, "{place:16}{inodes} inodes, {whiteouts} whiteouts, {chunks} chunks");
    }
    if args.chunks {
        for chunk in inspection.view.visible_chunks() {
            let _ = writeln!(text, "{chunk}");
        }
    }
    if args.files {
        for step in inspection.view.walk() {
            let _ = writeln!(text, "{}", file_line(&step.path, &step.node));
        }
    }
    text
}

/// One path, as `ls -l` would have it. Bytes that would break the line are escaped.
fn file_line(path: &[u8], node: &Node) -> String {
    let path = std::ffi::OsStr::from_bytes(path).to_string_lossy().escape_debug().to_string();
    let (kind, mode) = (letter(node.kind), node.permissions);
    format!("{kind} {mode:04o} {:>3} {:>5} {:>5} {:>12} {path}", node.nlink, node.uid, node.gid, node.size)
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::Unknown => '?',
        FileKind::Fifo => 'p',
        FileKind::Char => 'c',
        FileKind::Block => 'b',
        FileKind::Directory => 'd',
        FileKind::Regular => '-',
        FileKind::Symlink => 'l',
        FileKind::Socket => 's',
    }
}

fn document(inspection: &Inspection, args: &Args) -> serde_json::Value {
    let chunks = |(number, size): (u64, u64), missing: &[pfs::name::Digest]| json!({"count": number, "stored_bytes": size, "missing": missing});
    let layers: Vec<_> = inspection
        .layers
        .iter()
        .map(|layer| json!({"inodes": layer.inodes, "whiteouts": layer.whiteouts, "chunks": layer.chunks}))
        .collect();
    let mut document = json!({
        "schema": "pfs.inspect/1",
        "tags": inspection.tags.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "manifest": inspection.manifest.0,
        "inside_index": inspection.is_inside,
        "unreadable_entries": inspection.unreadable,
        "rootfs": inspection.rootfs.0,
        "rootfs_bytes": inspection.rootfs_bytes,
        "manifest_version": version(inspection),
        "files": inspection.files,
        "directories": inspection.directories,
        "inodes": inspection.inodes,
        "content_bytes": inspection.content_bytes,
        "stored_bytes": inspection.stored_bytes,
        "unique_bytes": inspection.unique_bytes,
        "shared_bytes": inspection.stored_bytes - inspection.unique_bytes,
        "visible_chunks": chunks(inspection.visible_chunks, &inspection.missing_visible),
        "hidden_chunks": chunks(inspection.hidden_chunks, &inspection.missing_hidden),
        "layers": layers,
    });
    if args.chunks {
        let chunks: Vec<_> = inspection.view.visible_chunks().into_iter().map(|chunk| chunk.0).collect();
        document["chunks"] = json!(chunks);
    }
    if args.files {
        let files: Vec<_> = inspection.view.walk().map(|step| file_document(&step.path, &step.node)).collect();
        document["paths"] = json!(files);
    }
    document
}

fn file_document(path: &[u8], node: &Node) -> serde_json::Value {
    json!({
        "path": String::from_utf8_lossy(path),
        "type": letter(node.kind).to_string(),
        "mode": format!("{:04o}", node.permissions),
        "nlink": node.nlink,
        "uid": node.uid,
        "gid": node.gid,
        "size_bytes": node.size,
        "ino": node.ino,
    })
}
