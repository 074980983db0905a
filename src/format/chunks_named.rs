//! The chunks that a rootfs names, without the rest of it in memory: all that a collector wants to know.
//!
//! Every field that [`Rootfs::decode`] checks is checked here, by the same rules. A rootfs that breaks one, that is laid out in
//! an unusual way, or that is not of version 3, has no answer here, and is for the decoder to accept or to refuse. So a rootfs
//! that the decoder would refuse is never accepted, and what is accepted has the same chunks; tests and a fuzz target compare.
//!
//! [`Rootfs::decode`]: super::Rootfs::decode

use super::{
    Limits, check_name,
    layer_builder::check_symlink,
    plain_rootfs::{PlainInode, PlainLayer, PlainRootfs},
    rootfs::ROOT_INO,
    rootfs_message::kind,
};
use crate::name::ChunkId;

/// What [`super::Rootfs::chunks_named`] of the decoded rootfs would give, each at least as often and in another order; `None` if
/// the decoder has to say.
pub fn chunks_named_plainly(bytes: &[u8], limits: &Limits) -> Option<Vec<ChunkId>> {
    let rootfs = PlainRootfs::new(bytes, limits)?;
    let verity = rootfs.verity();
    let mut survey = Survey { chunks: Vec::with_capacity(verity.len() * 2), ..Survey::default() };
    for layer in rootfs.layers() {
        survey.layer(&layer?)?;
    }
    for row in verity {
        survey.chunks.push(row?.0);
    }
    survey.is_tree().then_some(survey.chunks)
}

#[derive(Default)]
struct Survey {
    chunks: Vec<ChunkId>,
    /// The inode numbers of each layer, rising.
    layers: Vec<Vec<u64>>,
    /// The inode numbers that entries lead to.
    entries: Vec<u64>,
    /// Of the topmost layer that has the root.
    is_root_directory: Option<bool>,
}

impl Survey {
    fn layer(&mut self, layer: &PlainLayer<'_, '_>) -> Option<()> {
        let inodes = layer.inodes();
        let mut numbers: Vec<u64> = Vec::with_capacity(inodes.len());
        self.entries.reserve(inodes.len());
        for inode in inodes {
            let ino = inode.ino();
            if ino <= numbers.last().copied().unwrap_or(0) {
                return None;
            }
            numbers.push(ino);
            self.inode(inode)?;
        }
        self.layers.push(numbers);
        Some(())
    }

    fn inode(&mut self, inode: PlainInode<'_, '_>) -> Option<()> {
        if inode.permissions() > 0o7777 {
            return None;
        }
        if inode.ino() == ROOT_INO && self.is_root_directory.is_none() {
            self.is_root_directory = Some(inode.kind() == kind::DIR);
        }
        let (mut xattrs, target) = inode.additional()?;
        xattrs.try_for_each(|xattr| xattr?.check().ok())?;
        match inode.kind() {
            kind::CHAR | kind::BLOCK => inode.device().map(|_| ()),
            kind::DIR => self.directory(inode),
            kind::FILE => self.file(inode),
            kind::SYMLINK => check_symlink(target?).ok(),
            kind::UNKNOWN | kind::FIFO | kind::SOCKET | kind::WHITEOUT => Some(()),
            _ => None,
        }
    }

    fn directory(&mut self, inode: PlainInode<'_, '_>) -> Option<()> {
        let (entries, _) = inode.directory()?;
        for entry in entries {
            let entry = entry?;
            check_name(entry.name).ok()?;
            self.entries.push(entry.ino);
        }
        Some(())
    }

    fn file(&mut self, inode: PlainInode<'_, '_>) -> Option<()> {
        let mut end = 0u64;
        for piece in inode.pieces()? {
            let (blob, len) = piece?;
            end = end.checked_add(len).filter(|end| i64::try_from(*end).is_ok())?;
            blob.offset.checked_add(len)?;
            self.chunks.push(blob.chunk);
        }
        Some(())
    }

    fn is_tree(&self) -> bool {
        let is_there = |ino: &u64| self.layers.iter().any(|layer| has(layer, *ino));
        self.is_root_directory == Some(true) && self.entries.iter().all(is_there)
    }
}

/// Whether rising numbers have this one; found at once where none is left out.
fn has(numbers: &[u64], number: u64) -> bool {
    let Some(first) = numbers.first() else { return false };
    let distance = usize::try_from(number.wrapping_sub(*first)).unwrap_or(usize::MAX);
    numbers.get(distance) == Some(&number) || numbers.binary_search(&number).is_ok()
}
