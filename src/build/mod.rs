//! From a directory to an image.
//!
//! The tree is walked, its files are read as one stream and cut into chunks, the chunks are stored, and at the end come
//! the rootfs and the manifest: what names something is written after what it names. A plain build has the same
//! manifest as `puzzlefs build` of version 0.2.0 makes of the same tree.
//!
//! Memory: a few chunks a thread, and the metadata of the tree.

mod cursor;
mod error;
mod layer;
mod manifest;
mod pool;
mod source;
mod stream;
mod walk;

use std::{num::NonZeroUsize, path::Path};

pub use error::BuildError;

use self::{
    cursor::Cursor,
    manifest::{EMPTY_CONFIG, RootfsBlob},
    pool::{Pool, StoredChunk},
    source::{NodeKind, SourceTree},
};
use crate::{
    codec::{Encoding, verity_digest},
    format::Rootfs,
    name::{ChunkId, ManifestId, RootfsId, Tag},
    store::{BuildSession, Published, Store, StoreError, Stored},
};

/// How to build.
#[derive(Debug, Clone, Copy)]
pub struct BuildOptions {
    /// How chunks are stored.
    pub encoding: Encoding,
    /// How many threads compress, hash and store.
    pub threads: NonZeroUsize,
}

/// How far a build is: bytes of file data read, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildProgress {
    /// Read and cut.
    pub done_bytes: u64,
    /// In all files of the tree.
    pub total_bytes: u64,
}

/// Where blobs go. Called from several threads.
pub trait ChunkSink: Sync {
    /// Takes in a blob.
    fn put(&self, bytes: &[u8]) -> Result<Stored, StoreError>;
}

impl ChunkSink for BuildSession<'_> {
    fn put(&self, bytes: &[u8]) -> Result<Stored, StoreError> {
        Self::put(self, bytes)
    }
}

/// What a build made.
#[derive(Debug, Clone, Default)]
pub struct BuildStats {
    /// Inodes in the image.
    pub inodes: u64,
    /// Regular files among them.
    pub files: u64,
    /// File data, hard links counted once.
    pub decoded_bytes: u64,
    /// Chunks of the stream, duplicates included.
    pub chunks: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Their stored size.
    pub new_chunk_bytes: u64,
    /// The size of the rootfs blob.
    pub rootfs_bytes: u64,
}

/// An image whose blobs are all in the sink, but for the manifest.
#[derive(Debug)]
pub struct Rendered {
    /// The text of the manifest.
    pub manifest: Vec<u8>,
    /// The rootfs blob.
    pub rootfs: RootfsId,
    /// What it took.
    pub stats: BuildStats,
}

/// What a build did.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// The image.
    pub manifest: ManifestId,
    /// What the tag stood for before, if it stood for something else.
    pub replaced: Option<ManifestId>,
    /// The rootfs blob.
    pub rootfs: RootfsId,
    /// What it took.
    pub stats: BuildStats,
}

/// Builds an image of the directory `source` and publishes it in `store` as `tag`. When this returns, the image is on
/// stable storage; when it fails, the store has the images that it had before.
///
/// `progress` is called on this thread after every chunk.
pub fn build(
    source: &Path,
    store: &Store,
    tag: &Tag,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress),
) -> Result<BuildReport, BuildError> {
    let session = store.begin_build(tag)?;
    let Rendered { manifest, rootfs, stats } = render(source, &session, options, progress)?;
    let entry = |digest: &_, size| manifest::index_entry(tag, digest, size);
    let Published { manifest, replaced } = session.publish(&manifest, tag, entry)?;
    Ok(BuildReport { manifest: ManifestId(manifest), replaced: replaced.map(ManifestId), rootfs, stats })
}

/// Puts the chunks and the rootfs of the image of the directory `source` into `sink`, and makes its manifest.
///
/// `progress` is called on this thread after every chunk.
pub fn render(
    source: &Path,
    sink: &dyn ChunkSink,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress),
) -> Result<Rendered, BuildError> {
    let mut cursor = Cursor::open(source)?;
    let tree = walk::walk(source, &mut cursor)?;
    let total_bytes = tree.files().map(|(_, size)| size).sum();
    let mut done_bytes = 0;
    let pool = Pool { sink, encoding: options.encoding, threads: options.threads };
    let chunks = pool.run(|take| {
        stream::cut_files(&tree, &mut cursor, &mut |chunk| {
            done_bytes += chunk.len() as u64;
            progress(BuildProgress { done_bytes, total_bytes });
            take(chunk)
        })
    })?;
    let blob = put_rootfs(&tree, &chunks, sink)?;
    sink.put(EMPTY_CONFIG)?;
    Ok(Rendered {
        manifest: manifest::manifest(&blob, &chunks, options.encoding.compresses()),
        rootfs: RootfsId(blob.digest),
        stats: stats(&tree, &chunks, blob.size),
    })
}

fn put_rootfs(tree: &SourceTree, chunks: &[StoredChunk], sink: &dyn ChunkSink) -> Result<RootfsBlob, BuildError> {
    let encoded = layer::layer(tree, chunks).and_then(|layer| {
        let verity: Vec<(ChunkId, [u8; 32])> = chunks.iter().map(|chunk| (chunk.id, chunk.verity)).collect();
        Rootfs::new(vec![layer], verity).encode()
    });
    let bytes = encoded.map_err(|source| BuildError::Format { path: tree.path.clone(), source })?;
    let digest = sink.put(&bytes)?.digest;
    Ok(RootfsBlob { digest, size: bytes.len() as u64, verity: verity_digest(&bytes) })
}

fn stats(tree: &SourceTree, chunks: &[StoredChunk], rootfs_bytes: u64) -> BuildStats {
    let is_file = |node: &&source::Node| matches!(node.kind, NodeKind::File { .. });
    let new = || chunks.iter().filter(|chunk| chunk.is_new);
    BuildStats {
        inodes: tree.nodes.len() as u64,
        files: tree.nodes.iter().filter(is_file).count() as u64,
        decoded_bytes: chunks.iter().map(|chunk| chunk.decoded_bytes).sum(),
        chunks: chunks.len() as u64,
        new_chunks: new().count() as u64,
        new_chunk_bytes: new().map(|chunk| chunk.stored_bytes).sum(),
        rootfs_bytes,
    }
}
