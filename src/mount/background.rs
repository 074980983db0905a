//! Mounting in the background: `pfs mount` returns when the mount is ready or has failed, and leaves a daemon behind.
//!
//! The parent runs this program again in a session of its own, with one pipe, the child's standard output. The child says
//! in it that it is ready, or what went wrong. Nothing of the caller's stays open in the daemon: `$(pfs mount ...)` would
//! otherwise wait for it.

use std::{
    env,
    ffi::OsStr,
    fs::OpenOptions,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{ChildStdout, Command, Stdio},
};

use super::MountError;

/// What the child says in the pipe. Other lines mean nothing.
const READY: &str = "pfs: ready";
const FAILED: &str = "pfs: failed ";
/// What a process that died without a word is said to have exited with.
const DIED: u8 = 1;
const FIRST_DESCRIPTOR_AFTER_STDIO: i32 = 3;
/// How glibc's allocator is to behave in the child: by default it gives each thread a heap of its own, and keeps what mounting
/// needed for a moment. With these, a Debian tree of 17,308 entries takes the daemon 10.6 MiB idle instead of 12.3, and 23
/// instead of 39 when all of it has been read, no slower. glibc reads them when a program starts, and nowhere else. Whoever
/// has set one means it.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    // Manifest and rootfs are larger, and go back to the kernel at once; buffers for chunks are smaller, and are used again.
    ("MALLOC_MMAP_THRESHOLD_", "1048576"),
    ("MALLOC_TRIM_THRESHOLD_", "524288"),
];

/// Runs this program again in the background with these arguments, the first of which is its name. Returns when the
/// child has called [`ready`]; fails with what the child told [`failed`].
pub fn launch<S: AsRef<OsStr>>(name: &OsStr, arguments: &[S]) -> Result<(), MountError> {
    // Descriptors that a careless caller left open, as bats does with 3, would keep its pipes open as long as the mount.
    close_fds::set_fds_cloexec(FIRST_DESCRIPTOR_AFTER_STDIO, &[]);
    let child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .envs(ALLOCATOR.into_iter().filter(|(name, _)| env::var_os(name).is_none()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = child.map_err(MountError::system("start the process in the background"))?;
    let stdout = child.stdout.take().expect("it was asked for just above");
    outcome(stdout).inspect_err(|_| {
        // It has failed and says so; what is left of it is of no interest.
        let _ = child.wait();
    })
}

fn outcome(stdout: ChildStdout) -> Result<(), MountError> {
    let mut said = BufReader::new(stdout).lines();
    while let Some(line) = said.next() {
        let line = line.map_err(MountError::system("hear from the process in the background"))?;
        if line == READY {
            return Ok(());
        }
        if let Some(code) = line.strip_prefix(FAILED).and_then(|code| code.parse().ok()) {
            let text: Vec<String> = said.map_while(Result::ok).collect();
            return Err(MountError::Background { code, text: text.join("\n") });
        }
    }
    Err(MountError::Background { code: DIED, text: "the process in the background died without a word".into() })
}

/// In the child, first of all: leaves the caller's session and process group.
pub fn begin() -> Result<(), MountError> {
    match rustix::process::setsid() {
        // It leads a group already, which is as good.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(cause) => Err(MountError::system("start a session")(cause)),
    }
}

/// In the child, when the mount answers: says so, and lets go of everything that is the caller's.
pub fn ready() -> Result<(), MountError> {
    let leave = || -> io::Result<()> {
        std::env::set_current_dir("/")?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let mut stdout = io::stdout();
        writeln!(stdout, "{READY}")?;
        stdout.flush()?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        Ok(())
    };
    leave().map_err(MountError::system("leave the caller alone"))
}

/// In the child, instead of [`ready`]: hands the words and the exit code to the parent.
pub fn failed(code: u8, text: &str) {
    // Where nobody listens, nobody can be told.
    let _ = writeln!(io::stdout(), "{FAILED}{code}\n{text}");
}
