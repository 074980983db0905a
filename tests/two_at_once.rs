//! Two programs on one store, the first of them stopped at a chosen system call while the second one runs. Real processes.
//!
//! A signal that strace injects arrives when the call has been made. Where the first program is stopped with the store lock
//! in its hand, the second one waits for it, and the first goes on as soon as that is seen.

mod common;
mod traced;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use common::{TestStore, assert_sound, noise, pfs, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};
use traced::{Blow, Guarded, await_some, can_trace, children, count_calls, quiet, traced};

/// The calls at which the first program is stopped.
const CALLS: &[&str] = &["flock", "linkat", "renameat", "renameat2", "syncfs", "unlinkat", "write", "fsync", "mkdirat"];

struct Ground {
    store: TestStore,
    seed: u64,
}

impl Ground {
    /// Two images that share a chunk, and the chunks of a third that was deleted.
    fn new(seed: u64) -> Self {
        let ground = Self { store: common::empty(), seed: seed << 32 | u64::from(std::process::id()) };
        fs::create_dir(ground.mountpoint()).unwrap();
        for tag in ["one", "two", "three"] {
            must(&pfs(&["build", &ground.tree(tag), &ground.image(tag)]));
        }
        must(&pfs(&["delete", "--keep-blobs", &ground.image("three")]));
        ground
    }

    fn path(&self) -> &str {
        self.store.path.to_str().unwrap()
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.path())
    }

    fn mountpoint(&self) -> PathBuf {
        self.store.beside("mnt")
    }

    fn own(&self, tag: &str) -> Vec<u8> {
        noise(tag.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31) + u64::from(byte)), 40_000)
    }

    fn tree(&self, tag: &str) -> String {
        let tree = self.store.beside(&format!("tree-{tag}"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("shared"), noise(self.seed, 70_000)).unwrap();
        fs::write(tree.join("zown"), self.own(tag)).unwrap();
        tree.display().to_string()
    }

    fn is_mounted(&self) -> bool {
        let wanted = self.mountpoint().display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
    }

    /// What is mounted can be read, every byte of it.
    fn assert_mount_reads(&self, tag: &str) {
        assert_eq!(fs::read(self.mountpoint().join("shared")).unwrap(), noise(self.seed, 70_000));
        assert_eq!(fs::read(self.mountpoint().join("zown")).unwrap(), self.own(tag));
    }

    fn settle(&self) {
        if self.is_mounted() {
            must(&pfs(&["umount", self.mountpoint().to_str().unwrap()]));
        }
        must(&pfs(&["gc", "--now", "--min-age", "0", self.path()]));
        assert_sound(&self.store);
    }

    /// A daemon may have been stopped again, in another thread, at the moment when its tracer went.
    fn wake(&self) {
        let live = self.store.leases().unwrap().into_iter().filter(|lease| lease.live);
        live.filter_map(|lease| Some(lease.record?.pid)).for_each(go_on);
    }

    /// How often a command makes the calls of interest when nobody disturbs it.
    fn calls(&self, arguments: &[&str]) -> BTreeMap<String, usize> {
        let log = self.store.beside("log");
        let strace = ["-o", log.to_str().unwrap(), "-e", &format!("trace={}", CALLS.join(","))].map(String::from);
        let mut child = Guarded(traced(false, &strace, &program(arguments)).spawn().unwrap());
        let tracer = child.0.id();
        await_some("it has ended or mounted", || {
            let over = child.0.try_wait().unwrap().is_some();
            (over || children(tracer).is_empty() && self.is_mounted()).then_some(())
        });
        let counts = count_calls(&log);
        if self.is_mounted() {
            must(&pfs(&["umount", self.mountpoint().to_str().unwrap()]));
        }
        counts
    }

    /// Runs the second command while the first is stopped. Gives how both have ended.
    fn both(&self, first: &[&str], call: &str, nth: usize, second: &[&str]) -> (Output, Output) {
        let first = Stopped::new(&program(first), &[], call, nth, &self.store.beside("stopped"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
        quiet(&mut command).args(second).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut second = command.spawn().unwrap();
        let lock = self.store.path.join(".pfs/lock");
        await_some("the second has ended or waits", || {
            let over = second.try_wait().unwrap().is_some();
            let waits = || children(second.id()).into_iter().chain([second.id()]).any(|pid| has_open(pid, &lock));
            (over || waits()).then_some(())
        });
        let first = first.go_on();
        self.wake();
        (first, second.wait_with_output().unwrap())
    }
}

fn program<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&[env!("CARGO_BIN_EXE_pfs")], arguments].concat()
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

fn has_open(pid: u32, path: &Path) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    links.filter_map(|link| fs::read_link(link.ok()?.path()).ok()).any(|open| open == path)
}

fn go_on(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process(pid, Signal::CONT);
    }
}

/// A program under strace that has come to the call at which it is stopped, or has ended before.
struct Stopped {
    tracer: Guarded,
    program: Vec<u32>,
}

impl Stopped {
    fn new(program: &[&str], more: &[&str], call: &str, nth: usize, log: &Path) -> Self {
        let _ = fs::remove_file(log);
        let mut strace = Blow::Stop.at(call, nth);
        strace[1] = log.display().to_string();
        strace.extend(more.iter().map(|&word| word.to_owned()));
        let mut tracer = Guarded(traced(false, &strace, program).spawn().unwrap());
        let pids = await_some("it has come to the call", || {
            let said = fs::read_to_string(log).unwrap_or_default();
            let stopped = said.lines().filter(|line| line.contains("--- stopped by SIGSTOP"));
            let pids: Vec<u32> = stopped.filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
            let over = tracer.0.try_wait().unwrap().is_some();
            // It serves a mount, and has not come to the call before.
            let serves = children(tracer.0.id()).is_empty() && said.contains("+++ exited");
            (!pids.is_empty() || over || serves).then_some(pids)
        });
        Self { tracer, program: pids }
    }

    fn is_stopped(&self) -> bool {
        !self.program.is_empty()
    }

    /// Lets it go on, to its end or until a daemon of its serves.
    fn go_on(mut self) -> Output {
        let tracer = self.tracer.0.id();
        await_some("the first has ended", || {
            let over = self.tracer.0.try_wait().unwrap().is_some();
            // Each of its threads is stopped at its own n-th call.
            self.program.iter().copied().chain(children(tracer)).for_each(go_on);
            (over || children(tracer).is_empty()).then_some(())
        });
        end(&mut self.tracer.0)
    }
}

/// The end of strace, if it has ended: the end of what it traced. If it serves on, success.
fn end(child: &mut Child) -> Output {
    let status = child.try_wait().unwrap();
    let mut stderr = Vec::new();
    if let (Some(_), Some(stream)) = (status, child.stderr.as_mut()) {
        std::io::Read::read_to_end(stream, &mut stderr).unwrap();
    }
    Output { status: status.unwrap_or_default(), stdout: Vec::new(), stderr }
}

/// Stops `first` at each of its calls, on a store of its own each time.
fn at_each_call(seed: u64, first: fn(&Ground) -> Vec<String>, mut act: impl FnMut(&Ground, &[&str], &str, usize)) {
    if !can_trace(&[]) {
        return;
    }
    let ground = Ground::new(seed);
    let arguments = first(&ground);
    let calls = ground.calls(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut points = 0;
    for (call, count) in calls {
        for nth in 1..=count {
            points += 1;
            let ground = Ground::new(seed + (points << 8));
            let arguments = first(&ground);
            eprintln!("{} stopped at {call} {nth}", arguments[0]);
            act(&ground, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), &call, nth);
            ground.settle();
        }
    }
    println!("{} was stopped at {points} calls", arguments[0]);
    assert!(points >= 10, "{} was stopped at {points} calls only", arguments[0]);
}

#[test]
fn a_build_loses_nothing_to_a_collection() {
    at_each_call(
        1,
        |ground| vec!["build".into(), ground.tree("three"), ground.image("again")],
        |ground, build, call, nth| {
            let collect = ["gc", "--now", "--min-age", "0", ground.path()];
            let (build, collect) = ground.both(build, call, nth, &collect);
            must(&build);
            must(&collect);
            assert!(ground.store.tags().contains(&"again".into()));
            assert_sound(&ground.store);
        },
    );
}

/// What it has written aside when it lets the lock go is its own.
#[test]
fn a_delete_under_way_is_not_disturbed_by_a_collection() {
    at_each_call(
        6,
        |ground| vec!["delete".into(), "--keep-blobs".into(), ground.image("one")],
        |ground, delete, call, nth| {
            let collect = ["gc", "--now", "--min-age", "0", ground.path()];
            let (delete, collect) = ground.both(delete, call, nth, &collect);
            must(&delete);
            must(&collect);
            assert!(!ground.store.tags().contains(&"one".into()));
            assert_eq!(ground.store.staged(), [""; 0]);
        },
    );
}

#[test]
fn of_two_collections_the_second_leaves() {
    let mut left = 0;
    at_each_call(
        2,
        |ground| ["gc", "--now", "--min-age", "0", ground.path()].map(Into::into).into(),
        |ground, collect, call, nth| {
            let (first, second) = ground.both(collect, call, nth, collect);
            must(&first);
            assert!(matches!(second.status.code(), Some(0 | 11)), "{}", stderr(&second));
            left += u32::from(second.status.code() == Some(11));
        },
    );
    assert!(left > 0 || !can_trace(&[]), "the first was never stopped while it collected");
}

#[test]
fn a_mount_reads_though_a_delete_was_under_way() {
    let mut mounted = 0;
    at_each_call(
        3,
        |ground| vec!["delete".into(), ground.image("one")],
        |ground, delete, call, nth| {
            let mount = ["mount", &ground.image("one"), ground.mountpoint().to_str().unwrap()].map(str::to_owned);
            let (delete, mount) = ground.both(delete, call, nth, &mount.each_ref().map(String::as_str));
            assert!(matches!(delete.status.code(), Some(0 | 3 | 11 | 13)), "{}", stderr(&delete));
            assert!(matches!(mount.status.code(), Some(0 | 12)), "{}", stderr(&mount));
            assert_eq!(mount.status.success(), ground.is_mounted());
            if ground.is_mounted() {
                mounted += 1;
                assert!(ground.store.tags().contains(&"one".into()), "it was untagged while it was mounted");
                must(&pfs(&["gc", "--now", "--min-age", "0", ground.path()]));
                ground.assert_mount_reads("one");
            }
        },
    );
    assert!(mounted > 0 || !can_trace(&[]), "no mount came before the tag was gone");
}

#[test]
fn a_mount_under_way_reads_though_it_is_deleted() {
    at_each_call(
        4,
        |ground| vec!["mount".into(), ground.image("one"), ground.mountpoint().display().to_string()],
        |ground, mount, call, nth| {
            let (_, delete) = ground.both(mount, call, nth, &["delete", &ground.image("one")]);
            assert!(matches!(delete.status.code(), Some(0 | 3 | 11 | 13)), "{}", stderr(&delete));
            if ground.is_mounted() {
                must(&pfs(&["gc", "--now", "--min-age", "0", ground.path()]));
                ground.assert_mount_reads("one");
            } else {
                assert!(!ground.store.tags().contains(&"one".into()), "it was neither mounted nor deleted");
            }
        },
    );
}

#[test]
fn a_copy_that_slept_over_two_collections_is_complete_after_the_next() {
    if !can_trace(&["skopeo"]) {
        return;
    }
    let ground = Ground::new(5);
    let from = Ground::new(5);
    must(&pfs(&["build", &from.tree("three"), &from.image("three")]));
    // It has looked at the blobs, found them, and not yet written the index: that comes after this file.
    let marker = ground.store.path.join("oci-layout").display().to_string();
    let (source, target) = (format!("oci:{}", from.image("three")), format!("oci:{}", ground.image("copied")));
    let copy = ["skopeo", "copy", "-q", &source, &target];
    let copy = Stopped::new(&copy, &["-P", &marker], "write", 1, &ground.store.beside("stopped"));
    assert!(copy.is_stopped(), "skopeo has not come to its last file but one");
    let said = [0, 1].map(|_| stdout(&pfs(&["gc", "--min-age", "0", ground.path()])));
    assert!(said.iter().all(|said| said.contains("(skopeo)")), "{said:?}");
    assert!(
        !ground.store.quarantined().unwrap().is_empty(),
        "the chunks that skopeo relies on are condemned: {said:?}"
    );
    must(&copy.go_on());
    must(&pfs(&["gc", ground.path()]));
    assert_eq!(ground.store.quarantined().unwrap(), []);
    assert_sound(&ground.store);
    assert_eq!(ground.store.read_back("copied"), from.store.read_back("three"));
    ground.settle();
}

/// Exit 0 means that the tag is there, however many publish at once.
#[test]
fn forty_builds_at_once_have_all_their_tags() {
    const BUILDS: usize = 40;
    let ground = Ground::new(40);
    let tags: Vec<String> = (0..BUILDS).map(|number| format!("build-{number}")).collect();
    let builds: Vec<Child> = tags
        .iter()
        .map(|tag| {
            let (tree, image) = (ground.tree(tag), ground.image(tag));
            let mut build = Command::new(env!("CARGO_BIN_EXE_pfs"));
            build.args(["build", "-q", &tree, &image]).stdout(Stdio::null()).stderr(Stdio::piped());
            build.spawn().unwrap()
        })
        .collect();
    for build in builds {
        must(&build.wait_with_output().unwrap());
    }
    let there = ground.store.tags();
    assert!(tags.iter().all(|tag| there.contains(tag)), "{there:?}");
    assert!(there.contains(&"one".into()) && there.contains(&"two".into()));
    must(&pfs(&["gc", "--min-age", "0s", "--now", ground.path()]));
    must(&pfs(&["check", "--data", ground.path()]));
    assert_sound(&ground.store);
}

/// Where two names cannot be exchanged, what other programs do between the comparison and the rename is not lost.
#[test]
fn a_foreign_edit_survives_where_names_cannot_be_exchanged() {
    if !can_trace(&["skopeo", "umoci"]) {
        return;
    }
    fn in_place(ground: &Ground, tag: &str) {
        ground.store.rewrite_index(|entries| {
            let mut entry = entries[0].clone();
            entry["annotations"][common::REF_NAME] = tag.into();
            entries.push(entry);
        })
    }
    fn renamed(ground: &Ground, tag: &str) {
        let (source, tag) = (ground.image("one"), tag.to_owned());
        must(&Command::new("umoci").args(["tag", "--image", &source, &tag]).output().unwrap());
    }
    fn both(ground: &Ground, tag: &str) {
        in_place(ground, "before");
        renamed(ground, tag);
    }
    type Edit = fn(&Ground, &str);
    let edits: [Edit; 3] = [in_place, renamed, both];
    for (seed, edit) in (50..).zip(edits) {
        let ground = Ground::new(seed);
        let log = ground.store.beside("log");
        let inject = ["inject=renameat2:error=EINVAL", "inject=renameat:delay_enter=3000000:when=1"];
        let strace = ["-o", log.to_str().unwrap(), "-e", "trace=renameat,renameat2", "-e", inject[0], "-e", inject[1]];
        let strace = [&strace[..], &["-P", ground.path(), "-P", "index.json"]].concat();
        let image = ground.image("two");
        let delete = program(&["delete", "--keep-blobs", &image]);
        let strace: Vec<String> = strace.into_iter().map(Into::into).collect();
        let mut delete = Guarded(traced(false, &strace, &delete).spawn().unwrap());
        await_some("the rename of the index", || {
            fs::read_to_string(&log).ok().filter(|log| log.contains("renameat(")).map(drop)
        });
        edit(&ground, "foreign");
        assert!(delete.0.try_wait().unwrap().is_none(), "the edit came too late to show anything");
        assert!(delete.0.wait().unwrap().success());
        let tags = ground.store.tags();
        assert!(tags.contains(&"foreign".into()) && !tags.contains(&"two".into()), "{tags:?}");
        assert_eq!(ground.store.staged(), [""; 0]);
        ground.settle();
    }
}
