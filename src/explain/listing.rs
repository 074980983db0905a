//! `pfs ls`: every entry of the index, with its size and what deleting it would give back.

use super::{
    ExplainError,
    entries::{RowState, readable, state},
};
use crate::{
    format::{DescriptorDigest, IndexEntry},
    graph::{ImageGraph, Root},
    name::{Digest, Tag},
    store::{Inventory, LeaseKind, LeaseState, Store},
};

/// The entries of a store's index.
#[derive(Debug)]
pub struct Listing {
    /// One for each entry, in the order of the index.
    pub rows: Vec<ListingRow>,
    /// The bytes of all blobs in the store, needed or not.
    pub stored_bytes: u64,
}

/// One entry.
#[derive(Debug)]
pub struct ListingRow {
    /// Its name; `None` for an entry without one.
    pub tag: Option<Tag>,
    /// What it points at, in OCI form.
    pub digest: String,
    /// What is known of it.
    pub state: RowState,
    /// How many live mounts stand on it, or on an image under it.
    pub mounts: u64,
    /// When its manifest came into the store, in seconds since 1970, as the file system has it.
    pub created_seconds: Option<i64>,
}

/// Lists the entries. Entries that cannot be read are listed as broken, and the sums are those of the others.
pub fn listing(store: &Store) -> Result<Listing, ExplainError> {
    let index = store.index()?;
    let inventory = store.inventory()?;
    let leases = store.leases()?;
    let roots = Root::of_index(index.document());
    let (graph, mut broken) = readable(store, &roots);
    let counts = graph.root_counts();
    let mut nodes = graph.roots().iter().map(|(_, node)| *node);
    let rows = index.document().entries().iter().zip(&mut broken).map(|(entry, broken)| {
        let state = match broken.take() {
            Some(error) => RowState::Broken(error),
            None => {
                let node = nodes.next().expect("every root that is not broken has a node");
                state(&graph, node, &counts, &inventory)
            }
        };
        row(entry, state, &graph, &inventory, &leases)
    });
    let rows = rows.collect();
    let stored_bytes = inventory.blobs.iter().map(|(_, stat)| stat.size).sum();
    Ok(Listing { rows, stored_bytes })
}

fn row(
    entry: &IndexEntry,
    state: RowState,
    graph: &ImageGraph,
    inventory: &Inventory,
    leases: &[LeaseState],
) -> ListingRow {
    let (digest, own) = match &entry.descriptor.digest {
        DescriptorDigest::Sha256(digest) => (digest.to_oci(), Some(*digest)),
        DescriptorDigest::Other(text) => (text.clone(), None),
    };
    ListingRow {
        tag: entry.tag.clone(),
        digest,
        state,
        mounts: own.map_or(0, |own| mounts_on(&own, graph, leases)),
        created_seconds: own.and_then(|own| inventory.get(&own)).map(|stat| stat.newest_seconds),
    }
}

fn mounts_on(digest: &Digest, graph: &ImageGraph, leases: &[LeaseState]) -> u64 {
    let family = graph.family(digest);
    let live = leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref());
    let mounts = live.filter(|record| record.kind == LeaseKind::Mount).filter_map(|record| record.manifest);
    mounts.filter(|manifest| manifest == digest || family.contains(manifest)).count() as u64
}
