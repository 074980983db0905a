//! `pfs ls`: every entry of the index, with its size and what deleting it would give back.
//!
//! One pass over the store: what refers to what is walked once, and every row looks its facts up.

use std::collections::{HashMap, HashSet};

use super::{
    ExplainError,
    entries::{RowState, readable, state},
};
use crate::{
    format::{DescriptorDigest, IndexEntry},
    graph::{ImageGraph, Root, dangling},
    name::{Digest, Tag},
    store::{Inventory, LeaseKind, Store, TagTimes},
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
    /// How many pins are on it, or on an image under it.
    pub pins: u64,
    /// Whether it has no name, is in no index that has one, and is neither mounted nor pinned.
    pub dangling: bool,
    /// When its tag was set, in seconds since 1970: by the index log, else when its manifest was made.
    pub created_seconds: Option<i64>,
}

/// Lists the entries. Entries that cannot be read are listed as broken, and the sums are those of the others. Pins whose
/// time was over at `now_seconds` do not count.
pub fn listing(store: &Store, now_seconds: i64) -> Result<Listing, ExplainError> {
    let index = store.index()?;
    let inventory = store.inventory()?;
    let holds = Holds::of(store, now_seconds)?;
    let roots = Root::of_index(index.document());
    let times = store.tag_times(index.document())?;
    let (graph, mut broken) = readable(store, &roots);
    let counts = graph.root_counts();
    let dangling = dangling(index.document(), &graph, &holds.digests());
    let mut nodes = graph.roots().iter().map(|(_, node)| *node);
    let rows = index.document().entries().iter().zip(&mut broken).enumerate().map(|(place, (entry, broken))| {
        let state = match broken.take() {
            Some(error) => RowState::Broken(error),
            None => {
                let node = nodes.next().expect("every root that is not broken has a node");
                state(&graph, node, &counts, &inventory)
            }
        };
        row(entry, state, dangling.binary_search(&place).is_ok(), &graph, &inventory, &holds, &times)
    });
    let rows = rows.collect();
    let stored_bytes = inventory.blobs.iter().map(|(_, stat)| stat.size).sum();
    Ok(Listing { rows, stored_bytes })
}

/// What is mounted and pinned, by manifest.
struct Holds {
    mounts: HashMap<Digest, u64>,
    pins: HashMap<Digest, u64>,
}

impl Holds {
    fn of(store: &Store, now_seconds: i64) -> Result<Self, ExplainError> {
        let leases = store.leases()?;
        let live = leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref());
        let mounts = live.filter(|record| record.kind == LeaseKind::Mount).filter_map(|record| record.manifest);
        let pins = store.pins()?.into_iter().filter(|pin| !pin.is_over(now_seconds)).map(|pin| pin.digest);
        Ok(Self { mounts: counted(mounts), pins: counted(pins) })
    }

    fn digests(&self) -> HashSet<Digest> {
        self.mounts.keys().chain(self.pins.keys()).copied().collect()
    }
}

fn counted(digests: impl Iterator<Item = Digest>) -> HashMap<Digest, u64> {
    let mut counts = HashMap::new();
    digests.for_each(|digest| *counts.entry(digest).or_default() += 1);
    counts
}

fn row(
    entry: &IndexEntry,
    state: RowState,
    dangling: bool,
    graph: &ImageGraph,
    inventory: &Inventory,
    holds: &Holds,
    times: &TagTimes,
) -> ListingRow {
    let (digest, own) = match &entry.descriptor.digest {
        DescriptorDigest::Sha256(digest) => (digest.to_oci(), Some(*digest)),
        DescriptorDigest::Other(text) => (text.clone(), None),
    };
    let family = own.map_or_else(Vec::new, |own| graph.family(&own));
    let sum = |counts: &HashMap<Digest, u64>| family.iter().filter_map(|digest| counts.get(digest)).sum();
    ListingRow {
        tag: entry.tag.clone(),
        digest,
        state,
        mounts: sum(&holds.mounts),
        pins: sum(&holds.pins),
        dangling,
        created_seconds: times
            .of(entry)
            .or_else(|| own.and_then(|own| inventory.get(&own)).map(|stat| stat.made_seconds)),
    }
}
