//! Where the bytes of a file are.

use super::layer::{BlobRef, ChunkRecord};
use crate::name::ChunkId;

/// The chunk references of one file. They are contiguous from byte 0, none is empty, their sum is the size of the file,
/// and no sum overflows: the decoder has checked it.
#[derive(Clone, Copy)]
pub struct FileMap<'a> {
    pub(super) records: &'a [ChunkRecord],
    pub(super) digests: &'a [ChunkId],
    pub(super) compressed: &'a [bool],
}

/// One stretch of a file: `len` bytes from `file_offset` on are the bytes of the decoded chunk from `blob.offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The chunk, the place in it, and whether it is compressed.
    pub blob: BlobRef,
    /// Where the chunk stands in [`super::Layer::chunks`], for tables of what is known of each chunk.
    pub slot: u32,
    /// Where the stretch begins in the file, in bytes.
    pub file_offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl<'a> FileMap<'a> {
    /// The size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.records.last().map_or(0, |last| last.end)
    }

    /// How many stretches the file has.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The chunks of the layer that this map is in: [`super::Layer::chunks`], which [`Piece::slot`] counts in.
    pub fn layer_chunks(&self) -> &'a [ChunkId] {
        self.digests
    }

    /// The begin of the chunk in a slot of the layer, stored as the first file that names it says. Panics where there is none.
    pub fn layer_chunk(&self, slot: u32) -> BlobRef {
        let slot = slot as usize;
        BlobRef { chunk: self.digests[slot], offset: 0, compressed: self.compressed[slot] }
    }

    /// All stretches in order.
    pub fn pieces(self) -> impl ExactSizeIterator<Item = Piece> + 'a {
        self.pieces_from(0)
    }

    /// The stretches from the one that holds byte `offset` to the last. Found by bisection.
    pub fn pieces_from(self, offset: u64) -> impl ExactSizeIterator<Item = Piece> + 'a {
        let first = self.records.partition_point(|record| record.end <= offset);
        (first..self.records.len()).map(move |at| self.piece(at))
    }

    fn piece(&self, at: usize) -> Piece {
        let record = &self.records[at];
        let file_offset = if at == 0 { 0 } else { self.records[at - 1].end };
        Piece {
            blob: BlobRef {
                chunk: self.digests[record.slot as usize],
                offset: record.offset,
                compressed: record.compressed,
            },
            slot: record.slot,
            file_offset,
            len: record.end - file_offset,
        }
    }
}
