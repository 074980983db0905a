//! Compressed chunks, as a whole. They are seekable zstd: some frames, then a skippable frame with the seek table, in
//! one of two shapes. libzstd decodes the frames and skips the table, whatever its shape.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use zstd::zstd_safe::{self, DCtx, zstd_sys::ZSTD_ErrorCode};

use super::chunks::ChunkFault;

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

impl Decoders {
    /// Reads the whole file, lets `check` look at the stored bytes, and decodes them.
    pub(super) fn decode(
        &self,
        file: &File,
        check: impl FnOnce(&[u8]) -> Result<(), ChunkFault>,
    ) -> Result<Arc<[u8]>, ChunkFault> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = idle.unwrap_or_else(Workspace::new);
        let bytes = workspace.decode(file, check);
        if workspace.stored.len() + workspace.decoded.len() <= KEPT_BYTES_MAX {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        }
        bytes
    }
}

impl Workspace {
    fn new() -> Self {
        Self { context: DCtx::create(), stored: vec![0; USUAL_BYTES], decoded: vec![0; USUAL_BYTES] }
    }

    fn decode(
        &mut self,
        file: &File,
        check: impl FnOnce(&[u8]) -> Result<(), ChunkFault>,
    ) -> Result<Arc<[u8]>, ChunkFault> {
        let len = self.read(file)?;
        check(&self.stored[..len])?;
        loop {
            match self.context.decompress(&mut self.decoded[..], &self.stored[..len]) {
                Ok(decoded) => return Ok(Arc::from(&self.decoded[..decoded])),
                Err(code) if is_full(code) => grow(&mut self.decoded)?,
                Err(code) => return Err(ChunkFault::Zstd(zstd_safe::get_error_name(code))),
            }
        }
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
