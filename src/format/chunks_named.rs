//! The chunks that a rootfs names, without the rest of it in memory: all that a collector wants to know.
//!
//! Every field that [`Rootfs::decode`] checks is checked here, by the same rules. A rootfs that breaks one, that is laid out in
//! an unusual way, or that is not of version 3, has no answer here, and is for the decoder to accept or to refuse. So a rootfs
//! that the decoder would refuse is never accepted, and what is accepted has the same chunks; tests and a fuzz target compare.
//!
//! [`Rootfs::decode`]: super::Rootfs::decode

use super::{
    Limits, XattrDraft, check_name,
    plain_message::{PlainMessage, Row, Word},
    rootfs::{ROOT_INO, check_symlink},
    rootfs_message::{
        ADDITIONAL, BLOB_REF, DEVICE, DIR_ENTRY, DIRECTORY, FILE_CHUNK, INODE, INODE_VECTOR, ROOTFS, VERITY, XATTR,
    },
};
use crate::name::{ChunkId, Digest};

/// What [`super::Rootfs::chunks_named`] of the decoded rootfs would give, each at least as often and in another order; `None` if
/// the decoder has to say.
pub fn chunks_named_plainly(bytes: &[u8], limits: &Limits) -> Option<Vec<ChunkId>> {
    if bytes.len() as u64 > limits.message_bytes {
        return None;
    }
    let mut message = PlainMessage::new(bytes)?;
    let root = message.root(ROOTFS)?;
    let verity = message.structs_at(root.pointer(2), VERITY)?.iter();
    let chunks = Vec::with_capacity(verity.len() * 2);
    let mut survey = Survey { message, chunks, layers: Vec::new(), entries: Vec::new(), is_root_directory: None };
    if root.data(0) != VERSION {
        return None;
    }
    for vector in survey.message.structs_at(root.pointer(1), INODE_VECTOR)?.iter() {
        survey.layer(vector)?;
    }
    for row in verity {
        survey.verity(row)?;
    }
    survey.is_tree().then_some(survey.chunks)
}

const VERSION: u64 = 3;

struct Survey<'a> {
    message: PlainMessage<'a>,
    chunks: Vec<ChunkId>,
    /// The inode numbers of each layer, rising.
    layers: Vec<Vec<u64>>,
    /// The inode numbers that entries lead to.
    entries: Vec<u64>,
    /// Of the topmost layer that has the root.
    is_root_directory: Option<bool>,
}

impl<'a> Survey<'a> {
    fn layer(&mut self, vector: Row<'a>) -> Option<()> {
        let inodes = self.message.structs_at(vector.pointer(0), INODE)?.iter();
        let mut numbers: Vec<u64> = Vec::with_capacity(inodes.len());
        self.entries.reserve(inodes.len());
        for inode in inodes {
            let ino = inode.data(0);
            if ino <= numbers.last().copied().unwrap_or(0) {
                return None;
            }
            numbers.push(ino);
            self.inode(ino, inode)?;
        }
        self.layers.push(numbers);
        Some(())
    }

    fn inode(&mut self, ino: u64, inode: Row<'a>) -> Option<()> {
        let (kind, permissions) = (inode.data(1) as u16, (inode.data(1) >> 16) as u16);
        let (content, additional) = (inode.pointer(3), inode.pointer(4));
        if permissions > 0o7777 {
            return None;
        }
        if ino == ROOT_INO && self.is_root_directory.is_none() {
            self.is_root_directory = Some(kind == DIRECTORY_KIND);
        }
        let target = self.additional(inode.data(4), additional)?;
        match kind {
            CHARACTER_KIND | BLOCK_KIND => self.device(content),
            DIRECTORY_KIND => self.directory(content),
            FILE_KIND => self.file(content),
            SYMLINK_KIND => check_symlink(self.message.bytes_at(target?)?).ok(),
            UNKNOWN_KIND | FIFO_KIND | SOCKET_KIND | WHITEOUT_KIND => Some(()),
            _ => None,
        }
    }

    /// Checks the attributes, and gives the pointer to the target of a symbolic link, if there can be one.
    #[inline]
    fn additional(&mut self, pointer: u64, at: Word<'a>) -> Option<Option<Word<'a>>> {
        if pointer == 0 {
            return Some(None);
        }
        let additional = self.message.struct_at(at, ADDITIONAL)?;
        for row in self.message.structs_at(additional.pointer(0), XATTR)?.iter() {
            let (key, value) = (self.message.bytes_at(row.pointer(0))?, self.message.bytes_at(row.pointer(1))?);
            XattrDraft { key, value }.check().ok()?;
        }
        Some(Some(additional.pointer(1)))
    }

    fn device(&mut self, at: Word<'a>) -> Option<()> {
        let device = self.message.struct_at(at, DEVICE)?;
        let fits = |number: u64| u32::try_from(number).is_ok();
        (fits(device.data(0)) && fits(device.data(1))).then_some(())
    }

    fn directory(&mut self, at: Word<'a>) -> Option<()> {
        let directory = self.message.struct_at(at, DIRECTORY)?;
        for entry in self.message.structs_at(directory.pointer(1), DIR_ENTRY)?.iter() {
            check_name(self.message.bytes_at(entry.pointer(1))?).ok()?;
            self.entries.push(entry.data(0));
        }
        Some(())
    }

    fn file(&mut self, at: Word<'a>) -> Option<()> {
        let mut end = 0u64;
        for piece in self.message.structs_at(at, FILE_CHUNK)?.iter() {
            let blob = self.message.struct_at(piece.pointer(1), BLOB_REF)?;
            let digest = self.message.bytes_at(blob.pointer(2))?;
            let (len, offset) = (piece.data(0), blob.data(0));
            end = end.checked_add(len).filter(|end| i64::try_from(*end).is_ok())?;
            offset.checked_add(len)?;
            self.chunks.push(ChunkId(Digest::from_bytes(digest)?));
        }
        Some(())
    }

    fn verity(&mut self, row: Row<'a>) -> Option<()> {
        let digest = Digest::from_bytes(self.message.bytes_at(row.pointer(0))?)?;
        self.chunks.push(ChunkId(digest));
        (self.message.bytes_at(row.pointer(1))?.len() == 32).then_some(())
    }

    fn is_tree(&self) -> bool {
        let is_there = |ino: &u64| self.layers.iter().any(|layer| has(layer, *ino));
        self.is_root_directory == Some(true) && self.entries.iter().all(is_there)
    }
}

/// The kinds of inodes, by the ordinals of their fields in the schema.
const UNKNOWN_KIND: u16 = 0;
const FIFO_KIND: u16 = 1;
const CHARACTER_KIND: u16 = 2;
const DIRECTORY_KIND: u16 = 3;
const BLOCK_KIND: u16 = 4;
const FILE_KIND: u16 = 5;
const SYMLINK_KIND: u16 = 6;
const SOCKET_KIND: u16 = 7;
const WHITEOUT_KIND: u16 = 8;

/// Whether rising numbers have this one; found at once where none is left out.
fn has(numbers: &[u64], number: u64) -> bool {
    let Some(first) = numbers.first() else { return false };
    let distance = usize::try_from(number.wrapping_sub(*first)).unwrap_or(usize::MAX);
    numbers.get(distance) == Some(&number) || numbers.binary_search(&number).is_ok()
}
