//! The bytes of files, out of chunks, verified.
//!
//! Wrong data is never returned: by default the stored bytes of each chunk are hashed when it is first read, and the
//! bytes that are handed out then are the very bytes that were hashed. What is wrong with a chunk is an error of that
//! read alone; the next read tries again, and the observer hears of each damaged chunk once.

use std::{
    collections::HashSet,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::{
    cache::{Bounded, DecodedChunks},
    decode::Decoders,
};
use crate::{
    format::{FileMap, Piece},
    name::{ChunkId, Digest},
};

/// Where the stored bytes of chunks come from.
pub trait ChunkSource: Send + Sync {
    /// Opens the stored bytes of a chunk for reading. They need not be what the digest says.
    fn open(&self, chunk: &ChunkId) -> io::Result<File>;
}

/// When the stored bytes of a chunk are compared with its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// When it is first read.
    #[default]
    First,
    /// Whenever it is read from its file. Decoded chunks are served from memory for a while.
    Always,
    /// Never.
    Off,
}

/// What is wrong with a chunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkFault {
    /// It is in none of the places where chunks are.
    #[error("it is missing")]
    Missing,
    /// It cannot be opened or read.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    /// Its bytes are not those that the digest was taken of.
    #[error("its bytes have the digest {0}")]
    Digest(Digest),
    /// It has fewer bytes than the file needs of it.
    #[error("it has {has} bytes, and the file needs {needs}")]
    Short {
        /// Decoded bytes that there are.
        has: u64,
        /// Decoded bytes that there should be, at least.
        needs: u64,
    },
    /// Its compressed bytes cannot be decoded.
    #[error("it cannot be decoded: {0}")]
    Zstd(&'static str),
    /// It is, or decodes to, more than 64 MiB.
    #[error("it is larger than 64 MiB")]
    TooLarge,
}

/// A read that failed, and through which chunk.
#[derive(Debug, thiserror::Error)]
#[error("chunk {chunk}, named by inode {ino}, is damaged: {fault}")]
pub struct ReadError {
    /// The chunk.
    pub chunk: ChunkId,
    /// The file that was read.
    pub ino: u64,
    /// What is wrong with the chunk.
    pub fault: ChunkFault,
}

/// Hears of each damaged chunk, once.
pub type DamageObserver = Box<dyn Fn(&ReadError) + Send + Sync>;

/// Reads files out of chunks. One serves any number of threads.
pub struct ChunkReader {
    source: Box<dyn ChunkSource>,
    verify: Verify,
    on_damage: DamageObserver,
    verified: Mutex<HashSet<ChunkId>>,
    damaged: Mutex<HashSet<ChunkId>>,
    files: Mutex<Bounded<Arc<File>>>,
    decoded: DecodedChunks,
    decoders: Decoders,
}

/// Small files share chunks, and a read ends within one: what is decoded is kept for the next.
const DECODED_BYTES_MAX: usize = 16 << 20;
/// A quarter of the usual limit of 1024 descriptors.
const FILES_MAX: usize = 256;
const SCRATCH_BYTES: usize = 64 << 10;

impl ChunkReader {
    /// A reader over these chunks.
    pub fn new(source: Box<dyn ChunkSource>, verify: Verify, on_damage: DamageObserver) -> Self {
        Self {
            source,
            verify,
            on_damage,
            verified: Mutex::default(),
            damaged: Mutex::default(),
            files: Mutex::new(Bounded::new(FILES_MAX)),
            decoded: DecodedChunks::new(DECODED_BYTES_MAX),
            decoders: Decoders::default(),
        }
    }

    /// Reads bytes of the file `ino`, whose map is `map`, from `offset` on. Fills `out` as far as the file goes and
    /// returns how many bytes that is; `out` holds nothing of meaning after an error.
    pub fn read_at(&self, ino: u64, map: FileMap<'_>, offset: u64, out: &mut [u8]) -> Result<usize, ReadError> {
        let wanted = map.size().saturating_sub(offset).min(out.len() as u64);
        let end = offset + wanted;
        let mut rest = &mut out[..usize::try_from(wanted).expect("no more than the buffer has")];
        for piece in map.pieces_from(offset).take_while(|piece| piece.file_offset < end) {
            let skip = offset.saturating_sub(piece.file_offset);
            let here = (piece.len - skip).min(rest.len() as u64);
            let (part, others) = rest.split_at_mut(usize::try_from(here).expect("no more than the buffer has"));
            self.read_piece(&piece, piece.blob.offset + skip, part).map_err(|fault| self.report(ino, &piece, fault))?;
            rest = others;
        }
        Ok(usize::try_from(wanted).expect("no more than the buffer has"))
    }

    fn report(&self, ino: u64, piece: &Piece, fault: ChunkFault) -> ReadError {
        let error = ReadError { chunk: piece.blob.chunk, ino, fault };
        if lock(&self.damaged).insert(error.chunk) {
            (self.on_damage)(&error);
        }
        error
    }

    fn read_piece(&self, piece: &Piece, from: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
        let needs = piece.blob.offset + piece.len;
        match piece.blob.compressed {
            true => self.read_compressed(&piece.blob.chunk, from, needs, out),
            false => self.read_plain(&piece.blob.chunk, from, needs, out),
        }
    }

    fn read_compressed(&self, chunk: &ChunkId, from: u64, needs: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
        let bytes = self.decoded.get_or_load(*chunk, || self.decode(chunk))?;
        let start = usize::try_from(from).ok().and_then(|from| bytes.get(from..));
        let part = start.and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(part.ok_or(ChunkFault::Short { has: bytes.len() as u64, needs })?);
        Ok(())
    }

    fn decode(&self, chunk: &ChunkId) -> Result<Arc<[u8]>, ChunkFault> {
        let file = self.open(chunk)?;
        let unverified = self.is_unverified(chunk);
        let bytes = self.decoders.decode(&file, |stored| match unverified {
            true => expect_digest(chunk, Digest::of(stored)),
            false => Ok(()),
        })?;
        self.note_verified(chunk, unverified);
        Ok(bytes)
    }

    fn read_plain(&self, chunk: &ChunkId, from: u64, needs: u64, out: &mut [u8]) -> Result<(), ChunkFault> {
        let file = self.file(chunk)?;
        if !self.is_unverified(chunk) {
            return read_exact(&file, from, needs, out);
        }
        let digest = read_and_hash(&file, from, out)?;
        expect_digest(chunk, digest)?;
        self.note_verified(chunk, true);
        let has = file.metadata().map_err(ChunkFault::Io)?.len();
        if has < from + out.len() as u64 { Err(ChunkFault::Short { has, needs }) } else { Ok(()) }
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    Ok(Digest::from_bytes(&hash.finalize()).expect("sha-256 has 32 bytes"))
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
