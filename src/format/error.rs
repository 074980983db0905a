//! Why bytes are not what they should be.

use crate::name::DigestError;

/// What is wrong with a rootfs, a manifest or an index. The message says which field of which inode or entry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not a Cap'n Proto message, or one that points outside itself or exceeds the limits of the reader.
    #[error("the rootfs is not a readable Cap'n Proto message: {0}")]
    Message(String),
    /// Larger than the caller is willing to decode.
    #[error("{what} has {bytes} bytes, over the limit of {limit}")]
    TooLarge {
        /// Which blob.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A rootfs version that this program does not know.
    #[error("the rootfs has manifest version {0}; this program reads versions 2 and 3")]
    Version(u64),
    /// A field of one inode that breaks a rule of the format.
    #[error("inode {ino} in layer {layer}: {problem}")]
    Inode {
        /// The layer, counted from 0, the topmost.
        layer: usize,
        /// The inode number.
        ino: u64,
        /// The rule that it breaks.
        problem: String,
    },
    /// A problem with the tree as a whole.
    #[error("the rootfs is not a tree: {0}")]
    Tree(String),
    /// The verity table has an entry that is not two sha-256 digests.
    #[error("entry {0} of the verity table does not hold two 32-byte digests")]
    Verity(usize),
    /// A version 2 metadata blob that cannot be had.
    #[error("metadata blob {index} of the rootfs: {problem}")]
    Metadata {
        /// Its place in the list, 0 is the topmost layer.
        index: usize,
        /// What went wrong.
        problem: String,
    },
    /// A JSON text that is torn, or has not the shape of an index or manifest.
    #[error("{what} is not readable: {source}")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// A JSON text of the right syntax that breaks a rule.
    #[error("{what}: {problem}")]
    Document {
        /// Which document.
        what: &'static str,
        /// The rule that it breaks.
        problem: String,
    },
    /// A digest that is none.
    #[error("{place}: {source}")]
    Digest {
        /// Where it stands.
        place: String,
        /// What is wrong with it.
        source: DigestError,
    },
}

impl FormatError {
    pub(crate) fn inode(layer: usize, ino: u64, problem: impl Into<String>) -> Self {
        Self::Inode { layer, ino, problem: problem.into() }
    }
}
