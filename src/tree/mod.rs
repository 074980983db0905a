//! The filesystem of an image seen from inside: what a path is, and which bytes it has. No FUSE, and no kernel needed to
//! test it.
//!
//! [`View`] answers everything that the metadata can answer, [`ChunkReader`] turns file maps into verified bytes.

mod ahead;
mod cache;
mod chunks;
mod decode;
mod error;
mod layers;
mod loader;
mod numbers;
#[cfg(test)]
mod sample;
mod streams;
mod survey;
mod view;
mod walk;

pub use chunks::{AtHand, ChunkFault, ChunkReader, ChunkSource, DamageObserver, ReadError, Verify};
pub use error::TreeError;
pub use view::{FileKind, Node, ROOT_INO, View};
pub use walk::{Step, Walk};
