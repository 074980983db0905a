//! Answers about a store and its images. No act, and no grounds for one: these readers go on where something is broken.

mod du;
mod entries;
mod inspect;
mod listing;
mod refs;

pub use du::{Class, ClassUse, DiskUse, EntryUse, disk_use};
pub use entries::RowState;
pub use inspect::{Inspection, LayerSummary, inspect};
pub use listing::{Listing, ListingRow, listing};
pub use refs::{ChunkRefs, refs};

use crate::{
    graph::{ImageError, WalkError},
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
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
