//! Real mounts. They need root and /dev/fuse; without them they are skipped, and say so, except under CI=true.

mod trees;

use std::{
    env, fs,
    fs::{OpenOptions, Permissions},
    io::{BufRead, BufReader, Read},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use pfs::{
    image::WantedPlatform,
    mount::{Life, MountError, MountOptions, MountRequest, MountState, WhenBusy, background, mount, mounts, umount},
    name::{ChunkId, ImageRef, Selector},
    store::Store,
};
use tempfile::TempDir;

const NOBODY: u32 = 65534;
const READY: &str = "the mount answers";

/// Whether the machine can mount. The test goes on only if so.
fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let can = root && device;
    assert!(can || env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has to have root and /dev/fuse");
    if !can {
        eprintln!("SKIPPED: real mounts need root ({root}) and /dev/fuse ({device})");
    }
    can
}

/// A golden store and a directory to mount on, which everybody may reach.
struct Place {
    dir: TempDir,
    store: PathBuf,
    mountpoint: PathBuf,
}

impl Place {
    fn new(store: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let store = trees::unpack(store, dir.path());
        let mountpoint = dir.path().join("m n");
        fs::create_dir(&mountpoint).unwrap();
        Self { dir, store, mountpoint }
    }

    fn give_to(&self, user: u32) {
        for entry in walkdir::WalkDir::new(self.dir.path()) {
            std::os::unix::fs::chown(entry.unwrap().path(), Some(user), Some(user)).unwrap();
        }
    }

    fn image(&self, tag: &str) -> ImageRef {
        ImageRef { store: self.store.clone(), selector: Selector::Tag(tag.parse().unwrap()) }
    }

    /// Mounts in a process of its own and returns when the mount answers.
    fn mount(&self, tag: &str, user: u32) -> Daemon {
        let mut child = self.command("child_that_mounts", tag).uid(user).gid(user).spawn().unwrap();
        let stdout = await_ready(&mut child);
        assert!(is_mounted(&self.mountpoint));
        Daemon { child, mountpoint: self.mountpoint.clone(), _stdout: stdout }
    }

    /// This test program again, running one of the tests that are no tests.
    fn command(&self, child: &str, tag: &str) -> Command {
        let program = executable_by_all(&env::current_exe().unwrap(), self.dir.path());
        let mut command = Command::new(program);
        command.args(["--exact", child, "--ignored", "--nocapture"]).stdout(Stdio::piped());
        command.env("PFS_TEST_IMAGE", self.image(tag).to_string()).env("PFS_TEST_DIR", &self.mountpoint);
        command
    }

    fn request(&self, tag: &str) -> MountRequest {
        MountRequest {
            image: self.image(tag),
            platform: WantedPlatform::here(),
            mountpoint: self.mountpoint.clone(),
            options: MountOptions::default(),
        }
    }

    fn refusal(&self) -> MountError {
        mount(&self.request("base"), jiff::Timestamp::now(), Box::new(|_| ())).err().unwrap()
    }

    fn state(&self) -> MountState {
        let states = mounts(Some(&Store::open(&self.store).unwrap())).unwrap();
        states.into_iter().find(|state| state.mountpoint.as_ref() == Some(&self.mountpoint)).unwrap()
    }

    fn lease_files(&self) -> usize {
        fs::read_dir(self.store.join(".pfs/leases")).map_or(0, Iterator::count)
    }
}

/// A program that every user can execute: itself, or a copy in `place` if one of the directories above it is closed to others,
/// as /root is.
fn executable_by_all(program: &Path, place: &Path) -> PathBuf {
    let is_open = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
    if program.ancestors().all(is_open) {
        return program.into();
    }
    let copy = place.join(program.file_name().unwrap());
    if !copy.exists() {
        // A link where that goes: a copy that another thread's child has open for writing cannot be executed.
        if fs::hard_link(program, &copy).is_err() {
            fs::copy(program, &copy).unwrap();
        }
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

fn is_mounted(mountpoint: &Path) -> bool {
    let text = mountpoint.display().to_string().replace(' ', "\\040");
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().any(|line| line.contains(&format!(" {text} ")))
}

/// Reads on until the mount answers, or the child has ended.
fn await_ready(child: &mut Child) -> BufReader<ChildStdout> {
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(READY) {
        line.clear();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "the mount did not come about");
    }
    stdout
}

/// A process that serves a mount. However a test ends, both go.
struct Daemon {
    child: Child,
    mountpoint: PathBuf,
    /// Kept open, for the child would fail to write its last words.
    _stdout: BufReader<ChildStdout>,
}

impl Daemon {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request_of_child() -> Option<MountRequest> {
    let image = env::var("PFS_TEST_IMAGE").ok()?;
    let (store, tag) = image.rsplit_once(':')?;
    let mut options = MountOptions::default();
    options.apply(&env::var("PFS_TEST_OPTIONS").unwrap_or_default()).unwrap();
    Some(MountRequest {
        image: ImageRef { store: store.into(), selector: Selector::Tag(tag.parse().ok()?) },
        platform: WantedPlatform::here(),
        mountpoint: env::var_os("PFS_TEST_DIR")?.into(),
        options,
    })
}

/// Serves a mount for another test, in a process of its own.
#[test]
#[ignore = "the other tests run it"]
fn child_that_mounts() {
    let Some(request) = request_of_child() else { return };
    let mounted = mount(&request, jiff::Timestamp::now(), Box::new(|damage| eprintln!("DAMAGE {damage}"))).unwrap();
    let ready = || {
        println!("{READY}");
        Ok(())
    };
    mounted.serve(ready).unwrap();
}

/// What `pfs mount` without `-f` does.
#[test]
#[ignore = "the other tests run it"]
fn child_that_launches() {
    let child = ["--exact", "child_in_the_background", "--ignored", "--nocapture"];
    background::launch("pfs".as_ref(), &child).unwrap_or_else(|error| println!("REFUSED {error}"));
}

#[test]
#[ignore = "the other tests run it"]
fn child_in_the_background() {
    let Some(request) = request_of_child() else { return };
    background::begin().unwrap();
    match mount(&request, jiff::Timestamp::now(), Box::new(|_| ())) {
        Ok(mounted) => mounted.serve(background::ready).unwrap(),
        Err(error) => background::failed(7, &error.to_string()),
    }
}

#[test]
fn golden_images_mounted_by_root_list_as_they_must() {
    if !can_mount() {
        return;
    }
    for store in trees::STORES {
        let place = Place::new(store);
        for (tag, listing) in trees::TAGS {
            let daemon = place.mount(tag, 0);
            trees::assert_same(&trees::list(&place.mountpoint), &trees::expected(listing), &format!("{store}:{tag}"));
            umount(&place.mountpoint, WhenBusy::Refuse).unwrap();
            drop(daemon);
        }
        assert_eq!(place.lease_files(), 0);
    }
}

/// `/dev/fuse` as distributions have it, which containers not always do.
struct DeviceForAll(Permissions);

impl DeviceForAll {
    fn new() -> Self {
        let before = fs::metadata("/dev/fuse").unwrap().permissions();
        fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for DeviceForAll {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", self.0.clone());
    }
}

/// The others' part of the listing is made by that user, who sees everything but `trusted.` attributes.
#[test]
fn golden_images_mounted_by_an_ordinary_user_list_as_they_must() {
    if !can_mount() {
        return;
    }
    let _open = DeviceForAll::new();
    for store in trees::STORES {
        let place = Place::new(store);
        place.give_to(NOBODY);
        for (tag, listing) in trees::TAGS {
            let daemon = place.mount(tag, NOBODY);
            let child = place.command("child_that_lists", tag).uid(NOBODY).gid(NOBODY).output().unwrap();
            assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
            let lines = String::from_utf8(child.stdout).unwrap();
            let rows = lines.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n");
            let found = serde_json::Deserializer::from_str(&rows).into_iter().map(Result::unwrap);
            let found = found.map(|row: serde_json::Value| (row["path"].to_string(), row)).collect();
            trees::assert_same(&found, &without_trusted(trees::expected(listing)), &format!("{store}:{tag}"));
            let umounted = place.command("child_that_unmounts", tag).uid(NOBODY).gid(NOBODY).status().unwrap();
            assert!(umounted.success() && !is_mounted(&place.mountpoint));
            drop(daemon);
        }
        assert_eq!(place.lease_files(), 0);
    }
}

fn without_trusted(mut listing: trees::Listing) -> trees::Listing {
    for row in listing.values_mut() {
        let Some(xattrs) = row["xattrs"].as_object_mut() else {
            row.as_object_mut().unwrap().remove("xattrs");
            continue;
        };
        xattrs.retain(|name, _| !name.starts_with("trusted."));
        if xattrs.is_empty() {
            row.as_object_mut().unwrap().remove("xattrs");
        }
    }
    listing
}

#[test]
#[ignore = "the other tests run it"]
fn child_that_lists() {
    let Some(request) = request_of_child() else { return };
    println!();
    trees::list(&request.mountpoint).values().for_each(|row| println!("{row}"));
}

#[test]
#[ignore = "the other tests run it"]
fn child_that_unmounts() {
    let Some(request) = request_of_child() else { return };
    umount(&request.mountpoint, WhenBusy::Refuse).unwrap();
}

#[test]
fn the_mount_table_shows_type_and_source_and_the_lease_shows_the_rest() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let daemon = place.mount("base", 0);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mountpoint = format!("{}/m\\040n ", place.dir.path().display());
    let line = table.lines().find(|line| line.contains(&mountpoint)).unwrap();
    assert!(line.contains(&format!(" - fuse.pfs {}:base ro,", place.store.display())), "{line}");
    assert!(line.contains(" ro,nosuid,nodev,"), "{line}");
    let state = place.state();
    assert_eq!((state.life, state.pid, state.tag.as_deref()), (Life::Live, Some(daemon.child.id()), Some("base")));
    assert_eq!(state.store.as_deref(), Some(&*place.store));
    assert!(state.manifest.is_some() && state.since.is_some());
}

#[test]
fn every_write_is_refused_as_read_only() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let _daemon = place.mount("base", 0);
    let read_only = |error: std::io::Error| assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    read_only(fs::write(place.mountpoint.join("new"), b"x").unwrap_err());
    read_only(fs::remove_file(place.mountpoint.join("bin/tool")).unwrap_err());
    read_only(OpenOptions::new().append(true).open(place.mountpoint.join("bin/tool")).unwrap_err());
    read_only(fs::set_permissions(&place.mountpoint, Permissions::from_mode(0o700)).unwrap_err());
}

#[test]
fn a_killed_daemon_leaves_a_dead_mount_that_umount_clears_away() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let mut daemon = place.mount("base", 0);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert_eq!(place.state().life, Life::DeadMount);
    assert!(matches!(place.refusal(), MountError::DeadMount(_)));
    umount(&place.mountpoint, WhenBusy::Refuse).unwrap();
    assert_eq!(place.lease_files(), 0);
    assert!(!is_mounted(&place.mountpoint));
}

#[test]
fn a_busy_mount_stays_and_a_detached_one_ends_with_its_last_file() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let mut daemon = place.mount("base", 0);
    let mut open = fs::File::open(place.mountpoint.join("data/big.bin")).unwrap();
    assert!(matches!(umount(&place.mountpoint, WhenBusy::Refuse), Err(MountError::Busy(_))));
    umount(&place.mountpoint, WhenBusy::Detach).unwrap();
    assert!(!is_mounted(&place.mountpoint));
    assert_eq!(place.state().life, Life::Live, "somebody still reads");
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 500_000);
    drop(open);
    assert!(daemon.child.wait().unwrap().success());
    assert_eq!(place.lease_files(), 0);
}

#[test]
fn a_signal_unmounts_and_releases_the_lease() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        let mut daemon = place.mount("base", 0);
        daemon.signal(signal);
        assert!(daemon.child.wait().unwrap().success());
        assert!(!is_mounted(&place.mountpoint));
        assert_eq!(place.lease_files(), 0);
    }
}

#[test]
fn a_mountpoint_that_cannot_be_one_is_refused_with_its_reason() {
    if !can_mount() {
        return;
    }
    let mut place = Place::new("puzzlefs-0.2.0");
    let daemon = place.mount("base", 0);
    assert!(matches!(place.refusal(), MountError::AlreadyMounted { .. }));
    umount(&place.mountpoint, WhenBusy::Refuse).unwrap();
    drop(daemon);
    place.mountpoint = place.store.join("index.json");
    assert!(matches!(place.refusal(), MountError::NotADirectory(_)));
    place.mountpoint = place.store.join("nowhere");
    assert!(matches!(place.refusal(), MountError::NoMountpoint(_)));
    assert!(matches!(umount(&place.store, WhenBusy::Refuse), Err(MountError::NotMounted(_))));
    assert_eq!(place.lease_files(), 0, "what is refused leaves no lease");
}

#[test]
fn a_tag_that_is_not_there_leaves_neither_mount_nor_lease() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let error = mount(&place.request("bas"), jiff::Timestamp::now(), Box::new(|_| ())).err().unwrap();
    assert!(matches!(error, MountError::Image(_)), "{error}");
    assert_eq!(place.lease_files(), 0);
}

/// What one page makes the daemon put into the page cache is what the file has there, up to its last, short page.
#[test]
fn pages_here_and_there_are_those_of_the_file() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    for (tag, _) in trees::TAGS {
        for path in ["data/big.bin", "data/words.txt"] {
            let read = |read: fn(&Path) -> Vec<u8>| {
                let daemon = place.mount(tag, 0);
                let bytes = read(&place.mountpoint.join(path));
                umount(&place.mountpoint, WhenBusy::Refuse).unwrap();
                drop(daemon);
                bytes
            };
            assert!(read(pages_out_of_order) == read(|path| fs::read(path).unwrap()), "{tag} {path}");
        }
    }
}

/// All of a file, page by page, in a step that leads to each page once.
fn pages_out_of_order(path: &Path) -> Vec<u8> {
    const STEP: usize = 29;
    let file = fs::File::open(path).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    let mut pages: Vec<_> = bytes.chunks_mut(4096).zip((0..).step_by(4096)).collect();
    assert!(pages.len() > 60 && pages.len() % STEP > 0);
    for at in 0..pages.len() {
        let which = at * STEP % pages.len();
        let (page, offset) = &mut pages[which];
        file.read_exact_at(page, *offset).unwrap();
    }
    bytes
}

#[test]
fn a_damaged_chunk_is_an_error_of_its_readers_alone_and_told_once() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let chunk = chunk_of_big_file(&place);
    let path = place.store.join("blobs/sha256").join(chunk.to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut command = place.command("child_that_mounts", "base");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let stdout = await_ready(&mut child);
    let mut daemon = Daemon { child, mountpoint: place.mountpoint.clone(), _stdout: stdout };
    for _ in 0..3 {
        let error = fs::read(place.mountpoint.join("data/big.bin")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert_eq!(fs::read(place.mountpoint.join("data/words.txt")).unwrap().len(), 300_000);
    umount(&place.mountpoint, WhenBusy::Refuse).unwrap();
    let mut said = String::new();
    daemon.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("DAMAGE").count(), 1, "{said}");
    assert!(said.contains(&chunk.to_string()), "{said}");
}

fn chunk_of_big_file(place: &Place) -> ChunkId {
    let store = Store::open(&place.store).unwrap();
    let index = store.index().unwrap();
    let picked = pfs::graph::pick(index.document(), &place.image("base").selector).unwrap();
    let image = pfs::graph::load_image(&store, &picked.digest, picked.kind).unwrap();
    let view = pfs::tree::View::new(image.rootfs).unwrap();
    let data = view.lookup(1, b"data").unwrap();
    let big = view.lookup(data.ino, b"big.bin").unwrap();
    view.file_map(big.ino).unwrap().pieces().nth(3).unwrap().blob.chunk
}

#[test]
fn a_background_mount_returns_when_it_answers_and_keeps_nothing_of_the_caller_open() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    // It ends when the last holder of the pipes is gone; a daemon that held them would hang the test.
    let output = place.command("child_that_launches", "base").stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.mountpoint.join("bin/tool").exists());
    let pid = place.state().pid.unwrap();
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    umount(&place.mountpoint, WhenBusy::Refuse).unwrap();
    assert_eq!(place.lease_files(), 0);
}

#[test]
fn a_background_mount_that_fails_says_why() {
    if !can_mount() {
        return;
    }
    let place = Place::new("puzzlefs-0.2.0");
    let output = place.command("child_that_launches", "nothing").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("REFUSED there is no nothing in this store"), "{said}");
}
