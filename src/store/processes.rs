//! What the processes of this machine do with a store: evidence, in addition to leases and never instead of them.
//!
//! An upstream `puzzlefs mount` takes no lease, but keeps its rootfs blob mapped; other tools have files of the layout open, or
//! its path in their arguments, while they write. Paths mean something else in other mount namespaces and behind links, so what
//! a process has is compared by device and inode number, and its arguments are resolved where it stands. What cannot be looked
//! into is counted, and where it could be a mount or a writer, that is said.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};

use super::{
    LeaseKind, LeaseState, Store,
    mount_table::{self, MountLine},
    neighbours::device_text,
};
use crate::name::Digest;

/// What the processes were found to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessEvidence {
    /// Processes that have something of the store.
    pub processes: Vec<ProcessUse>,
    /// How many processes could not be looked into, for want of permission.
    pub unreadable: u64,
    /// Why nothing can be known of the mounts of this store, or one is known to exist whose needs are not. Then nothing may be
    /// freed, whatever a person says.
    pub blind: Option<String>,
    /// Why a mount of this store may exist that cannot be seen. Then nothing is freed unless a person says that it may be.
    pub hidden: Option<String>,
    /// Why a writer may exist that cannot be seen.
    pub unseen_writers: Vec<String>,
}

/// What one process has of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUse {
    /// Its number here.
    pub pid: u32,
    /// Its name: `/proc/PID/comm`.
    pub name: String,
    /// The blobs that it maps or has open.
    pub blobs: Vec<Digest>,
    /// How else it is at the layout, as in "has it in its arguments"; it may be about to write.
    pub at_layout: Option<&'static str>,
}

/// Device and inode number.
type Identity = (u64, u64);

/// Programs that mount images without a lease.
const MOUNTERS: &[&str] = &["puzzlefs"];
/// Programs that write images.
const WRITERS: &[&str] =
    &["skopeo", "umoci", "buildah", "podman", "containerd", "crane", "oras", "dockerd", "buildkitd", "nerdctl"];
/// Filesystem types, or beginnings of them, whose server may not answer.
const REMOTE: &[&str] = &["nfs", "cifs", "smb", "9p", "ceph", "fuse", "afs", "lustre", "autofs", "virtiofs"];
/// The number of the first pid namespace: `include/linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// A fork becomes another program within so many looks, mostly.
const FORK_TRIES: u32 = 10;
const FORK_PAUSE: Duration = Duration::from_millis(20);
/// How often a mount without a lease is looked at before it counts as one.
const MOUNT_TRIES: u32 = 10;
/// From `linux/magic.h`: overlayfs and tmpfs.
const OF_CONTAINERS: [u64; 2] = [0x794c_7630, 0x0102_1994];

impl Store {
    /// Looks at every process but this one and those in `ours`, the owners of leases.
    pub fn process_evidence(&self, layouts: &[PathBuf], ours: &[u32]) -> ProcessEvidence {
        let mut evidence = ProcessEvidence::default();
        let Some(own_mounts) = mount_table::read("self") else {
            evidence.blind = Some("there is no /proc here, so nobody can tell which processes use the store".into());
            return evidence;
        };
        let places = Places::new(layouts, self, &own_mounts);
        let here = std::process::id();
        let own_exe = exe(here);
        let ancestors = ancestors(here);
        let mut unreadable = Vec::new();
        for pid in pids() {
            if pid == here || ours.contains(&pid) {
                continue;
            }
            let is_pfs = own_exe.is_some() && exe(pid) == own_exe;
            let harmless = is_pfs || ancestors.contains(&pid);
            match look(pid, &places) {
                Look::Gone => {}
                Look::Unreadable => unreadable.push(name_of(pid)),
                Look::Seen { named, at_layout } => {
                    let own = named.into_iter().filter(|(file, dir)| self.is_file_of_ours(file, dir));
                    let blobs: BTreeSet<Digest> = own.map(|((digest, _), _)| digest).collect();
                    let at_layout = at_layout.filter(|_| !harmless);
                    let at_layout = match at_layout {
                        Some(_) if is_fork_of(pid, &ancestors) => look_again(pid, &places, &ancestors),
                        at_layout => at_layout,
                    };
                    if !blobs.is_empty() || at_layout.is_some() {
                        let blobs = blobs.into_iter().collect();
                        evidence.processes.push(ProcessUse { pid, name: name_of(pid), blobs, at_layout });
                    }
                }
            }
        }
        evidence.unreadable = unreadable.len() as u64;
        self.judge_unseen(&mut evidence, &unreadable, &own_mounts);
        if evidence.blind.is_none() && !places.all.is_empty() && self.has_mounts_without_lease(&places, &evidence) {
            evidence.blind = Some("an image of this store is mounted without a lease (pfs mounts says where)".into());
        }
        evidence
    }

    /// What could be where nobody can look.
    fn judge_unseen(&self, evidence: &mut ProcessEvidence, unreadable: &[String], mounts: &[MountLine]) {
        let named = |names: &[&str]| unreadable.iter().filter(|name| names.contains(&name.as_str())).max().cloned();
        let me = rustix::process::geteuid();
        let hides = mounts.iter().any(|line| line.mountpoint == Path::new("/proc") && hides_processes(&line.options));
        let hidden = hides && !me.is_root();
        let is_strange = |line: &&MountLine| {
            matches!(line.fstype.as_str(), "fuse" | "fuse.puzzlefs") && line.fuse_user() != Some(me.as_raw())
        };
        let strange = mounts.iter().find(is_strange).filter(|_| !me.is_root() && (hidden || !unreadable.is_empty()));
        if let Some(name) = named(MOUNTERS) {
            evidence.hidden =
                Some(format!("a process named {name} cannot be looked into; it may serve a mount of this store"));
        } else if let Some(line) = strange {
            let at = line.mountpoint.display();
            evidence.hidden = Some(format!(
                "another user's FUSE mount at {at} may be one of this store, and its process cannot be looked into"
            ));
        } else if self.is_in_a_strange_pid_namespace() {
            let why = "this is a pid namespace of its own, and the store can be reached from outside it, where processes cannot be seen";
            evidence.hidden = Some(why.into());
        }
        let writer = named(WRITERS).map(|name| format!("a process named {name} could not be looked into"));
        let hidden = hidden.then(|| "the processes of other users are hidden here (hidepid)".into());
        evidence.unseen_writers.extend(writer.into_iter().chain(hidden));
    }

    /// Whether the mount table has more live mounts of ours of this store than there are leases, and processes that were seen to
    /// serve one. A mount that is just ending is looked at again.
    fn has_mounts_without_lease(&self, places: &Places<'_>, evidence: &ProcessEvidence) -> bool {
        let seen = evidence.processes.iter().filter(|process| !process.blobs.is_empty()).count();
        (0..MOUNT_TRIES).all(|_| {
            let lines = mount_table::read("self").unwrap_or_default();
            let is_of_ours = |source: &[u8]| places.has(identity(Path::new(OsStr::from_bytes(source))));
            let ours =
                lines.iter().filter(|line| line.fstype == "fuse.pfs" && names(line.source.as_bytes(), is_of_ours));
            let ours: Vec<&MountLine> = ours.collect();
            let leases = if ours.is_empty() { Vec::new() } else { self.leases().unwrap_or_default() };
            let is_mount =
                |lease: &&LeaseState| lease.record.as_ref().is_some_and(|record| record.kind == LeaseKind::Mount);
            let held = leases.iter().filter(|lease| lease.live).filter(is_mount).count();
            let exceeds = |mounts: BTreeSet<&str>| mounts.len() > held + seen;
            let answers =
                |line: &&MountLine| !matches!(rustix::fs::statfs(&line.mountpoint), Err(rustix::io::Errno::NOTCONN));
            // A daemon that is stopped never answers, so none is asked unless there are too many.
            let without = exceeds(ours.iter().map(|line| line.device.as_str()).collect())
                && exceeds(ours.iter().copied().filter(answers).map(|line| line.device.as_str()).collect());
            if without {
                thread::sleep(FORK_PAUSE);
            }
            without
        })
    }

    fn is_in_a_strange_pid_namespace(&self) -> bool {
        let inside = fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link != Path::new(FIRST_PID_NAMESPACE));
        let kind = rustix::fs::fstatfs(&self.blobs).map_or(0, |stat| stat.f_type as u64 & 0xffff_ffff);
        inside && !OF_CONTAINERS.contains(&kind)
    }

    /// Whether a file that a process has under the name of a blob is that blob of this store, and not of another one: told by
    /// inode number, where a filesystem has one number for a file however it is come by. A file whose path leads into our blob
    /// directory is meant, whatever its number: the store may have been restored under a mount.
    fn is_file_of_ours(&self, (digest, ino): &(Digest, u64), dir: &NamedIn) -> bool {
        let of_file = |file: File| file.metadata().is_ok_and(|meta| meta.ino() == *ino);
        match self.has_plain_inode_numbers() && *dir == NamedIn::AnotherPlace {
            true => self.open_blob(digest).is_ok_and(of_file),
            false => self.open_blob(digest).is_ok(),
        }
    }

    fn has_plain_inode_numbers(&self) -> bool {
        // From `linux/magic.h`: ext2 to ext4, xfs, tmpfs, f2fs.
        const PLAIN: [u64; 4] = [0xef53, 0x5846_5342, 0x0102_1994, 0xf2f5_2010];
        rustix::fs::fstatfs(&self.blobs).is_ok_and(|stat| PLAIN.contains(&(stat.f_type as u64 & 0xffff_ffff)))
    }
}

/// Where the path of a file leads that is named like a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedIn {
    OurBlobs,
    AnotherPlace,
}

/// The directories and files that make a process one that is at a layout.
struct Places<'a> {
    layouts: &'a [PathBuf],
    blobs: Option<Identity>,
    all: BTreeSet<Identity>,
    devices: BTreeSet<u64>,
    own_namespace: Option<PathBuf>,
    own_mounts: &'a [MountLine],
    /// What was found of other mount namespaces: the mounts in them, and whether one of them is of the layout.
    namespaces: RefCell<HashMap<PathBuf, bool>>,
}

impl<'a> Places<'a> {
    fn new(layouts: &'a [PathBuf], store: &Store, own_mounts: &'a [MountLine]) -> Self {
        let mut all = BTreeSet::new();
        for layout in layouts {
            let inside = ["blobs", "blobs/sha256", "index.json"].map(|name| layout.join(name));
            all.extend([layout].into_iter().chain(&inside).filter_map(|path| identity(path)));
        }
        let blobs = identity(store.blobs.path());
        all.extend(blobs.filter(|_| !layouts.is_empty()));
        Self {
            layouts,
            blobs,
            devices: all.iter().chain(&blobs).map(|(device, _)| *device).collect(),
            all,
            own_namespace: fs::read_link("/proc/self/ns/mnt").ok(),
            own_mounts,
            namespaces: RefCell::default(),
        }
    }

    fn has(&self, found: Option<Identity>) -> bool {
        found.is_some_and(|found| self.all.contains(&found))
    }

    /// Whether the mount namespace of a process has a mount of a layout that is not one of our own mounts.
    fn has_mount(&self, pid: u32, namespace: &Path, mounts: &[MountLine]) -> bool {
        if self.own_namespace.as_deref() == Some(namespace) {
            return false;
        }
        if let Some(known) = self.namespaces.borrow().get(namespace) {
            return *known;
        }
        let devices: Vec<String> = self.devices.iter().map(|device| device_text(*device)).collect();
        let is_ours = |line: &MountLine| {
            let same = |own: &&MountLine| own.device == line.device && own.root == line.root;
            self.own_mounts.iter().filter(same).any(|own| own.mountpoint == line.mountpoint)
        };
        let candidates = mounts.iter().filter(|line| devices.contains(&line.device) && !is_ours(line));
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let found = candidates.into_iter().any(|line| self.has(identity(&below(&root, &line.mountpoint))));
        self.namespaces.borrow_mut().insert(namespace.into(), found);
        found
    }
}

/// An absolute path as a process sees it.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What a path leads to. Does not ask a server that may not answer.
fn identity(path: &Path) -> Option<Identity> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::INO).ok()?;
    Some((rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().into()
}

/// The program that a process runs.
fn exe(pid: u32) -> Option<Identity> {
    identity(Path::new(&format!("/proc/{pid}/exe")))
}

/// Whether `/proc` was mounted so that it does not show the processes of others.
fn hides_processes(options: &str) -> bool {
    let value = options.split(',').find_map(|option| option.strip_prefix("hidepid="));
    value.is_some_and(|value| !matches!(value, "0" | "off"))
}

/// The processes that this one was called by: a shell that stands in the store, a `sudo` that has its path in its arguments.
fn ancestors(mut pid: u32) -> Vec<u32> {
    let mut ancestors = Vec::new();
    while let Some(parent) = parent(pid).filter(|parent| *parent > 0 && !ancestors.contains(parent)) {
        ancestors.push(parent);
        pid = parent;
    }
    ancestors
}

/// Whether a process is the child of an ancestor and the same program: for a moment such a one has everything open that its
/// parent has, until it becomes another program. Or it never does, and is at work.
fn is_fork_of(pid: u32, ancestors: &[u32]) -> bool {
    parent(pid).is_some_and(|parent| ancestors.contains(&parent) && exe(parent).is_some() && exe(parent) == exe(pid))
}

/// Gives a fork the time to become what it is going to be, and looks at that.
fn look_again(pid: u32, places: &Places<'_>, ancestors: &[u32]) -> Option<&'static str> {
    for _ in 0..FORK_TRIES {
        thread::sleep(FORK_PAUSE);
        if !is_fork_of(pid, ancestors) {
            break;
        }
    }
    match look(pid, places) {
        Look::Seen { at_layout, .. } => at_layout,
        Look::Gone | Look::Unreadable => None,
    }
}

/// Field 4 of `/proc/PID/stat`; the name before it may hold anything, also parentheses.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

enum Look {
    Gone,
    Unreadable,
    Seen { named: BTreeMap<(Digest, u64), NamedIn>, at_layout: Option<&'static str> },
}

/// Whether a process has ended and only waits for its parent to take note: it has nothing open any more, and cannot be looked
/// into either.
fn has_ended(root: &Path) -> bool {
    let stat = fs::read_to_string(root.join("stat")).unwrap_or_default();
    matches!(stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()), Some("Z" | "X"))
}

fn look(pid: u32, places: &Places<'_>) -> Look {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let links = match fs::read_dir(root.join("fd")) {
        Ok(entries) => entries,
        Err(cause) if is_gone(&cause) || has_ended(&root) => return Look::Gone,
        Err(_) => return Look::Unreadable,
    };
    let view = View::new(pid, places);
    let mut named = BTreeMap::new();
    let mut at_layout = None;
    for entry in links.filter_map(Result::ok) {
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let found = identity(&entry.path());
        if let (Some(digest), Some((_, ino))) = (digest_in(link.as_os_str().as_bytes()), found) {
            named.insert((digest, ino), view.named_in(&link));
        }
        if places.has(found) || view.is_below_layout(&link, found) {
            at_layout = Some("has files of it open");
        }
    }
    let maps = match fs::read(root.join("maps")) {
        Ok(maps) => maps,
        Err(cause) if is_gone(&cause) || has_ended(&root) => return Look::Gone,
        Err(_) => return Look::Unreadable,
    };
    for (digest, ino, path) in maps.split(|byte| *byte == b'\n').filter_map(mapped) {
        named.insert((digest, ino), view.named_in(&path));
    }
    Look::Seen { named, at_layout: view.stands_or_says().or(at_layout) }
}

/// How a process sees paths.
struct View<'a> {
    places: &'a Places<'a>,
    pid: u32,
    /// Its root directory, as a path of ours.
    root: PathBuf,
    /// Its root directory, if that is not ours.
    other_root: Option<File>,
    cwd: Option<PathBuf>,
    namespace: Option<PathBuf>,
    mounts: Vec<MountLine>,
}

impl<'a> View<'a> {
    fn new(pid: u32, places: &'a Places<'a>) -> Self {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let is_here = namespace == places.own_namespace && identity(&root) == identity(Path::new("/"));
        let open = || File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&root).ok();
        Self {
            places,
            pid,
            other_root: if is_here { None } else { open() },
            cwd: fs::read_link(format!("/proc/{pid}/cwd")).ok(),
            mounts: if is_here { Vec::new() } else { mount_table::read(&pid.to_string()).unwrap_or_default() },
            root,
            namespace,
        }
    }

    /// How it is at a layout other than by open files.
    fn stands_or_says(&self) -> Option<&'static str> {
        let process = PathBuf::from(format!("/proc/{}", self.pid));
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let layouts = self.places.layouts;
        if layouts.is_empty() {
            return None;
        }
        if arguments.split(|byte| *byte == 0).any(|argument| names(argument, |path| self.leads_to_layout(path))) {
            return Some("has it in its arguments");
        }
        let by_name = self.cwd.as_ref().is_some_and(|cwd| layouts.iter().any(|layout| cwd.starts_with(layout)));
        let cwd = process.join("cwd");
        let above = [cwd.clone(), cwd.join(".."), cwd.join("../..")];
        let is_on_ours = identity(&cwd).is_some_and(|(device, _)| self.places.devices.contains(&device));
        if by_name || is_on_ours && above.iter().any(|place| self.places.has(identity(place))) {
            return Some("stands in it");
        }
        if self.places.has(identity(&self.root)) {
            return Some("has it for its root directory");
        }
        let namespace = self.namespace.as_ref()?;
        self.places.has_mount(self.pid, namespace, &self.mounts).then_some("has it mounted in a namespace of its own")
    }

    /// Whether an open file lies in a layout, going by its path as this process or ours sees it.
    fn is_below_layout(&self, link: &Path, found: Option<Identity>) -> bool {
        if self.places.layouts.iter().any(|layout| link.starts_with(layout)) {
            return true;
        }
        let on_ours = found.is_some_and(|(device, _)| self.places.devices.contains(&device));
        let elsewhere = on_ours && self.other_root.is_some() && link.is_absolute();
        elsewhere && link.ancestors().skip(1).take(3).any(|dir| self.places.has(identity(&below(&self.root, dir))))
    }

    /// Whether the path of a file, which may be unlinked, leads into the blob directory.
    fn named_in(&self, path: &Path) -> NamedIn {
        let Some(dir) = path.parent().filter(|dir| dir.is_absolute() && !self.is_remote(dir)) else {
            return NamedIn::AnotherPlace;
        };
        let dir = if self.other_root.is_some() { identity(&below(&self.root, dir)) } else { identity(dir) };
        match dir.is_some() && dir == self.places.blobs {
            true => NamedIn::OurBlobs,
            false => NamedIn::AnotherPlace,
        }
    }

    /// Whether an argument, taken for a path where the process stands, is a layout or a part of one.
    fn leads_to_layout(&self, path: &[u8]) -> bool {
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        let Some(whole) =
            self.cwd.as_ref().map(|cwd| cwd.join(&path)).or_else(|| path.is_absolute().then(|| path.clone()))
        else {
            return false;
        };
        // Of these every process has its own, so here they would lead to what we have open.
        let is_own =
            ["/proc", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"].iter().any(|own| whole.starts_with(own));
        if is_own || self.is_remote(&whole) {
            return false;
        }
        let found = match (&self.other_root, path.is_absolute()) {
            (None, true) => identity(&path),
            (_, false) => identity(&PathBuf::from(format!("/proc/{}/cwd", self.pid)).join(&path)),
            (Some(root), true) => identity_in(root, &path).or_else(|| identity(&below(&self.root, &path))),
        };
        self.places.has(found)
    }

    /// Whether a path leads onto a filesystem whose server may not answer, and which is not that of the store.
    fn is_remote(&self, path: &Path) -> bool {
        let mounts = if self.other_root.is_some() { &self.mounts[..] } else { self.places.own_mounts };
        let over = mounts.iter().filter(|line| path.starts_with(&line.mountpoint));
        let Some(line) = over.max_by_key(|line| line.mountpoint.as_os_str().len()) else { return false };
        let is_ours = self.places.devices.iter().any(|device| device_text(*device) == line.device);
        !is_ours && REMOTE.iter().any(|kind| line.fstype.starts_with(kind))
    }
}

/// What an absolute path leads to in another root directory, whose absolute links mean what they mean there.
fn identity_in(root: &File, path: &Path) -> Option<Identity> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let meta = File::from(opened).metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The blob that a line of `/proc/PID/maps` is about: addresses, rights, offset, device, inode number, path.
fn mapped(line: &[u8]) -> Option<(Digest, u64, PathBuf)> {
    let digest = digest_in(line)?;
    let (fields, path) = line.split_at(line.iter().position(|byte| *byte == b'/')?);
    let ino = std::str::from_utf8(fields).ok()?.split_whitespace().nth(4)?.parse().ok()?;
    Some((digest, ino, OsString::from_vec(path.to_vec()).into()))
}

/// Whether a process has ended while it was looked at.
fn is_gone(cause: &std::io::Error) -> bool {
    cause.kind() == std::io::ErrorKind::NotFound || cause.raw_os_error() == Some(libc::ESRCH)
}

/// The digest that a path ends in, if it ends in one; the kernel marks unlinked files.
fn digest_in(path: &[u8]) -> Option<Digest> {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let name = path.rsplit(|byte| *byte == b'/').next()?;
    if name.len() != 64 || !path.contains(&b'/') {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// So many marks of an argument are tried, the first ones, and the last.
const MARKS_MAX: usize = 16;

/// Whether a part of an argument is a path of the kind asked for: `PATH`, `PATH:TAG` whatever colons the tag has, `PATH@DIGEST`,
/// with or without a transport (`oci:`) or an option (`--image=`, `-s`, `src=`) before it.
fn names(argument: &[u8], is_asked_for: impl Fn(&[u8]) -> bool) -> bool {
    let marks = |text: &[u8], kinds: &[u8]| -> Vec<usize> {
        let all: Vec<usize> =
            text.iter().enumerate().filter(|(_, byte)| kinds.contains(byte)).map(|(at, _)| at).collect();
        all.iter().take(MARKS_MAX).chain(all.iter().skip(MARKS_MAX).last()).copied().collect()
    };
    let mut starts = vec![argument];
    starts.extend(marks(argument, b":=,").into_iter().map(|at| &argument[at + 1..]));
    if let [b'-', letter, path @ ..] = argument
        && *letter != b'-'
    {
        starts.push(path);
    }
    starts.into_iter().any(|start| {
        let ends = marks(start, b":@,").into_iter().map(|at| &start[..at]);
        std::iter::once(start).chain(ends).filter(|path| !path.is_empty()).any(&is_asked_for)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_at_the_end_of_paths() {
        let digest = Digest::of(b"x");
        for path in [format!("/s/blobs/sha256/{digest}"), format!("/elsewhere/{digest} (deleted)")] {
            assert_eq!(digest_in(path.as_bytes()), Some(digest), "{path}");
        }
        for path in [digest.to_string(), format!("/s/{digest}.tmp"), "/s/index.json".into(), String::new()] {
            assert_eq!(digest_in(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn lines_of_maps_tell_blob_and_inode() {
        let digest = Digest::of(b"x");
        let path = format!("/s/blobs/sha256/{digest}");
        let line = format!("7f00-7f01 r--p 00000000 fd:00 4711                  {path}");
        assert_eq!(mapped(line.as_bytes()), Some((digest, 4711, path.into())));
        assert_eq!(mapped(b"7f00-7f01 rw-p 00000000 00:00 0 [heap]"), None);
    }

    #[test]
    fn arguments_that_name_a_layout_are_recognised() {
        let is_layout = |path: &[u8]| path == b"/srv/oci";
        for argument in [
            "/srv/oci",
            "/srv/oci:tag",
            "oci:/srv/oci:tag",
            "--image=/srv/oci:tag",
            "oci:/srv/oci",
            "oci:/srv/oci:docker.io/library/app:1.0",
            "/srv/oci:app@sha256:00",
            "oci:/srv/oci:app:1.0@sha256:00",
            "-s/srv/oci",
            "type=oci,dest=/srv/oci,name=app:1",
        ] {
            assert!(names(argument.as_bytes(), is_layout), "{argument}");
        }
        for argument in ["/srv/oci2", "/srv", "tag", "", "oci:/srv/other:tag"] {
            assert!(!names(argument.as_bytes(), is_layout), "{argument}");
        }
    }

    #[test]
    fn a_proc_that_hides_is_told_from_one_that_does_not() {
        assert!(hides_processes("rw,hidepid=2") && hides_processes("hidepid=invisible,rw"));
        assert!(!hides_processes("rw") && !hides_processes("rw,hidepid=0,gid=3"));
    }
}
