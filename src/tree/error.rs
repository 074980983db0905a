//! Why an image cannot be opened as a tree.

/// What keeps the directories of an image from being a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A directory that two entries lead to, one of them perhaps from below itself.
    #[error("the image is not a tree: directory inode {ino} has two parents, inodes {first} and {second}")]
    TwoParents {
        /// The directory.
        ino: u64,
        /// The parent that the walk came by first.
        first: u64,
        /// The other, or the same directory once more.
        second: u64,
    },
    /// The root is an entry of a directory.
    #[error("the image is not a tree: inode 1, the root, is an entry of directory inode {parent}")]
    RootBelow {
        /// That directory.
        parent: u64,
    },
    /// There is no inode 1, or it is not a directory.
    #[error("the image has no root: inode 1 is not a directory")]
    NoRoot,
    /// More entries than a directory index can address.
    #[error("the image has over 4 billion directory entries that are not stored in order")]
    TooManyEntries,
}
