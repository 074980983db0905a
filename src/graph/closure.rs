//! Questions to a complete graph: what a root needs, and how many need a blob.

use hashbrown::HashSet;

use super::{ImageGraph, NodeKind};
use crate::name::Digest;

/// Everything that one node needs, as sorted blob numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure(pub Vec<u32>);

/// How many need each blob: distinct images or distinct roots, never occurrences.
#[derive(Debug)]
pub struct RefCounts(Vec<u32>);

impl RefCounts {
    /// The count of a blob number.
    pub fn of(&self, blob: u32) -> u32 {
        self.0[blob as usize]
    }
}

impl ImageGraph {
    /// Everything that these nodes need, directly or through others.
    pub fn closure(&self, nodes: &[usize]) -> Closure {
        match nodes {
            [node] if self.nodes()[*node].children.is_empty() => Closure(self.nodes()[*node].needs.clone()),
            // Visits only what the node needs: prune asks for every entry of an index.
            [node] => {
                let mut seen: HashSet<usize> = [*node].into_iter().collect();
                let (mut open, mut needs) = (vec![*node], Vec::new());
                while let Some(node) = open.pop() {
                    needs.extend_from_slice(&self.nodes()[node].needs);
                    open.extend(self.nodes()[node].children.iter().filter(|child| seen.insert(**child)));
                }
                needs.sort_unstable();
                needs.dedup();
                Closure(needs)
            }
            _ => {
                let reached = self.reach(nodes);
                Closure((0..).zip(reached).filter(|(_, reached)| *reached).map(|(blob, _)| blob).collect())
            }
        }
    }

    /// The same, as a mark for each blob number.
    pub fn reach(&self, nodes: &[usize]) -> Vec<bool> {
        let mut seen = vec![false; self.nodes().len()];
        let mut open = nodes.to_vec();
        let mut reached = vec![false; self.len()];
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut seen[node], true) {
                self.nodes()[node].needs.iter().for_each(|blob| reached[*blob as usize] = true);
                open.extend_from_slice(&self.nodes()[node].children);
            }
        }
        reached
    }

    /// A document and all documents under it.
    pub fn family(&self, digest: &Digest) -> Vec<Digest> {
        let mut family = vec![*digest];
        let mut open: Vec<usize> = self.node_of(digest).into_iter().collect();
        while let Some(node) = open.pop() {
            for child in &self.nodes()[node].children {
                let digest = self.digest(self.nodes()[*child].blob);
                if !family.contains(&digest) {
                    family.push(digest);
                    open.push(*child);
                }
            }
        }
        family
    }

    /// Per blob, how many images need it themselves. Indexes are no images, and an index needs its own blob only.
    pub fn image_counts(&self) -> RefCounts {
        let mut counts = vec![0; self.len()];
        for node in self.nodes() {
            if matches!(node.kind, NodeKind::Manifest(_) | NodeKind::Rootfs | NodeKind::Opaque) {
                node.needs.iter().for_each(|blob| counts[*blob as usize] += 1);
            }
        }
        RefCounts(counts)
    }

    /// Per blob, how many roots need it: what is needed by one root only is what removing that root gives back.
    pub fn root_counts(&self) -> RefCounts {
        let nodes: Vec<usize> = self.roots().iter().map(|(_, node)| *node).collect();
        self.counts_from(&nodes)
    }

    /// Per blob, how many of these nodes need it, directly or through others.
    pub fn counts_from(&self, nodes: &[usize]) -> RefCounts {
        let mut counts = vec![0; self.len()];
        for node in nodes {
            self.closure(&[*node]).0.iter().for_each(|blob| counts[*blob as usize] += 1);
        }
        RefCounts(counts)
    }
}
