//! Bytes to bytes: chunk boundaries, compression, Merkle digests. No I/O.

mod chunker;
mod hashed;
mod seek_table;
mod verity;
mod zstd_seekable;

pub use chunker::{CHUNK_BYTES_MAX, Chunker};
pub use hashed::Hashed;
pub use seek_table::{Frame, SeekTable, SeekTableError, decode_all, decode_frame};
pub use verity::{VerityHasher, verity_digest};
pub use zstd_seekable::{Encoded, Encoder, Encoding};
