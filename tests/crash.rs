//! The crash matrix: every command that changes a store is killed at each system call that could matter, and each such call
//! is made to fail, one at a time. After each: the next commands work, every image is whole, and collecting leads to the
//! state that no crash would have left.
//!
//! `strace` counts the calls of each thread by itself, so of a command's threads the one that is first to make its N-th call
//! decides where the N-th blow falls. The threads of a build's pool make a handful of calls, all of them in a staging
//! directory, and are mostly in the shadow of the main thread.
//!
//! Of the opens every second one is hit; `PFS_CRASH_ALL=1` hits them all.

mod common;
mod traced;

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Child, Output},
};

use common::{assert_sound, names_in, noise, pfs, stderr};
use pfs::{
    check::{CheckOptions, CheckReport, check},
    name::Digest,
    observe::Silent,
    store::Store,
};
use serde_json::Value;
use tempfile::TempDir;
use traced::{Blow, Guarded, await_some, can_trace, children, count_calls, namespaced, quiet, traced};

/// The calls at which a command is killed.
const CALLS: &[&str] = &[
    "openat",
    "linkat",
    "renameat",
    "renameat2",
    "unlinkat",
    "write",
    "pwrite64",
    "fsync",
    "syncfs",
    "ftruncate",
    "flock",
    "mkdirat",
    "mkdir",
];
/// The calls that need space.
const SPENDING: &[&str] = &["write", "pwrite64", "openat", "linkat", "renameat", "renameat2", "mkdirat", "mkdir"];
/// The calls that a bad disk fails.
const TOUCHING: &[&str] = &["write", "pwrite64", "fsync", "syncfs", "openat", "unlinkat"];

/// A command of the matrix. A new command is a new constant and a test that runs it.
struct Subject {
    /// As `pfs --help` lists it; skipped, out loud, as long as it does not.
    command: &'static str,
    /// Makes the store that the command is run on, at [`Ground::base`].
    prepare: fn(&Ground),
    /// What follows the command on the command line.
    arguments: fn(&Ground) -> Vec<String>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It begins and ends.
    Plain,
    /// It begins and ends, and does the same when it is run again.
    Repeatable,
    /// It leaves a daemon behind, which is under the blow as well.
    Mounts,
    /// It ends a mount, which is not under the blow.
    Unmounts,
}

/// The directory in which one command of the matrix is run.
struct Ground {
    dir: TempDir,
    /// Other bytes than any other test has: what a process has open keeps blobs of the same digest alive in every store.
    seed: u64,
}

impl Ground {
    fn new(seed: u64) -> Self {
        let ground = Self { dir: common::place(), seed: seed << 32 | u64::from(std::process::id()) };
        fs::create_dir(ground.mountpoint()).unwrap();
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The store before the command, which stays as it is.
    fn base(&self) -> PathBuf {
        self.path("base")
    }

    /// The store that the command is run on.
    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.store().display())
    }

    /// A source directory with a file that all have and one of its own.
    fn tree(&self, name: &str) -> String {
        let tree = self.path(&format!("tree-{name}"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("shared"), noise(self.seed, 70_000)).unwrap();
        let own = name.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        fs::write(tree.join("zown"), noise(own, 40_000)).unwrap();
        tree.display().to_string()
    }

    fn build(&self, tag: &str) {
        must(&pfs(&["build", &self.tree(tag), &format!("{}:{tag}", self.base().display())]));
    }

    fn on_base(&self, arguments: &[&str]) {
        must(&pfs(&[arguments, &[self.base().to_str().unwrap()]].concat()));
    }

    /// A blob that no index ever named.
    fn orphan(&self, seed: u64) {
        let bytes = noise(self.seed + seed, 3000);
        fs::write(self.base().join("blobs/sha256").join(Digest::of(&bytes).to_string()), bytes).unwrap();
    }

    /// Puts the store back to what it was before the command.
    fn reset(&self) {
        let store = self.store();
        if store.exists() {
            fs::remove_dir_all(&store).unwrap();
        }
        if self.base().exists() {
            copy_tree(&self.base(), &store);
        }
    }

    fn is_mounted(&self) -> bool {
        let wanted = self.mountpoint().display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
    }

    fn mount(&self) {
        must(&pfs(&["mount", &self.image("one"), self.mountpoint().to_str().unwrap()]));
    }

    fn umount(&self) {
        must(&pfs(&["umount", self.mountpoint().to_str().unwrap()]));
    }

    /// What the index holds; nothing if there is no store yet.
    fn entries(&self) -> Option<Value> {
        let text = fs::read(self.store().join("index.json")).ok()?;
        Some(serde_json::from_slice::<Value>(&text).expect("index.json is whole")["manifests"].clone())
    }

    fn blobs(&self) -> BTreeSet<String> {
        names_in(&self.store().join("blobs/sha256")).into_iter().collect()
    }

    /// Runs these commands, each of which must succeed, where they see no other process. What they print comes one after the
    /// other. The directories of these tests have names without blanks.
    fn pfs(&self, commands: &[&[&str]]) -> String {
        let lines = commands.iter().map(|arguments| format!("{} {}", env!("CARGO_BIN_EXE_pfs"), arguments.join(" ")));
        let script = lines.collect::<Vec<_>>().join(" && ");
        let output = quiet(&mut namespaced("sh")).args(["-c", &script]).output().unwrap();
        must(&output);
        common::stdout(&output)
    }

    fn is_layout(&self) -> bool {
        self.store().join("oci-layout").exists()
    }

    /// Collects until nothing is left to collect, and gives the blobs that remain.
    fn settle(&self) -> BTreeSet<String> {
        if !self.is_layout() {
            return BTreeSet::new();
        }
        let store = self.store();
        let collect = ["gc", "--now", "--min-age", "0", store.to_str().unwrap()];
        let said = self.pfs(&[&collect, &collect]);
        assert_eq!(said.lines().last(), Some("freed 0 B in 0 blobs"), "a second collection has nothing to do: {said}");
        self.assert_tidy();
        self.blobs()
    }

    /// Nothing is left of what went on.
    fn assert_tidy(&self) {
        let store = self.store();
        let state = store.join(".pfs");
        for place in ["tmp", "quarantine", "leases", "pins"] {
            assert_eq!(names_in(&state.join(place)), [""; 0], "in {place}");
        }
        let known = |names: &[&str], dir: &Path| {
            let strange: Vec<_> = names_in(dir).into_iter().filter(|name| !names.contains(&name.as_str())).collect();
            assert_eq!(strange, [""; 0], "in {}", dir.display());
        };
        known(&["blobs", "index.json", "oci-layout", ".pfs"], &store);
        known(
            &[
                "lock",
                "gc.lock",
                "publish.lock",
                "clock",
                "leases",
                "keep",
                "pins",
                "quarantine",
                "layouts",
                "cache",
                "index-log",
                "tmp",
                "damaged",
            ],
            &state,
        );
        for (place, characters) in [("index-log", 75), ("keep", 64), ("layouts", 12)] {
            let strange: Vec<_> =
                names_in(&state.join(place)).into_iter().filter(|name| name.len() != characters).collect();
            assert_eq!(strange, [""; 0], "in {place}");
        }
    }
}

/// However a test ends, no mount of its stays.
impl Drop for Ground {
    fn drop(&mut self) {
        if self.is_mounted() {
            pfs(&["umount", "--lazy", self.mountpoint().to_str().unwrap()]);
        }
    }
}

fn must(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A command of the matrix with what is known of it when nothing goes wrong.
struct Matrix<'g> {
    subject: &'g Subject,
    ground: &'g Ground,
    /// The index before and after.
    entries: [Option<Value>; 2],
    /// The blobs that are left when what was left by the command is collected: if it was not run, and if it was.
    settled: [BTreeSet<String>; 2],
}

impl Subject {
    /// Runs the command through the whole matrix.
    fn run(&self, seed: u64) {
        if !can_trace(&[]) {
            return;
        }
        let help = pfs(&["--help"]);
        let is_listed = |line: &str| line.split_whitespace().next() == Some(self.command);
        assert!(common::stdout(&help).lines().any(is_listed), "there is no pfs {}", self.command);
        let ground = Ground::new(seed);
        (self.prepare)(&ground);
        ground.reset();
        let before = (ground.entries(), ground.settle());
        ground.reset();
        let log = ground.path("log");
        let count = ["-o", log.to_str().unwrap(), "-e", &format!("trace={}", CALLS.join(","))].map(Into::into);
        must(&self.strike(&ground, &count));
        let after = (ground.entries(), ground.settle());
        let matrix =
            Matrix { subject: self, ground: &ground, entries: [before.0, after.0], settled: [before.1, after.1] };
        matrix.run(&count_calls(&log));
    }

    /// Runs the command under strace, and ends what it leaves running.
    fn strike(&self, ground: &Ground, strace: &[String]) -> Output {
        let mut program = vec![env!("CARGO_BIN_EXE_pfs").to_owned(), self.command.into()];
        program.extend((self.arguments)(ground));
        let alone = matches!(self.kind, Kind::Plain | Kind::Repeatable);
        let mut command = traced(alone, strace, &program);
        match self.kind {
            Kind::Plain | Kind::Repeatable => command.output().unwrap(),
            Kind::Mounts => {
                let mut child = Guarded(command.spawn().unwrap());
                let tracer = child.0.id();
                await_some("the mount stands or has failed", || {
                    let over = child.0.try_wait().unwrap().is_some();
                    (over || children(tracer).is_empty() && ground.is_mounted()).then_some(())
                });
                if ground.is_mounted() {
                    ground.umount();
                }
                collected(&mut child.0)
            }
            Kind::Unmounts => {
                ground.mount();
                let output = command.output().unwrap();
                if ground.is_mounted() {
                    assert!(!output.status.success(), "it said that it was done");
                    ground.umount();
                }
                await_some("the mount has let go", || {
                    let leases = Store::open(&ground.store()).unwrap().leases().unwrap();
                    leases.iter().all(|lease| !lease.live).then_some(())
                });
                output
            }
        }
    }
}

fn collected(child: &mut Child) -> Output {
    let status = await_some("strace has ended", || child.try_wait().unwrap());
    let read = |stream: Option<&mut dyn std::io::Read>| {
        let mut bytes = Vec::new();
        stream.map(|stream| stream.read_to_end(&mut bytes).unwrap());
        bytes
    };
    let stdout = read(child.stdout.as_mut().map(|stream| stream as _));
    let stderr = read(child.stderr.as_mut().map(|stream| stream as _));
    Output { status, stdout, stderr }
}

/// Fewer would mean that the trace was not understood: the shortest command, `unpin`, has more.
const POINTS_MIN: usize = 20;

impl Matrix<'_> {
    fn run(&self, calls: &std::collections::BTreeMap<String, usize>) {
        let blows = [(Blow::Kill, CALLS), (Blow::Error("ENOSPC"), SPENDING), (Blow::Error("EIO"), TOUCHING)];
        let mut failed = Vec::new();
        let mut told = String::new();
        let mut points = 0;
        for (blow, among) in blows {
            for (call, count) in calls.iter().filter(|(call, _)| among.contains(&call.as_str())) {
                // Most calls open files for reading, and three of four points would be spent on them.
                let sampled = call == "openat" && std::env::var_os("PFS_CRASH_ALL").is_none();
                for nth in (1..=*count).step_by(if sampled { 2 } else { 1 }) {
                    points += 1;
                    let point = format!("{} with {blow:?} at {call} {nth} of {count}", self.subject.command);
                    if catch_unwind(AssertUnwindSafe(|| self.strike(blow, call, nth))).is_err() {
                        eprintln!("^ {point}");
                        failed.push(point);
                    }
                }
                told += &format!(" {call} {count}");
            }
            told += &format!(" ({blow:?});");
        }
        println!("{}: {points} crash points:{told}", self.subject.command);
        assert!(points >= POINTS_MIN, "{}: {points} crash points only:{told}", self.subject.command);
        assert!(failed.is_empty(), "{} of {points} points:\n{}", failed.len(), failed.join("\n"));
    }

    fn strike(&self, blow: Blow, call: &str, nth: usize) {
        let ground = self.ground;
        ground.reset();
        let output = self.subject.strike(ground, &blow.at(call, nth));
        let entries = ground.entries();
        let is_done = match () {
            () if entries == self.entries[1] => 1,
            () if entries == self.entries[0]
                || entries.as_ref().is_none_or(|entries| entries == &serde_json::json!([]))
                    && self.entries[0].is_none() =>
            {
                0
            }
            () => panic!("the index is neither the old nor the new one: {entries:?}"),
        };
        if output.status.success() {
            assert_eq!(is_done, 1, "it said that it was done");
        }
        if ground.is_layout() {
            let found =
                check(&Store::open(&ground.store()).unwrap(), &CheckOptions { selector: None, data: true }, &Silent);
            assert!(found.as_ref().is_ok_and(CheckReport::is_sound), "{found:#?}");
            let store = ground.store().display().to_string();
            ground.pfs(&[&["ls", &store], &["gc", &store]]);
        }
        assert_eq!(ground.settle(), self.settled[is_done], "what remains");
        if self.subject.kind == Kind::Repeatable {
            let arguments = (self.subject.arguments)(ground);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            ground.pfs(&[&[&[self.subject.command], &arguments[..]].concat()]);
            assert_eq!(ground.entries(), self.entries[1], "run again");
            assert_eq!(ground.settle(), self.settled[1], "what remains when it is run again");
        }
        if ground.is_layout() {
            assert_sound(&Store::open(&ground.store()).unwrap());
        }
    }
}

const BUILD_NEW: Subject = Subject {
    command: "build",
    prepare: |_| (),
    arguments: |ground| vec![ground.tree("one"), ground.image("one")],
    kind: Kind::Repeatable,
};

const BUILD: Subject = Subject {
    command: "build",
    prepare: |ground| {
        ground.build("one");
        ground.build("two");
    },
    arguments: |ground| vec![ground.tree("three"), ground.image("one")],
    kind: Kind::Repeatable,
};

const DELETE: Subject = Subject {
    command: "delete",
    prepare: |ground| {
        ground.build("one");
        ground.build("two");
    },
    arguments: |ground| vec![ground.image("one")],
    kind: Kind::Plain,
};

const GC: Subject = Subject {
    command: "gc",
    prepare: |ground| {
        ground.build("one");
        ground.build("two");
        ground.orphan(1);
        ground.orphan(2);
        must(&pfs(&["delete", "--keep-blobs", &format!("{}:two", ground.base().display())]));
    },
    arguments: |ground| {
        ["--now", "--min-age", "0"].map(Into::into).into_iter().chain([ground.store().display().to_string()]).collect()
    },
    kind: Kind::Repeatable,
};

/// In quarantine lies what an entry needs that has come back, and what nothing needs; there is garbage besides.
fn leave_quarantine(ground: &Ground) {
    ground.build("one");
    ground.build("two");
    ground.orphan(1);
    let index = fs::read(ground.base().join("index.json")).unwrap();
    must(&pfs(&["delete", "--keep-blobs", &format!("{}:two", ground.base().display())]));
    ground.on_base(&["gc", "--min-age", "0", "--hold", "1h"]);
    fs::write(ground.base().join("index.json"), index).unwrap();
    ground.orphan(2);
    assert!(!names_in(&ground.base().join(".pfs/quarantine")).is_empty());
}

const GC_QUARANTINE: Subject = Subject { prepare: leave_quarantine, ..GC };

const GC_HOLD: Subject = Subject {
    arguments: |ground| {
        ["--hold", "1h", "--min-age", "0"]
            .map(Into::into)
            .into_iter()
            .chain([ground.store().display().to_string()])
            .collect()
    },
    ..GC
};

const MOUNT: Subject = Subject {
    command: "mount",
    prepare: |ground| {
        ground.build("one");
        ground.build("two");
    },
    arguments: |ground| vec![ground.image("one"), ground.mountpoint().display().to_string()],
    kind: Kind::Mounts,
};

const UMOUNT: Subject = Subject {
    command: "umount",
    arguments: |ground| vec![ground.mountpoint().display().to_string()],
    kind: Kind::Unmounts,
    ..MOUNT
};

const PIN: Subject =
    Subject { command: "pin", arguments: |ground| vec![ground.image("one")], kind: Kind::Repeatable, ..DELETE };

const UNPIN: Subject = Subject {
    command: "unpin",
    prepare: |ground| {
        ground.build("one");
        must(&pfs(&["pin", &format!("{}:one", ground.base().display())]));
    },
    arguments: |ground| vec![ground.image("one")],
    kind: Kind::Plain,
};

const UNDO: Subject = Subject {
    command: "undo",
    prepare: |ground| {
        ground.build("one");
        ground.build("two");
        must(&pfs(&["delete", "--keep-blobs", &format!("{}:two", ground.base().display())]));
    },
    arguments: |ground| vec![ground.image("two")],
    kind: Kind::Plain,
};

/// The policy does not go by age: each blow has a fresh copy of the ground, and a second may end between two blobs.
const PRUNE: Subject = Subject {
    command: "prune",
    arguments: |ground| {
        ["--yes", "--keep-tag", "two"]
            .map(Into::into)
            .into_iter()
            .chain([ground.store().display().to_string()])
            .collect()
    },
    kind: Kind::Repeatable,
    ..DELETE
};

/// What an image needs lies in quarantine, and garbage has the wrong bytes.
const REPAIR: Subject = Subject {
    command: "check",
    prepare: |ground| {
        leave_quarantine(ground);
        fs::write(ground.base().join("blobs/sha256").join(Digest::of(b"right").to_string()), b"wrong").unwrap();
    },
    arguments: |ground| {
        vec!["--repair".into(), "--min-age".into(), "0".into(), "--data".into(), ground.store().display().to_string()]
    },
    kind: Kind::Plain,
};

#[test]
fn a_build_of_a_new_store_survives_every_blow() {
    BUILD_NEW.run(1);
}

#[test]
fn a_build_that_moves_a_tag_survives_every_blow() {
    BUILD.run(2);
}

#[test]
fn a_delete_survives_every_blow() {
    DELETE.run(3);
}

#[test]
fn a_collection_survives_every_blow() {
    GC.run(4);
}

#[test]
fn a_collection_that_restores_survives_every_blow() {
    GC_QUARANTINE.run(5);
}

#[test]
fn a_collection_that_holds_survives_every_blow() {
    GC_HOLD.run(6);
}

#[test]
fn a_mount_survives_every_blow() {
    MOUNT.run(7);
}

#[test]
fn an_unmount_survives_every_blow() {
    UMOUNT.run(8);
}

#[test]
fn a_pin_survives_every_blow() {
    PIN.run(9);
}

#[test]
fn an_unpin_survives_every_blow() {
    UNPIN.run(10);
}

#[test]
fn an_undo_survives_every_blow() {
    UNDO.run(11);
}

#[test]
fn a_prune_survives_every_blow() {
    PRUNE.run(12);
}

#[test]
fn a_repair_survives_every_blow() {
    REPAIR.run(13);
}
