//! What is on disk, as values: the rootfs of an image, and the OCI texts around it. Bytes in, values out, no I/O.
//!
//! `docs/format.md` is the description; where bytes and that page disagree, the page has a bug.

mod chunks_named;
mod descriptor;
mod error;
mod file_map;
mod index;
mod keys;
mod layer;
mod layer_builder;
mod manifest;
mod mentions;
mod message;
mod message_writer;
mod path_name;
mod plain_message;
mod plain_rootfs;
mod rootfs;
mod rootfs_message;
pub(crate) mod wire;

pub use chunks_named::chunks_named_plainly;
pub use error::FormatError;
pub use file_map::{FileMap, Piece};
pub use index::{Descriptor, DescriptorDigest, IndexDocument, IndexEntry, Platform, REF_NAME};
pub use layer::{BlobRef, Device, DirEntry, Directory, Inode, Kind, Layer};
pub use layer_builder::{InodeDraft, KindDraft, LayerBuilder, XattrDraft};
pub use manifest::{Link, ManifestDocument, references_in_text};
pub use mentions::{MentionScanner, digests_at_words};
pub use message::message_length;
pub use message_writer::MessageSink;
pub use path_name::{NameError, check_name};
pub use rootfs::{Limits, ManifestVersion, Rootfs};
pub use rootfs_message::{LayerSource, RootfsMessage, TakeInode};
