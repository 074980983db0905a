//! Why a tree could not become an image.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{format::FormatError, store::StoreError};

/// What stopped a build. Nothing that it put into a store is visible as an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Something in the source tree cannot be read.
    #[error("cannot {action} {}: {source}", path.display())]
    Source {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The tree is the store that the image would go into.
    #[error("{} is the store itself", .0.display())]
    IsStore(PathBuf),
    /// Something in the source tree is not what it was when the build came by first.
    #[error("{} changed while it was being built from: {what}", path.display())]
    Changed {
        /// What changed.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The tree has something that images cannot hold.
    #[error("{} cannot be put into an image: {source}", path.display())]
    Format {
        /// The source directory; the cause names the inode.
        path: PathBuf,
        /// What it is.
        source: FormatError,
    },
    /// The compressor failed, which it does for want of memory only.
    #[error("cannot compress a chunk: {0}")]
    Compress(io::Error),
    /// The store did not take a blob.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Puts the act and the path on an error of the system.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T, BuildError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T, BuildError> {
        self.map_err(|source| BuildError::Source { action, path: path(), source: source.into() })
    }
}

impl BuildError {
    pub(super) fn changed(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Changed { path: path.as_ref().into(), what: what.into() }
    }
}
