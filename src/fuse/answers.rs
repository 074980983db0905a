//! Attributes as the kernel wants them.

use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::{
    format::Device,
    tree::{FileKind, Node},
};

/// An image never changes, so what the kernel knows stays true: about 136 years.
pub(super) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Linux sizes the buffer of `opendir` by this, and one directory request fills it: more entries, fewer requests.
const DIRECTORY_BLOCK_BYTES: u32 = 128 << 10;
const FILE_BLOCK_BYTES: u32 = 4096;
/// What `stat` counts blocks in, whatever the block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// Attributes for `stat`. Times are 0, because the format has none.
pub(super) fn attributes(node: &Node) -> FileAttr {
    let directory = node.kind == FileKind::Directory;
    FileAttr {
        ino: INodeNo(node.ino),
        size: if directory { u64::from(FILE_BLOCK_BYTES) } else { node.size },
        blocks: node.size.div_ceil(STAT_BLOCK_BYTES),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(node.kind),
        perm: node.permissions,
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: node.device.map_or(0, encode_device),
        blksize: if directory { DIRECTORY_BLOCK_BYTES } else { FILE_BLOCK_BYTES },
        flags: 0,
    }
}

/// The answer "there is no such name", which the kernel remembers: an entry that leads to inode 0.
pub(super) fn nothing() -> FileAttr {
    let nowhere =
        Node { ino: 0, kind: FileKind::Regular, permissions: 0, uid: 0, gid: 0, nlink: 0, size: 0, device: None };
    attributes(&nowhere)
}

/// The type of an inode. What its builder could not name shows as an empty regular file.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Unknown | FileKind::Regular => FileType::RegularFile,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Char => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// `new_encode_dev` of the kernel, which FUSE uses: 12 bits of major, 20 of minor.
fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(encode_device(Device { major: 1, minor: 3 }), 0x103);
        assert_eq!(encode_device(Device { major: 259, minor: 0x12345 }), 0x1231_0345);
        assert_eq!(encode_device(Device { major: 0xfff, minor: 0xf_ffff }), u32::MAX);
    }
}
