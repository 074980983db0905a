//! The version 3 message of a rootfs, written from whatever can tell its inodes one after the other.
//!
//! The order in which objects are added decides where they lie in the message, and with it the digest of the blob; it is that
//! of puzzlefs 0.2.0, so that equal trees have equal manifests. Where fields lie in their structs follows from
//! `schema/metadata.capnp`.

use super::{
    BlobRef, Device, DirEntry, FormatError, InodeDraft, KindDraft, Layer, XattrDraft,
    message_writer::{Layout, MessageSink, MessageWriter, Object, Place, StructSize, TooLong},
};
use crate::name::ChunkId;

/// A layer that can tell its inodes, as often as it is asked.
pub trait LayerSource {
    /// How many there are.
    fn inode_count(&self) -> usize;

    /// Gives each inode to `take`, by rising number, the same ones every time. Whoever takes one exhausts its iterators.
    fn each_inode(&self, take: &mut TakeInode<'_>) -> Result<(), FormatError>;
}

/// What takes an inode.
pub type TakeInode<'t> = dyn FnMut(InodeDraft<'_>, KindDraft<'_>) -> Result<(), FormatError> + 't;

/// A rootfs message whose parts have their places.
pub struct RootfsMessage<'a> {
    layers: &'a [&'a dyn LayerSource],
    verity: &'a [(ChunkId, [u8; 32])],
    layout: Layout,
}

impl<'a> RootfsMessage<'a> {
    /// Checks every inode of the layers, topmost first, and lays the message out. The verity table is sorted by chunk.
    pub fn lay_out(layers: &'a [&'a dyn LayerSource], verity: &'a [(ChunkId, [u8; 32])]) -> Result<Self, FormatError> {
        let mut writer = MessageWriter::laying_out();
        add_rootfs(&mut writer, layers, verity)?;
        Ok(Self { layers, verity, layout: writer.layout() })
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.layout.message_bytes()
    }

    /// Writes it.
    pub fn write(&self, sink: &mut dyn MessageSink) {
        let mut writer = MessageWriter::writing(&self.layout, sink);
        let written = add_rootfs(&mut writer, self.layers, self.verity);
        written.expect("the layers tell the same inodes as when they were laid out");
    }
}

impl LayerSource for Layer {
    fn inode_count(&self) -> usize {
        self.inodes().len()
    }

    fn each_inode(&self, take: &mut TakeInode<'_>) -> Result<(), FormatError> {
        self.inodes().try_for_each(|inode| inode.draft(take))
    }
}

pub(super) const ROOTFS: StructSize = StructSize { data: 1, pointers: 2 };
pub(super) const INODE_VECTOR: StructSize = StructSize { data: 0, pointers: 1 };
pub(super) const INODE: StructSize = StructSize { data: 3, pointers: 2 };
pub(super) const ADDITIONAL: StructSize = StructSize { data: 0, pointers: 2 };
pub(super) const XATTR: StructSize = StructSize { data: 0, pointers: 2 };
pub(super) const DEVICE: StructSize = StructSize { data: 2, pointers: 0 };
pub(super) const DIRECTORY: StructSize = StructSize { data: 1, pointers: 1 };
pub(super) const DIR_ENTRY: StructSize = StructSize { data: 1, pointers: 1 };
pub(super) const FILE_CHUNK: StructSize = StructSize { data: 1, pointers: 1 };
pub(super) const BLOB_REF: StructSize = StructSize { data: 2, pointers: 1 };
pub(super) const VERITY: StructSize = StructSize { data: 0, pointers: 2 };

pub(super) const VERSION: u64 = 3;

/// The kinds of inodes, by the ordinals of their fields in the schema.
pub(super) mod kind {
    pub const UNKNOWN: u16 = 0;
    pub const FIFO: u16 = 1;
    pub const CHAR: u16 = 2;
    pub const DIR: u16 = 3;
    pub const BLOCK: u16 = 4;
    pub const FILE: u16 = 5;
    pub const SYMLINK: u16 = 6;
    pub const SOCKET: u16 = 7;
    pub const WHITEOUT: u16 = 8;
}

impl From<TooLong> for FormatError {
    fn from(TooLong(len): TooLong) -> Self {
        Self::Document { what: "the rootfs", problem: format!("a list of {len} elements is too long") }
    }
}

fn add_rootfs(
    writer: &mut MessageWriter<'_>,
    layers: &[&dyn LayerSource],
    verity: &[(ChunkId, [u8; 32])],
) -> Result<(), FormatError> {
    let root = writer.add_struct(Place::ROOT, ROOTFS);
    writer.put(Place::ROOT, &[root.pointer]);
    let vectors = writer.add_structs(root.place.plus(1), layers.len(), INODE_VECTOR)?;
    for (depth, layer) in layers.iter().enumerate() {
        let pointer = add_layer(writer, vectors.place.plus(depth), depth, *layer)?;
        writer.put(vectors.place.plus(depth), &[pointer]);
    }
    let table = writer.add_structs(root.place.plus(2), verity.len(), VERITY)?;
    for (at, (chunk, verity)) in verity.iter().enumerate() {
        let row = table.place.plus(at * VERITY.words());
        let digest = writer.add_bytes(row, chunk.0.as_bytes())?;
        let verity = writer.add_bytes(row.plus(1), verity)?;
        writer.put(row, &[digest, verity]);
    }
    writer.put(root.place, &[VERSION, vectors.pointer, table.pointer]);
    Ok(())
}

/// Gives the pointer to the inodes, which stands at `from`.
fn add_layer(
    writer: &mut MessageWriter<'_>,
    from: Place,
    depth: usize,
    layer: &dyn LayerSource,
) -> Result<u64, FormatError> {
    let list = writer.add_structs(from, layer.inode_count(), INODE)?;
    let (mut row, mut last) = (list.place, 0);
    layer.each_inode(&mut |inode, kind| {
        let ino = inode.ino;
        let problem = |problem: String| FormatError::inode(depth, ino, problem);
        inode.check().map_err(problem)?;
        if ino <= last {
            return Err(problem(format!("it stands after inode {last}, but inode numbers rise strictly")));
        }
        add_inode(writer, row, inode, kind).map_err(|cause| match cause {
            Unwritable::Value(cause) => problem(cause),
            Unwritable::Other(cause) => cause,
        })?;
        (row, last) = (row.plus(INODE.words()), ino);
        Ok(())
    })?;
    Ok(list.pointer)
}

/// Why an inode cannot be written.
enum Unwritable {
    /// A value of it is none that the format allows.
    Value(String),
    Other(FormatError),
}

impl<E: Into<FormatError>> From<E> for Unwritable {
    fn from(cause: E) -> Self {
        Self::Other(cause.into())
    }
}

impl From<String> for Unwritable {
    fn from(problem: String) -> Self {
        Self::Value(problem)
    }
}

/// What an inode is, as its row has it: the number of the kind, and the pointer to what belongs to it.
struct Mode(u16, u64);

fn add_inode(
    writer: &mut MessageWriter<'_>,
    row: Place,
    inode: InodeDraft<'_>,
    kind: KindDraft<'_>,
) -> Result<(), Unwritable> {
    let from = row.plus(INODE.data.into());
    let mut target = None;
    let Mode(number, pointer) = match kind {
        KindDraft::Unknown => Mode(kind::UNKNOWN, 0),
        KindDraft::Fifo => Mode(kind::FIFO, 0),
        KindDraft::Char(device) => Mode(kind::CHAR, add_device(writer, from, device)),
        KindDraft::Dir { entries, look_below } => Mode(kind::DIR, add_directory(writer, from, entries, look_below)?),
        KindDraft::Block(device) => Mode(kind::BLOCK, add_device(writer, from, device)),
        KindDraft::File(pieces) => Mode(kind::FILE, add_pieces(writer, from, pieces)?),
        KindDraft::Symlink(to) => {
            super::layer_builder::check_symlink(to)?;
            target = Some(to);
            Mode(kind::SYMLINK, 0)
        }
        KindDraft::Socket => Mode(kind::SOCKET, 0),
        KindDraft::Whiteout => Mode(kind::WHITEOUT, 0),
    };
    let additional = match inode.xattrs.len() > 0 || target.is_some() {
        true => add_additional(writer, from.plus(1), inode.xattrs, target)?,
        false => 0,
    };
    let word = u64::from(number) | u64::from(inode.permissions) << 16 | u64::from(inode.uid) << 32;
    writer.put(row, &[inode.ino, word, inode.gid.into(), pointer, additional]);
    Ok(())
}

fn add_device(writer: &mut MessageWriter<'_>, from: Place, device: Device) -> u64 {
    let Object { place, pointer } = writer.add_struct(from, DEVICE);
    writer.put(place, &[device.major.into(), device.minor.into()]);
    pointer
}

fn add_directory<'a>(
    writer: &mut MessageWriter<'_>,
    from: Place,
    entries: &mut dyn ExactSizeIterator<Item = Result<DirEntry<'a>, FormatError>>,
    look_below: bool,
) -> Result<u64, Unwritable> {
    let directory = writer.add_struct(from, DIRECTORY);
    let list = writer.add_structs(directory.place.plus(1), entries.len(), DIR_ENTRY)?;
    writer.put(directory.place, &[look_below.into(), list.pointer]);
    for (at, entry) in entries.enumerate() {
        let DirEntry { ino, name } = entry?;
        super::check_name(name).map_err(|cause| cause.to_string())?;
        let row = list.place.plus(at * DIR_ENTRY.words());
        let name = writer.add_bytes(row.plus(1), name)?;
        writer.put(row, &[ino, name]);
    }
    Ok(directory.pointer)
}

fn add_pieces(
    writer: &mut MessageWriter<'_>,
    from: Place,
    pieces: &mut dyn ExactSizeIterator<Item = Result<(BlobRef, u64), FormatError>>,
) -> Result<u64, Unwritable> {
    let list = writer.add_structs(from, pieces.len(), FILE_CHUNK)?;
    for (at, piece) in pieces.enumerate() {
        let (blob, len) = piece?;
        let row = list.place.plus(at * FILE_CHUNK.words());
        let Object { place, pointer } = writer.add_struct(row.plus(1), BLOB_REF);
        writer.put(row, &[len, pointer]);
        let digest = writer.add_bytes(place.plus(BLOB_REF.data.into()), blob.chunk.0.as_bytes())?;
        writer.put(place, &[blob.offset, blob.compressed.into(), digest]);
    }
    Ok(list.pointer)
}

fn add_additional<'a>(
    writer: &mut MessageWriter<'_>,
    from: Place,
    xattrs: &mut dyn ExactSizeIterator<Item = Result<XattrDraft<'a>, FormatError>>,
    target: Option<&[u8]>,
) -> Result<u64, Unwritable> {
    let additional = writer.add_struct(from, ADDITIONAL);
    let list = writer.add_structs(additional.place, xattrs.len(), XATTR)?;
    for (at, xattr) in xattrs.enumerate() {
        let xattr = xattr?;
        xattr.check()?;
        let row = list.place.plus(at * XATTR.words());
        let value = writer.add_bytes(row.plus(1), xattr.value)?;
        let key = writer.add_bytes(row, xattr.key)?;
        writer.put(row, &[key, value]);
    }
    let target = target.map_or(Ok(0), |target| writer.add_bytes(additional.place.plus(1), target))?;
    writer.put(additional.place, &[list.pointer, target]);
    Ok(additional.pointer)
}
