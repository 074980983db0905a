//! Answers about a store and its images. No act, and no grounds for one: these readers go on where something is broken.

mod du;
mod entries;
mod inspect;
mod listing;
mod refs;
mod why;

pub use du::{Class, ClassUse, DiskUse, EntryUse, disk_use};
pub use entries::RowState;
pub use inspect::{Inspection, LayerSummary, inspect};
pub use listing::{Listing, ListingRow, listing};
pub use refs::{ChunkRefs, Refs, Sharer, refs};
pub use why::{Files, Keeper, Why, why};

use crate::{
    graph::{ImageError, WalkError},
    name::Digest,
    store::StoreError,
    tree::TreeError,
};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The image cannot be found or read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What refers to what is not fully known.
    #[error("not every image can be read: {0}")]
    Walk(#[from] WalkError),
    /// The image is no tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// No blob has a digest that begins so.
    #[error("there is no blob sha256:{0} in this store, and nothing needs one")]
    NoBlob(String),
    /// Several blobs have a digest that begins so.
    #[error("sha256:{prefix} stands for {} different blobs: {}", found.len(), list(found))]
    SeveralBlobs {
        /// The first digits.
        prefix: String,
        /// The blobs.
        found: Vec<Digest>,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::to_oci).collect::<Vec<_>>().join(", ")
}
