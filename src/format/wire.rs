//! The private door to the generated Cap'n Proto code: messages to [`Rootfs`] values, with limits. The way back is
//! [`super::RootfsMessage`].
//!
//! Readers are made with a traversal limit of a few times the message: honest messages name each word once, hostile ones
//! point at the same list from many places to make a small message large.

use capnp::{message, serialize};

use super::{
    BlobRef, Device, DirEntry, FormatError, InodeDraft, KindDraft, Layer, LayerBuilder, Limits, ManifestVersion,
    Rootfs, XattrDraft,
};
use crate::name::{ChunkId, Digest};

capnp::generated_code!(pub(crate) mod metadata_capnp);

use metadata_capnp as schema;

type Fetch<'a> = &'a mut dyn FnMut(&BlobRef) -> Result<Vec<u8>, String>;

/// Down to a chunk digest a reader needs 8 levels; measured on upstream's images.
const NESTING_MAX: i32 = 16;

pub(super) fn decode_rootfs(bytes: &[u8], limits: &Limits, fetch: Fetch<'_>) -> Result<Rootfs, FormatError> {
    let aligned = Aligned::new(bytes, limits, "the rootfs")?;
    let message = aligned.reader()?;
    let inline = message.get_root::<schema::rootfs_inline::Reader<'_>>().map_err(broken)?;
    match inline.get_manifest_version() {
        3 => {
            let vectors = inline.get_metadatas().map_err(broken)?;
            check_layers(vectors.len())?;
            let table = inline.get_fs_verity_data().map_err(broken)?;
            // The table has a row for each chunk of all layers. Room for all of them in each of many would never end.
            let chunks = if vectors.len() == 1 { table.len() as usize } else { 0 };
            let room = Room { message_bytes: bytes.len(), chunks };
            let layers = vectors.iter().enumerate().map(|(depth, vector)| decode_layer(depth, vector, &room));
            let layers = layers.collect::<Result<_, _>>()?;
            let verity = decode_verity(table)?;
            Ok(Rootfs { version: ManifestVersion::V3, layers, verity, metadata: Vec::new() })
        }
        2 => decode_split(message.get_root().map_err(broken)?, limits, fetch),
        other => Err(FormatError::Version(other)),
    }
}

fn decode_split(
    rootfs: schema::rootfs_split::Reader<'_>,
    limits: &Limits,
    fetch: Fetch<'_>,
) -> Result<Rootfs, FormatError> {
    let mut layers = Vec::new();
    let mut metadata = Vec::new();
    let blobs = rootfs.get_metadatas().map_err(broken)?;
    check_layers(blobs.len())?;
    for (index, blob) in blobs.iter().enumerate() {
        let problem = |problem: String| FormatError::Metadata { index, problem };
        let blob = decode_blob_ref(blob).map_err(|cause| problem(cause.to_string()))?;
        let bytes = fetch(&blob).map_err(problem)?;
        let start = usize::try_from(blob.offset).ok().filter(|start| *start <= bytes.len());
        let start = start.ok_or_else(|| problem(format!("it has no byte {}", blob.offset)))?;
        let aligned = Aligned::new(&bytes[start..], limits, "a metadata blob")?;
        let message = aligned.reader()?;
        let room = Room { message_bytes: bytes.len(), chunks: 0 };
        layers.push(decode_layer(index, message.get_root().map_err(broken)?, &room)?);
        metadata.push(blob.chunk.0);
    }
    let verity = decode_verity(rootfs.get_fs_verity_data().map_err(broken)?)?;
    Ok(Rootfs { version: ManifestVersion::V2, layers, verity, metadata })
}

/// An image has a layer for itself and one for each delta that it is. An inode is looked for in all of them, so a small message with
/// a million empty ones would keep its reader busy for days.
pub(super) const LAYERS_MAX: u32 = 1024;

fn check_layers(count: u32) -> Result<(), FormatError> {
    match count > LAYERS_MAX {
        true => Err(FormatError::Tree(format!("it has {count} layers, over {LAYERS_MAX}"))),
        false => Ok(()),
    }
}

fn broken(cause: capnp::Error) -> FormatError {
    FormatError::Message(cause.to_string())
}

/// A message in memory that is aligned to 8 bytes, as the reader demands.
enum Aligned<'a> {
    Borrowed(&'a [u8]),
    Copied(Vec<capnp::Word>),
}

impl<'a> Aligned<'a> {
    fn new(bytes: &'a [u8], limits: &Limits, what: &'static str) -> Result<Self, FormatError> {
        if bytes.len() as u64 > limits.message_bytes {
            return Err(FormatError::TooLarge { what, bytes: bytes.len() as u64, limit: limits.message_bytes });
        }
        if bytes.as_ptr().addr().is_multiple_of(size_of::<capnp::Word>()) {
            return Ok(Self::Borrowed(bytes));
        }
        let mut words = capnp::Word::allocate_zeroed_vec(bytes.len().div_ceil(8));
        capnp::Word::words_to_bytes_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Ok(Self::Copied(words))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Copied(words) => capnp::Word::words_to_bytes(words),
        }
    }

    fn reader(&self) -> Result<message::Reader<serialize::BufferSegments<&[u8]>>, FormatError> {
        let bytes = self.bytes();
        let mut options = message::ReaderOptions::new();
        options.traversal_limit_in_words(Some(bytes.len() / 8 * 2 + 4096)).nesting_limit(NESTING_MAX);
        let segments = serialize::BufferSegments::new(bytes, options).map_err(broken)?;
        Ok(message::Reader::new(segments, options))
    }
}

fn decode_verity(
    table: capnp::struct_list::Reader<'_, schema::verity_data::Owned>,
) -> Result<Vec<(ChunkId, [u8; 32])>, FormatError> {
    let row = |(at, row): (usize, schema::verity_data::Reader<'_>)| {
        let chunk = Digest::from_bytes(row.get_digest().map_err(broken)?).ok_or(FormatError::Verity(at))?;
        let verity = row.get_verity().map_err(broken)?.try_into().map_err(|_| FormatError::Verity(at))?;
        Ok((ChunkId(chunk), verity))
    };
    table.iter().enumerate().map(row).collect()
}

/// What is known of the size of a layer before its inodes have been seen.
struct Room {
    message_bytes: usize,
    chunks: usize,
}

impl Room {
    /// A builder with room for what lists of these lengths announce, but for no more than the bytes of the message could hold:
    /// elements of no size may be announced by the million.
    fn builder(&self, depth: usize, inodes: usize) -> LayerBuilder {
        let inodes = inodes.min(self.message_bytes / INODE_BYTES_MIN);
        LayerBuilder::new(depth).expecting(inodes, self.chunks.min(self.message_bytes / CHUNK_BYTES_MIN))
    }
}

/// Three words of data and two pointers.
const INODE_BYTES_MIN: usize = 40;
/// A digest, and as many bytes in the verity table.
const CHUNK_BYTES_MIN: usize = 64;

fn decode_layer(depth: usize, vector: schema::inode_vector::Reader<'_>, room: &Room) -> Result<Layer, FormatError> {
    let inodes = vector.get_inodes().map_err(broken)?;
    let mut builder = room.builder(depth, inodes.len() as usize);
    for inode in inodes.iter() {
        decode_inode(depth, &mut builder, inode)?;
    }
    builder.finish_sorted()
}

fn decode_inode(depth: usize, builder: &mut LayerBuilder, inode: schema::inode::Reader<'_>) -> Result<(), FormatError> {
    use schema::inode::mode;
    let ino = inode.get_ino();
    let problem = |problem: &str| FormatError::inode(depth, ino, problem);
    let additional = inode.get_additional().map_err(broken)?;
    let xattrs = additional.get_xattrs().map_err(broken)?;
    let mut xattrs = xattrs.iter().map(|xattr| {
        Ok(XattrDraft { key: xattr.get_key().map_err(broken)?, value: xattr.get_value().map_err(broken)? })
    });
    let (uid, gid, permissions) = (inode.get_uid(), inode.get_gid(), inode.get_permissions());
    let draft = InodeDraft { ino, uid, gid, permissions, xattrs: &mut xattrs };
    match inode.get_mode().which().map_err(|_| problem("it is of a kind that this program does not know"))? {
        mode::Unknown(()) => builder.push(draft, KindDraft::Unknown),
        mode::Fifo(()) => builder.push(draft, KindDraft::Fifo),
        mode::Socket(()) => builder.push(draft, KindDraft::Socket),
        mode::Whiteout(()) => builder.push(draft, KindDraft::Whiteout),
        mode::Char(device) => {
            let device =
                decode_device(device.map_err(broken)?).ok_or_else(|| problem("its device number is too large"))?;
            builder.push(draft, KindDraft::Char(device))
        }
        mode::Block(device) => {
            let device =
                decode_device(device.map_err(broken)?).ok_or_else(|| problem("its device number is too large"))?;
            builder.push(draft, KindDraft::Block(device))
        }
        mode::Symlink(()) => builder.push(draft, KindDraft::Symlink(additional.get_symlink_target().map_err(broken)?)),
        mode::Dir(dir) => {
            let dir = dir.map_err(broken)?;
            let entries = dir.get_entries().map_err(broken)?;
            let mut entries = entries
                .iter()
                .map(|entry| Ok(DirEntry { ino: entry.get_ino(), name: entry.get_name().map_err(broken)? }));
            builder.push(draft, KindDraft::Dir { entries: &mut entries, look_below: dir.get_look_below() })
        }
        mode::File(pieces) => {
            let pieces = pieces.map_err(broken)?;
            let mut pieces = pieces.iter().map(|piece| {
                let blob = decode_blob_ref(piece.get_blob().map_err(broken)?);
                Ok((blob.map_err(|cause| problem(&cause.to_string()))?, piece.get_len()))
            });
            builder.push(draft, KindDraft::File(&mut pieces))
        }
    }
}

fn decode_device(device: schema::device::Reader<'_>) -> Option<Device> {
    Some(Device { major: device.get_major().try_into().ok()?, minor: device.get_minor().try_into().ok()? })
}

#[derive(Debug, thiserror::Error)]
enum BlobRefError {
    #[error("{0}")]
    Message(#[from] capnp::Error),
    #[error("a chunk digest has {0} bytes instead of 32")]
    Digest(usize),
}

fn decode_blob_ref(blob: schema::blob_ref::Reader<'_>) -> Result<BlobRef, BlobRefError> {
    let digest = blob.get_digest()?;
    let chunk = ChunkId(Digest::from_bytes(digest).ok_or(BlobRefError::Digest(digest.len()))?);
    Ok(BlobRef { chunk, offset: blob.get_offset(), compressed: blob.get_compressed() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Kind;

    /// The message as the builder of the `capnp` crate makes it, with its fields set in the order of puzzlefs 0.2.0.
    fn encode_rootfs(rootfs: &Rootfs) -> Result<Vec<u8>, FormatError> {
        let segments = message::HeapAllocator::new()
            .first_segment_words(1024)
            .allocation_strategy(message::AllocationStrategy::GrowHeuristically);
        let mut message = message::Builder::new(segments);
        let mut root = message.init_root::<schema::rootfs_inline::Builder<'_>>();
        root.set_manifest_version(3);
        let mut vectors = root.reborrow().init_metadatas(list_len(rootfs.layers.len())?);
        for (at, layer) in (0..).zip(&rootfs.layers) {
            let inodes: Vec<_> = layer.inodes().collect();
            let mut list = vectors.reborrow().get(at).init_inodes(list_len(inodes.len())?);
            for (at, inode) in (0..).zip(inodes) {
                encode_inode(inode, list.reborrow().get(at))?;
            }
        }
        let mut table = root.init_fs_verity_data(list_len(rootfs.verity.len())?);
        for (at, (chunk, verity)) in (0..).zip(&rootfs.verity) {
            let mut row = table.reborrow().get(at);
            row.set_digest(chunk.0.as_bytes());
            row.set_verity(verity);
        }
        Ok(serialize::write_message_to_words(&message))
    }

    /// Cap'n Proto lists have at most 2^29 - 1 elements.
    fn list_len(len: usize) -> Result<u32, FormatError> {
        let too_long =
            || FormatError::Document { what: "the rootfs", problem: format!("a list of {len} elements is too long") };
        u32::try_from(len).ok().filter(|len| *len < 1 << 29).ok_or_else(too_long)
    }

    fn encode_inode(inode: crate::format::Inode<'_>, mut to: schema::inode::Builder<'_>) -> Result<(), FormatError> {
        to.set_ino(inode.ino());
        let mut target = None;
        let mut mode = to.reborrow().init_mode();
        match inode.kind() {
            Kind::Unknown => mode.set_unknown(()),
            Kind::Fifo => mode.set_fifo(()),
            Kind::Char(device) => encode_device(device, mode.init_char()),
            Kind::Block(device) => encode_device(device, mode.init_block()),
            Kind::Socket => mode.set_socket(()),
            Kind::Whiteout => mode.set_whiteout(()),
            Kind::Symlink(bytes) => {
                mode.set_symlink(());
                target = Some(bytes);
            }
            Kind::Dir(directory) => {
                let mut dir = mode.init_dir();
                dir.set_look_below(directory.look_below());
                let mut entries = dir.init_entries(list_len(directory.len())?);
                for (at, entry) in (0..).zip(directory.entries()) {
                    let mut to = entries.reborrow().get(at);
                    to.set_ino(entry.ino);
                    to.set_name(entry.name);
                }
            }
            Kind::File(map) => {
                let mut pieces = mode.init_file(list_len(map.len())?);
                for (at, piece) in (0..).zip(map.pieces()) {
                    let mut to = pieces.reborrow().get(at);
                    to.set_len(piece.len);
                    let mut blob = to.init_blob();
                    blob.set_digest(piece.blob.chunk.0.as_bytes());
                    blob.set_offset(piece.blob.offset);
                    blob.set_compressed(piece.blob.compressed);
                }
            }
        }
        to.set_uid(inode.uid());
        to.set_gid(inode.gid());
        to.set_permissions(inode.permissions());
        let xattrs: Vec<_> = inode.xattrs().collect();
        if !xattrs.is_empty() || target.is_some() {
            encode_additional(&xattrs, target, to.init_additional())?;
        }
        Ok(())
    }

    fn encode_device(device: Device, mut to: schema::device::Builder<'_>) {
        to.set_minor(device.minor.into());
        to.set_major(device.major.into());
    }

    fn encode_additional(
        xattrs: &[(&[u8], &[u8])],
        target: Option<&[u8]>,
        mut to: schema::inode_additional::Builder<'_>,
    ) -> Result<(), FormatError> {
        let mut list = to.reborrow().init_xattrs(list_len(xattrs.len())?);
        for (at, (key, value)) in (0..).zip(xattrs) {
            let mut xattr = list.reborrow().get(at);
            xattr.set_value(value);
            xattr.set_key(key);
        }
        if let Some(target) = target {
            to.set_symlink_target(target);
        }
        Ok(())
    }

    type Xattrs<'a> = dyn ExactSizeIterator<Item = Result<XattrDraft<'a>, FormatError>> + 'a;

    fn draft<'a>(ino: u64, xattrs: &'a mut Xattrs<'a>) -> InodeDraft<'a> {
        InodeDraft { ino, uid: 1, gid: 2, permissions: 0o4755, xattrs }
    }

    /// A layer with an inode of each kind, then files of as many chunks each, with names and attributes of many lengths.
    fn layer(files: &[(u8, u8, u8)]) -> Layer {
        let mut builder = LayerBuilder::new(0);
        let names: Vec<Vec<u8>> = files.iter().map(|(name, ..)| vec![b'n'; usize::from(*name).max(1)]).collect();
        let mut entries = names.iter().enumerate().map(|(at, name)| Ok(DirEntry { name, ino: at as u64 + 20 }));
        let root = KindDraft::Dir { entries: &mut entries, look_below: true };
        builder.push(draft(1, &mut std::iter::empty()), root).unwrap();
        let mut none = std::iter::empty();
        let device = Device { major: 7, minor: 1 << 20 };
        let kinds = [
            KindDraft::Unknown,
            KindDraft::Fifo,
            KindDraft::Char(device),
            KindDraft::Block(device),
            KindDraft::Symlink(b"to"),
            KindDraft::Socket,
            KindDraft::Whiteout,
            KindDraft::Dir { entries: &mut none, look_below: false },
        ];
        for (ino, kind) in (2..).zip(kinds) {
            builder.push(draft(ino, &mut std::iter::empty()), kind).unwrap();
        }
        for (ino, (_, chunks, xattrs)) in (20..).zip(files) {
            let value = vec![b'v'; usize::from(*xattrs) * 9];
            let mut xattrs = (0..xattrs % 4).map(|_| Ok(XattrDraft { key: b"user.key", value: &value }));
            let mut pieces = (0..*chunks).map(|at| {
                let chunk = ChunkId(Digest::of(&[at]));
                Ok((BlobRef { chunk, offset: ino, compressed: at % 2 == 1 }, 1 + u64::from(at)))
            });
            builder.push(draft(ino, &mut xattrs), KindDraft::File(&mut pieces)).unwrap();
        }
        builder.finish_sorted().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn messages_are_those_of_the_capnp_builder(
            layers in prop::collection::vec(prop::collection::vec(any::<(u8, u8, u8)>(), 0..120), 1..4),
            chunks in 0u32..4000,
        ) {
            let verity = (0..chunks).map(|at| (ChunkId(Digest::of(&at.to_le_bytes())), [at as u8; 32])).collect();
            let rootfs = Rootfs::new(layers.iter().map(|files| layer(files)).collect(), verity);
            prop_assert!(rootfs.encode().unwrap() == encode_rootfs(&rootfs).unwrap());
        }

        /// Words are set to each other as well as to anything, so that pointers lead where other objects are.
        #[test]
        fn what_is_found_plainly_is_what_the_library_finds(
            layers in prop::collection::vec(prop::collection::vec((1u8.., 0u8..9, 0u8..9), 0..30), 1..4),
            chunks in 0u32..100,
            damages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u64>()), 20),
        ) {
            let verity = (0..chunks).map(|at| (ChunkId(Digest::of(&at.to_le_bytes())), [at as u8; 32])).collect();
            let rootfs = Rootfs::new(layers.iter().map(|files| layer(files)).collect(), verity);
            let bytes = rootfs.encode().unwrap();
            prop_assert!(found_alike(&bytes));
            prop_assert!(!found_alike(&bytes[..bytes.len() - 8]) && !found_alike(&[&bytes[..], &[0; 8]].concat()));
            let mut damaged = bytes.clone();
            for (to, from, value) in damages {
                let (to, from) = (to.index(bytes.len() / 8) * 8, from.index(bytes.len() / 8) * 8);
                let word: [u8; 8] = bytes[from..from + 8].try_into().unwrap();
                let step = u64::from_le_bytes(word).wrapping_add(value % 64);
                for word in [word, step.to_le_bytes(), value.to_le_bytes(), [0; 8]] {
                    damaged[to..to + 8].copy_from_slice(&word);
                    found_alike(&damaged);
                }
                damaged[to..to + 8].copy_from_slice(&bytes[to..to + 8]);
            }
        }
    }

    #[test]
    fn a_rootfs_has_no_more_than_so_many_layers() {
        let decoded = |layers| {
            let layers = (1..layers).map(|_| Layer::default()).chain([layer(&[])]).collect();
            let bytes = Rootfs::new(layers, Vec::new()).encode().unwrap();
            found_alike(&bytes);
            Rootfs::decode(&bytes, &Limits::default(), &mut |_| Err("it is of version 3".into()))
        };
        assert_eq!(decoded(LAYERS_MAX).unwrap().layers().len() as u32, LAYERS_MAX);
        let refused = decoded(LAYERS_MAX + 1).unwrap_err().to_string();
        assert_eq!(refused, "the rootfs is not a tree: it has 1025 layers, over 1024");
    }

    #[test]
    fn what_is_found_plainly_in_a_message_with_one_wrong_bit_is_what_the_library_finds() {
        let rootfs = Rootfs::new(vec![layer(&[(3, 2, 1), (1, 0, 2)]), layer(&[(2, 1, 0)])], Vec::new());
        let bytes = rootfs.encode().unwrap();
        let mut wrong = bytes.clone();
        for bit in 0..bytes.len() * 8 {
            wrong[bit / 8] ^= 1 << (bit % 8);
            found_alike(&wrong);
            wrong[bit / 8] = bytes[bit / 8];
        }
    }

    /// Whether chunks are found plainly; they, and what is decoded plainly, must be what the `capnp` crate finds.
    fn found_alike(bytes: &[u8]) -> bool {
        let limits = Limits::default();
        let decoded = Rootfs::decode_any_layout(bytes, &limits, &mut |_| Err("it is of version 3".into()));
        let plain = Rootfs::decode(bytes, &limits, &mut |_| Err("it is of version 3".into()));
        match (&decoded, plain) {
            (Ok(decoded), Ok(plain)) => {
                assert!(plain.layers == decoded.layers && plain.verity == decoded.verity);
                assert_eq!(plain.version, decoded.version);
            }
            (Err(cause), Err(plain)) => assert_eq!(plain.to_string(), cause.to_string()),
            (decoded, plain) => panic!("{:?}, and plainly {:?}", decoded.as_ref().err(), plain.err()),
        }
        let Some(mut found) = crate::format::chunks_named_plainly(bytes, &limits) else { return false };
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, decoded.expect("what is found plainly is sound").chunks());
        true
    }
}
