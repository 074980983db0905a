//! Every golden image, read through `tree` alone, lists what a mount of it must list.

mod trees;

use std::{fs, fs::File, io, path::PathBuf, sync::Arc};

use pfs::{
    format::{BlobRef, DescriptorDigest, IndexDocument, Limits, ManifestDocument, Rootfs},
    name::{ChunkId, Digest, MediaKind},
    tree::{ChunkReader, ChunkSource, FileKind, Step, Verify, View},
};
use serde_json::{Map, Value, json};
use trees::{hex, text};

/// The chunks of a layout directory.
struct Layout(PathBuf);

impl Layout {
    fn blob(&self, digest: Digest) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.to_string())
    }

    fn rootfs(&self, tag: &str) -> Rootfs {
        let index = IndexDocument::parse(&fs::read(self.0.join("index.json")).unwrap()).unwrap();
        let entry = index.entries().iter().find(|entry| entry.tag.as_ref().is_some_and(|found| found.as_str() == tag));
        let descriptor = &entry.unwrap().descriptor;
        let rootfs = match descriptor.kind() {
            MediaKind::Rootfs => sha256(&descriptor.digest),
            _ => {
                let manifest = fs::read(self.blob(sha256(&descriptor.digest))).unwrap();
                sha256(&ManifestDocument::parse(&manifest).unwrap().rootfs().unwrap().digest)
            }
        };
        let mut fetch = |blob: &BlobRef| match fs::read(self.blob(blob.chunk.0)) {
            Ok(bytes) if blob.compressed => zstd::decode_all(&bytes[..]).map_err(|cause| cause.to_string()),
            read => read.map_err(|cause| cause.to_string()),
        };
        Rootfs::decode(&fs::read(self.blob(rootfs)).unwrap(), &Limits::default(), &mut fetch).unwrap()
    }
}

impl ChunkSource for Layout {
    fn open(&self, chunk: &ChunkId) -> io::Result<File> {
        File::open(self.blob(chunk.0))
    }
}

fn sha256(digest: &DescriptorDigest) -> Digest {
    let DescriptorDigest::Sha256(digest) = digest else { panic!("{digest:?}") };
    *digest
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::Char => "chr",
        FileKind::Block => "blk",
        FileKind::Unknown => "unknown",
    }
}

fn row(view: &View, chunks: &ChunkReader, step: &Step) -> Value {
    let node = step.node;
    let mut row = Map::new();
    let mut put = |key: &str, value: Value| row.insert(key.into(), value);
    put("path", text(&step.path).into());
    put("type", kind(node.kind).into());
    put("uid", node.uid.into());
    put("gid", node.gid.into());
    match node.kind {
        FileKind::Symlink => put("target", text(view.readlink(node.ino).unwrap()).into()),
        _ => put("mode", format!("{:04o}", node.permissions).into()),
    };
    if let Some(map) = view.file_map(node.ino) {
        let mut bytes = vec![0; usize::try_from(node.size).unwrap() + 10];
        let read = chunks.read_at(node.ino, map, 0, &mut bytes).unwrap();
        assert_eq!(read as u64, node.size);
        put("nlink", node.nlink.into());
        put("size", node.size.into());
        put("sha256", Digest::of(&bytes[..read]).to_string().into());
    }
    if let Some(device) = node.device {
        put("rdev", json!([device.major, device.minor]));
    }
    let xattrs = view.xattrs(node.ino).unwrap().map(|(key, value)| (text(key), Value::from(hex(value))));
    let xattrs: Map<_, _> = xattrs.collect();
    if !xattrs.is_empty() {
        put("xattrs", xattrs.into());
    }
    row.into()
}

#[test]
fn golden_images_list_through_the_tree_as_they_must() {
    let place = tempfile::tempdir().unwrap();
    for store in trees::STORES {
        let root = trees::unpack(store, place.path());
        for (tag, listing) in trees::TAGS {
            let view = View::new(Arc::new(Layout(root.clone()).rootfs(tag))).unwrap();
            let damage = Box::new(|error: &_| panic!("{error}"));
            let chunks = ChunkReader::new(Box::new(Layout(root.clone())), Verify::Always, damage);
            let rows = view.walk().map(|step| row(&view, &chunks, &step));
            let found = rows.map(|row| (row["path"].to_string(), row)).collect();
            trees::assert_same(&found, &trees::expected(listing), &format!("{store}:{tag}"));
        }
    }
}

#[test]
fn the_visible_chunks_of_a_delta_are_some_of_all_its_chunks() {
    let place = tempfile::tempdir().unwrap();
    let root = trees::unpack("puzzlefs-0.2.0", place.path());
    let view = View::new(Layout(root).rootfs("next-delta")).unwrap();
    let (visible, all) = (view.visible_chunks(), view.rootfs().chunks());
    assert!(visible.iter().all(|chunk| all.binary_search(chunk).is_ok()));
    assert!(!visible.is_empty() && visible.len() < all.len(), "{} of {}", visible.len(), all.len());
}
