//! `pfs refs`: how many images need each chunk of an image.

use super::ExplainError;
use crate::{
    graph::{Root, load_image, pick, walk},
    name::{Digest, Selector},
    store::Store,
};

/// A chunk of an image, and who else needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRefs {
    /// The chunk.
    pub digest: Digest,
    /// Its stored size in bytes; `None` if it is missing.
    pub size: Option<u64>,
    /// How many distinct images need it, this one included.
    pub images: u32,
}

/// The chunks that the rootfs of an image names, sorted by digest. Counts images, not occurrences, and needs every
/// image of the store to be readable.
pub fn refs(store: &Store, selector: &Selector) -> Result<Vec<ChunkRefs>, ExplainError> {
    let index = store.index()?;
    let picked = pick(index.document(), selector)?;
    let image = load_image(store, &picked.digest, picked.kind)?;
    let graph = walk(store, Root::of_index(index.document()))?;
    let counts = graph.image_counts();
    let inventory = store.inventory()?;
    let chunks = image.rootfs.chunks().into_iter().map(Digest::from);
    Ok(chunks
        .map(|digest| ChunkRefs {
            digest,
            size: inventory.get(&digest).map(|stat| stat.size),
            images: graph.find(&digest).map_or(0, |blob| counts.of(blob)),
        })
        .collect())
}
