//! From a directory to an image.
//!
//! The tree is walked, its files are read as one stream and cut into chunks, the chunks are stored, and at the end come
//! the rootfs and the manifest: what names something is written after what it names. A plain build has the same
//! manifest as `puzzlefs build` of version 0.2.0 makes of the same tree.
//!
//! Memory: a few chunks a thread, a row for each inode, name and chunk, and the text of the manifest. The rootfs blob, which is
//! larger than these rows, is written piece by piece.

mod cursor;
mod error;
mod layer;
mod manifest;
mod pool;
mod source;
mod stream;
mod walk;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

pub use error::BuildError;

use self::{
    cursor::Cursor,
    layer::TreeLayer,
    manifest::{EMPTY_CONFIG, RootfsBlob},
    pool::{Pool, StoredChunk},
    source::{Identity, NodeKind, SourceTree},
};
use crate::{
    codec::{Encoding, Hashed, VerityHasher},
    format::{LayerSource, MessageSink, RootfsMessage},
    name::{ChunkId, ManifestId, RootfsId, Tag},
    store::{BuildSession, Published, Store, StoreError, Stored},
};

/// How to build.
#[derive(Debug, Clone, Copy)]
pub struct BuildOptions {
    /// How chunks are stored.
    pub encoding: Encoding,
    /// How many threads compress, hash and store; one more does so, too, while the disk holds one of them up.
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
    fn put(&self, blob: Hashed<'_>) -> Result<Stored, StoreError>;

    /// Takes in a blob of `size` bytes that `write` writes, and shows it to `see` from begin to end. Sinks that do not keep
    /// blobs in memory do better than this.
    fn put_written(
        &self,
        size: u64,
        write: &mut dyn FnMut(&mut dyn MessageSink),
        see: &mut dyn FnMut(&[u8]),
    ) -> Result<Stored, StoreError> {
        let mut bytes = vec![0; usize::try_from(size).expect("whoever keeps blobs in memory has room for them")];
        write(&mut bytes);
        see(&bytes);
        self.put(Hashed::new(&bytes))
    }
}

impl ChunkSink for BuildSession<'_> {
    fn put(&self, blob: Hashed<'_>) -> Result<Stored, StoreError> {
        self.put_hashed(blob)
    }

    fn put_written(
        &self,
        size: u64,
        write: &mut dyn FnMut(&mut dyn MessageSink),
        see: &mut dyn FnMut(&[u8]),
    ) -> Result<Stored, StoreError> {
        Self::put_written(self, size, write, see)
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
    /// The directory in the tree that was left out, if there was one to leave out.
    pub left_out: Option<PathBuf>,
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
    /// The store, where it is a directory in the tree: it was not packed into its own image.
    pub left_out: Option<PathBuf>,
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
    let rendered = render_without(source, Some(store.identity()?), &session, options, progress)?;
    let Rendered { manifest, rootfs, stats, left_out } = rendered;
    let entry = |digest: &_, size| manifest::index_entry(tag, digest, size);
    let Published { manifest, replaced } = session.publish(&manifest, tag, entry)?;
    Ok(BuildReport { manifest: ManifestId(manifest), replaced: replaced.map(ManifestId), rootfs, stats, left_out })
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
    render_without(source, None, sink, options, progress)
}

/// The same, without the directory of this device and inode.
fn render_without(
    source: &Path,
    left_out: Option<Identity>,
    sink: &dyn ChunkSink,
    options: &BuildOptions,
    progress: &mut dyn FnMut(BuildProgress),
) -> Result<Rendered, BuildError> {
    let mut cursor = Cursor::open(source)?;
    let (tree, left_out) = walk::walk(source, left_out, &mut cursor)?;
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
    sink.put(Hashed::new(EMPTY_CONFIG))?;
    Ok(Rendered {
        manifest: manifest::manifest(&blob, &chunks, options.encoding.compresses()),
        rootfs: RootfsId(blob.digest),
        stats: stats(&tree, &chunks, blob.size),
        left_out,
    })
}

fn put_rootfs(tree: &SourceTree, chunks: &[StoredChunk], sink: &dyn ChunkSink) -> Result<RootfsBlob, BuildError> {
    let layer = TreeLayer { tree, chunks };
    let layers: [&dyn LayerSource; 1] = [&layer];
    let verity = verity_table(chunks);
    let message = RootfsMessage::lay_out(&layers, &verity);
    let message = message.map_err(|source| BuildError::Format { path: tree.path.clone(), source })?;
    let mut hasher = VerityHasher::default();
    let stored = sink.put_written(message.bytes(), &mut |to| message.write(to), &mut |bytes| hasher.update(bytes))?;
    Ok(RootfsBlob { digest: stored.digest, size: stored.size, verity: hasher.finish() })
}

/// The fs-verity digest of each chunk, by rising chunk.
fn verity_table(chunks: &[StoredChunk]) -> Vec<(ChunkId, [u8; 32])> {
    let mut table: Vec<_> = chunks.iter().map(|chunk| (chunk.id, chunk.verity)).collect();
    table.sort_unstable();
    table.dedup_by_key(|(chunk, _)| *chunk);
    table
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
