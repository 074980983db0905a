//! `build` beside `puzzlefs build` 0.2.0, where that is installed.

mod built;

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use built::{can, has, is_root, list_host, make_golden_trees, noise, options, text};
use pfs::{build::build, codec::Encoding, store::Store};

fn has_upstream() -> bool {
    let version = Command::new("puzzlefs").arg("--version").output();
    let is_020 = version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("0.2.0"));
    can(is_020, "puzzlefs 0.2.0")
}

fn puzzlefs(args: &[&str]) {
    let output = Command::new("puzzlefs").args(args).output().unwrap();
    assert!(output.status.success(), "puzzlefs {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ours(tree: &Path, store: &Path, encoding: Encoding) {
    let store = Store::open_or_create(store).unwrap();
    build(tree, &store, &"x".parse().unwrap(), &options(encoding), &mut |_| {}).unwrap();
}

/// Both builds write the same blobs and the same index, byte for byte.
fn assert_builds_alike(tree: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, mine) = (dir.path().join("theirs"), dir.path().join("mine"));
    puzzlefs(&["build", tree.to_str().unwrap(), &format!("{}:x", theirs.display())]);
    ours(tree, &mine, Encoding::Plain);
    assert_eq!(fs::read(mine.join("index.json")).unwrap(), fs::read(theirs.join("index.json")).unwrap());
    assert_eq!(
        list_host(&mine.join("blobs")).into_keys().collect::<Vec<_>>(),
        list_host(&theirs.join("blobs")).into_keys().collect::<Vec<_>>()
    );
}

#[test]
fn golden_trees_build_alike() {
    if !has_upstream() || !can(is_root() && has("python3"), "root, for device nodes, and python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    make_golden_trees(dir.path());
    ["base", "next"].iter().for_each(|tree| assert_builds_alike(&dir.path().join(tree)));
}

#[test]
fn an_empty_tree_builds_alike() {
    if has_upstream() {
        assert_builds_alike(tempfile::tempdir().unwrap().path());
    }
}

/// So many that the message has many segments of different sizes.
#[test]
fn thirty_thousand_files_build_alike() {
    if !has_upstream() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for at in 0..30_000usize {
        let parent = dir.path().join(format!("{:03}", at * 7919 % 300));
        fs::create_dir_all(&parent).unwrap();
        fs::write(parent.join(format!("{at}{}", "n".repeat(at % 90))), noise(at as u64, at % 300)).unwrap();
    }
    assert_builds_alike(dir.path());
}

#[test]
fn files_longer_than_chunks_and_chunks_longer_than_files_build_alike() {
    if !has_upstream() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (at, len) in [1, 0, 16 << 10, 70_000, 256 << 10, 5 << 20, 0, 3, 1 << 20].into_iter().enumerate() {
        fs::write(dir.path().join(format!("noise{at}")), noise(at as u64, len)).unwrap();
        fs::write(dir.path().join(format!("zeros{at}")), vec![0; len]).unwrap();
    }
    fs::hard_link(dir.path().join("noise5"), dir.path().join("also5")).unwrap();
    symlink("t".repeat(4000), dir.path().join("long")).unwrap();
    assert_builds_alike(dir.path());
}

#[test]
fn upstream_extracts_what_we_compress() {
    if !has_upstream() || !can(is_root(), "root, since puzzlefs sets owners") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub/dir")).unwrap();
    fs::write(tree.join("sub/noise"), noise(1, 400_000)).unwrap();
    fs::write(tree.join("sub/dir/text"), text(900_000)).unwrap();
    (0..200).for_each(|at| fs::write(tree.join(format!("sub/{at}")), text(at * 13)).unwrap());
    symlink("sub", tree.join("z-link")).unwrap();
    for (level, frame_bytes) in [(3, 4 << 10), (3, 128 << 10), (-7, 128 << 10), (3, 256 << 10)] {
        let [store, out] = ["store", "out"].map(|name| dir.path().join(format!("{name}{level}-{frame_bytes}")));
        let frame_bytes = std::num::NonZeroU32::new(frame_bytes).unwrap();
        ours(&tree, &store, Encoding::ZstdSeekable { level, frame_bytes });
        puzzlefs(&["extract", &format!("{}:x", store.display()), out.to_str().unwrap()]);
        assert_eq!(without_modes(&out), without_modes(&tree), "level {level}, frames of {frame_bytes} bytes");
    }
}

/// What puzzlefs 0.2.0 does to owners and modes is not ours to test: it loses set-id bits, and changes the targets of links.
fn without_modes(tree: &Path) -> Vec<(Vec<u8>, String)> {
    list_host(tree).into_iter().map(|(path, (_, _, _, what))| (path, what)).collect()
}
