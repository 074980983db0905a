//! Other people's tools on the same store, before, after and under a mount. Real skopeo, umoci and puzzlefs.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{TestStore, assert_sound, golden, names_in, pfs, stderr, stdout, trees};

/// Whether this machine can run the tests here. Says what is missing, and fails under `CI=true`.
fn can() -> bool {
    let tool = |name: &&str| {
        !Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().status.success()
    };
    let mut missing: Vec<&str> = ["skopeo", "umoci", "puzzlefs", "fusermount3"].into_iter().filter(tool).collect();
    if !Path::new("/dev/fuse").exists() {
        missing.push("/dev/fuse");
    }
    if !rustix::process::geteuid().is_root() {
        missing.push("root");
    }
    if !missing.is_empty() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "missing: {missing:?}");
        eprintln!("SKIPPED, missing: {}", missing.join(", "));
    }
    missing.is_empty()
}

fn tool(name: &str, args: &[&str]) -> Output {
    let output = Command::new(name).args(args).output().unwrap();
    assert!(output.status.success(), "{name} {args:?}: {}", stderr(&output));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn image(store: &Path, tag: &str) -> String {
    format!("{}:{tag}", store.display())
}

/// A pfs mount that goes when the test ends, however it ends.
struct Mount(PathBuf);

impl Mount {
    fn new(store: &TestStore, tag: &str) -> Self {
        let dir = store.beside(&format!("mnt-{tag}"));
        fs::create_dir(&dir).unwrap();
        let output = pfs(&["mount", &image(&store.path, tag), text(&dir)]);
        assert!(output.status.success(), "{}", stderr(&output));
        Self(dir)
    }

    /// Waits until the background links are there: they are made right after the mount is ready.
    fn pinned(self, store: &TestStore) -> Self {
        let wanted = || {
            let lease = store.leases().unwrap().into_iter().find(|lease| lease.live)?;
            let manifest = lease.record?.manifest?;
            let chunks = fs::read_dir(store.path.join(".pfs/pins").join(manifest.to_string())).ok()?.count();
            (chunks >= trees_blobs(store, &manifest)).then_some(())
        };
        await_some(wanted);
        self
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        pfs(&["umount", "--lazy", text(&self.0)]);
    }
}

/// How many blobs an image needs.
fn trees_blobs(store: &TestStore, manifest: &pfs::name::Digest) -> usize {
    let root = pfs::graph::Root {
        origin: pfs::graph::RootOrigin::Pin("test".into()),
        digest: pfs::format::DescriptorDigest::Sha256(*manifest),
        kind: pfs::name::MediaKind::Manifest,
    };
    // The empty config is no chunk and is not pinned.
    pfs::graph::walk(&store.store, vec![root]).map_or(usize::MAX, |graph| graph.len() - 1)
}

fn await_some<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it has not come about in 30 s");
        thread::yield_now();
    }
}

/// An upstream mount, in the foreground of a child process.
struct Upstream {
    child: Child,
    dir: PathBuf,
}

impl Upstream {
    fn new(store: &TestStore, tag: &str) -> Self {
        let dir = store.beside("upstream");
        fs::create_dir(&dir).unwrap();
        let mut command = Command::new("puzzlefs");
        command.args(["mount", "-f", &image(&store.path, tag), text(&dir)]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let _first_entry = await_some(|| dir.read_dir().ok()?.next()).unwrap();
        Self { child, dir }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        let _ = self.child.wait();
    }
}

/// Unmounts, and waits until the process has ended.
fn umount(mount: &Mount) {
    let output = pfs(&["umount", text(&mount.0)]);
    assert!(output.status.success(), "{}", stderr(&output));
}

fn umoci_rm_all(store: &TestStore) {
    for tag in store.tags() {
        tool("umoci", &["rm", "--image", &image(&store.path, &tag)]);
    }
}

#[test]
fn a_mounted_image_reads_on_after_umoci_has_removed_its_tag_and_pfs_has_collected() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let mount = Mount::new(&store, "next-delta");
    tool("umoci", &["rm", "--image", &image(&store.path, "next-delta")]);
    let output = pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]);
    assert!(stdout(&output).contains("in use by the mount at"), "{}", stdout(&output));
    trees::assert_same(&trees::list(&mount.0), &trees::expected("next"), "next-delta");
    drop(mount);
    assert_sound(&store);
}

#[test]
fn a_mounted_image_reads_on_after_umoci_has_collected_under_it() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let mount = Mount::new(&store, "next-delta").pinned(&store);
    umoci_rm_all(&store);
    tool("umoci", &["gc", "--layout", text(&store.path)]);
    assert_eq!(names_in(&store.path.join("blobs/sha256")), [""; 0], "umoci has freed all of it");
    assert!(pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]).status.success());
    trees::assert_same(&trees::list(&mount.0), &trees::expected("next"), "next-delta");
    umount(&mount);
    let left = store.blob_bytes();
    assert_eq!(store.collect(common::at_once()).unwrap().freed_bytes, left, "all of it, as the dry run has it");
    assert_eq!(names_in(&store.path.join(".pfs/pins")), [""; 0], "the pins go after the mount");
    assert_sound(&store);
}

#[test]
fn an_upstream_mount_keeps_its_image_though_it_has_no_lease() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let upstream = Upstream::new(&store, "base");
    umoci_rm_all(&store);
    let output = pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]);
    let expected = format!("in use by process {} (puzzlefs)", upstream.child.id());
    assert!(stdout(&output).contains(&expected), "{}", stdout(&output));
    let big = fs::read(upstream.dir.join("data/big.bin")).unwrap();
    let expected = &trees::expected("base")["\"/data/big.bin\""]["sha256"];
    assert_eq!(pfs::name::Digest::of(&big).to_string(), expected.as_str().unwrap());
    drop(upstream);
    assert!(pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]).status.success());
    assert_eq!(names_in(&store.path.join("blobs/sha256")), [""; 0], "and not for longer than it lives");
    assert_sound(&store);
}

#[test]
fn what_umoci_has_untagged_waits_in_quarantine_and_comes_back_with_its_entry() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    assert!(pfs(&["gc", text(&store.path)]).status.success(), "pfs has seen the index");
    let index = fs::read(store.path.join("index.json")).unwrap();
    tool("umoci", &["rm", "--image", &image(&store.path, "next-delta")]);
    let output = pfs(&["gc", text(&store.path)]);
    assert!(stdout(&output).contains("another program wrote index.json"), "{}", stdout(&output));
    assert!(!store.quarantined().unwrap().is_empty());
    fs::write(store.path.join("index.json"), index).unwrap();
    assert!(pfs(&["gc", text(&store.path)]).status.success());
    assert!(store.quarantined().unwrap().is_empty());
    trees::assert_same(&store.read_back("next-delta"), &trees::expected("next"), "next-delta");
    assert_sound(&store);
}

/// A small tree with a little of everything that every tool can carry: upstream cannot extract a link to what comes later.
fn small_tree(store: &TestStore) -> PathBuf {
    let tree = store.beside("tree");
    fs::create_dir_all(tree.join("etc/conf.d")).unwrap();
    fs::write(tree.join("etc/conf.d/a"), common::noise(1, 300_000)).unwrap();
    fs::write(tree.join("etc/empty"), b"").unwrap();
    fs::hard_link(tree.join("etc/conf.d/a"), tree.join("etc/linked")).unwrap();
    std::os::unix::fs::symlink("empty", tree.join("etc/symlink")).unwrap();
    tree
}

#[test]
fn what_pfs_builds_other_tools_list_copy_mount_and_extract() {
    if !can() {
        return;
    }
    let store = common::empty();
    let tree = small_tree(&store);
    for (tag, flags) in [("plain", &[][..]), ("zstd", &["-c"])] {
        let reference = image(&store.path, tag);
        let output = pfs(&[&["build"], flags, &[text(&tree), &reference]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let listed = stdout(&tool("umoci", &["ls", "--layout", text(&store.path)]));
        assert!(listed.lines().any(|line| line == tag), "{listed}");
        let copy = store.beside(&format!("copy-{tag}"));
        tool("skopeo", &["copy", "-q", &format!("oci:{reference}"), &format!("oci:{}", image(&copy, tag))]);
        assert_sound(&pfs::store::Store::open(&copy).unwrap());
        let extracted = store.beside(&format!("extracted-{tag}"));
        tool("puzzlefs", &["extract", &reference, text(&extracted)]);
        assert_eq!(fs::read(extracted.join("etc/linked")).unwrap(), common::noise(1, 300_000));
    }
    let upstream = Upstream::new(&store, "zstd");
    assert_eq!(fs::read(upstream.dir.join("etc/conf.d/a")).unwrap(), common::noise(1, 300_000));
    assert_eq!(fs::read_link(upstream.dir.join("etc/symlink")).unwrap(), Path::new("empty"));
    drop(upstream);
    assert_sound(&store);
}

#[test]
fn what_other_tools_write_pfs_mounts() {
    if !can() {
        return;
    }
    let store = common::empty();
    let tree = small_tree(&store);
    let expected = trees::list(&tree);
    for (tag, flags) in [("theirs", &[][..]), ("theirs-zstd", &["-c"])] {
        tool("puzzlefs", &[&["build"], flags, &[text(&tree), &image(&store.path, tag)]].concat());
        let mount = Mount::new(&store, tag);
        trees::assert_same(&trees::list(&mount.0), &expected, tag);
    }
    let copied = format!("oci:{}", image(&store.path, "theirs"));
    tool("skopeo", &["copy", "-q", &copied, &format!("oci:{}", image(&store.path, "copied"))]);
    tool("umoci", &["tag", "--image", &image(&store.path, "copied"), "tagged"]);
    for tag in ["copied", "tagged"] {
        let mount = Mount::new(&store, tag);
        trees::assert_same(&trees::list(&mount.0), &expected, tag);
    }
    assert_sound(&store);
}

/// A copy by skopeo takes along what the manifest lists, which for a delta image is not everything: the rest is hidden, and
/// nobody misses it.
#[test]
fn a_copied_delta_lacks_hidden_chunks_only_and_is_sound() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let copy = store.beside("copy");
    let from = format!("oci:{}", image(&store.path, "next-delta"));
    tool("skopeo", &["copy", "-q", &from, &format!("oci:{}", image(&copy, "next"))]);
    let output = pfs(&["check", "--data", text(&copy)]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_eq!(stdout(&output).matches("and no file needs it").count(), 7, "{}", stdout(&output));
    let output = pfs(&["gc", "--now", "--min-age", "0", text(&copy)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_sound(&pfs::store::Store::open(&copy).unwrap());
}

#[test]
fn every_tool_works_on_a_layout_with_a_full_directory_of_ours() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let tree = small_tree(&store);
    let mount = Mount::new(&store, "base").pinned(&store);
    let output = pfs(&["delete", &image(&store.path, "next-delta")]);
    assert!(stdout(&output).contains("freed 385.1 KiB"), "{}", stdout(&output));
    let orphan = store.put(b"somebody's upload, still young");
    assert!(pfs(&["gc", "--min-age", "0", "--hold", "1h", text(&store.path)]).status.success());
    assert!(store.quarantined().unwrap().iter().any(|blob| blob.digest == orphan));
    let names = names_in(&store.path.join(".pfs"));
    for name in ["index-log", "leases", "lock", "pins", "quarantine"] {
        assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
    }
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            &format!("oci:{}", image(&store.path, "base")),
            &format!("oci:{}", image(&store.path, "again")),
        ],
    );
    tool("skopeo", &["inspect", "--raw", &format!("oci:{}", image(&store.path, "again"))]);
    tool("umoci", &["tag", "--image", &image(&store.path, "again"), "more"]);
    tool("umoci", &["ls", "--layout", text(&store.path)]);
    tool("puzzlefs", &["build", text(&tree), &image(&store.path, "theirs")]);
    tool("umoci", &["rm", "--image", &image(&store.path, "more")]);
    trees::assert_same(&trees::list(&mount.0), &trees::expected("base"), "base");
    drop(mount);
    assert_sound(&store);
}

/// umoci takes what only the rootfs names for garbage. The tag is still there, and so are the pins of its mount.
#[test]
fn what_umoci_frees_of_a_tagged_image_that_is_mounted_is_put_back() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let mount = Mount::new(&store, "next-delta").pinned(&store);
    let before = store.blobs();
    for tag in ["base", "base-zstd", "next-delta-zstd"] {
        tool("umoci", &["rm", "--image", &image(&store.path, tag)]);
    }
    tool("umoci", &["gc", "--layout", text(&store.path)]);
    let needed = pfs::graph::walk(&store.store, pfs::graph::Root::of_index(store.index().unwrap().document())).unwrap();
    let lost = before.iter().filter(|digest| needed.needs(digest) && !store.blobs().contains(digest)).count();
    assert!(lost > 0, "umoci has freed chunks that only the rootfs names");
    assert!(pfs(&["gc", text(&store.path)]).status.success());
    assert!(needed.digests().all(|digest| store.blobs().contains(&digest)), "all of it is back");
    drop(mount);
    assert_sound(&store);
}

#[test]
fn what_umoci_frees_of_a_tagged_image_outlives_its_mount() {
    if !can() {
        return;
    }
    let store = golden("puzzlefs-0.2.0");
    let mount = Mount::new(&store, "next-delta").pinned(&store);
    for tag in ["base", "base-zstd", "next-delta-zstd"] {
        tool("umoci", &["rm", "--image", &image(&store.path, tag)]);
    }
    tool("umoci", &["gc", "--layout", text(&store.path)]);
    umount(&mount);
    trees::assert_same(&store.read_back("next-delta"), &trees::expected("next"), "next-delta, before the collection");
    assert!(store.collect(common::at_once()).unwrap().healed > 0, "umoci has freed chunks that only the rootfs names");
    trees::assert_same(&store.read_back("next-delta"), &trees::expected("next"), "next-delta");
    assert_sound(&store);
}
