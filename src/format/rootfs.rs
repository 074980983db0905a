//! The rootfs of an image as one value, whichever wire version it was read from.
//!
//! A decoded [`Rootfs`] has been checked in every field, so nothing that reads it checks again: inode numbers rise
//! strictly within a layer, names are valid, every directory entry leads to an inode, file maps neither overlap nor
//! overflow. What is *not* promised is that the directories form a tree; `tree` sees to that when it opens one.
//!
//! A layer keeps its inodes, entries, names and chunk references in a few flat arrays rather than in one allocation
//! each: a million entries then decode in a fraction of a second.

use std::{hash::BuildHasher, ops::Range};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{
    FormatError, LayerSource, RootfsMessage, check_name, file_map::FileMap, plain_rootfs::decode_plainly,
    rootfs_message::TakeInode, wire,
};
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
    inodes: Vec<InodeRecord>,
    entries: Vec<EntryRecord>,
    chunks: Vec<ChunkRecord>,
    xattrs: Vec<XattrRecord>,
    bytes: Vec<u8>,
    digests: Vec<ChunkId>,
    /// Of each of the digests, whether the file that named it first says that it is compressed.
    compressed: Vec<bool>,
    has_whiteouts: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct InodeRecord {
    ino: u64,
    uid: u32,
    gid: u32,
    permissions: u16,
    kind: KindRecord,
    xattrs: Range<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum KindRecord {
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
struct EntryRecord {
    ino: u64,
    name_start: u32,
    name_len: u8,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChunkRecord {
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) slot: u32,
    pub(super) compressed: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct XattrRecord {
    key: Range<u32>,
    value: Range<u32>,
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

impl Layer {
    /// Whether there is an inode of that number; where no number is left out, without looking for it.
    fn has(&self, ino: u64) -> bool {
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
