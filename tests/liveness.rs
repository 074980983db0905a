//! A mount is alive as long as its process holds the flock of its lease, however hard it is to see: in other namespaces, out
//! of sight, under other mounts.

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{TestStore, assert_sound, at_once, image_of, noise, pfs, stderr, stdout};
use pfs::name::Digest;

fn can() -> bool {
    let missing = !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists();
    if missing {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "missing: root or /dev/fuse");
        eprintln!("SKIPPED, missing: root or /dev/fuse");
    }
    !missing
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Longer than any chunk, so that images which begin with such a file have a chunk in common wherever its bytes make cuts.
const FILE_BYTES: usize = 300_000;

/// On a disk of its own kind: an overlay needs a lower directory that it can look through.
fn store() -> TestStore {
    let store = common::empty();
    store.build("app", &[("file", &noise(1, FILE_BYTES)), ("other", &noise(2, 100))]);
    store
}

fn app(store: &TestStore) -> String {
    format!("{}:app", store.path.display())
}

fn directory(store: &TestStore, name: &str) -> PathBuf {
    let path = store.beside(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", stderr(&output));
}

fn mount(store: &TestStore) -> PathBuf {
    mount_tag(store, "app", "mnt")
}

fn mount_tag(store: &TestStore, tag: &str, name: &str) -> PathBuf {
    let dir = directory(store, name);
    let output = pfs(&["mount", &format!("{}:{tag}", store.path.display()), text(&dir)]);
    assert!(output.status.success(), "{}", stderr(&output));
    dir
}

fn umount(dir: &Path) {
    let output = pfs(&["umount", text(dir)]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Waits until the mounts of a tag have pinned all of its image, which they do right after they are ready.
fn await_pins(store: &TestStore, tag: &str) {
    let manifest = image_of(store, tag).1;
    let is_config = |digest: &Digest| fs::read(store.blob(digest)).unwrap() == b"{}";
    let needed = common::needed_from(&store.path, manifest.to_string().as_bytes());
    let wanted: BTreeSet<Digest> = needed.into_iter().filter(|digest| !is_config(digest)).collect();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !store.pinned_by(&manifest).unwrap().into_iter().collect::<BTreeSet<_>>().is_superset(&wanted) {
        assert!(std::time::Instant::now() < deadline, "not pinned after 30 s");
        std::thread::yield_now();
    }
}

/// What `umoci gc` does to blobs that it does not know for needed.
fn unlink_foreignly(store: &TestStore, blobs: &BTreeSet<Digest>) {
    blobs.iter().for_each(|digest| fs::remove_file(store.blob(digest)).unwrap());
}

/// The blobs of an image that its mounts pin.
fn pinned_of(store: &TestStore, tag: &str) -> BTreeSet<Digest> {
    store.pinned_by(&image_of(store, tag).1).unwrap().into_iter().collect()
}

/// Nothing may delete or free what is mounted, and nothing does.
fn assert_held(store: &TestStore) {
    let before = store.snapshot();
    let refused = pfs(&["delete", &app(store)]);
    assert_eq!(refused.status.code(), Some(13), "{}{}", stdout(&refused), stderr(&refused));
    assert_eq!(store.snapshot(), before);
    assert!(pfs(&["delete", "--force", &app(store)]).status.success());
    let collected = pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]);
    assert!(stdout(&collected).contains("in use by the mount at"), "{}", stdout(&collected));
}

/// And when it has ended, all of it goes.
fn assert_released(store: &TestStore) {
    let ended = || store.leases().unwrap().iter().all(|lease| !lease.live);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !ended() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let collected = pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]);
    assert!(collected.status.success(), "{}", stderr(&collected));
    assert!(store.blobs().is_empty(), "{}", stdout(&collected));
    assert_sound(store);
}

#[test]
fn a_mount_in_other_mount_and_pid_namespaces_is_seen() {
    if !can() || !common::can_isolate() {
        return;
    }
    let store = store();
    let dir = directory(&store, "mnt");
    let program = env!("CARGO_BIN_EXE_pfs");
    let script = format!(
        "mount -t proc proc /proc && {program} mount {} {} && echo ready && read line && cat {}/file | wc -c && {program} umount {}",
        app(&store),
        dir.display(),
        dir.display(),
        dir.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--propagation", "private", "sh", "-c", &script]);
    let mut inside: Child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(inside.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(text(&dir)), "it cannot be seen from here");
    assert_held(&store);
    inside.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    line.clear();
    said.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), FILE_BYTES.to_string(), "it reads on");
    assert!(inside.wait().unwrap().success());
    assert_released(&store);
}

#[test]
fn a_lazily_unmounted_image_is_alive_while_a_file_of_it_is_open() {
    if !can() {
        return;
    }
    let store = store();
    let dir = mount(&store);
    let mut open = File::open(dir.join("file")).unwrap();
    run("umount", &["--lazy", text(&dir)]);
    assert_held(&store);
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, noise(1, FILE_BYTES));
    drop(open);
    assert_released(&store);
}

#[test]
fn a_bind_mount_of_a_mount_keeps_it_alive() {
    if !can() {
        return;
    }
    let store = store();
    let (dir, bound) = (mount(&store), directory(&store, "bound"));
    run("mount", &["--bind", text(&dir), text(&bound)]);
    run("umount", &[text(&dir)]);
    assert_held(&store);
    assert_eq!(fs::read(bound.join("file")).unwrap(), noise(1, FILE_BYTES));
    run("umount", &[text(&bound)]);
    assert_released(&store);
}

#[test]
fn an_overlay_on_a_mount_keeps_it_alive() {
    if !can() {
        return;
    }
    let store = store();
    let (dir, merged) = (mount(&store), directory(&store, "merged"));
    let (upper, work) = (directory(&store, "upper"), directory(&store, "work"));
    let options = format!("lowerdir={},upperdir={},workdir={}", dir.display(), upper.display(), work.display());
    run("mount", &["-t", "overlay", "overlay", "-o", &options, text(&merged)]);
    run("umount", &["--lazy", text(&dir)]);
    assert_held(&store);
    assert_eq!(fs::read(merged.join("file")).unwrap(), noise(1, FILE_BYTES));
    run("umount", &[text(&merged)]);
    assert_released(&store);
}

#[test]
fn a_killed_mount_protects_nothing_and_is_cleared_away() {
    if !can() {
        return;
    }
    let store = store();
    let dir = mount(&store);
    let pid = store.leases().unwrap()[0].record.as_ref().unwrap().pid;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let mounts = || stdout(&pfs(&["mounts", text(&store.path)]));
    while !mounts().contains("dead") {
        std::thread::yield_now();
    }
    assert!(pfs(&["umount", text(&dir)]).status.success());
    assert!(!mounts().contains(text(&dir)), "{}", mounts());
    assert!(pfs(&["delete", &app(&store)]).status.success());
    assert_released(&store);
}

#[test]
fn a_machine_without_fuse_is_told_so() {
    if !can() || !common::can_isolate() {
        return;
    }
    let store = store();
    let (dir, bare) = (directory(&store, "mnt"), directory(&store, "dev"));
    // A /dev with nothing in it but what the program and this test need.
    let script = format!(
        "mount -t tmpfs none {bare} && mknod -m 666 {bare}/null c 1 3 && mkdir {bare}/shm && \
         mount --bind /dev/shm {bare}/shm && mount --rbind {bare} /dev && exec {program} mount {image} {dir}",
        bare = bare.display(),
        dir = dir.display(),
        image = app(&store),
        program = env!("CARGO_BIN_EXE_pfs"),
    );
    let output = Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("there is no /dev/fuse here"), "{}", stderr(&output));
    assert!(stderr(&output).contains("\nhint: "), "{}", stderr(&output));
    assert!(store.leases().unwrap().is_empty());
    assert_sound(&store);
}

#[test]
fn the_last_copies_of_a_tagged_image_outlive_its_mount() {
    if !can() {
        return;
    }
    let store = store();
    let (before, content) = (store.blobs(), store.read_back("app"));
    let dir = mount(&store);
    await_pins(&store, "app");
    unlink_foreignly(&store, &pinned_of(&store, "app"));
    umount(&dir);
    let told = pfs(&["check", text(&store.path)]);
    assert_eq!(told.status.code(), Some(0), "{}", stdout(&told));
    assert!(stdout(&told).contains("the next gc puts it back"), "{}", stdout(&told));
    let again = mount(&store);
    assert_eq!(fs::read(again.join("file")).unwrap(), noise(1, FILE_BYTES), "the next mount finds them");
    umount(&again);
    let report = store.collect(at_once()).unwrap();
    assert!(report.healed > 0 && report.freed_bytes == 0, "{report:?}");
    assert_eq!((store.blobs(), store.read_back("app")), (before, content), "every byte is back");
    assert!(store.stale_pins().unwrap().manifests.is_empty());
    assert_sound(&store);
}

#[test]
fn the_last_copies_outlive_two_mounts_that_shared_them() {
    if !can() {
        return;
    }
    let store = store();
    store.build("other", &[("file", &noise(1, FILE_BYTES)), ("more", &noise(3, 100))]);
    let before = store.blobs();
    let mounts = [mount_tag(&store, "app", "mnt"), mount_tag(&store, "other", "mnt2")];
    ["app", "other"].iter().for_each(|tag| await_pins(&store, tag));
    let shared: BTreeSet<Digest> = &pinned_of(&store, "app") & &pinned_of(&store, "other");
    assert!(!shared.is_empty());
    unlink_foreignly(&store, &shared);
    mounts.iter().for_each(|dir| umount(dir));
    assert_eq!(store.collect(at_once()).unwrap().healed, shared.len() as u64);
    assert_eq!(store.blobs(), before);
    assert_sound(&store);
}

#[test]
fn what_only_an_ended_mount_still_had_is_freed_as_the_dry_run_says() {
    if !can() {
        return;
    }
    let store = store();
    let dir = mount(&store);
    await_pins(&store, "app");
    store.untag_foreignly("app");
    unlink_foreignly(&store, &store.blobs());
    umount(&dir);
    let left = store.blob_bytes();
    assert!(left > FILE_BYTES as u64, "blobs leave only through gc");
    let dry = pfs(&["gc", "--quiet", "--dry-run", "--exit-code", text(&store.path)]);
    assert_eq!((stdout(&dry).trim(), dry.status.code()), (left.to_string().as_str(), Some(4)));
    assert_eq!(store.collect(at_once()).unwrap().freed_bytes, left);
    assert_eq!(store.blob_bytes(), 0);
    assert_sound(&store);
}

#[test]
fn the_process_in_the_background_gives_memory_back_unless_it_is_told_otherwise() {
    if !can() {
        return;
    }
    let store = store();
    let dir = directory(&store, "mnt");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
    command.env_remove("MALLOC_ARENA_MAX").env("MALLOC_TRIM_THRESHOLD_", "7").args(["mount", &app(&store), text(&dir)]);
    assert!(command.status().unwrap().success());
    let pid = store.leases().unwrap()[0].record.as_ref().unwrap().pid;
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let has = |setting: &str| environment.split('\0').any(|one| one == setting);
    assert!(has("MALLOC_ARENA_MAX=1") && has("MALLOC_TRIM_THRESHOLD_=7"), "{environment:?}");
    umount(&dir);
}

/// Waits until something is so; for 30 s at most.
fn await_that(what: &str, is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "not after 30 s: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_mount_makes_its_lease_and_pins_anew() {
    if !can() {
        return;
    }
    let store = store();
    let dir = mount(&store);
    await_pins(&store, "app");
    fs::remove_dir_all(store.path.join(".pfs")).unwrap();
    let again = || pfs::store::Store::open(&store.path).unwrap();
    await_that("a live lease", || again().leases().unwrap().iter().any(|lease| lease.live));
    let manifest = image_of(&store, "app").1;
    await_that("pins", || again().pinned_by(&manifest).is_ok_and(|pins| pins.len() > 2));
    assert_eq!(pfs(&["delete", &app(&store)]).status.code(), Some(13));
    assert_eq!(fs::read(dir.join("file")).unwrap(), noise(1, FILE_BYTES));
    umount(&dir);
    assert!(again().leases().unwrap().is_empty(), "it takes the new one away with it");
}

#[test]
fn a_mount_whose_lease_was_just_removed_is_not_freed() {
    if !can() {
        return;
    }
    let store = store();
    let dir = mount(&store);
    await_pins(&store, "app");
    fs::remove_dir_all(store.path.join(".pfs")).unwrap();
    pfs(&["delete", &app(&store)]);
    pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]);
    assert_eq!(fs::read(dir.join("file")).unwrap(), noise(1, FILE_BYTES));
    umount(&dir);
}

#[test]
fn whoever_stands_in_a_bind_mount_of_the_store_elsewhere_is_seen() {
    if !can() || !common::can_isolate() {
        return;
    }
    let store = store();
    let inside = directory(&store, "inside");
    let script =
        format!("mount --bind {} {dir} && cd {dir} && echo ready && read line", text(&store.path), dir = text(&inside));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let evidence = store.process_evidence(std::slice::from_ref(&store.path), &[]);
    drop(child.stdin.take());
    child.wait().unwrap();
    let seen = evidence.processes.iter().find(|process| process.pid == child.id());
    assert!(seen.is_some_and(|process| process.at_layout.is_some()), "{line}{evidence:?}");
}

#[test]
fn a_store_whose_processes_cannot_be_seen_is_not_collected() {
    if !can() || !common::can_isolate() {
        return;
    }
    let store = store();
    store.untag_foreignly("app");
    let before = store.blobs();
    let script =
        format!("umount -l /proc; exec {} gc --now --min-age 0 {}", env!("CARGO_BIN_EXE_pfs"), text(&store.path));
    let args = ["--mount", "--propagation", "private", "sh", "-c", &script];
    let refused = Command::new("unshare").args(args).output().unwrap();
    assert_eq!(refused.status.code(), Some(14), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("no /proc"), "{}", stderr(&refused));
    assert_eq!(store.blobs(), before);
}

/// A lease from another machine counts until a person lets go of it; one that is held here cannot be let go of.
#[test]
fn a_lease_of_which_nobody_can_tell_is_let_go_of_by_a_person() {
    let store = store();
    let lease = store.mount_lease("app");
    let forget = |id: &str| pfs(&["mounts", "--forget", id, text(&store.path)]);
    assert_eq!(forget(lease.id()).status.code(), Some(13), "it is held");
    let path = store.path.join(".pfs/leases").join(lease.id());
    let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    store.release(lease).unwrap();
    for (key, value) in [("boot_id", "another boot"), ("machine_id", "another machine"), ("host", "elsewhere")] {
        record[key] = value.into();
    }
    fs::write(store.path.join(".pfs/leases/restored"), format!("{record}\n")).unwrap();
    let listed = stdout(&pfs(&["mounts", text(&store.path)]));
    assert!(listed.contains("foreign"), "{listed}");
    let image = format!("{}:app", text(&store.path));
    let refused = pfs(&["delete", &image]);
    assert_eq!(refused.status.code(), Some(13));
    let said = stderr(&refused);
    assert!(said.contains("taken on elsewhere, and nobody here can tell"), "{said}");
    assert!(said.contains(&format!("pfs mounts --forget restored {}", text(&store.path))), "{said}");
    assert!(pfs(&["delete", "--force", &image]).status.success());
    assert!(!store.blobs().is_empty(), "what may be mounted elsewhere stays");
    assert_eq!(forget("restored").status.code(), Some(0));
    assert_eq!(forget("restored").status.code(), Some(12), "it is gone");
    assert!(pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]).status.success());
    assert!(store.blobs().is_empty());
}

/// A lease that a later version wrote on another host cannot be read: nothing goes until a person says that it is over.
#[test]
fn a_lease_from_elsewhere_that_cannot_be_read_stops_a_collection() {
    let store = store();
    let mut record = serde_json::to_value(common::lease_record(pfs::store::LeaseKind::Mount)).unwrap();
    for (key, value) in [("kind", "export"), ("boot_id", "another"), ("machine_id", "another"), ("host", "elsewhere")] {
        record[key] = value.into();
    }
    fs::create_dir_all(store.path.join(".pfs/leases")).unwrap();
    fs::write(store.path.join(".pfs/leases/future"), format!("{record}\n")).unwrap();
    store.untag_foreignly("app");
    let before = store.blobs();
    let gc = || pfs(&["gc", "--now", "--min-age", "0", text(&store.path)]);
    let refused = gc();
    assert_eq!((refused.status.code(), store.blobs()), (Some(14), before), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("pfs mounts --forget future"), "{}", stderr(&refused));
    assert!(pfs(&["mounts", "--forget", "future", text(&store.path)]).status.success());
    assert!(gc().status.success() && store.blobs().is_empty());
}

/// A paused container: the mount is there, and answers nothing. It lies beside the store, where layouts are looked for.
#[test]
fn a_mount_that_does_not_answer_holds_up_nobody() {
    if !can() {
        return;
    }
    let store = store();
    store.build("other", &[("file", b"other")]);
    let mountpoint = directory(&store, "mnt");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_pfs"))
        .args(["mount", "-f", &app(&store), text(&mountpoint)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let is_mounted = || fs::metadata(mountpoint.join("file")).is_ok();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_mounted() {
        assert!(std::time::Instant::now() < deadline, "it is not mounted after 30 s");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let other = format!("{}:other", text(&store.path));
    let mut codes = Vec::new();
    for args in [&["gc", "-n", text(&store.path)][..], &["du", text(&store.path)], &["delete", &other]] {
        let timed = Command::new("timeout").args(["60", env!("CARGO_BIN_EXE_pfs")]).args(args).output().unwrap();
        codes.push((args[0], timed.status.code()));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let read = fs::read(mountpoint.join("file")).unwrap();
    assert!(pfs(&["umount", text(&mountpoint)]).status.success());
    daemon.wait().unwrap();
    assert_eq!(codes, [("gc", Some(0)), ("du", Some(0)), ("delete", Some(0))]);
    assert_eq!(read, noise(1, FILE_BYTES));
    assert_sound(&store.store);
}
