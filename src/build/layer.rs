//! Puts the walk and the chunks together: the layer of an image.

use super::{
    pool::StoredChunk,
    source::{Node, NodeKind, SourceTree},
};
use crate::format::{BlobRef, DirEntry, FormatError, InodeDraft, KindDraft, Layer, LayerBuilder, XattrDraft};

/// The layer that holds this tree, its files being stretches of these chunks, one after the other.
pub(super) fn layer(tree: &SourceTree, chunks: &[StoredChunk]) -> Result<Layer, FormatError> {
    let mut builder = LayerBuilder::new(0);
    let mut stretches = Stretches { chunks, offset: 0 };
    for node in &tree.nodes {
        push(&mut builder, node, &mut stretches)?;
    }
    builder.finish_sorted()
}

fn push(builder: &mut LayerBuilder, node: &Node, stretches: &mut Stretches<'_>) -> Result<(), FormatError> {
    let mut xattrs = node.xattrs.iter().map(|(key, value)| Ok(XattrDraft { key, value }));
    let (ino, uid, gid, permissions) = (node.ino, node.uid, node.gid, node.permissions);
    let draft = InodeDraft { ino, uid, gid, permissions, xattrs: &mut xattrs };
    match &node.kind {
        NodeKind::Unknown => builder.push(draft, KindDraft::Unknown),
        NodeKind::Fifo => builder.push(draft, KindDraft::Fifo),
        NodeKind::Socket => builder.push(draft, KindDraft::Socket),
        NodeKind::Char(device) => builder.push(draft, KindDraft::Char(*device)),
        NodeKind::Block(device) => builder.push(draft, KindDraft::Block(*device)),
        NodeKind::Symlink(target) => builder.push(draft, KindDraft::Symlink(target)),
        NodeKind::Dir(entries) => {
            let mut entries = entries.iter().map(|entry| Ok(DirEntry { ino: entry.ino, name: &entry.name }));
            builder.push(draft, KindDraft::Dir { entries: &mut entries, look_below: false })
        }
        NodeKind::File { size } => {
            let mut left = *size;
            let mut pieces = std::iter::from_fn(|| stretches.next(&mut left).map(Ok));
            builder.push(draft, KindDraft::File(&mut pieces))
        }
    }
}

/// What is left of the stream.
struct Stretches<'c> {
    chunks: &'c [StoredChunk],
    offset: u64,
}

impl Stretches<'_> {
    /// The longest next stretch of at most `left` bytes that lies in one chunk; `None` when nothing is left of the file.
    fn next(&mut self, left: &mut u64) -> Option<(BlobRef, u64)> {
        let chunk = self.chunks.first().filter(|_| *left > 0)?;
        let blob = BlobRef { chunk: chunk.id, offset: self.offset, compressed: chunk.compressed };
        let len = (*left).min(chunk.decoded_bytes - self.offset);
        *left -= len;
        self.offset += len;
        if self.offset == chunk.decoded_bytes {
            (self.chunks, self.offset) = (&self.chunks[1..], 0);
        }
        Some((blob, len))
    }
}
