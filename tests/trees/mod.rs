//! Golden stores, unpacked, and what their trees must list.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use pfs::name::Digest;
use serde_json::{Map, Value, json};

/// The stores; each has the four tags of [`TAGS`].
pub const STORES: [&str; 3] = ["puzzlefs-0.1.0", "puzzlefs-0.2.0", "puzzlefs-248f74f"];

/// The tags, and which listing each must give.
pub const TAGS: [(&str, &str); 4] =
    [("base", "base"), ("base-zstd", "base"), ("next-delta", "next"), ("next-delta-zstd", "next")];

/// The rows of a listing by path.
pub type Listing = BTreeMap<String, Value>;

pub fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

/// Unpacks a golden store into `into` and returns where it is.
pub fn unpack(store: &str, into: &Path) -> PathBuf {
    let packed = fs::File::open(golden(&format!("{store}.tar.zst"))).unwrap();
    let tar = Command::new("tar").args(["-x", "--no-same-owner", "-C"]).arg(into).stdin(Stdio::piped()).spawn();
    let mut tar = tar.unwrap();
    let bytes = zstd::decode_all(packed).unwrap();
    tar.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    into.join(store)
}

pub fn expected(listing: &str) -> Listing {
    parse(&fs::read_to_string(golden(&format!("{listing}.jsonl"))).unwrap())
}

/// Python writes a byte that is not UTF-8 as a lone surrogate, which is no JSON; here it stays the six characters.
pub fn parse(lines: &str) -> Listing {
    let lines = lines.replace("\\udc", "\\\\udc");
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["path"].to_string(), row)).collect()
}

/// Fails with the first few rows that differ, rather than with two listings of hundreds.
pub fn assert_same(found: &Listing, expected: &Listing, what: &str) {
    let paths = expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path)));
    let differ: Vec<_> = paths.filter(|path| found.get(*path) != expected.get(*path)).take(5).collect();
    let rows =
        differ.iter().map(|path| format!("\n found    {:?}\n expected {:?}", found.get(*path), expected.get(*path)));
    assert!(differ.is_empty(), "{what}: {}", rows.collect::<String>());
}

/// Lists a directory as `list-tree.py` does.
pub fn list(dir: &Path) -> Listing {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap());
    let rows = entries.map(|entry| {
        let inside = entry.path().strip_prefix(dir).unwrap().as_os_str().as_bytes();
        describe(entry.path(), &[b"/", inside].concat())
    });
    rows.map(|row| (row["path"].to_string(), row)).collect()
}

fn describe(path: &Path, name: &[u8]) -> Value {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = kind(meta.file_type());
    let mut row = json!({"path": text(name), "type": kind, "uid": meta.uid(), "gid": meta.gid()});
    match kind {
        "symlink" => row["target"] = text(fs::read_link(path).unwrap().as_os_str().as_bytes()).into(),
        _ => row["mode"] = format!("{:04o}", meta.mode() & 0o7777).into(),
    }
    if kind == "file" {
        row["nlink"] = meta.nlink().into();
        row["size"] = meta.size().into();
        row["sha256"] = Digest::of(&fs::read(path).unwrap()).to_string().into();
    }
    if let "chr" | "blk" = kind {
        row["rdev"] = json!([rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())]);
    }
    // A mount of an image without attributes says that it has none to ask for.
    let names = match xattr::list(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::Unsupported => Vec::new(),
        names => names.unwrap().collect(),
    };
    let value = |name: &OsString| hex(&xattr::get(path, name).unwrap().unwrap());
    let xattrs: Map<_, _> = names.into_iter().map(|name| (text(name.as_bytes()), value(&name).into())).collect();
    if !xattrs.is_empty() {
        row["xattrs"] = xattrs.into();
    }
    row
}

fn kind(of: fs::FileType) -> &'static str {
    match of {
        _ if of.is_file() => "file",
        _ if of.is_dir() => "dir",
        _ if of.is_symlink() => "symlink",
        _ if of.is_fifo() => "fifo",
        _ if of.is_socket() => "socket",
        _ if of.is_char_device() => "chr",
        _ => "blk",
    }
}

/// Bytes as Python's `os.fsdecode` and `json.dumps` write them, read back as [`parse`] does.
pub fn text(bytes: &[u8]) -> String {
    let escape = |byte: u8| format!("\\udc{byte:02x}");
    let chunk = |chunk: std::str::Utf8Chunk<'_>| {
        chunk.valid().to_owned() + &chunk.invalid().iter().copied().map(escape).collect::<String>()
    };
    bytes.utf8_chunks().map(chunk).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
