//! Why a store could not be read or changed.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{format::FormatError, name::Digest};

/// What went wrong with a store. The path is always there; the cause is in `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A directory that is no layout, or no directory at all.
    #[error("{} is not a store: {why}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// Root would be led out of another user's store, into what belongs to somebody else.
    #[error("{} is a link to {}, which belongs to another user than the store; it is not followed", path.display(), to.display())]
    LedAway {
        /// The link.
        path: PathBuf,
        /// Where it leads to.
        to: PathBuf,
    },
    /// A layout was noted as a user of these blobs, and what it needs cannot be found out.
    #[error("the layout {} is noted in {} as a user of these blobs, and cannot be looked at: {problem}", layout.display(), note.display())]
    NotedLayout {
        /// The note.
        note: PathBuf,
        /// The layout.
        layout: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A pin that cannot be read: what it keeps is not known.
    #[error("the pin {} cannot be read: {problem}", path.display())]
    Pin {
        /// The file of the pin.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An operation of the system failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `index.json` cannot be read as an index, also not on repeated tries.
    #[error("{} cannot be read: {source}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A blob is not there: neither in the layout nor in quarantine.
    #[error("blob {0} is missing")]
    Missing(Digest),
    /// A blob that a build had found in the store was gone when it was to be published.
    #[error("another program freed blob {0} while the image was being built; nothing was published")]
    FreedMeanwhile(Digest),
    /// A blob is there, but its bytes are not those of its digest.
    #[error("blob {digest} is damaged: {problem}")]
    Damaged {
        /// Its name.
        digest: Digest,
        /// What was found.
        problem: String,
    },
    /// Something other than a regular file stands under the name of a blob.
    #[error("{} is {what}, not a file; blobs are regular files", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another process holds the lock for longer than one waits.
    #[error("{} is locked by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The same, where it can be seen who holds it.
    #[error("{} is locked by another process: {holder}", path.display())]
    LockedBy {
        /// The lock file.
        path: PathBuf,
        /// The process by name and number, and the user whose it is.
        holder: String,
    },
    /// Somebody else keeps rewriting `index.json` while it is being edited.
    #[error("{} is being rewritten by another program", path.display())]
    IndexBusy {
        /// The index file.
        path: PathBuf,
    },
    /// The filesystem cannot exchange two names, and an index that another program had put there in the same moment is gone.
    #[error("{} has been edited, and another program's edit of the same moment was overwritten", path.display())]
    IndexOverwritten {
        /// The index file.
        path: PathBuf,
    },
    /// The list of other layouts makes no sense.
    #[error("{}: {problem}", path.display())]
    Roots {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A lease that may be held and that cannot be read: what it protects is not known.
    #[error("the lease {} may be held, and its text cannot be read: {problem}", path.display())]
    Lease {
        /// The lease file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// `.pfs/` cannot be written, so no lease can be taken and nothing would protect what is being used.
    #[error("{} cannot be written, so nothing would keep a collector from freeing what is in use: {source}", path.display())]
    NoState {
        /// The directory of ours.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Puts the act and the path on an error of the system.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.as_ref().into(), source: source.into() })
    }
}

impl StoreError {
    /// Whether the cause is that something does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Missing(_) => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}
