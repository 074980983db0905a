//! What the tests of `build` share: a sink in memory, trees made and listed, prerequisites.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    num::NonZeroUsize,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process::Command,
    sync::Mutex,
};

use pfs::{
    build::{BuildError, BuildOptions, ChunkSink, Rendered, render},
    codec::{Encoding, Hashed, decode_all},
    format::{Kind, Limits, Rootfs},
    name::Digest,
    store::{Put, StoreError, Stored},
};

/// Blobs in memory.
#[derive(Default)]
pub struct Memory(pub Mutex<HashMap<Digest, Vec<u8>>>);

impl ChunkSink for Memory {
    fn put(&self, blob: Hashed<'_>) -> Result<Stored, StoreError> {
        let (digest, bytes) = (blob.digest(), blob.bytes());
        let old = self.0.lock().unwrap().insert(digest, bytes.to_vec());
        let put = if old.is_some() { Put::Reused } else { Put::Written };
        Ok(Stored { digest, size: bytes.len() as u64, put })
    }
}

impl Memory {
    pub fn get(&self, digest: impl Into<Digest>) -> Vec<u8> {
        self.0.lock().unwrap()[&digest.into()].clone()
    }

    pub fn rootfs(&self, rendered: &Rendered) -> Rootfs {
        let bytes = self.get(rendered.rootfs);
        Rootfs::decode(&bytes, &Limits::default(), &mut |_| unreachable!("version 3 has no metadata blobs")).unwrap()
    }
}

pub fn options(encoding: Encoding) -> BuildOptions {
    BuildOptions { encoding, threads: NonZeroUsize::new(2).unwrap() }
}

pub fn try_render(source: &Path, encoding: Encoding) -> (Memory, Result<Rendered, BuildError>) {
    let memory = Memory::default();
    let rendered = render(source, &memory, &options(encoding), &mut |_| {});
    (memory, rendered)
}

pub fn rendered(source: &Path, encoding: Encoding) -> (Memory, Rendered) {
    let (memory, rendered) = try_render(source, encoding);
    (memory, rendered.unwrap())
}

/// Bytes that do not compress, and of which no stretch occurs twice.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let blocks = (0u64..).flat_map(|at| *Digest::of(&[seed.to_le_bytes(), at.to_le_bytes()].concat()).as_bytes());
    blocks.take(len).collect()
}

/// Bytes that compress.
pub fn text(len: usize) -> Vec<u8> {
    (0u32..).flat_map(|line| format!("line {line} of many that look alike\n").into_bytes()).take(len).collect()
}

/// What is known of everything in a tree: by path, its owner and mode, and what it is.
pub type Listing = BTreeMap<Vec<u8>, (u32, u32, u32, String)>;

/// The tree of an image.
pub fn list_image(rootfs: &Rootfs, memory: &Memory) -> Listing {
    let mut listing = Listing::new();
    let mut pending = vec![(Vec::new(), 1)];
    while let Some((path, ino)) = pending.pop() {
        let inode = rootfs.inode(ino).unwrap();
        let what = match inode.kind() {
            Kind::Dir(dir) => {
                let below = |name: &[u8]| [path.as_slice(), b"/", name].concat();
                pending.extend(dir.entries().map(|entry| (below(entry.name), entry.ino)));
                "directory".into()
            }
            Kind::File(map) => {
                let bytes: Vec<u8> = map.pieces().flat_map(|piece| read_piece(memory, &piece)).collect();
                format!("file {}", Digest::of(&bytes))
            }
            Kind::Symlink(target) => format!("link to {}", String::from_utf8_lossy(target)),
            Kind::Fifo => "fifo".into(),
            Kind::Socket => "socket".into(),
            _ => "other".into(),
        };
        listing.insert(path, (inode.uid(), inode.gid(), inode.permissions().into(), what));
    }
    listing
}

fn read_piece(memory: &Memory, piece: &pfs::format::Piece) -> Vec<u8> {
    let stored = memory.get(piece.blob.chunk);
    let decoded = if piece.blob.compressed { decode_all(&stored, 1 << 20).unwrap() } else { stored };
    let start = piece.blob.offset as usize;
    decoded[start..start + piece.len as usize].to_vec()
}

/// The tree of a directory.
pub fn list_host(root: &Path) -> Listing {
    let entry = |entry: walkdir::DirEntry| {
        let metadata = entry.path().symlink_metadata().unwrap();
        let what = match metadata.file_type() {
            kind if kind.is_dir() => "directory".into(),
            kind if kind.is_file() => format!("file {}", Digest::of(&fs::read(entry.path()).unwrap())),
            kind if kind.is_symlink() => format!("link to {}", entry.path().read_link().unwrap().to_string_lossy()),
            _ if metadata.mode() & 0o170_000 == 0o010_000 => "fifo".into(),
            _ if metadata.mode() & 0o170_000 == 0o140_000 => "socket".into(),
            _ => "other".into(),
        };
        let path = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes();
        let path = if path.is_empty() { Vec::new() } else { [b"/", path].concat() };
        (path, (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777, what))
    };
    walkdir::WalkDir::new(root).into_iter().map(|found| entry(found.unwrap())).collect()
}

/// Whether the test can run. Where it cannot, it says so; in CI it fails, since nobody would read that.
pub fn can(run: bool, needs: &str) -> bool {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(run || !ci, "this test needs {needs}");
    if !run {
        eprintln!("SKIPPED: this test needs {needs}");
    }
    run
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes `base` and `next` of the golden trees under `out`.
pub fn make_golden_trees(out: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/make-tree.py");
    assert!(Command::new("python3").arg(script).arg(out).status().unwrap().success());
}

pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}
