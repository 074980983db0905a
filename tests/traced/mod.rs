//! pfs, and other programs, under `strace`: killed, failed or stopped at a chosen system call.

#![allow(dead_code, reason = "each test program uses another part of this")]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::common::propagation;

/// Whether this machine can trace. Says what is missing, and fails under `CI=true`.
pub fn can_trace(more: &[&str]) -> bool {
    let lacks = |name: &&&str| {
        !Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().status.success()
    };
    let mut missing: Vec<&str> = ["strace", "unshare"].iter().chain(more).filter(lacks).copied().collect();
    if !rustix::process::geteuid().is_root() {
        missing.push("root");
    }
    if !missing.is_empty() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "missing: {missing:?}");
        eprintln!("SKIPPED, missing: {}", missing.join(", "));
    }
    missing.is_empty()
}

/// What happens to a program at a system call.
#[derive(Debug, Clone, Copy)]
pub enum Blow {
    /// It is killed.
    Kill,
    /// It is stopped, until somebody sends SIGCONT.
    Stop,
    /// The call fails with this error, and is not made.
    Error(&'static str),
}

impl Blow {
    /// At the `nth` such call of one of its threads.
    pub fn at(self, call: &str, nth: usize) -> Vec<String> {
        let what = match self {
            Self::Kill => "signal=KILL".into(),
            Self::Stop => "signal=STOP".into(),
            Self::Error(name) => format!("error={name}"),
        };
        let inject = format!("inject={call}:{what}:when={nth}");
        ["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject].map(Into::into).into()
    }
}

/// A program under `strace`. In a pid namespace of its own it sees no processes but itself, so that it does the same
/// things each time; mounts that it makes there are seen nowhere else.
pub fn traced<A: AsRef<OsStr>>(own_namespace: bool, strace: &[String], program: &[A]) -> Command {
    let mut command = match own_namespace {
        true => namespaced("strace"),
        false => Command::new("strace"),
    };
    command.arg("-f").args(strace).arg("--").args(program);
    quiet(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Takes out of the environment what would make the program do more, or other things.
pub fn quiet(command: &mut Command) -> &mut Command {
    // cargo sets the last two; the loader looks for every library in every directory of theirs.
    ["PFS_STORE", "CLICOLOR_FORCE", "LD_LIBRARY_PATH", "RUST_BACKTRACE"].iter().for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// A program in a pid namespace of its own.
pub fn namespaced(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--propagation", propagation("slave")]);
    command.args(["--kill-child", program]);
    command
}

/// How often each system call in a log of strace was made, by the thread that made most of them.
pub fn count_calls(log: &Path) -> BTreeMap<String, usize> {
    let mut by_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let (thread, rest) = line.split_once(char::is_whitespace).unwrap_or_default();
        if let Some((call, _)) = rest.trim_start().split_once('(').filter(|(call, _)| !call.contains(' ')) {
            *by_thread.entry((thread.into(), call.into())).or_default() += 1;
        }
    }
    let mut counts = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let most: &mut usize = counts.entry(call).or_default();
        *most = count.max(*most);
    }
    counts
}

/// Looks again and again until there is something; fails after half a minute.
pub fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: it has not come about in 30 s");
        thread::yield_now();
    }
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process is stopped, by a signal and not by its tracer alone.
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    matches!(state, Some('T' | 't'))
}

/// A child that is killed, with those that it traces, when the test ends before it.
pub struct Guarded(pub Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        for pid in children(self.0.id()) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
