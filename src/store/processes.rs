//! What the processes of this machine do with a store: evidence, in addition to leases and never instead of them.
//!
//! An upstream `puzzlefs mount` takes no lease, but keeps its rootfs blob mapped; other tools have files of the layout open, or
//! its path in their arguments, while they write. A mapped or open file whose name is a digest is looked for in this store
//! wherever it seems to lie, since mount namespaces show other paths, and compared by inode number.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use super::Store;
use crate::name::Digest;

/// What the processes were found to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessEvidence {
    /// Processes that have something of the store.
    pub processes: Vec<ProcessUse>,
    /// How many processes could not be looked into, for want of permission.
    pub unreadable: u64,
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

impl Store {
    /// Looks at every process but this one and those in `ours`, the owners of leases.
    pub fn process_evidence(&self, layouts: &[PathBuf], ours: &[u32]) -> ProcessEvidence {
        let mut evidence = ProcessEvidence::default();
        let here = std::process::id();
        let own_exe = fs::read_link("/proc/self/exe").ok();
        let ancestors = ancestors(here);
        for pid in pids() {
            if pid == here || ours.contains(&pid) {
                continue;
            }
            let root = PathBuf::from(format!("/proc/{pid}"));
            let is_pfs = own_exe.is_some() && fs::read_link(root.join("exe")).ok() == own_exe;
            let harmless = is_pfs || ancestors.contains(&pid) || is_fresh_fork(pid, &ancestors);
            match look(&root, layouts) {
                Look::Gone => {}
                Look::Unreadable => evidence.unreadable += 1,
                Look::Seen { named, at_layout } => {
                    let own = named.into_iter().filter(|(digest, ino)| self.is_file_of_ours(digest, *ino));
                    let blobs: BTreeSet<Digest> = own.map(|(digest, _)| digest).collect();
                    let at_layout = at_layout.filter(|_| !harmless);
                    if !blobs.is_empty() || at_layout.is_some() {
                        let name = fs::read_to_string(root.join("comm")).unwrap_or_default().trim().into();
                        evidence.processes.push(ProcessUse {
                            pid,
                            name,
                            blobs: blobs.into_iter().collect(),
                            at_layout,
                        });
                    }
                }
            }
        }
        evidence
    }
}

impl Store {
    /// Whether a file that a process has under the name of a blob is that blob of this store, and not of another one. Told by
    /// inode number, where a filesystem has one number for a file however it is come by; elsewhere the name decides.
    fn is_file_of_ours(&self, digest: &Digest, ino: u64) -> bool {
        let of_file = |file: fs::File| file.metadata().is_ok_and(|meta| meta.ino() == ino);
        match self.has_plain_inode_numbers() {
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

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
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

/// Whether a process is the child of an ancestor that has not become another program yet: it has everything open that its
/// parent has, for a moment.
fn is_fresh_fork(pid: u32, ancestors: &[u32]) -> bool {
    let exe = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    parent(pid).is_some_and(|parent| ancestors.contains(&parent) && exe(parent).is_some() && exe(parent) == exe(pid))
}

/// Field 4 of `/proc/PID/stat`; the name before it may hold anything, also parentheses.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

enum Look {
    Gone,
    Unreadable,
    Seen { named: BTreeSet<(Digest, u64)>, at_layout: Option<&'static str> },
}

/// Whether a process has ended and only waits for its parent to take note: it has nothing open any more, and cannot be looked
/// into either.
fn has_ended(root: &Path) -> bool {
    let stat = fs::read_to_string(root.join("stat")).unwrap_or_default();
    matches!(stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()), Some("Z" | "X"))
}

fn look(root: &Path, layouts: &[PathBuf]) -> Look {
    let links = match fs::read_dir(root.join("fd")) {
        Ok(entries) => entries,
        Err(cause) if is_gone(&cause) || has_ended(root) => return Look::Gone,
        Err(_) => return Look::Unreadable,
    };
    let mut named = BTreeSet::new();
    let mut at_layout = None;
    for entry in links.filter_map(Result::ok) {
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        if let Some(digest) = digest_in(link.as_os_str().as_bytes()) {
            named.extend(fs::metadata(entry.path()).map(|meta| (digest, meta.ino())));
        }
        if layouts.iter().any(|layout| link.starts_with(layout)) {
            at_layout = Some("has files of it open");
        }
    }
    let maps = match fs::read(root.join("maps")) {
        Ok(maps) => maps,
        Err(cause) if is_gone(&cause) || has_ended(root) => return Look::Gone,
        Err(_) => return Look::Unreadable,
    };
    named.extend(maps.split(|byte| *byte == b'\n').filter_map(mapped));
    let cwd = fs::read_link(root.join("cwd")).ok();
    if cwd.as_ref().is_some_and(|cwd| layouts.iter().any(|layout| cwd.starts_with(layout))) {
        at_layout = Some("stands in it");
    }
    let arguments = fs::read(root.join("cmdline")).unwrap_or_default();
    if arguments.split(|byte| *byte == 0).any(|argument| names_layout(argument, cwd.as_deref(), layouts)) {
        at_layout = Some("has it in its arguments");
    }
    Look::Seen { named, at_layout }
}

/// The blob that a line of `/proc/PID/maps` is about: addresses, rights, offset, device, inode number, path.
fn mapped(line: &[u8]) -> Option<(Digest, u64)> {
    let digest = digest_in(line)?;
    let fields = std::str::from_utf8(line.get(..line.iter().position(|byte| *byte == b'/')?)?).ok()?;
    Some((digest, fields.split_whitespace().nth(4)?.parse().ok()?))
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

/// Whether an argument is a layout, or `LAYOUT:TAG`, with or without a transport such as `oci:` before it.
fn names_layout(argument: &[u8], cwd: Option<&Path>, layouts: &[PathBuf]) -> bool {
    let mut starts = vec![argument];
    starts.extend(argument.iter().position(|byte| matches!(byte, b':' | b'=')).map(|at| &argument[at + 1..]));
    starts.into_iter().any(|start| {
        let mut ends = vec![start];
        ends.extend(start.iter().rposition(|byte| matches!(byte, b':' | b'@')).map(|at| &start[..at]));
        ends.into_iter().filter(|path| !path.is_empty()).any(|path| is_layout(path, cwd, layouts))
    })
}

fn is_layout(path: &[u8], cwd: Option<&Path>, layouts: &[PathBuf]) -> bool {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    let path = match cwd {
        Some(cwd) if path.is_relative() => cwd.join(path),
        _ => path,
    };
    // Only paths that end alike are resolved: others may lie on filesystems that do not answer.
    let alike = |layout: &&PathBuf| path == **layout || path.file_name() == layout.file_name();
    layouts.iter().filter(alike).any(|layout| path == *layout || path.canonicalize().is_ok_and(|path| path == *layout))
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
        let line = format!("7f00-7f01 r--p 00000000 fd:00 4711                  /s/blobs/sha256/{digest}");
        assert_eq!(mapped(line.as_bytes()), Some((digest, 4711)));
        assert_eq!(mapped(b"7f00-7f01 rw-p 00000000 00:00 0 [heap]"), None);
    }

    #[test]
    fn arguments_that_name_a_layout_are_recognised() {
        let layouts = [PathBuf::from("/srv/oci")];
        for argument in ["/srv/oci", "/srv/oci:tag", "oci:/srv/oci:tag", "--image=/srv/oci:tag", "oci:/srv/oci"] {
            assert!(names_layout(argument.as_bytes(), None, &layouts), "{argument}");
        }
        assert!(names_layout(b"oci:oci:tag", Some(Path::new("/srv")), &layouts));
        for argument in ["/srv/oci2", "/srv", "tag", "", "oci:/srv/other:tag"] {
            assert!(!names_layout(argument.as_bytes(), None, &layouts), "{argument}");
        }
    }
}
