//! Golden stores, unpacked, and what their trees must list.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The stores; each has the four tags of [`TAGS`].
pub const STORES: [&str; 3] = ["puzzlefs-0.1.0", "puzzlefs-0.2.0", "puzzlefs-248f74f"];

/// The tags, and which listing each must give.
pub const TAGS: [(&str, &str); 4] =
    [("base", "base"), ("base-zstd", "base"), ("next-delta", "next"), ("next-delta-zstd", "next")];

/// The rows of a listing by path.
pub type Listing = BTreeMap<String, serde_json::Value>;

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
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
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
