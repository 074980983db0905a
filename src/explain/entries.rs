//! The entries of an index with what they need, as far as they can be read.

use crate::{
    graph::{ImageGraph, NodeKind, RefCounts, Root, RootOrigin, WalkError, walk},
    store::{Inventory, Store},
};

/// What is known of an entry.
#[derive(Debug)]
pub enum RowState {
    /// Everything that it needs is known.
    Known {
        /// What it is: "image", "index", ...
        kind: &'static str,
        /// The bytes of all blobs that it needs and that are there.
        size: u64,
        /// The bytes that no other entry needs: what deleting it gives back.
        unique: u64,
        /// How many blobs that it needs are not there.
        missing: u64,
    },
    /// It cannot be read.
    Broken(WalkError),
}

/// The graph of all roots that can be read, and for each root why it cannot.
pub(super) fn readable(store: &Store, roots: &[Root]) -> (ImageGraph, Vec<Option<WalkError>>) {
    if let Ok(graph) = walk(store, roots.to_vec()) {
        return (graph, roots.iter().map(|_| None).collect());
    }
    let broken: Vec<_> = roots.iter().map(|root| walk(store, vec![root.clone()]).err()).collect();
    let sound = roots.iter().zip(&broken).filter(|(_, broken)| broken.is_none()).map(|(root, _)| root.clone());
    match walk(store, sound.collect()) {
        Ok(graph) => (graph, broken),
        // Each alone can be read and all together cannot: something changes right now.
        Err(error) => (ImageGraph::default(), all_broken(&error, broken)),
    }
}

fn all_broken(error: &WalkError, broken: Vec<Option<WalkError>>) -> Vec<Option<WalkError>> {
    let changing = || WalkError::changing(error.to_string());
    broken.into_iter().map(|known| Some(known.unwrap_or_else(changing))).collect()
}

/// The nodes of the roots that are entries of the index, in the order of the roots.
pub(super) fn entry_nodes(graph: &ImageGraph) -> Vec<usize> {
    let roots = graph.roots().iter();
    roots.filter(|(root, _)| matches!(root.origin, RootOrigin::Entry(..))).map(|(_, node)| *node).collect()
}

/// Adds up what one entry needs. `counts` are those of all entries.
pub(super) fn state(graph: &ImageGraph, node: usize, counts: &RefCounts, inventory: &Inventory) -> RowState {
    let (mut size, mut unique, mut missing) = (0, 0, 0);
    for blob in graph.closure(&[node]).0 {
        match inventory.get(&graph.digest(blob)) {
            Some(stat) => {
                size += stat.size;
                unique += if counts.of(blob) == 1 { stat.size } else { 0 };
            }
            None => missing += 1,
        }
    }
    let kind = match graph.nodes()[node].kind {
        NodeKind::Index => "index",
        NodeKind::Manifest(Some(_)) | NodeKind::Rootfs => "puzzlefs",
        NodeKind::Manifest(None) => "image",
        NodeKind::Opaque | NodeKind::Absent => "unknown",
    };
    RowState::Known { kind, size, unique, missing }
}
