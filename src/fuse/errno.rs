//! The one table of errors that the kernel gets to see.

use fuser::Errno;

/// What a request ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// An inode number that no path leads to: the kernel made it up, or kept it from another mount.
    NoInode,
    /// Not a directory.
    NoDirectory,
    /// The wrong type for this call.
    WrongKind,
    /// No attribute of that name.
    NoAttribute,
    /// The caller's buffer is too small.
    BufferTooSmall,
    /// A chunk that is missing or damaged.
    Damage,
    /// Something that would change the image.
    ReadOnly,
    /// A request that this program answers so that the kernel never sends it again.
    NeverAgain,
}

impl From<Trouble> for Errno {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NoInode => Errno::ESTALE,
            Trouble::NoDirectory => Errno::ENOTDIR,
            Trouble::WrongKind => Errno::EINVAL,
            Trouble::NoAttribute => Errno::ENODATA,
            Trouble::BufferTooSmall => Errno::ERANGE,
            Trouble::Damage => Errno::EIO,
            Trouble::ReadOnly => Errno::EROFS,
            Trouble::NeverAgain => Errno::ENOSYS,
        }
    }
}
