//! The rootfs of an image as one value, whichever wire version it was read from.
//!
//! A decoded [`Rootfs`] has been checked in every field, so nothing that reads it checks again: inode numbers rise
//! strictly within a layer, names are valid, every directory entry leads to an inode, file maps neither overlap nor
//! overflow. What is *not* promised is that the directories form a tree; `tree` sees to that when it opens one.

use super::{BlobRef, FormatError, Inode, Kind, Layer, LayerSource, RootfsMessage, plain_rootfs::decode_plainly, wire};
use crate::name::{ChunkId, Digest};

/// How much a decoder is willing to take in.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest rootfs or metadata blob, in bytes.
    pub message_bytes: u64,
}

impl Default for Limits {
    /// 1 GiB: about nine million directory entries.
    fn default() -> Self {
        Self { message_bytes: 1 << 30 }
    }
}

/// Which of the two wire formats a rootfs was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestVersion {
    /// Written by puzzlefs 0.1.0: the layers are blobs of their own.
    V2,
    /// Written by puzzlefs 0.2.0 and later, and by pfs: the layers lie in the rootfs message.
    V3,
}

/// The decoded metadata of an image: its layers, topmost first, and the verity table.
#[derive(Debug)]
pub struct Rootfs {
    pub(super) version: ManifestVersion,
    pub(super) layers: Vec<Layer>,
    pub(super) verity: Vec<(ChunkId, [u8; 32])>,
    pub(super) metadata: Vec<Digest>,
}

impl Rootfs {
    /// Decodes a rootfs of either version and checks every field. `metadata` gives the decoded bytes of a version 2
    /// metadata blob; a version 3 rootfs asks for none. Facts about the messages: `docs/format.md`.
    pub fn decode(
        bytes: &[u8],
        limits: &Limits,
        metadata: &mut dyn FnMut(&BlobRef) -> Result<Vec<u8>, String>,
    ) -> Result<Self, FormatError> {
        match decode_plainly(bytes, limits) {
            Some(rootfs) => rootfs.checked(),
            None => Self::decode_any_layout(bytes, limits, metadata),
        }
    }

    /// The same without the short way for what lies as usual: tests compare the two.
    pub fn decode_any_layout(
        bytes: &[u8],
        limits: &Limits,
        metadata: &mut dyn FnMut(&BlobRef) -> Result<Vec<u8>, String>,
    ) -> Result<Self, FormatError> {
        wire::decode_rootfs(bytes, limits, metadata)?.checked()
    }

    /// Checks what no layer alone can tell.
    fn checked(self) -> Result<Self, FormatError> {
        let rootfs = self;
        rootfs.check_entries_resolve()?;
        match rootfs.inode(ROOT_INO).map(|root| root.kind()) {
            Some(Kind::Dir(_)) => Ok(rootfs),
            Some(_) => Err(FormatError::Tree("inode 1, the root, is not a directory".into())),
            None => Err(FormatError::Tree("there is no inode 1, the root".into())),
        }
    }

    /// A version 3 rootfs of these layers, topmost first, and this verity table, which is sorted here.
    pub fn new(layers: Vec<Layer>, mut verity: Vec<(ChunkId, [u8; 32])>) -> Self {
        verity.sort_unstable();
        verity.dedup_by_key(|(chunk, _)| *chunk);
        Self { version: ManifestVersion::V3, layers, verity, metadata: Vec::new() }
    }

    /// The version 3 message for this rootfs.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let layers: Vec<&dyn LayerSource> = self.layers.iter().map(|layer| layer as _).collect();
        let message = RootfsMessage::lay_out(&layers, &self.verity)?;
        let too_large = |_| FormatError::Document { what: "the rootfs", problem: "it does not fit into memory".into() };
        let mut bytes = vec![0; usize::try_from(message.bytes()).map_err(too_large)?];
        message.write(&mut bytes);
        Ok(bytes)
    }

    /// The wire version it was read from.
    pub fn version(&self) -> ManifestVersion {
        self.version
    }

    /// The layers, topmost first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The inode `ino` as the topmost layer that has it sees it, whiteouts included.
    pub fn inode(&self, ino: u64) -> Option<Inode<'_>> {
        self.layers.iter().find_map(|layer| layer.inode(ino))
    }

    /// Whether any layer deletes an inode. Where none does, every entry leads to something.
    pub fn has_whiteouts(&self) -> bool {
        self.layers.iter().any(|layer| layer.has_whiteouts)
    }

    /// The verity table: per chunk the fs-verity digest of its stored bytes, sorted by chunk.
    pub fn verity(&self) -> &[(ChunkId, [u8; 32])] {
        &self.verity
    }

    /// The version 2 metadata blobs, topmost layer first; empty for version 3.
    pub fn metadata_blobs(&self) -> &[Digest] {
        &self.metadata
    }

    /// Every chunk that any layer or the verity table names, sorted, once each: what the image may need.
    pub fn chunks(&self) -> Vec<ChunkId> {
        let mut chunks: Vec<_> = self.chunks_named().collect();
        chunks.sort_unstable();
        chunks.dedup();
        chunks
    }

    /// The same, in no order, each as often as a layer or the verity table names it.
    pub fn chunks_named(&self) -> impl Iterator<Item = ChunkId> {
        let layers = self.layers.iter().flat_map(|layer| layer.digests.iter().copied());
        layers.chain(self.verity.iter().map(|(chunk, _)| *chunk))
    }

    fn check_entries_resolve(&self) -> Result<(), FormatError> {
        for (depth, layer) in self.layers.iter().enumerate() {
            for inode in layer.inodes() {
                let Kind::Dir(directory) = inode.kind() else { continue };
                for entry in directory.entries() {
                    if !self.layers.iter().any(|layer| layer.has(entry.ino)) {
                        let name = String::from_utf8_lossy(entry.name);
                        let problem = format!("the entry {name:?} leads to inode {}, which no layer has", entry.ino);
                        return Err(FormatError::inode(depth, inode.ino(), problem));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The number of the root directory, in every image.
pub(super) const ROOT_INO: u64 = 1;
