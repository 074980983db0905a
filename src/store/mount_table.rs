//! The mount table of a process, as far as the store wants to know it: proc_pid_mountinfo(5).

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::PathBuf};

/// What is needed of a line of `/proc/PID/mountinfo`.
#[derive(Debug, Clone)]
pub(super) struct MountLine {
    /// The number of the mount.
    pub id: u64,
    /// Major and minor device number, as text: `0:52`.
    pub device: String,
    /// Which directory of the filesystem is mounted.
    pub root: PathBuf,
    /// Where, as seen from the root of that process.
    pub mountpoint: PathBuf,
    /// The type of the filesystem, with the subtype.
    pub fstype: String,
    /// The source.
    pub source: String,
    /// The options of the filesystem.
    pub options: String,
}

/// The mounts that a process sees; `None` where there is no such table to be read.
pub(super) fn read(pid: &str) -> Option<Vec<MountLine>> {
    let table = fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    Some(table.split(|byte| *byte == b'\n').filter_map(MountLine::parse).collect())
}

impl MountLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        // A variable number of optional fields stands between the sixth and the dash.
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |at: usize| Some(String::from_utf8_lossy(&unescape(fields.get(at)?)).into_owned());
        let path = |at: usize| Some(PathBuf::from(OsString::from_vec(unescape(fields.get(at)?))));
        Some(Self {
            id: text(0)?.parse().ok()?,
            device: text(2)?,
            root: path(3)?,
            mountpoint: path(4)?,
            fstype: text(dash + 1)?,
            source: text(dash + 2)?,
            options: text(dash + 3).unwrap_or_default(),
        })
    }

    /// The user whose FUSE server this is.
    pub(super) fn fuse_user(&self) -> Option<u32> {
        self.options.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
    }
}

/// Spaces and the like stand there as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let line = br"36 35 98:0 /a\040b /mnt/c\134d rw,noatime master:1 - fuse.pfs /srv/oci:app rw,user_id=1000";
        let line = MountLine::parse(line).unwrap();
        assert_eq!((line.id, line.device.as_str(), line.fuse_user()), (36, "98:0", Some(1000)));
        assert_eq!((line.root, line.mountpoint), ("/a b".into(), r"/mnt/c\d".into()));
        assert_eq!((line.fstype.as_str(), line.source.as_str()), ("fuse.pfs", "/srv/oci:app"));
        assert!(MountLine::parse(b"").is_none() && MountLine::parse(b"1 2 3 4 5").is_none());
    }
}
