//! `pfs refs`: which images need the chunks of an image, and how many need each.

use std::collections::{BTreeMap, HashMap};

use super::{ExplainError, entries::readable};
use crate::{
    graph::{Root, RootOrigin, load_image},
    image::{self, WantedPlatform},
    name::{Digest, Selector, Tag},
    store::Store,
};

/// The chunks of an image, and who shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refs {
    /// The image.
    pub manifest: Digest,
    /// The chunks that its rootfs names, sorted by digest.
    pub chunks: Vec<ChunkRefs>,
    /// The other images that need some of them, those that share most bytes first.
    pub sharers: Vec<Sharer>,
    /// Entries of the index that cannot be read: what they share is not known.
    pub unreadable: u64,
}

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

/// Another image that needs some of the chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharer {
    /// What the entry of the index points at.
    pub digest: Digest,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// How many chunks it shares.
    pub chunks: u64,
    /// Their stored size in bytes.
    pub bytes: u64,
}

/// Counts images, not occurrences. Images that cannot be read are not counted.
pub fn refs(store: &Store, selector: &Selector, platform: &WantedPlatform) -> Result<Refs, ExplainError> {
    let index = store.index()?;
    let found = image::find(store, index.document(), selector, platform)?;
    let image = load_image(store, &found.digest, found.kind)?;
    let (graph, broken) = readable(store, &Root::of_index(index.document()));
    let counts = graph.image_counts();
    let inventory = store.inventory()?;
    let chunk = |digest: Digest| ChunkRefs {
        digest,
        size: inventory.get(&digest).map(|stat| stat.size),
        images: graph.find(&digest).map_or(0, |blob| counts.of(blob)),
    };
    let chunks: Vec<ChunkRefs> = image.rootfs.chunks().into_iter().map(Digest::from).map(chunk).collect();
    let numbered = chunks.iter().filter_map(|chunk| Some((graph.find(&chunk.digest)?, chunk.size.unwrap_or(0))));
    let size_of: HashMap<u32, u64> = numbered.collect();
    let mut by_node: BTreeMap<usize, Vec<Tag>> = BTreeMap::new();
    for (root, node) in graph.roots() {
        if let RootOrigin::Entry(place, tag) = &root.origin
            && !found.places.contains(place)
        {
            by_node.entry(*node).or_default().extend(tag.clone());
        }
    }
    let mut sharers: Vec<Sharer> = Vec::new();
    for (node, tags) in by_node {
        let shared: Vec<u64> = graph.closure(&[node]).0.iter().filter_map(|blob| size_of.get(blob)).copied().collect();
        if !shared.is_empty() {
            let digest = graph.digest(graph.nodes()[node].blob);
            sharers.push(Sharer { digest, tags, chunks: shared.len() as u64, bytes: shared.iter().sum() });
        }
    }
    sharers.sort_by(|one, other| (other.bytes, &one.digest).cmp(&(one.bytes, &other.digest)));
    let unreadable = broken.iter().flatten().count() as u64;
    Ok(Refs { manifest: found.digest, chunks, sharers, unreadable })
}
