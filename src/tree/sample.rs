//! Hand-made images for tests.

use crate::{
    format::{BlobRef, DirEntry, InodeDraft, KindDraft, Layer, LayerBuilder, Rootfs},
    name::{ChunkId, Digest},
};

/// A layer that is being made.
pub(super) struct Sample(LayerBuilder);

impl Sample {
    pub(super) fn new() -> Self {
        Self(LayerBuilder::new(0))
    }

    pub(super) fn dir(self, ino: u64, entries: &[(&str, u64)]) -> Self {
        self.directory(ino, entries, false)
    }

    pub(super) fn dir_looking_below(self, ino: u64, entries: &[(&str, u64)]) -> Self {
        self.directory(ino, entries, true)
    }

    pub(super) fn file(self, ino: u64, pieces: &[(BlobRef, u64)]) -> Self {
        self.push(ino, KindDraft::File(&mut pieces.iter().map(|piece| Ok(*piece))))
    }

    pub(super) fn empty_file(self, ino: u64) -> Self {
        self.file(ino, &[])
    }

    pub(super) fn whiteout(self, ino: u64) -> Self {
        self.push(ino, KindDraft::Whiteout)
    }

    pub(super) fn layer(self) -> Layer {
        self.0.finish().unwrap()
    }

    fn directory(self, ino: u64, entries: &[(&str, u64)], look_below: bool) -> Self {
        let mut entries = entries.iter().map(|(name, ino)| Ok(DirEntry { name: name.as_bytes(), ino: *ino }));
        self.push(ino, KindDraft::Dir { entries: &mut entries, look_below })
    }

    fn push(mut self, ino: u64, kind: KindDraft<'_>) -> Self {
        let draft = InodeDraft { ino, uid: 0, gid: 0, permissions: 0o644, xattrs: &mut std::iter::empty() };
        self.0.push(draft, kind).unwrap();
        self
    }
}

/// An image of these layers, topmost first.
pub(super) fn image(layers: Vec<Layer>) -> Rootfs {
    Rootfs::new(layers, Vec::new())
}

/// A place in the chunk that has these stored bytes.
pub(super) fn place(stored: &[u8], offset: u64, compressed: bool) -> BlobRef {
    BlobRef { chunk: ChunkId(Digest::of(stored)), offset, compressed }
}
