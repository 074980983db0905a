//! Power cuts: the store lies on a disk that records its writes and flushes, and crash images are made of what had been flushed
//! and a part of what had not. Each must mount, and everything that a command had finished must be there, whole.
//!
//! The disk is a file of a FUSE filesystem of this test, under a loop device with ext4. `PFS_POWER_CUT_IMAGES` says how many
//! images are looked at. Needs root, FUSE and loop devices.

mod common;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, UNIX_EPOCH},
};

use common::{noise, stderr, stdout};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, SessionACL, WriteFlags,
};
use serde_json::Value;

const DISK_BYTES: usize = 224 << 20;
const DISK: &str = "disk";
/// Without these ext4 writes a file's bytes before a rename over another, and so hides that a sync was left out.
const OPTIONS: &str = "noauto_da_alloc,commit=1";
const TTL: Duration = Duration::from_secs(3600);

/// What happened to the disk, in order.
enum Event {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
    Begun,
    Ended,
}

#[derive(Default)]
struct Record {
    bytes: Vec<u8>,
    events: Vec<Event>,
    is_on: bool,
}

#[derive(Clone)]
struct Recorder(Arc<Mutex<Record>>);

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }

    fn note(&self, event: Event) {
        self.lock().events.push(event);
    }
}

fn attributes(ino: u64) -> FileAttr {
    let is_root = ino == 1;
    FileAttr {
        ino: INodeNo(ino),
        size: if is_root { 0 } else { DISK_BYTES as u64 },
        blocks: if is_root { 0 } else { DISK_BYTES as u64 / 512 },
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: if is_root { 0o755 } else { 0o600 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Recorder {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == DISK {
            true => reply.entry(&TTL, &attributes(2), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(ino.into()));
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let record = self.lock();
        let start = usize::try_from(offset).unwrap().min(record.bytes.len());
        let end = (start + size as usize).min(record.bytes.len());
        reply.data(&record.bytes[start..end]);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut record = self.lock();
        let offset = usize::try_from(offset).unwrap();
        record.bytes[offset..offset + data.len()].copy_from_slice(data);
        if record.is_on {
            record.events.push(Event::Write { offset, bytes: data.into() });
        }
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let mut record = self.lock();
        if record.is_on {
            record.events.push(Event::Flush);
        }
        reply.ok();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", stderr(&output));
    stdout(&output).trim().into()
}

/// A filesystem on a loop device over a file. Both go when it is dropped.
struct Loop {
    device: String,
    mountpoint: PathBuf,
}

impl Loop {
    fn attach(file: &Path) -> String {
        run("losetup", &["--find", "--show", file.to_str().unwrap()])
    }

    /// `None` if the filesystem cannot be mounted.
    fn mount(device: String, mountpoint: &Path) -> Option<Self> {
        let mount = Self { device, mountpoint: mountpoint.into() };
        let output =
            Command::new("mount").args(["-t", "ext4", "-o", OPTIONS, &mount.device]).arg(mountpoint).output().unwrap();
        output.status.success().then_some(mount)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mountpoint).output();
        let _ = Command::new("losetup").args(["--detach", &self.device]).output();
    }
}

/// Tags and what they stand for.
type Tags = BTreeMap<String, String>;

fn tags_in(store: &Path) -> Option<Tags> {
    let index: Value = serde_json::from_slice(&fs::read(store.join("index.json")).ok()?).ok()?;
    let entries = index["manifests"].as_array()?.iter();
    let named = entries.filter_map(|entry| {
        let tag = entry["annotations"][common::REF_NAME].as_str()?;
        Some((tag.to_owned(), entry["digest"].as_str()?.to_owned()))
    });
    Some(named.collect())
}

/// A recording: the disk before it, what happened, and the tags after each step; before the first there are none.
struct Recording {
    start: Vec<u8>,
    events: Vec<Event>,
    tags: Vec<Tags>,
}

/// A command of pfs, with what is done to the store written as `STORE`, the mountpoint as `MNT` and trees as `TREE/name`.
type Step = &'static [&'static str];

const STEPS: &[Step] = &[
    &["build", "-q", "TREE/a", "STORE:one"],
    &["build", "-q", "-c", "TREE/b", "STORE:two"],
    &["build", "-q", "TREE/c", "STORE:one"],
    &["pin", "STORE:two"],
    &["build", "-q", "TREE/d", "STORE:three"],
    &["delete", "--hold", "1d", "STORE:three"],
    &["gc", "STORE"],
    &["undo", "STORE:three"],
    &["unpin", "STORE:two"],
    &["delete", "--hold", "0", "STORE:two"],
    &["build", "-q", "TREE/large", "STORE:large"],
    &["mount", "STORE:one", "MNT"],
    &["umount", "MNT"],
    &["check", "--repair", "STORE"],
    &["prune", "--yes", "--keep-last", "2", "--hold", "0", "STORE"],
    &["gc", "--now", "--min-age", "0", "STORE"],
    &["build", "-q", "TREE/a", "STORE:last"],
];

/// What a control does: enough to lose something.
const SHORT: &[Step] = &[
    &["build", "-q", "TREE/a", "STORE:one"],
    &["build", "-q", "TREE/b", "STORE:two"],
    &["delete", "--hold", "0", "STORE:one"],
    &["build", "-q", "TREE/c", "STORE:two"],
    &["gc", "--now", "--min-age", "0", "STORE"],
];

fn can() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has = |path: &str| Path::new(path).exists();
    let tools = ["losetup", "mkfs.ext4", "strace"]
        .iter()
        .all(|tool| Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success());
    let can = is_root && has("/dev/fuse") && has("/dev/loop-control") && tools;
    if !can {
        eprintln!("SKIPPED: this needs root, /dev/fuse, loop devices, losetup, mkfs.ext4 and strace");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "power cuts cannot be tried here");
    }
    can
}

fn make_trees(place: &Path) {
    for (seed, name) in (1..).zip(["a", "b", "c", "d"]) {
        let tree = place.join(name);
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("shared"), noise(100, 150_000)).unwrap();
        fs::write(tree.join("own"), noise(seed, 90_000)).unwrap();
    }
    fs::create_dir_all(place.join("large")).unwrap();
    // More than is staged between two early syncs.
    fs::write(place.join("large/file"), noise(200, 70 << 20)).unwrap();
}

/// Runs the steps on a recorded disk. `ignored` are the system calls that do nothing and say that they have.
fn record(place: &Path, steps: &[Step], ignored: Option<&str>) -> Recording {
    let (fuse, disk_mount, mnt) = (place.join("fuse"), place.join("mounted"), place.join("image"));
    for directory in [&fuse, &disk_mount, &mnt] {
        fs::create_dir_all(directory).unwrap();
    }
    let recorder = Recorder(Arc::new(Mutex::new(Record { bytes: vec![0; DISK_BYTES], ..Record::default() })));
    let mut config = Config::default();
    config.acl = SessionACL::Owner;
    config.mount_options = vec![MountOption::FSName("pfs-power-cut".into())];
    let session = fuser::spawn_mount(recorder.clone(), &fuse, &config).unwrap();
    let device = Loop::attach(&fuse.join(DISK));
    run("mkfs.ext4", &["-q", "-F", &device]);
    let disk = Loop::mount(device, &disk_mount).unwrap();
    run("sync", &[]);
    let store = disk_mount.join("store");
    let start = {
        let mut record = recorder.lock();
        record.is_on = true;
        record.bytes.clone()
    };
    let mut tags = vec![Tags::new()];
    for step in steps {
        recorder.note(Event::Begun);
        let output = step_command(step, place, &store, &mnt, ignored).output().unwrap();
        assert!(output.status.success(), "{step:?}: {}{}", stdout(&output), stderr(&output));
        recorder.note(Event::Ended);
        tags.push(tags_in(&store).unwrap());
    }
    recorder.lock().is_on = false;
    drop(disk);
    let _ = session.umount_and_join();
    let events = std::mem::take(&mut recorder.lock().events);
    Recording { start, events, tags }
}

fn step_command(step: &[&str], place: &Path, store: &Path, mnt: &Path, ignored: Option<&str>) -> Command {
    let mut command = match ignored {
        Some(calls) => {
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={calls}"), "--"]);
            strace.arg(env!("CARGO_BIN_EXE_pfs"));
            strace
        }
        None => Command::new(env!("CARGO_BIN_EXE_pfs")),
    };
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let fill = |argument: &&str| match *argument {
        "MNT" => text(mnt),
        argument => argument.replace("STORE", &text(store)).replace("TREE", &text(&place.join("trees"))),
    };
    command.args(step.iter().map(fill)).env_remove("PFS_STORE").env_remove("PFS_HOLD");
    command
}

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % sides
    }
}

/// Makes so many crash images, and gives what was wrong with them.
fn cut(recording: &Recording, place: &Path, images: usize) -> Vec<String> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut places: Vec<usize> = (0..images).map(|_| dice.roll(recording.events.len())).collect();
    places.sort_unstable();
    let (image, mountpoint) = (place.join("crashed"), place.join("after"));
    fs::create_dir_all(&mountpoint).unwrap();
    let mut durable = recording.start.clone();
    let (mut done, mut problems) = (0, Vec::new());
    for at in places {
        let last_flush = (done..at).rev().find(|at| matches!(recording.events[*at], Event::Flush)).unwrap_or(done);
        apply(&mut durable, &recording.events[done..last_flush], |_, _| Some(1.0));
        done = last_flush;
        let mut crashed = durable.clone();
        let pending = &recording.events[done..at];
        let writes = pending.iter().filter(|event| matches!(event, Event::Write { .. })).count();
        let kind = dice.roll(5);
        apply(&mut crashed, pending, |nth, _| match kind {
            0 => None,
            1 => Some(1.0),
            2 => (nth + 1 < writes).then_some(1.0),
            3 => (dice.roll(2) == 0).then_some(1.0),
            // The last write is torn.
            _ => Some(if nth + 1 < writes { 1.0 } else { 0.5 }),
        });
        fs::write(&image, &crashed).unwrap();
        if let Err(problem) = examine(recording, at, &image, &mountpoint, place) {
            problems.push(format!("event {at} of {}, pending writes {kind}: {problem}", recording.events.len()));
        }
    }
    problems
}

/// Applies writes: `part` says how much of the nth goes to the disk, in whole blocks.
fn apply(disk: &mut [u8], events: &[Event], mut part: impl FnMut(usize, usize) -> Option<f64>) {
    let mut nth = 0;
    for event in events {
        let Event::Write { offset, bytes } = event else { continue };
        if let Some(part) = part(nth, bytes.len()) {
            let len = if part < 1.0 { bytes.len() / 2 / 512 * 512 } else { bytes.len() };
            disk[*offset..*offset + len].copy_from_slice(&bytes[..len]);
        }
        nth += 1;
    }
}

/// What must be true after a power cut at this event.
fn examine(recording: &Recording, at: usize, image: &Path, mountpoint: &Path, place: &Path) -> Result<(), String> {
    let device = Loop::attach(image);
    let Some(_mount) = Loop::mount(device, mountpoint) else { return Err("it cannot be mounted".into()) };
    let ended = recording.events[..at].iter().filter(|event| matches!(event, Event::Ended)).count();
    let begun = recording.events[..at].iter().filter(|event| matches!(event, Event::Begun)).count();
    let store = mountpoint.join("store");
    let may_be = [&recording.tags[ended], &recording.tags[begun]];
    let found = match tags_in(&store) {
        Some(found) => found,
        None if ended == 0 => Tags::new(),
        None => return Err(format!("there is no index after {ended} steps")),
    };
    if !may_be.contains(&&found) {
        return Err(format!("after {ended} steps, {begun} begun, it has {found:?}"));
    }
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let say = |output: &Output| format!("{}{}", stdout(output), stderr(output));
    if store.join("oci-layout").exists() {
        for arguments in [&["check", "--data"][..], &["gc", "--now", "--min-age", "0"], &["check", "--data"]] {
            let arguments: Vec<String> = arguments.iter().map(|one| (*one).into()).chain([text(&store)]).collect();
            let output = common::pfs(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            if !output.status.success() {
                return Err(format!("pfs {arguments:?}: {}", say(&output)));
            }
        }
        if tags_in(&store).as_ref() != Some(&found) {
            return Err("a collection changed the tags".into());
        }
    }
    let again = common::pfs(&["build", "-q", &text(&place.join("trees/d")), &format!("{}:again", store.display())]);
    if again.status.success() { Ok(()) } else { Err(format!("a build afterwards: {}", say(&again))) }
}

fn images(default: usize) -> usize {
    std::env::var("PFS_POWER_CUT_IMAGES").ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Long: PFS_POWER_CUT_IMAGES=1000.
#[test]
fn a_power_cut_loses_nothing_that_was_finished() {
    if !can() {
        return;
    }
    let place = common::place();
    make_trees(&place.path().join("trees"));
    let recording = record(place.path(), STEPS, None);
    let flushes = recording.events.iter().filter(|event| matches!(event, Event::Flush)).count();
    assert!(recording.events.len() > 300 && flushes > 30, "{} events, {flushes} flushes", recording.events.len());
    let problems = cut(&recording, place.path(), images(30));
    assert_eq!(problems, [""; 0]);
}

/// The same, where syncs do nothing: it must be seen, for each kind of them.
#[test]
fn a_sync_that_is_left_out_is_seen() {
    if !can() {
        return;
    }
    for ignored in ["fsync,fdatasync,syncfs:retval=0", "fsync:retval=0", "syncfs:retval=0"] {
        let place = common::place();
        make_trees(&place.path().join("trees"));
        let recording = record(place.path(), SHORT, Some(ignored));
        let problems = cut(&recording, place.path(), images(30).min(60));
        println!("without {ignored}: {} bad images", problems.len());
        assert!(!problems.is_empty(), "{ignored} may be left out, as far as this can see");
    }
}

/// One sync of each command left out by itself. Long: only with `PFS_POWER_CUT_IMAGES` of 100 or more.
///
/// On ext4 a sync of any file makes the changes of all directories durable, so the sync of a directory is not missed when
/// another sync follows at once. Those of contents are missed.
#[test]
fn each_sync_of_contents_is_seen_by_itself() {
    if images(0) < 100 || !can() {
        return;
    }
    let syncs = [
        ("syncfs", 1, "the blobs of a build"),
        ("fsync", 1, "a new store's index or layout"),
        ("fsync", 3, "the other of the two"),
        ("fsync", 12, "the index that the first build publishes"),
    ];
    for (call, nth, what) in syncs {
        let place = common::place();
        make_trees(&place.path().join("trees"));
        let recording = record(place.path(), SHORT, Some(&format!("{call}:retval=0:when={nth}")));
        let problems = cut(&recording, place.path(), 200);
        println!("without {call} {nth}, {what}: {} bad images", problems.len());
        assert!(!problems.is_empty(), "the sync of {what} may be left out, as far as this can see");
    }
}
