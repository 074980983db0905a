//! How long others wait: nothing that is done under the exclusive store lock waits for the disk, and what goes for good goes
//! after the index that does not need it is durable. Told from the system calls, not by the clock.

mod common;
mod traced;

use std::{collections::HashMap, fs, path::Path};

use common::{TestStore, noise, pfs, stderr};
use traced::{Guarded, await_some, can_trace, traced};

/// What waits until the disk has written.
const WAITING: &[&str] = &["fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync"];

/// A call in a log of strace, in the order in which the calls began.
struct Call {
    thread: String,
    name: String,
    rest: String,
}

fn calls(log: &Path) -> Vec<Call> {
    calls_of(&fs::read_to_string(log).unwrap())
}

/// While a call is being made another thread may make one. Then strace writes the first in two lines: `flock(3, LOCK_EX
/// <unfinished ...>`, and later `<... flock resumed>) = 0`.
fn calls_of(text: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        if let Some((_, end)) = call.strip_prefix("<... ").and_then(|resumed| resumed.split_once(" resumed>")) {
            let begun = calls.iter_mut().rev().find(|begun| begun.thread == thread).expect("it began");
            begun.rest.push_str(end);
        } else if let Some((name, rest)) = call.split_once('(') {
            let rest = rest.strip_suffix(" <unfinished ...>").unwrap_or(rest);
            calls.push(Call { thread: thread.into(), name: name.into(), rest: rest.into() });
        }
    }
    calls
}

/// How often the store lock was held exclusively, and which calls that wait for the disk were made meanwhile.
fn waits_under_lock(calls: Vec<Call>) -> (u32, Vec<String>) {
    let mut holds: HashMap<String, bool> = HashMap::new();
    let (mut times, mut waits) = (0, Vec::new());
    for call in calls {
        if call.name == "flock" && call.rest.contains("/.pfs/lock>") {
            let is_taken = call.rest.contains("LOCK_EX") && call.rest.ends_with("= 0");
            times += u32::from(is_taken);
            holds.insert(call.thread, is_taken);
        } else if WAITING.contains(&call.name.as_str()) && holds.get(&call.thread) == Some(&true) {
            waits.push(format!("{}({}", call.name, call.rest));
        }
    }
    (times, waits)
}

fn strace(log: &Path, calls: &str) -> Vec<String> {
    ["-y", "-o", log.to_str().unwrap(), "-e", &format!("trace={calls}")].map(Into::into).into()
}

struct Ground {
    store: TestStore,
    seed: u64,
}

impl Ground {
    fn new(seed: u64) -> Self {
        let ground = Self { store: common::empty(), seed: seed << 32 | u64::from(std::process::id()) };
        ["one", "two", "three", "four"].iter().for_each(|tag| ground.build(tag));
        ground
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.store.path.display())
    }

    fn build(&self, tag: &str) {
        let tree = self.store.beside(&format!("tree-{tag}"));
        fs::create_dir_all(&tree).unwrap();
        let own = tag.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        fs::write(tree.join("own"), noise(own, 40_000)).unwrap();
        self.run(&["build", tree.to_str().unwrap(), &self.image(tag)]);
    }

    /// Something that no index names, of the wrong bytes.
    fn leave_garbage(&self) {
        let name = pfs::name::Digest::of(&noise(self.seed, 100)).to_string();
        fs::write(self.store.path.join("blobs/sha256").join(name), b"wrong").unwrap();
    }

    /// Runs a command and looks what it has done under the lock.
    fn run(&self, command: &[&str]) -> u32 {
        let log = self.store.beside("log");
        let program = [&[env!("CARGO_BIN_EXE_pfs")], command].concat();
        let output = traced(false, &strace(&log, &format!("flock,{}", WAITING.join(","))), &program).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", stderr(&output));
        self.assert_nobody_waited(command)
    }

    fn assert_nobody_waited(&self, command: &[&str]) -> u32 {
        let (times, waits) = waits_under_lock(calls(&self.store.beside("log")));
        assert!(waits.is_empty(), "pfs {} lets others wait for the disk: {waits:#?}", command[0]);
        times
    }
}

#[test]
fn a_call_in_two_lines_counts_as_one() {
    let log = "7 flock(3</s/.pfs/lock>, LOCK_EX|LOCK_NB <unfinished ...>\n8 fsync(4</s>) = 0\n\
               7 <... flock resumed>)            = 0\n7 fsync(5</s/blobs> <unfinished ...>\n8 +++ exited with 0 +++\n\
               7 <... fsync resumed>) = 0\n7 flock(3</s/.pfs/lock>, LOCK_UN) = 0\n7 fsync(5</s/index.json>) = 0\n";
    let (times, waits) = waits_under_lock(calls_of(log));
    assert_eq!((times, waits), (1, vec!["fsync(5</s/blobs>) = 0".into()]));
}

#[test]
fn nothing_under_the_exclusive_lock_waits_for_the_disk() {
    if !can_trace(&[]) {
        return;
    }
    let ground = Ground::new(1);
    let path = ground.store.path.to_str().unwrap();
    ground.leave_garbage();
    assert!(ground.run(&["check", "--repair", "--data", path]) > 0);
    assert!(ground.run(&["delete", "--keep-blobs", &ground.image("one")]) > 0);
    ground.run(&["undo", &ground.image("one")]);
    ground.run(&["pin", &ground.image("one")]);
    assert!(ground.run(&["delete", "--force", &ground.image("one")]) > 0);
    assert!(ground.run(&["delete", &ground.image("two")]) > 0);
    ground.leave_garbage();
    assert!(ground.run(&["gc", "--min-age", "0", "--hold", "1h", path]) > 0);
    assert!(ground.run(&["gc", "--min-age", "0", "--now", path]) > 0);
    assert!(ground.run(&["prune", "--yes", "--keep-last", "1", path]) > 0);
}

/// The first command of a store notes where its layout is, which is made durable.
#[test]
fn nothing_waits_for_the_disk_where_the_layout_was_never_noted() {
    if !can_trace(&[]) {
        return;
    }
    let ground = Ground::new(2);
    fs::remove_dir_all(ground.store.path.join(".pfs")).unwrap();
    assert!(ground.run(&["delete", &ground.image("one")]) > 0);
}

#[test]
fn a_mount_that_ends_lets_nobody_wait_for_the_disk() {
    if !can_trace(&[]) {
        return;
    }
    let ground = Ground::new(3);
    let (image, mountpoint) = (ground.image("one"), ground.store.beside("mnt"));
    fs::create_dir(&mountpoint).unwrap();
    let mountpoint = mountpoint.to_str().unwrap();
    let log = ground.store.beside("log");
    let program = [env!("CARGO_BIN_EXE_pfs"), "mount", "-f", &image, mountpoint];
    let strace = strace(&log, &format!("flock,{}", WAITING.join(",")));
    let mut mount = Guarded(traced(false, &strace, &program).spawn().unwrap());
    await_some("it is mounted", || fs::read(Path::new(mountpoint).join("own")).ok());
    assert!(pfs(&["umount", mountpoint]).status.success());
    assert!(mount.0.wait().unwrap().success());
    assert!(ground.assert_nobody_waited(&["mount"]) > 0);
}

#[test]
fn what_goes_for_good_goes_after_the_index_is_durable() {
    if !can_trace(&[]) {
        return;
    }
    let ground = Ground::new(4);
    // Another program has written it, and made nothing durable.
    ground.store.untag_foreignly("one");
    let log = ground.store.beside("log");
    let store = ground.store.path.to_str().unwrap();
    let program = [env!("CARGO_BIN_EXE_pfs"), "gc", "--min-age", "0", "--now", store];
    let output = traced(false, &strace(&log, "fsync,unlinkat"), &program).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let calls = calls(&log);
    let goes = |call: &Call| call.name == "unlinkat" && call.rest.contains("/.pfs/quarantine/");
    let first = calls.iter().position(goes).expect("a blob went");
    for durable in [format!("<{store}/index.json>"), format!("<{store}>")] {
        let is_sync = |call: &Call| call.name == "fsync" && call.rest.contains(&durable);
        assert!(calls[..first].iter().any(is_sync), "{durable} was not made durable before");
    }
}
