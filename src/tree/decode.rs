//! Compressed chunks, as a whole or frame by frame. They are seekable zstd: some frames, then a skippable frame with the seek table, in
//! one of two shapes. libzstd decodes the frames and skips the table, whatever its shape.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use zstd::zstd_safe::{self, DCtx, zstd_sys::ZSTD_ErrorCode};

use super::{cache::Decoded, chunks::ChunkFault};
use crate::codec::SeekTable;

/// The most that a compressed chunk may be, stored or decoded. Writers cut at 256 KiB; what is over this is an attack.
pub(super) const CHUNK_BYTES_MAX: usize = 64 << 20;
/// What a buffer is made for: the greatest chunk that any known writer cuts.
const USUAL_BYTES: usize = 256 << 10;
/// A workspace that one unusual chunk has blown up beyond this is not kept.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// Decoders and their buffers, which are dear to make, for as many readers as there are at a time.
#[derive(Default)]
pub(super) struct Decoders {
    idle: Mutex<Vec<Workspace>>,
}

struct Workspace {
    context: DCtx<'static>,
    stored: Vec<u8>,
    decoded: Vec<u8>,
}

/// What the stored bytes of a chunk are to pass before they are used.
pub(super) type Check<'a> = &'a dyn Fn(&[u8]) -> Result<(), ChunkFault>;

impl Decoders {
    /// Reads the whole file, lets `check` look at the stored bytes, and decodes them.
    pub(super) fn decode(&self, file: &File, check: Check<'_>) -> Result<Decoded, ChunkFault> {
        self.with_workspace(|workspace| workspace.decode(file, check))
    }

    /// Reads the whole file and lets `check` look at it, but decodes only the frames that hold the decoded bytes from `from`
    /// on that `out` is for. `Err` in the result says how many bytes there are when there are too few.
    pub(super) fn decode_part(
        &self,
        file: &File,
        check: Check<'_>,
        from: u64,
        out: &mut [u8],
    ) -> Result<Result<(), u64>, ChunkFault> {
        self.with_workspace(|workspace| workspace.decode_part(file, check, from, out))
    }

    /// Reads a whole file of at most `limit` bytes that is not compressed, and lets `check` look at it.
    pub(super) fn read(&self, file: &File, limit: u64, check: Check<'_>) -> Result<Decoded, ChunkFault> {
        if file.metadata().map_err(ChunkFault::Io)?.len() > limit {
            return Err(ChunkFault::TooLarge);
        }
        self.with_workspace(|workspace| {
            let len = workspace.read(file)?;
            check(&workspace.stored[..len])?;
            Ok(Arc::new(workspace.stored[..len].to_vec()))
        })
    }

    fn with_workspace<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = idle.unwrap_or_else(Workspace::new);
        let done = work(&mut workspace);
        if workspace.stored.len() + workspace.decoded.len() <= KEPT_BYTES_MAX {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        }
        done
    }
}

impl Workspace {
    fn new() -> Self {
        Self { context: DCtx::create(), stored: vec![0; USUAL_BYTES], decoded: vec![0; USUAL_BYTES] }
    }

    fn decode(&mut self, file: &File, check: Check<'_>) -> Result<Decoded, ChunkFault> {
        let len = self.read(file)?;
        check(&self.stored[..len])?;
        if let Some(bytes) = self.decode_in_place(len) {
            return Ok(bytes);
        }
        self.decode_growing(len).map(|decoded| Arc::new(self.decoded[..decoded].to_vec()))
    }

    /// Decodes into memory of the right size, where the seek table tells it and tells the truth.
    fn decode_in_place(&mut self, len: usize) -> Option<Decoded> {
        let stored = &self.stored[..len];
        let claimed = usize::try_from(SeekTable::parse(stored).ok()?.decoded_len()).ok()?;
        let mut bytes = Vec::with_capacity(Some(claimed).filter(|claimed| *claimed <= USUAL_BYTES)?);
        self.context.decompress(&mut bytes, stored).ok()?;
        Some(Arc::new(bytes))
    }

    /// Decodes whatever it is into the buffer of the workspace, and returns its length.
    fn decode_growing(&mut self, len: usize) -> Result<usize, ChunkFault> {
        loop {
            match self.context.decompress(&mut self.decoded[..], &self.stored[..len]) {
                Ok(decoded) => return Ok(decoded),
                Err(code) if is_full(code) => grow(&mut self.decoded)?,
                Err(code) => return Err(ChunkFault::Zstd(zstd_safe::get_error_name(code))),
            }
        }
    }

    fn decode_part(
        &mut self,
        file: &File,
        check: Check<'_>,
        from: u64,
        out: &mut [u8],
    ) -> Result<Result<(), u64>, ChunkFault> {
        let len = self.read(file)?;
        check(&self.stored[..len])?;
        if self.decode_frames(len, from, out).is_some() {
            return Ok(Ok(()));
        }
        let decoded = self.decode_growing(len)?;
        let part = usize::try_from(from).ok().and_then(|from| self.decoded[..decoded].get(from..)?.get(..out.len()));
        Ok(part.map(|part| out.copy_from_slice(part)).ok_or(decoded as u64))
    }

    /// `None` where the table is not to be had, or anything is not as it says: then the whole chunk has to be looked at.
    fn decode_frames(&mut self, len: usize, from: u64, out: &mut [u8]) -> Option<()> {
        let stored = &self.stored[..len];
        let table = SeekTable::parse(stored).ok()?;
        let end = from.checked_add(out.len() as u64).filter(|end| *end <= table.decoded_len())?;
        for frame in table.overlapping(from..end) {
            let decoded = self.decoded.get_mut(..usize::try_from(frame.decoded_len()).ok()?)?;
            let written = self.context.decompress(decoded, &stored[frame.stored.clone()]).ok()?;
            if written != decoded.len() {
                return None;
            }
            let (start, stop) = (from.max(frame.decoded.start), end.min(frame.decoded.end));
            let part = &decoded[(start - frame.decoded.start) as usize..(stop - frame.decoded.start) as usize];
            out[(start - from) as usize..(stop - from) as usize].copy_from_slice(part);
        }
        Some(())
    }

    fn read(&mut self, file: &File) -> Result<usize, ChunkFault> {
        let mut len = 0;
        loop {
            if len == self.stored.len() {
                grow(&mut self.stored)?;
            }
            match file.read_at(&mut self.stored[len..], len as u64) {
                Ok(0) => return Ok(len),
                Ok(read) => len += read,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(ChunkFault::Io(cause)),
            }
        }
    }
}

/// Doubles the buffer. It grows only after bytes have filled it, never because a length somewhere says so.
fn grow(buffer: &mut Vec<u8>) -> Result<(), ChunkFault> {
    if buffer.len() >= CHUNK_BYTES_MAX {
        return Err(ChunkFault::TooLarge);
    }
    buffer.resize(buffer.len() * 2, 0);
    Ok(())
}

/// libzstd returns errors as negated codes.
fn is_full(code: usize) -> bool {
    code == 0usize.wrapping_sub(ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize)
}
