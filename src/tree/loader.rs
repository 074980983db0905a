//! One chunk at a time: opened, verified, decoded, kept for a while.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
};

use hashbrown::HashSet;
use sha2::{Digest as _, Sha256};

use super::{
    cache::{Bounded, Decoded, DecodedChunks},
    chunks::{ChunkFault, ChunkSource, Verify, lock},
    decode::Decoders,
};
use crate::{
    format::{BlobRef, Piece},
    name::{ChunkId, Digest},
};

/// A chunk, and how the file map that names it says it is stored: what decoded bytes depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StoredChunk {
    pub(super) chunk: ChunkId,
    pub(super) compressed: bool,
}

impl StoredChunk {
    pub(super) fn of(blob: BlobRef) -> Self {
        Self { chunk: blob.chunk, compressed: blob.compressed }
    }
}

/// How the chunk at hand was come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// It, or the one before it in the stream of all files, was read a moment ago: its rest will be wanted too.
    Stream,
    /// Out of the blue.
    Random,
}

/// Gets the bytes of chunks.
pub(super) struct Loader {
    source: Box<dyn ChunkSource>,
    verify: Verify,
    verified: Mutex<HashSet<ChunkId>>,
    files: Mutex<Bounded<ChunkId, Arc<File>>>,
    decoded: DecodedChunks,
    decoders: Decoders,
}

/// Small files share chunks, and a read ends within one: what is decoded is kept for the next.
const DECODED_BYTES_MAX: usize = 6 << 20;
/// A quarter of the usual limit of 1024 descriptors.
const FILES_MAX: usize = 256;
const SCRATCH_BYTES: usize = 64 << 10;
/// Of a chunk that is read at random, frames are decoded alone as long as no more than this is wanted.
const PART_BYTES_MAX: usize = 32 << 10;
/// No writer cuts plain chunks longer than this, so a longer one is not worth keeping.
const KEPT_CHUNK_BYTES_MAX: u64 = 1 << 20;

impl Loader {
    pub(super) fn new(source: Box<dyn ChunkSource>, verify: Verify) -> Self {
        Self {
            source,
            verify,
            verified: Mutex::default(),
            files: Mutex::new(Bounded::new(FILES_MAX)),
            decoded: DecodedChunks::new(DECODED_BYTES_MAX),
            decoders: Decoders::default(),
        }
    }

    /// Fills `out` with the bytes of a piece from its byte `skip` on; there must be as many.
    pub(super) fn read(&self, piece: &Piece, skip: u64, out: &mut [u8], pattern: Pattern) -> Result<(), ChunkFault> {
        let needs = piece.blob.offset + piece.len;
        let from = piece.blob.offset + skip;
        let stored = StoredChunk::of(piece.blob);
        match stored.compressed {
            true => self.read_compressed(stored, from, needs, out, pattern),
            false => self.read_plain(stored, from, needs, out),
        }
    }

    /// Reads, checks and decodes a chunk that will be wanted. Whoever wants it hears what is wrong with it, if that is still
    /// so then.
    pub(super) fn prepare(&self, stored: StoredChunk) {
        if stored.compressed || self.keeps_plain(&stored.chunk) {
            let _ = self.whole(stored);
        }
    }

    /// The decoded bytes of the chunk that a piece is in, if they are kept.
    pub(super) fn in_memory(&self, piece: &Piece) -> Option<Decoded> {
        self.decoded.get(&StoredChunk::of(piece.blob))
    }

    /// Whether it was loaded and verified before, and is not in memory any more.
    pub(super) fn has_lost(&self, stored: &StoredChunk) -> bool {
        self.verify == Verify::First && !self.is_unverified(&stored.chunk) && !self.decoded.has_or_expects(stored)
    }

    /// Whether it was loaded before, as far as is known.
    pub(super) fn was_loaded(&self, stored: &StoredChunk) -> bool {
        self.has_lost(stored) || self.decoded.has_or_expects(stored)
    }

    fn read_compressed(
        &self,
        stored: StoredChunk,
        from: u64,
        needs: u64,
        out: &mut [u8],
        pattern: Pattern,
    ) -> Result<(), ChunkFault> {
        let is_part = pattern == Pattern::Random && out.len() <= PART_BYTES_MAX;
        // What is to be hashed is read as a whole, so it may as well be decoded as a whole and kept, as plain chunks are.
        if is_part && !self.is_unverified(&stored.chunk) && !self.decoded.has_or_expects(&stored) {
            let file = self.open(&stored.chunk)?;
            let part = self.checked(&stored.chunk, |check| self.decoders.decode_part(&file, check, from, out))?;
            return part.map_err(|has| ChunkFault::Short { has, needs });
        }
        copy_part(&self.whole(stored)?, from, needs, out)
    }

    fn read_plain(&self, stored: StoredChunk, from: u64, needs: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
        if let Some(bytes) = self.decoded.get(&stored) {
            return copy_part(&bytes, from, needs, out);
        }
        if self.keeps_plain(&stored.chunk) {
            return match self.whole(stored) {
                Err(ChunkFault::TooLarge) => self.read_long(&stored.chunk, from, needs, out),
                bytes => copy_part(&bytes?, from, needs, out),
            };
        }
        match self.verify {
            Verify::Always => self.read_long(&stored.chunk, from, needs, out),
            Verify::First | Verify::Off => read_exact(&*self.file(&stored.chunk)?, from, needs, out),
        }
    }

    /// A plain chunk that was hashed is read as a whole, so it may as well be kept.
    fn keeps_plain(&self, chunk: &ChunkId) -> bool {
        self.verify == Verify::First && self.is_unverified(chunk)
    }

    fn whole(&self, stored: StoredChunk) -> Result<Decoded, ChunkFault> {
        self.decoded.get_or_load(stored, || match stored.compressed {
            true => {
                let file = self.open(&stored.chunk)?;
                self.checked(&stored.chunk, |check| self.decoders.decode(&file, check))
            }
            false => {
                let file = self.file(&stored.chunk)?;
                self.checked(&stored.chunk, |check| self.decoders.read(&file, KEPT_CHUNK_BYTES_MAX, check))
            }
        })
    }

    /// A plain chunk of any length: hashed from end to end, without being kept.
    fn read_long(&self, chunk: &ChunkId, from: u64, needs: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
        let file = self.file(chunk)?;
        let digest = read_and_hash(&file, from, out)?;
        expect_digest(chunk, digest)?;
        self.note_verified(chunk, true);
        let has = file.metadata().map_err(ChunkFault::Io)?.len();
        if has < from + out.len() as u64 { Err(ChunkFault::Short { has, needs }) } else { Ok(()) }
    }

    /// Runs `load` with the check that the stored bytes are to pass, and remembers that they did.
    fn checked<T>(
        &self,
        chunk: &ChunkId,
        load: impl FnOnce(&dyn Fn(&[u8]) -> Result<(), ChunkFault>) -> Result<T, ChunkFault>,
    ) -> Result<T, ChunkFault> {
        let unverified = self.is_unverified(chunk);
        let loaded = load(&|stored| match unverified {
            true => expect_digest(chunk, Digest::of(stored)),
            false => Ok(()),
        })?;
        self.note_verified(chunk, unverified);
        Ok(loaded)
    }

    fn is_unverified(&self, chunk: &ChunkId) -> bool {
        match self.verify {
            Verify::First => !lock(&self.verified).contains(chunk),
            Verify::Always => true,
            Verify::Off => false,
        }
    }

    fn note_verified(&self, chunk: &ChunkId, checked: bool) {
        if checked && self.verify == Verify::First {
            lock(&self.verified).insert(*chunk);
        }
    }

    fn file(&self, chunk: &ChunkId) -> Result<Arc<File>, ChunkFault> {
        if let Some(file) = lock(&self.files).get(chunk) {
            return Ok(file);
        }
        let file = Arc::new(self.open(chunk)?);
        lock(&self.files).insert(*chunk, file.clone(), 1);
        Ok(file)
    }

    fn open(&self, chunk: &ChunkId) -> Result<File, ChunkFault> {
        self.source.open(chunk).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => ChunkFault::Missing,
            _ => ChunkFault::Io(cause),
        })
    }
}

fn copy_part(bytes: &[u8], from: u64, needs: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
    let start = usize::try_from(from).ok().and_then(|from| bytes.get(from..));
    let part = start.and_then(|rest| rest.get(..out.len()));
    out.copy_from_slice(part.ok_or(ChunkFault::Short { has: bytes.len() as u64, needs })?);
    Ok(())
}

fn expect_digest(chunk: &ChunkId, found: Digest) -> Result<(), ChunkFault> {
    if chunk.0 == found { Ok(()) } else { Err(ChunkFault::Digest(found)) }
}

fn read_exact(file: &File, from: u64, needs: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
    match file.read_exact_at(out, from) {
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            Err(ChunkFault::Short { has: file.metadata().map_err(ChunkFault::Io)?.len(), needs })
        }
        done => done.map_err(ChunkFault::Io),
    }
}

/// Hashes the whole file and leaves its bytes from `from` on in `out`: read once, so what was hashed is what is there.
fn read_and_hash(file: &File, from: u64, out: &mut [u8]) -> Result<Digest, ChunkFault> {
    let mut hash = Sha256::new();
    let mut scratch = vec![0; SCRATCH_BYTES.min(usize::try_from(from).unwrap_or(SCRATCH_BYTES))];
    let before = hash_range(file, 0..from, &mut hash, &mut scratch)?;
    let inside = hash_into(file, before, &mut hash, out)?;
    scratch.resize(SCRATCH_BYTES, 0);
    hash_range(file, before + inside..u64::MAX, &mut hash, &mut scratch)?;
    Ok(Digest::of_hashed(hash))
}

/// Hashes a range as far as the file goes; returns where it ended.
fn hash_range(file: &File, range: Range<u64>, hash: &mut Sha256, scratch: &mut [u8]) -> Result<u64, ChunkFault> {
    let mut at = range.start;
    while at < range.end {
        let len = scratch.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        let read = hash_into(file, at, hash, &mut scratch[..len])?;
        at += read;
        if read < len as u64 {
            break;
        }
    }
    Ok(at)
}

/// Fills `out` as far as the file goes and hashes that; returns how much it is.
fn hash_into(file: &File, at: u64, hash: &mut Sha256, out: &mut [u8]) -> Result<u64, ChunkFault> {
    let mut len = 0;
    while len < out.len() {
        match file.read_at(&mut out[len..], at + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(ChunkFault::Io(cause)),
        }
    }
    hash.update(&out[..len]);
    Ok(len as u64)
}
