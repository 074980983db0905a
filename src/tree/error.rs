//! Why an image cannot be opened as a tree.

/// What keeps the directories of an image from being a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A directory that two entries lead to, or one that is its own ancestor.
    #[error(
        "the image is not a tree: directory inode {ino} has two parents, inodes {first} and {second} \
         (0 stands for the root's)"
    )]
    TwoParents {
        /// The directory.
        ino: u64,
        /// The parent that the walk came by first; 0 if the directory is the root.
        first: u64,
        /// The other.
        second: u64,
    },
    /// There is no inode 1, or it is not a directory.
    #[error("the image has no root: inode 1 is not a directory")]
    NoRoot,
    /// More entries than a directory index can address.
    #[error("the image has over 4 billion directory entries")]
    TooManyEntries,
}
