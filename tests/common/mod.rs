//! Stores to test with, and what is true of every store that nothing has gone wrong with.

#![allow(dead_code, reason = "each test program uses another part of this")]

#[path = "../trees/mod.rs"]
pub mod trees;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    num::NonZeroUsize,
    ops::Deref,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU64, Ordering},
};

use pfs::{
    build::{BuildError, BuildOptions, build},
    check::{CheckOptions, Severity, check},
    codec::Encoding,
    gc::{Facts, GcError, GcPlan, GcReport, Policy, Roots, apply, plan},
    graph::{Root, load_image, pick, walk},
    name::{ChunkId, Digest, Selector, Tag},
    observe::Silent,
    store::{Lease, LeaseKind, LeaseRecord, Store},
    tree::{ChunkReader, ChunkSource, FileKind, Step, Verify, View},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A store in a directory that goes away with it.
pub struct TestStore {
    pub store: Store,
    pub path: PathBuf,
    place: TempDir,
}

impl Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// A directory for a test: in memory where that can be had, since every publication syncs its filesystem.
pub fn place() -> TempDir {
    match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// A store without images.
pub fn empty() -> TestStore {
    let place = place();
    let path = place.path().join("store");
    TestStore { store: Store::open_or_create(&path).unwrap(), path, place }
}

/// A store without images at this path, which its owner takes care of.
pub fn at(path: &Path) -> TestStore {
    TestStore { store: Store::open_or_create(path).unwrap(), path: path.into(), place: place() }
}

/// A golden store, unpacked.
pub fn golden(name: &str) -> TestStore {
    let place = place();
    let path = trees::unpack(name, place.path());
    TestStore { store: Store::open(&path).unwrap(), path, place }
}

impl TestStore {
    /// A path beside the store that goes away with it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Builds an image of these files.
    pub fn build(&self, tag: &str, files: &[(&str, &[u8])]) -> Digest {
        self.try_build(tag, files).unwrap()
    }

    /// The same, where it may fail.
    pub fn try_build(&self, tag: &str, files: &[(&str, &[u8])]) -> Result<Digest, BuildError> {
        let source = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(source.path().join(name), bytes).unwrap());
        let options = BuildOptions { encoding: Encoding::Plain, threads: NonZeroUsize::new(1).unwrap() };
        let report = build(source.path(), &self.store, &tag.parse().unwrap(), &options, &mut |_| {})?;
        Ok(report.manifest.0)
    }

    /// Where a blob lies, or would.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.to_string())
    }

    /// Writes a blob as another tool would, under its own digest.
    pub fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        fs::write(self.blob(&digest), bytes).unwrap();
        digest
    }

    /// Rewrites the index as another tool would, in place.
    pub fn rewrite_index(&self, edit: impl FnOnce(&mut Vec<Value>)) {
        let path = self.path.join("index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut entries = index["manifests"].as_array().cloned().unwrap_or_default();
        edit(&mut entries);
        index["manifests"] = entries.into();
        fs::write(&path, index.to_string()).unwrap();
    }

    /// Takes a tag out of the index without pfs.
    pub fn untag_foreignly(&self, tag: &str) {
        self.rewrite_index(|entries| entries.retain(|entry| entry["annotations"][REF_NAME] != tag));
    }

    /// The blobs that lie in the store.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let names = fs::read_dir(self.path.join("blobs/sha256")).unwrap();
        names.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
    }

    /// The sum of the sizes of all files, `.pfs` aside but for what holds blobs in it.
    pub fn blob_bytes(&self) -> u64 {
        bytes_under(&["blobs", ".pfs/pins", ".pfs/quarantine", ".pfs/tmp"].map(|part| self.path.join(part)))
    }

    /// Everything in the store but what is ours: for each path what it is, and its content.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        snapshot_into(&self.path, &self.path, &mut all);
        all.retain(|path, _| !path.starts_with(".pfs"));
        all
    }

    /// The names in the staging directory.
    pub fn staged(&self) -> Vec<String> {
        names_in(&self.path.join(".pfs/tmp"))
    }

    /// Takes the lease that a mount of this image takes.
    pub fn mount_lease(&self, tag: &str) -> Lease {
        let (rootfs, manifest) = image_of(&self.store, tag);
        let mut record = lease_record(LeaseKind::Mount);
        (record.manifest, record.rootfs) = (Some(manifest), Some(rootfs));
        record.tag = Some(tag.into());
        record.mountpoint = Some("/srv/app".into());
        self.take_lease(&self.lock_shared().unwrap(), &record).unwrap()
    }

    /// Gathers and plans.
    pub fn plan(&self, policy: Policy) -> Result<GcPlan, GcError> {
        Ok(plan(Facts::gather(&self.store, Roots::Current, now(), &Silent)?, policy, now()))
    }

    /// Collects, and demands that the plan has said exactly what happened.
    pub fn collect(&self, policy: Policy) -> Result<GcReport, GcError> {
        let planned = self.plan(policy)?;
        let (promised, blobs, before) = (planned.freed_bytes(), planned.summary().go, self.blob_bytes());
        let report = apply(planned, &self.store, now(), &Silent)?;
        assert_eq!(report.freed_bytes, promised, "the dry run prints the bytes that the run frees");
        assert_eq!(report.freed.len() as u64, blobs, "the dry run counts the blobs that the run frees");
        assert_eq!(before - self.blob_bytes(), promised, "the bytes are gone from the disk");
        Ok(report)
    }

    /// The tags in the index.
    pub fn tags(&self) -> Vec<String> {
        let index = self.index().unwrap();
        index.document().entries().iter().filter_map(|entry| Some(entry.tag.as_ref()?.to_string())).collect()
    }

    /// Reads an image back, every byte of it, in the form of the golden listings.
    pub fn read_back(&self, tag: &str) -> trees::Listing {
        let picked = pick(self.index().unwrap().document(), &by_tag(tag)).unwrap();
        self.read_back_digest(&picked.digest, picked.kind)
    }

    /// The same, for an image that has lost its tag.
    pub fn read_back_digest(&self, digest: &Digest, kind: pfs::name::MediaKind) -> trees::Listing {
        let view = View::new(load_image(&self.store, digest, kind).unwrap().rootfs).unwrap();
        let chunks = chunk_reader(&self.path);
        let rows = view.walk().map(|step| row(&view, &chunks, &step));
        rows.map(|row| (row["path"].to_string(), row)).collect()
    }
}

/// The annotation that holds a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

pub fn by_tag(text: &str) -> Selector {
    Selector::Tag(tag(text))
}

/// Everything unneeded goes, however young.
pub fn at_once() -> Policy {
    Policy { min_age_seconds: 0, hold: pfs::gc::Hold::Seconds(0), ..Policy::default() }
}

/// The rootfs and the manifest of an image.
pub fn image_of(store: &Store, tag: &str) -> (Digest, Digest) {
    let picked = pick(store.index().unwrap().document(), &by_tag(tag)).unwrap();
    let image = load_image(store, &picked.digest, picked.kind).unwrap();
    (image.rootfs_id.0, image.manifest.0)
}

pub fn lease_record(kind: LeaseKind) -> LeaseRecord {
    LeaseRecord::of_this_process(kind, jiff::Timestamp::now())
}

thread_local! {
    static SALT: Cell<u64> = {
        static TESTS: AtomicU64 = AtomicU64::new(1);
        Cell::new(TESTS.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id()))
    };
}

/// What makes the noise of this test another than that of every other: a collector takes a blob for used while any process
/// has a file of its name open, and tests run side by side.
pub fn salt() -> u64 {
    SALT.get()
}

/// Gives a thread the noise of the test that it works for.
pub fn work_for(salt: u64) {
    SALT.set(salt);
}

/// Bytes that look random, the same for the same seed in one test, and that no other seed or test shares.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt().wrapping_mul(0xD6E8_FEB8_6659_FD93)) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// The propagation of mounts that a new mount namespace is to have, for unshare(1): this one, or `unchanged` where the root
/// is no mount point, as in a plain chroot, since unshare cannot change it there.
pub fn propagation(wanted: &'static str) -> &'static str {
    if root_is_mount_point() { wanted } else { "unchanged" }
}

fn root_is_mount_point() -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == Some("/"))
}

/// Whether mounts of a new namespace can be kept from reaching this one: not in a plain chroot. Says so, and fails under
/// `CI=true`; `scripts/test` makes the root a mount point first.
pub fn can_isolate() -> bool {
    let can = root_is_mount_point();
    if !can {
        eprintln!("skipped: the root directory is no mount point, so mounts of this test could reach the machine");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "the root directory is no mount point");
    }
    can
}

/// Runs the program.
pub fn pfs(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
    command.env_remove("PFS_STORE").env_remove("CLICOLOR_FORCE").args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Fails unless nothing that an image needs is damaged, missing or in quarantine, and graph and oracle agree.
pub fn assert_sound(store: &Store) {
    let report = check(store, &CheckOptions { selector: None, data: true }, &Silent).unwrap();
    let damage: Vec<_> = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).collect();
    assert!(damage.is_empty(), "{damage:#?}");
    let index = store.index().unwrap();
    let graph = walk(store, Root::of_index(index.document())).unwrap();
    let inventory = store.inventory().unwrap();
    let quarantined = store.quarantined().unwrap();
    for digest in needed(store.path()) {
        assert!(graph.needs(&digest), "the graph has missed {digest}");
    }
    for blob in quarantined.iter().filter(|blob| graph.needs(&blob.digest)) {
        assert!(inventory.get(&blob.digest).is_some(), "{} is needed and lies in quarantine", blob.digest);
    }
}

/// The blobs of a store that its index needs, found without any decoder: a blob is needed if its digest stands, in
/// hexadecimal or raw, in the index or anywhere in a needed blob.
pub fn needed(layout: &Path) -> BTreeSet<Digest> {
    needed_from(layout, &fs::read(layout.join("index.json")).unwrap())
}

/// The same, with other roots.
pub fn needed_from(layout: &Path, roots: &[u8]) -> BTreeSet<Digest> {
    let blobs = layout.join("blobs/sha256");
    let names = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().file_name());
    let all: BTreeSet<Digest> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    let mut needed = BTreeSet::new();
    let mut open = named_in(roots, &all);
    while let Some(digest) = open.pop() {
        if needed.insert(digest) {
            open.extend(named_in(&fs::read(blobs.join(digest.to_string())).unwrap(), &all));
        }
    }
    needed
}

fn named_in(text: &[u8], digests: &BTreeSet<Digest>) -> Vec<Digest> {
    let mut starts = vec![false; 1 << 16];
    let forms = |digest: &Digest| [digest.as_bytes().to_vec(), digest.to_string().into_bytes()];
    digests.iter().flat_map(forms).for_each(|form| starts[start_of(&form)] = true);
    let mut found = Vec::new();
    for at in 0..text.len().saturating_sub(31) {
        if starts[start_of(&text[at..])] {
            let raw = Digest::from_bytes(&text[at..at + 32]);
            let hex = text.get(at..at + 64).and_then(|hex| std::str::from_utf8(hex).ok()?.parse().ok());
            found.extend([raw, hex].into_iter().flatten().filter(|digest| digests.contains(digest)));
        }
    }
    found
}

fn start_of(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// Reads the files of the images of a store.
pub fn chunk_reader(layout: &Path) -> ChunkReader {
    ChunkReader::new(Box::new(Chunks(Store::open(layout).unwrap())), Verify::First, Box::new(|_| {}))
}

struct Chunks(Store);

impl ChunkSource for Chunks {
    fn open(&self, chunk: &ChunkId) -> io::Result<File> {
        self.0.open_blob(&chunk.0).map_err(io::Error::other)
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

/// Bytes as Python's `os.fsdecode` and `json.dumps` write them.
fn text(bytes: &[u8]) -> String {
    let escape = |byte: u8| format!("\\udc{byte:02x}");
    let chunk = |chunk: std::str::Utf8Chunk<'_>| {
        chunk.valid().to_owned() + &chunk.invalid().iter().copied().map(escape).collect::<String>()
    };
    bytes.utf8_chunks().map(chunk).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// The bytes of the files in these directories, a file with several names counted once.
fn bytes_under(places: &[PathBuf]) -> u64 {
    let mut seen = BTreeSet::new();
    let files = places.iter().flat_map(walkdir::WalkDir::new).filter_map(Result::ok);
    let facts = files.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file);
    facts.filter(|facts| seen.insert(facts.ino())).map(|facts| facts.len()).sum()
}

fn snapshot_into(root: &Path, directory: &Path, all: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        let kind = facts.file_type();
        let what = match () {
            () if kind.is_dir() => "directory".into(),
            () if kind.is_symlink() => format!("link to {}", fs::read_link(&path).unwrap().display()),
            () if kind.is_fifo() => "fifo".into(),
            () => format!("{:o} {}", facts.permissions().mode(), Digest::of(&fs::read(&path).unwrap())),
        };
        if kind.is_dir() {
            snapshot_into(root, &path, all);
        }
        all.insert(path.strip_prefix(root).unwrap().into(), what);
    }
}
