//! The inodes of one layer, for reading.
//!
//! A layer keeps its inodes, entries, names and chunk references in a few flat arrays rather than in one allocation
//! each: a million entries then decode in a fraction of a second.

use std::ops::Range;

use super::{FormatError, InodeDraft, KindDraft, XattrDraft, file_map::FileMap, rootfs_message::TakeInode};
use crate::name::ChunkId;

/// A place in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRef {
    /// The digest of the stored bytes.
    pub chunk: ChunkId,
    /// In bytes, in the decoded chunk.
    pub offset: u64,
    /// Stored as seekable zstd, else as it is.
    pub compressed: bool,
}

/// The number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// One layer: inodes that hide those of the same number in the layers under it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layer {
    pub(super) inodes: Vec<InodeRecord>,
    pub(super) entries: Vec<EntryRecord>,
    pub(super) chunks: Vec<ChunkRecord>,
    pub(super) xattrs: Vec<XattrRecord>,
    pub(super) bytes: Vec<u8>,
    pub(super) digests: Vec<ChunkId>,
    /// Of each of the digests, whether the file that named it first says that it is compressed.
    pub(super) compressed: Vec<bool>,
    pub(super) has_whiteouts: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct InodeRecord {
    pub(super) ino: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) permissions: u16,
    pub(super) kind: KindRecord,
    pub(super) xattrs: Range<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KindRecord {
    Unknown,
    Fifo,
    Char(Device),
    Block(Device),
    Dir { entries: Range<u32>, look_below: bool },
    File(Range<u32>),
    Symlink(Range<u32>),
    Socket,
    Whiteout,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct EntryRecord {
    pub(super) ino: u64,
    pub(super) name_start: u32,
    pub(super) name_len: u8,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChunkRecord {
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) slot: u32,
    pub(super) compressed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct XattrRecord {
    pub(super) key: Range<u32>,
    pub(super) value: Range<u32>,
}

/// An inode of one layer.
#[derive(Clone, Copy)]
pub struct Inode<'a> {
    layer: &'a Layer,
    record: &'a InodeRecord,
}

/// What an inode is.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// Of a type that its builder could not name.
    Unknown,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A directory.
    Dir(Directory<'a>),
    /// A regular file.
    File(FileMap<'a>),
    /// A symbolic link and its target, 1 to 4095 bytes.
    Symlink(&'a [u8]),
    /// A socket.
    Socket,
    /// An inode that this layer deletes.
    Whiteout,
}

/// The entries of a directory in one layer.
#[derive(Clone, Copy)]
pub struct Directory<'a> {
    layer: &'a Layer,
    entries: &'a [EntryRecord],
    look_below: bool,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// 1 to 255 bytes without slash and NUL.
    pub name: &'a [u8],
    /// The inode that the name stands for; it exists in some layer.
    pub ino: u64,
}

impl Layer {
    /// Whether there is an inode of that number; where no number is left out, without looking for it.
    pub(super) fn has(&self, ino: u64) -> bool {
        let [first, .., last] = &self.inodes[..] else { return self.inode(ino).is_some() };
        let leaves_none_out = last.ino - first.ino == (self.inodes.len() - 1) as u64;
        if leaves_none_out { (first.ino..=last.ino).contains(&ino) } else { self.inode(ino).is_some() }
    }

    /// The inode of that number, by bisection; almost at once where few numbers are left out.
    #[inline]
    pub fn inode(&self, ino: u64) -> Option<Inode<'_>> {
        let (first, last) = (self.inodes.first()?.ino, self.inodes.last()?.ino);
        // Numbers rise strictly, so an inode stands no further from either end than its number is from the number there.
        let from_first = usize::try_from(ino.checked_sub(first)?).unwrap_or(usize::MAX);
        let from_last = usize::try_from(last.checked_sub(ino)?).unwrap_or(usize::MAX);
        let len = self.inodes.len();
        let near = &self.inodes[(len - 1).saturating_sub(from_last)..from_first.saturating_add(1).min(len)];
        let at = near.binary_search_by_key(&ino, |record| record.ino).ok()?;
        Some(Inode { layer: self, record: &near[at] })
    }

    /// All inodes, by rising number.
    pub fn inodes(&self) -> impl ExactSizeIterator<Item = Inode<'_>> {
        self.inodes.iter().map(|record| Inode { layer: self, record })
    }

    /// The chunks that files of this layer are made of, in order of first use, once each.
    pub fn chunks(&self) -> &[ChunkId] {
        &self.digests
    }

    fn slice(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }
}

impl<'a> Inode<'a> {
    /// Its number.
    pub fn ino(&self) -> u64 {
        self.record.ino
    }

    /// The owner.
    pub fn uid(&self) -> u32 {
        self.record.uid
    }

    /// The group.
    pub fn gid(&self) -> u32 {
        self.record.gid
    }

    /// The low 12 mode bits: set-id, sticky, and three times rwx.
    pub fn permissions(&self) -> u16 {
        self.record.permissions
    }

    /// What it is.
    #[inline]
    pub fn kind(&self) -> Kind<'a> {
        let layer = self.layer;
        match &self.record.kind {
            KindRecord::Unknown => Kind::Unknown,
            KindRecord::Fifo => Kind::Fifo,
            KindRecord::Char(device) => Kind::Char(*device),
            KindRecord::Block(device) => Kind::Block(*device),
            KindRecord::Dir { entries, look_below } => {
                let entries = &layer.entries[entries.start as usize..entries.end as usize];
                Kind::Dir(Directory { layer, entries, look_below: *look_below })
            }
            KindRecord::File(chunks) => Kind::File(FileMap {
                records: &layer.chunks[chunks.start as usize..chunks.end as usize],
                digests: &layer.digests,
                compressed: &layer.compressed,
            }),
            KindRecord::Symlink(target) => Kind::Symlink(layer.slice(target)),
            KindRecord::Socket => Kind::Socket,
            KindRecord::Whiteout => Kind::Whiteout,
        }
    }

    /// Its extended attributes, key and value, in the order of the message.
    pub fn xattrs(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let layer = self.layer;
        let xattrs = &layer.xattrs[self.record.xattrs.start as usize..self.record.xattrs.end as usize];
        xattrs.iter().map(|xattr| (layer.slice(&xattr.key), layer.slice(&xattr.value)))
    }
}

impl Inode<'_> {
    /// Gives it to `take` as a draft of what it is already.
    pub(super) fn draft(&self, take: &mut TakeInode<'_>) -> Result<(), FormatError> {
        let mut xattrs = self.xattrs().map(|(key, value)| Ok(XattrDraft { key, value }));
        let (ino, uid, gid, permissions) = (self.ino(), self.uid(), self.gid(), self.permissions());
        let draft = InodeDraft { ino, uid, gid, permissions, xattrs: &mut xattrs };
        match self.kind() {
            Kind::Unknown => take(draft, KindDraft::Unknown),
            Kind::Fifo => take(draft, KindDraft::Fifo),
            Kind::Char(device) => take(draft, KindDraft::Char(device)),
            Kind::Block(device) => take(draft, KindDraft::Block(device)),
            Kind::Symlink(target) => take(draft, KindDraft::Symlink(target)),
            Kind::Socket => take(draft, KindDraft::Socket),
            Kind::Whiteout => take(draft, KindDraft::Whiteout),
            Kind::Dir(directory) => {
                let mut entries = directory.entries().map(|DirEntry { name, ino }| Ok(DirEntry { name, ino }));
                let look_below = directory.look_below();
                take(draft, KindDraft::Dir { entries: &mut entries, look_below })
            }
            Kind::File(map) => {
                let mut pieces = map.pieces().map(|piece| Ok((piece.blob, piece.len)));
                take(draft, KindDraft::File(&mut pieces))
            }
        }
    }
}

impl<'a> Directory<'a> {
    /// Its entries in the order of the message.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = DirEntry<'a>> + use<'a> {
        let directory = *self;
        (0..directory.len()).map(move |at| directory.entry(at))
    }

    /// The entry at this place in the order of the message; panics past the last.
    pub fn entry(&self, at: usize) -> DirEntry<'a> {
        let entry = &self.entries[at];
        let start = entry.name_start as usize;
        DirEntry { name: &self.layer.bytes[start..start + usize::from(entry.name_len)], ino: entry.ino }
    }

    /// How many entries it has in this layer.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no entries in this layer.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether names that are not here are to be looked for in the same directory of the layers below. No known
    /// writer sets it.
    pub fn look_below(&self) -> bool {
        self.look_below
    }
}
