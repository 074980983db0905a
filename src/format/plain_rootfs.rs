//! A version 3 rootfs in the layout of its usual writers, inode by inode, by slices alone: several times as fast as by the
//! `capnp` crate.
//!
//! What is found here that crate finds, too; see [`super::plain_message`]. Values are not checked yet, but for the lengths of
//! digests and the sizes of device numbers.

use super::{
    BlobRef, Device, DirEntry, FormatError, InodeDraft, KindDraft, LayerBuilder, Limits, ManifestVersion, Rootfs,
    XattrDraft,
    plain_message::{PlainMessage, Row, Rows},
    rootfs_message::{
        ADDITIONAL, BLOB_REF, DEVICE, DIR_ENTRY, DIRECTORY, FILE_CHUNK, INODE, INODE_VECTOR, ROOTFS, TakeInode, VERITY,
        VERSION, XATTR, kind,
    },
    wire::LAYERS_MAX,
};
use crate::name::{ChunkId, Digest};

/// A rootfs message. Everything in it can be asked for once.
pub(super) struct PlainRootfs<'a> {
    message: PlainMessage<'a>,
    layers: Rows<'a>,
    verity: Rows<'a>,
}

/// The inodes of a layer.
pub(super) struct PlainLayer<'m, 'a> {
    message: &'m PlainMessage<'a>,
    inodes: Rows<'a>,
}

/// An inode.
#[derive(Clone, Copy)]
pub(super) struct PlainInode<'m, 'a> {
    message: &'m PlainMessage<'a>,
    row: Row<'a>,
}

/// What the message says, each layer checked by itself, or `None` if the `capnp` crate has to look at it.
pub(super) fn decode_plainly(bytes: &[u8], limits: &Limits) -> Option<Rootfs> {
    let rootfs = PlainRootfs::new(bytes, limits)?;
    // The verity table has a row for each chunk of all layers. Room for all of them in each of many would never end.
    let chunks = if rootfs.layers.len() == 1 { rootfs.verity.len() } else { 0 };
    let layer = |(depth, layer): (usize, Option<PlainLayer<'_, '_>>)| {
        let layer = layer?;
        let mut builder = LayerBuilder::new(depth).expecting(layer.inodes().len(), chunks);
        layer.inodes().try_for_each(|inode| inode.draft(&mut |draft, kind| builder.push(draft, kind))).ok()?;
        builder.finish_sorted().ok()
    };
    let layers = rootfs.layers().enumerate().map(layer).collect::<Option<_>>()?;
    let rows = rootfs.verity();
    let mut verity = Vec::with_capacity(rows.len());
    for row in rows {
        verity.push(row?);
    }
    Some(Rootfs { version: ManifestVersion::V3, layers, verity, metadata: Vec::new() })
}

/// Why there is no answer here. Nobody gets to read it: the `capnp` crate is asked then.
fn unusual() -> FormatError {
    FormatError::Message("it is laid out in an unusual way".into())
}

impl<'a> PlainRootfs<'a> {
    /// `None` if the message is not of version 3, or unusual.
    pub(super) fn new(bytes: &'a [u8], limits: &Limits) -> Option<Self> {
        if bytes.len() as u64 > limits.message_bytes {
            return None;
        }
        let message = PlainMessage::new(bytes)?;
        let root = message.root(ROOTFS)?;
        if root.data(0) != VERSION {
            return None;
        }
        let layers = message.structs_at(root.pointer(1), INODE_VECTOR)?;
        if layers.len() > LAYERS_MAX as usize {
            return None;
        }
        let verity = message.structs_at(root.pointer(2), VERITY)?;
        Some(Self { message, layers, verity })
    }

    /// The layers, topmost first.
    pub(super) fn layers(&self) -> impl Iterator<Item = Option<PlainLayer<'_, 'a>>> {
        self.layers.iter().map(|vector| {
            let inodes = self.message.structs_at(vector.pointer(0), INODE)?;
            Some(PlainLayer { message: &self.message, inodes })
        })
    }

    /// The rows of the verity table.
    pub(super) fn verity(&self) -> impl ExactSizeIterator<Item = Option<(ChunkId, [u8; 32])>> {
        self.verity.iter().map(|row| {
            let digest = Digest::from_bytes(self.message.bytes_at(row.pointer(0))?)?;
            Some((ChunkId(digest), self.message.bytes_at(row.pointer(1))?.try_into().ok()?))
        })
    }
}

impl<'m, 'a> PlainLayer<'m, 'a> {
    /// In the order of the message; at most as many as it has room for.
    pub(super) fn inodes(&self) -> impl ExactSizeIterator<Item = PlainInode<'m, 'a>> + use<'m, 'a> {
        let message = self.message;
        self.inodes.iter().map(move |row| PlainInode { message, row })
    }
}

impl<'m, 'a> PlainInode<'m, 'a> {
    /// Its number.
    pub(super) fn ino(&self) -> u64 {
        self.row.data(0)
    }

    /// What it says that it is: one of [`kind`], or none of them.
    pub(super) fn kind(&self) -> u16 {
        self.row.data(1) as u16
    }

    /// The mode bits.
    pub(super) fn permissions(&self) -> u16 {
        (self.row.data(1) >> 16) as u16
    }

    /// Gives it to `take`; fails if it is unusual, or if `take` does.
    pub(super) fn draft(&self, take: &mut TakeInode<'_>) -> Result<(), FormatError> {
        let (uid, gid) = ((self.row.data(1) >> 32) as u32, self.row.data(2) as u32);
        let (xattrs, target) = self.additional().ok_or_else(unusual)?;
        let mut xattrs = xattrs.map(|xattr| xattr.ok_or_else(unusual));
        let draft = InodeDraft { ino: self.ino(), uid, gid, permissions: self.permissions(), xattrs: &mut xattrs };
        match self.kind() {
            kind::UNKNOWN => take(draft, KindDraft::Unknown),
            kind::FIFO => take(draft, KindDraft::Fifo),
            kind::CHAR => take(draft, KindDraft::Char(self.device().ok_or_else(unusual)?)),
            kind::BLOCK => take(draft, KindDraft::Block(self.device().ok_or_else(unusual)?)),
            kind::SYMLINK => take(draft, KindDraft::Symlink(target.ok_or_else(unusual)?)),
            kind::SOCKET => take(draft, KindDraft::Socket),
            kind::WHITEOUT => take(draft, KindDraft::Whiteout),
            kind::DIR => {
                let (entries, look_below) = self.directory().ok_or_else(unusual)?;
                let mut entries = entries.map(|entry| entry.ok_or_else(unusual));
                take(draft, KindDraft::Dir { entries: &mut entries, look_below })
            }
            kind::FILE => {
                let mut pieces = self.pieces().ok_or_else(unusual)?.map(|piece| piece.ok_or_else(unusual));
                take(draft, KindDraft::File(&mut pieces))
            }
            _ => Err(unusual()),
        }
    }

    /// Its extended attributes, and the target that it has if it is a symbolic link.
    #[inline]
    pub(super) fn additional(
        &self,
    ) -> Option<(impl ExactSizeIterator<Item = Option<XattrDraft<'a>>> + use<'m, 'a>, Option<&'a [u8]>)> {
        let message = self.message;
        let (mut xattrs, mut target) = (Rows::NONE, None);
        if self.row.data(4) != 0 {
            let additional = message.struct_at(self.row.pointer(4), ADDITIONAL)?;
            xattrs = message.structs_at(additional.pointer(0), XATTR)?;
            // Of what is no link, nobody looks where this leads.
            if self.kind() == kind::SYMLINK {
                target = Some(message.bytes_at(additional.pointer(1))?);
            }
        }
        let xattr = move |row: Row<'a>| {
            Some(XattrDraft { key: message.bytes_at(row.pointer(0))?, value: message.bytes_at(row.pointer(1))? })
        };
        Some((xattrs.iter().map(xattr), target))
    }

    /// The number of a device.
    pub(super) fn device(&self) -> Option<Device> {
        let device = self.message.struct_at(self.row.pointer(3), DEVICE)?;
        Some(Device { major: device.data(0).try_into().ok()?, minor: device.data(1).try_into().ok()? })
    }

    /// The entries of a directory, and whether it is to be looked for below.
    #[inline]
    pub(super) fn directory(
        &self,
    ) -> Option<(impl ExactSizeIterator<Item = Option<DirEntry<'a>>> + use<'m, 'a>, bool)> {
        let message = self.message;
        let directory = message.struct_at(self.row.pointer(3), DIRECTORY)?;
        let entries = message.structs_at(directory.pointer(1), DIR_ENTRY)?.iter();
        let entry = move |row: Row<'a>| Some(DirEntry { ino: row.data(0), name: message.bytes_at(row.pointer(1))? });
        Some((entries.map(entry), directory.data(0) & 1 == 1))
    }

    /// Where the bytes of a file are, and how many at each place.
    #[inline]
    pub(super) fn pieces(&self) -> Option<impl ExactSizeIterator<Item = Option<(BlobRef, u64)>> + use<'m, 'a>> {
        let message = self.message;
        let piece = move |row: Row<'a>| {
            let blob = message.struct_at(row.pointer(1), BLOB_REF)?;
            let chunk = ChunkId(Digest::from_bytes(message.bytes_at(blob.pointer(2))?)?);
            Some((BlobRef { chunk, offset: blob.data(0), compressed: blob.data(1) & 1 == 1 }, row.data(0)))
        };
        Some(message.structs_at(self.row.pointer(3), FILE_CHUNK)?.iter().map(piece))
    }
}
