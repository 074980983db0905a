//! Dangling entries: what a new build or a deleted index has left behind, and nobody can ask for by name.

use std::collections::HashSet;

use super::{ImageGraph, NodeKind, RootOrigin};
use crate::{
    format::{DescriptorDigest, IndexDocument},
    name::Digest,
};

impl ImageGraph {
    /// The documents under these nodes, themselves included.
    pub fn documents(&self, nodes: &[usize]) -> HashSet<Digest> {
        let mut documents = HashSet::new();
        let mut open = nodes.to_vec();
        while let Some(node) = open.pop() {
            if documents.insert(self.digest(self.nodes()[node].blob)) {
                // What a blob of unknown meaning mentions is kept by it, and has no name by that.
                let follows = self.nodes()[node].kind != NodeKind::Opaque;
                open.extend(self.nodes()[node].children.iter().filter(|_| follows));
            }
        }
        documents
    }

    /// Whether a document is about one of these, directly or through others that it is about.
    fn is_about(&self, node: usize, documents: &HashSet<Digest>) -> bool {
        let (mut open, mut seen) = (self.nodes()[node].subjects.clone(), HashSet::new());
        while let Some(node) = open.pop() {
            if documents.contains(&self.digest(self.nodes()[node].blob)) {
                return true;
            }
            if seen.insert(node) {
                open.extend_from_slice(&self.nodes()[node].subjects);
            }
        }
        false
    }
}

/// The places of the dangling entries: without a name, in no index that has one, and neither mounted nor pinned, which
/// is what `held` lists. A signature or attestation of an image that has a name is not dangling.
///
/// `graph` must have the entries of `index` among its roots. If one with a name is not there, because it cannot be
/// read, what is under it is unknown and nothing is called dangling.
pub fn dangling(index: &IndexDocument, graph: &ImageGraph, held: &HashSet<Digest>) -> Vec<usize> {
    let nodes = nodes_by_place(index, graph);
    let named: Option<Vec<usize>> =
        index.entries().iter().zip(&nodes).filter(|(entry, _)| entry.named).map(|(_, node)| *node).collect();
    let Some(named) = named else { return Vec::new() };
    let documents = graph.documents(&named);
    let is_dangling = |place: usize| {
        let node = nodes[place].filter(|_| !index.entries()[place].named)?;
        let own = graph.documents(&[node]);
        let about_named = graph.is_about(node, &documents);
        let inside = matches!(&index.entries()[place].descriptor.digest,
            DescriptorDigest::Sha256(digest) if documents.contains(digest));
        (!about_named && !inside && own.is_disjoint(held)).then_some(place)
    };
    (0..nodes.len()).filter_map(is_dangling).collect()
}

/// The node of each entry, `None` for those that the graph does not have.
fn nodes_by_place(index: &IndexDocument, graph: &ImageGraph) -> Vec<Option<usize>> {
    let mut nodes = vec![None; index.entries().len()];
    for (root, node) in graph.roots() {
        if let RootOrigin::Entry(place, _) = root.origin
            && place < nodes.len()
        {
            nodes[place] = Some(*node);
        }
    }
    nodes
}
