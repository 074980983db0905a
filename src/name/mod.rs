//! What things are called: digests, tags, references, sizes and media kinds.
//!
//! Values here are parsed once at the door and valid for ever after. Nothing opens a file or reads a clock.

mod bytes;
mod digest;
mod glob;
mod media;
mod reference;

pub use bytes::ByteCount;
pub use digest::{ChunkId, Digest, DigestError, ManifestId, RootfsId};
pub use glob::Glob;
pub use media::{CHUNK, CHUNK_ZSTD, INODES, MediaKind, OCI_INDEX, OCI_MANIFEST, ROOTFS};
pub use reference::{ImageRef, ReferenceError, Selector, Surroundings, Tag, is_digest_prefix};
