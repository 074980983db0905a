//! A layer that is being made. What one inode alone must be like is checked here, on its way in.

use std::{hash::BuildHasher, ops::Range};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{
    BlobRef, Device, DirEntry, FormatError, Layer, check_name,
    layer::{ChunkRecord, EntryRecord, InodeRecord, KindRecord, XattrRecord},
};

/// Collects the inodes of a layer, in any order, and checks each on the way in: the only way to a [`Layer`].
pub struct LayerBuilder {
    layer: Layer,
    /// The places of the digests of the layer, to be found by digest. It keeps no digests itself, and so fits into a cache.
    slots: HashTable<u32>,
    hasher: DefaultHashBuilder,
    depth: usize,
}

/// An inode on its way into a layer.
pub struct InodeDraft<'a> {
    /// Its number, 1 or more.
    pub ino: u64,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The low 12 mode bits.
    pub permissions: u16,
    /// Extended attributes, key and value.
    pub xattrs: &'a mut dyn ExactSizeIterator<Item = Result<XattrDraft<'a>, FormatError>>,
}

/// An extended attribute on its way into a layer.
pub struct XattrDraft<'a> {
    /// 1 to 255 bytes without NUL.
    pub key: &'a [u8],
    /// At most 64 KiB.
    pub value: &'a [u8],
}

/// What an inode on its way into a layer is.
pub enum KindDraft<'a> {
    /// Of a type that its builder could not name.
    Unknown,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A directory.
    Dir {
        /// Its entries.
        entries: &'a mut dyn ExactSizeIterator<Item = Result<DirEntry<'a>, FormatError>>,
        /// See [`Directory::look_below`].
        look_below: bool,
    },
    /// A regular file: the places of its bytes, and how many of them at each.
    File(&'a mut dyn ExactSizeIterator<Item = Result<(BlobRef, u64), FormatError>>),
    /// A symbolic link.
    Symlink(&'a [u8]),
    /// A socket.
    Socket,
    /// An inode that this layer deletes.
    Whiteout,
}

/// Linux: PATH_MAX less the NUL.
const SYMLINK_BYTES_MAX: usize = 4095;
/// Linux: XATTR_NAME_MAX and XATTR_SIZE_MAX.
const XATTR_KEY_BYTES_MAX: usize = 255;
const XATTR_VALUE_BYTES_MAX: usize = 65536;

impl InodeDraft<'_> {
    /// What is wrong with it, as a clause of a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self { ino: 0, .. } => Err("inode numbers start at 1".into()),
            Self { permissions, .. } if *permissions > 0o7777 => {
                Err(format!("its permissions {permissions:#o} have more than 12 bits"))
            }
            _ => Ok(()),
        }
    }
}

impl XattrDraft<'_> {
    /// The same of an attribute.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { key, value } = self;
        if key.is_empty() || key.len() > XATTR_KEY_BYTES_MAX || key.contains(&0) {
            return Err(format!("an attribute name of {} bytes (1 to 255, no NUL)", key.len()));
        }
        match value.len() > XATTR_VALUE_BYTES_MAX {
            true => Err(format!("an attribute value of {} bytes, over 64 KiB", value.len())),
            false => Ok(()),
        }
    }
}

/// The same of the target of a symbolic link.
pub(super) fn check_symlink(target: &[u8]) -> Result<(), String> {
    match target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
        true => Err(format!("a symlink target of {} bytes (1 to {SYMLINK_BYTES_MAX}, no NUL)", target.len())),
        false => Ok(()),
    }
}

/// A guess at how long names are.
const NAME_BYTES_USUAL: usize = 16;

impl LayerBuilder {
    /// A builder for the layer that stands at `depth`, 0 for the topmost; errors name it.
    pub fn new(depth: usize) -> Self {
        Self { layer: Layer::default(), slots: HashTable::new(), hasher: DefaultHashBuilder::default(), depth }
    }

    /// Makes room for so many inodes with a name each, and so many different chunks. More may come, or fewer.
    pub(super) fn expecting(mut self, inodes: usize, chunks: usize) -> Self {
        self.layer.inodes.reserve(inodes);
        self.layer.entries.reserve(inodes);
        self.layer.bytes.reserve(inodes * NAME_BYTES_USUAL);
        self.layer.digests.reserve(chunks);
        self.layer.compressed.reserve(chunks);
        self.layer.chunks.reserve(chunks);
        self.slots.reserve(chunks, |_| unreachable!("it is empty"));
        self
    }

    /// Adds an inode.
    pub fn push(&mut self, draft: InodeDraft<'_>, kind: KindDraft<'_>) -> Result<(), FormatError> {
        let ino = draft.ino;
        draft.check().map_err(|problem| self.problem(ino, problem))?;
        let kind = self.kind(ino, kind)?;
        let xattrs = self.xattrs(ino, draft.xattrs)?;
        let (uid, gid, permissions) = (draft.uid, draft.gid, draft.permissions);
        self.layer.inodes.push(InodeRecord { ino, uid, gid, permissions, kind, xattrs });
        Ok(())
    }

    /// The layer, its inodes sorted by number.
    pub fn finish(mut self) -> Result<Layer, FormatError> {
        self.layer.inodes.sort_by_key(|inode| inode.ino);
        self.finish_sorted()
    }

    /// The layer, as its inodes came; fails unless their numbers rise strictly, as the format demands.
    pub fn finish_sorted(mut self) -> Result<Layer, FormatError> {
        if let Some(pair) = self.layer.inodes.windows(2).find(|pair| pair[0].ino >= pair[1].ino) {
            let problem = format!("it stands after inode {}, but inode numbers rise strictly", pair[0].ino);
            return Err(self.problem(pair[1].ino, problem));
        }
        self.layer.inodes.shrink_to_fit();
        self.layer.entries.shrink_to_fit();
        self.layer.chunks.shrink_to_fit();
        self.layer.bytes.shrink_to_fit();
        self.layer.digests.shrink_to_fit();
        self.layer.compressed.shrink_to_fit();
        Ok(self.layer)
    }

    fn problem(&self, ino: u64, problem: impl Into<String>) -> FormatError {
        FormatError::inode(self.depth, ino, problem)
    }

    fn kind(&mut self, ino: u64, kind: KindDraft<'_>) -> Result<KindRecord, FormatError> {
        Ok(match kind {
            KindDraft::Unknown => KindRecord::Unknown,
            KindDraft::Fifo => KindRecord::Fifo,
            KindDraft::Char(device) => KindRecord::Char(device),
            KindDraft::Block(device) => KindRecord::Block(device),
            KindDraft::Dir { entries, look_below } => {
                KindRecord::Dir { entries: self.entries(ino, entries)?, look_below }
            }
            KindDraft::File(pieces) => KindRecord::File(self.file(ino, pieces)?),
            KindDraft::Symlink(target) => {
                check_symlink(target).map_err(|problem| self.problem(ino, problem))?;
                KindRecord::Symlink(self.intern(ino, target)?)
            }
            KindDraft::Socket => KindRecord::Socket,
            KindDraft::Whiteout => {
                self.layer.has_whiteouts = true;
                KindRecord::Whiteout
            }
        })
    }

    fn entries<'a>(
        &mut self,
        ino: u64,
        entries: &mut dyn ExactSizeIterator<Item = Result<DirEntry<'a>, FormatError>>,
    ) -> Result<Range<u32>, FormatError> {
        let start = self.layer.entries.len();
        for entry in entries {
            let entry = entry?;
            check_name(entry.name).map_err(|source| self.problem(ino, source.to_string()))?;
            let name = self.intern(ino, entry.name)?;
            let name_len = u8::try_from(entry.name.len()).expect("check_name allows at most 255 bytes");
            self.layer.entries.push(EntryRecord { ino: entry.ino, name_start: name.start, name_len });
        }
        self.range(ino, start, self.layer.entries.len())
    }

    fn file(
        &mut self,
        ino: u64,
        pieces: &mut dyn ExactSizeIterator<Item = Result<(BlobRef, u64), FormatError>>,
    ) -> Result<Range<u32>, FormatError> {
        let start = self.layer.chunks.len();
        let mut end = 0u64;
        for piece in pieces {
            let (blob, len) = piece?;
            let slot = self.slot(ino, &blob)?;
            if len == 0 {
                continue;
            }
            let sum = end.checked_add(len).filter(|sum| i64::try_from(*sum).is_ok());
            end = sum.ok_or_else(|| self.problem(ino, "the lengths of its chunks overflow"))?;
            if blob.offset.checked_add(len).is_none() {
                return Err(self.problem(ino, "the end of a stretch in its chunk overflows"));
            }
            self.layer.chunks.push(ChunkRecord { end, offset: blob.offset, slot, compressed: blob.compressed });
        }
        self.range(ino, start, self.layer.chunks.len())
    }

    fn slot(&mut self, ino: u64, blob: &BlobRef) -> Result<u32, FormatError> {
        let Self { layer: Layer { digests, compressed, .. }, slots, hasher, .. } = self;
        let chunk = blob.chunk;
        let at = |slot: &u32| digests[*slot as usize];
        match slots.entry(hasher.hash_one(chunk), |slot| at(slot) == chunk, |slot| hasher.hash_one(at(slot))) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(free) => {
                let slot = u32::try_from(digests.len());
                let slot = slot.map_err(|_| FormatError::inode(self.depth, ino, "too many chunks"))?;
                free.insert(slot);
                digests.push(chunk);
                compressed.push(blob.compressed);
                Ok(slot)
            }
        }
    }

    fn xattrs<'a>(
        &mut self,
        ino: u64,
        xattrs: &mut dyn ExactSizeIterator<Item = Result<XattrDraft<'a>, FormatError>>,
    ) -> Result<Range<u32>, FormatError> {
        let start = self.layer.xattrs.len();
        for xattr in xattrs {
            let xattr = xattr?;
            xattr.check().map_err(|problem| self.problem(ino, problem))?;
            let XattrDraft { key, value } = xattr;
            let record = XattrRecord { key: self.intern(ino, key)?, value: self.intern(ino, value)? };
            self.layer.xattrs.push(record);
        }
        self.range(ino, start, self.layer.xattrs.len())
    }

    fn intern(&mut self, ino: u64, bytes: &[u8]) -> Result<Range<u32>, FormatError> {
        let start = self.layer.bytes.len();
        self.layer.bytes.extend_from_slice(bytes);
        self.range(ino, start, self.layer.bytes.len())
    }

    fn range(&self, ino: u64, start: usize, end: usize) -> Result<Range<u32>, FormatError> {
        let end = u32::try_from(end).map_err(|_| self.problem(ino, "the layer has over 4 GiB of names or entries"))?;
        Ok(u32::try_from(start).expect("the start is not after the end")..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::Kind,
        name::{ChunkId, Digest},
    };

    #[test]
    fn an_inode_is_found_wherever_numbers_are_left_out() {
        let numberings: [&[u64]; 6] =
            [&[], &[7], &[1, 2, 3, 4], &[1, 4, 5, 6, 8], &[2, 90, 91, 4000], &[1, 2, u64::MAX - 1, u64::MAX]];
        for numbers in numberings {
            let mut builder = LayerBuilder::new(0);
            for ino in numbers.iter().copied() {
                let draft = InodeDraft { ino, uid: 0, gid: 0, permissions: 0, xattrs: &mut std::iter::empty() };
                builder.push(draft, KindDraft::Fifo).unwrap();
            }
            let layer = builder.finish().unwrap();
            for ino in (0..100).chain([3999, 4000, 4001, u64::MAX - 2, u64::MAX - 1, u64::MAX]) {
                let found = layer.inode(ino).map(|inode| inode.ino());
                assert_eq!(found, numbers.contains(&ino).then_some(ino), "{ino} in {numbers:?}");
            }
        }
    }

    #[test]
    fn a_stretch_of_no_bytes_names_its_chunk_and_is_no_piece() {
        let chunk = |name: &[u8]| ChunkId(Digest::of(name));
        let blob = |name: &[u8]| BlobRef { chunk: chunk(name), offset: 0, compressed: false };
        let mut pieces = [Ok((blob(b"some"), 9)), Ok((blob(b"none"), 0))].into_iter();
        let draft = InodeDraft { ino: 2, uid: 0, gid: 0, permissions: 0, xattrs: &mut std::iter::empty() };
        let mut builder = LayerBuilder::new(0);
        builder.push(draft, KindDraft::File(&mut pieces)).unwrap();
        let layer = builder.finish().unwrap();
        assert_eq!(layer.chunks(), [chunk(b"some"), chunk(b"none")]);
        let Some(Kind::File(map)) = layer.inode(2).map(|inode| inode.kind()) else { panic!("no file") };
        assert_eq!((map.size(), map.len()), (9, 1));
    }
}
