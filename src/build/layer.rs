//! Puts the walk and the chunks together: the layer of an image.

use super::{
    pool::StoredChunk,
    source::{Node, NodeKind, SourceTree},
};
use crate::format::{BlobRef, DirEntry, FormatError, InodeDraft, KindDraft, LayerSource, TakeInode, XattrDraft};

/// The layer that holds this tree, its files being stretches of these chunks, one after the other.
pub(super) struct TreeLayer<'a> {
    pub(super) tree: &'a SourceTree,
    pub(super) chunks: &'a [StoredChunk],
}

impl LayerSource for TreeLayer<'_> {
    fn inode_count(&self) -> usize {
        self.tree.nodes.len()
    }

    fn each_inode(&self, take: &mut TakeInode<'_>) -> Result<(), FormatError> {
        let mut stretches = Stretches { chunks: self.chunks, offset: 0 };
        self.tree.nodes.iter().try_for_each(|node| give(self.tree, node, &mut stretches, take))
    }
}

fn give(
    tree: &SourceTree,
    node: &Node,
    stretches: &mut Stretches<'_>,
    take: &mut TakeInode<'_>,
) -> Result<(), FormatError> {
    let attributes = tree.attributes(node);
    let (ino, uid, gid, permissions) = (node.ino.into(), attributes.uid, attributes.gid, attributes.permissions);
    let mut xattrs = attributes.xattrs.iter().map(|(key, value)| Ok(XattrDraft { key, value }));
    let draft = InodeDraft { ino, uid, gid, permissions, xattrs: &mut xattrs };
    match node.kind {
        NodeKind::Unknown => take(draft, KindDraft::Unknown),
        NodeKind::Fifo => take(draft, KindDraft::Fifo),
        NodeKind::Socket => take(draft, KindDraft::Socket),
        NodeKind::Char(device) => take(draft, KindDraft::Char(device)),
        NodeKind::Block(device) => take(draft, KindDraft::Block(device)),
        NodeKind::Symlink(target) => take(draft, KindDraft::Symlink(tree.texts.get(target))),
        NodeKind::Dir(span) => {
            let entries = tree.entries(span).iter();
            let mut entries =
                entries.map(|entry| Ok(DirEntry { ino: entry.ino.into(), name: tree.texts.get(entry.name) }));
            take(draft, KindDraft::Dir { entries: &mut entries, look_below: false })
        }
        NodeKind::File { size } => take(draft, KindDraft::File(&mut Pieces::new(stretches, size))),
    }
}

/// What is left of the stream.
#[derive(Clone, Copy)]
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

/// The stretches of one file, counted beforehand.
struct Pieces<'s, 'c> {
    stretches: &'s mut Stretches<'c>,
    left: u64,
    count: usize,
}

impl<'s, 'c> Pieces<'s, 'c> {
    fn new(stretches: &'s mut Stretches<'c>, size: u64) -> Self {
        let (mut ahead, mut left) = (*stretches, size);
        let count = std::iter::from_fn(|| ahead.next(&mut left)).count();
        Self { stretches, left: size, count }
    }
}

impl Iterator for Pieces<'_, '_> {
    type Item = Result<(BlobRef, u64), FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.stretches.next(&mut self.left)?;
        self.count -= 1;
        Some(Ok(piece))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Pieces<'_, '_> {}
