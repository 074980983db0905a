//! Where the walk gets its bytes from.

use std::sync::Arc;

use crate::{
    codec,
    format::{BlobRef, Limits, Rootfs, message_length},
    name::Digest,
    store::{Store, StoreError},
};

/// Whatever can read blobs: a store, or a map in memory for tests.
pub trait BlobSource {
    /// The whole blob, its digest checked; [`StoreError::Missing`] if it is not there, an error if it has over `limit` bytes.
    fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError>;

    /// The same, but `None` if the blob does not begin like a JSON object or list.
    fn read_json(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// Whether the blob is as long as a Cap'n Proto message that begins like it would be. A source that would have to read
    /// all of it to tell may say yes.
    fn looks_like_message(&self, _digest: &Digest) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// What a rootfs names. The default decodes it; a source that remembers may answer from memory, since a rootfs
    /// never changes under its digest.
    fn rootfs_references(&self, digest: &Digest) -> Result<Arc<RootfsReferences>, RootfsProblem> {
        let (rootfs, _) = read_rootfs(self, digest)?;
        Ok(Arc::new(RootfsReferences::of(&rootfs)))
    }
}

/// Everything that a rootfs refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RootfsReferences {
    /// Every chunk that a layer or the verity table names, sorted, once each.
    pub chunks: Vec<Digest>,
    /// The metadata blobs of a version 2 rootfs.
    pub metadata: Vec<Digest>,
}

impl RootfsReferences {
    /// What this rootfs refers to.
    pub fn of(rootfs: &Rootfs) -> Self {
        let chunks = rootfs.chunks().into_iter().map(Digest::from).collect();
        Self { chunks, metadata: rootfs.metadata_blobs().to_vec() }
    }
}

/// Why a rootfs could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RootfsProblem {
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be decoded.
    #[error(transparent)]
    Format(#[from] crate::format::FormatError),
}

/// Reads and decodes a rootfs, with its metadata blobs where it has some. The second value is its size in bytes.
pub(super) fn read_rootfs<S: BlobSource + ?Sized>(source: &S, digest: &Digest) -> Result<(Rootfs, u64), RootfsProblem> {
    let limits = Limits::default();
    let bytes = source.read(digest, limits.message_bytes)?;
    let mut missing = None;
    let mut fetch = |blob: &BlobRef| {
        let stored = source.read(&blob.chunk.0, limits.message_bytes).map_err(|error| {
            let text = error.to_string();
            missing = Some(error);
            text
        })?;
        match blob.compressed {
            false => Ok(stored),
            true => codec::decode_all(&stored, limits.message_bytes).map_err(|cause| cause.to_string()),
        }
    };
    match Rootfs::decode(&bytes, &limits, &mut fetch) {
        Ok(rootfs) => Ok((rootfs, bytes.len() as u64)),
        Err(problem) => Err(missing.map_or_else(|| problem.into(), RootfsProblem::Store)),
    }
}

impl BlobSource for Store {
    fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.read_blob(digest, limit)
    }

    fn read_json(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.begins_like_json(digest)? {
            true => self.read_blob(digest, limit).map(Some),
            false => Ok(None),
        }
    }

    fn looks_like_message(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (start, len) = self.blob_start(digest)?;
        Ok(message_length(&start) == Some(len))
    }
}
