//! The mount table as the kernel shows it to this process: proc(5), `/proc/PID/mountinfo`.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::MountError;

/// The type of our mounts in the mount table.
pub const FSTYPE: &str = "fuse.pfs";

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// Major and minor device number, as text: `0:52`.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The type of the filesystem, with the subtype.
    pub fstype: String,
    /// The source.
    pub source: String,
}

/// All mounts, the later ones over the earlier.
pub fn read() -> Result<Vec<MountLine>, MountError> {
    let bytes = fs::read("/proc/self/mountinfo").map_err(MountError::system("read /proc/self/mountinfo"))?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// The topmost mount of this path.
pub fn topmost(path: &Path) -> Result<Option<MountLine>, MountError> {
    Ok(read()?.into_iter().rev().find(|line| line.mountpoint == path))
}

/// Whether nobody holds the other end of this FUSE mount. Asked with statfs(2), which is never answered from a cache.
pub fn is_dead(mountpoint: &Path) -> bool {
    matches!(rustix::fs::statfs(mountpoint), Err(rustix::io::Errno::NOTCONN))
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    // A variable number of optional fields stands between the sixth and the dash.
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(MountLine {
        device: text(fields.get(2)?),
        mountpoint: OsString::from_vec(unescape(fields.get(4)?)).into(),
        fstype: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
    })
}

/// The kernel writes space, tab, newline, backslash and hash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = if *first == b'\\' { octal_byte(after) } else { None };
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    bytes
}

fn octal_byte(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_whatever_its_optional_fields() {
        let line =
            br"36 35 98:0 / /mnt/a\040b\134c ro,nosuid shared:7 master:1 - fuse.pfs /srv/o\040ci:app ro,user_id=0";
        let parsed = parse_line(line).unwrap();
        assert_eq!(parsed.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!((parsed.fstype.as_str(), parsed.source.as_str()), (FSTYPE, "/srv/o ci:app"));
        assert_eq!(parsed.device, "98:0");
        assert!(parse_line(b"36 35 98:0 / /mnt rw - tmpfs tmpfs rw").is_some());
    }

    #[test]
    fn what_is_no_line_is_passed_over() {
        for bad in [&b""[..], b"36 35", b"36 35 98:0 / /mnt rw -", b"\\0", b"1 2 3 4 5 6 7"] {
            assert_eq!(parse_line(bad), None);
        }
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\999"), br"\999");
    }
}
