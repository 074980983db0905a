//! Pruning: which tags are to go, by policy, and why each of the others stays. Decides only; `delete` carries it out.
//!
//! Whatever is mounted, pinned, named twice or not nameable stays. If anything in the store cannot be read, nothing is
//! decided at all, since what a deletion would free is then unknown.

mod gain;
mod policy;

pub use policy::{GoReason, KeepReason, PrunePolicy, PruneVerdict};

use std::collections::{HashMap, HashSet};

use crate::{
    format::{DescriptorDigest, IndexDocument},
    gc::{Facts, GcError, Roots},
    graph::{NodeKind, RootOrigin, dangling},
    name::{Digest, Selector, Tag},
    observe::Observer,
    store::{IndexSnapshot, LeaseKind, Store, StoreError},
};
use gain::Gains;
use policy::Entry;

/// What is to become of one entry of the index.
#[derive(Debug, Clone)]
pub struct PruneRow {
    /// Its tag, if it has one.
    pub tag: Option<Tag>,
    /// What it points at, in OCI form.
    pub digest: String,
    /// When its manifest came into the store, in seconds since 1970, as the filesystem has it.
    pub created_seconds: Option<i64>,
    /// What is to become of it.
    pub verdict: PruneVerdict,
    /// For one that goes: the bytes that fall free when it follows those before it in the order of going.
    pub frees: u64,
}

/// A verdict for every entry of an index.
#[derive(Debug)]
pub struct PrunePlan {
    /// In the order of the index.
    pub rows: Vec<PruneRow>,
    /// The bytes that fall free when all go that are to go.
    pub freed_bytes: u64,
    /// Whether that is as much as was asked for.
    pub is_enough: bool,
}

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// What is needed is not fully known, or the store changes too fast.
    #[error(transparent)]
    Gc(#[from] GcError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PrunePlan {
    /// What is to be deleted, in the words of a deletion, each with the digest that was decided on.
    pub fn decisions(&self) -> Vec<(Selector, Digest)> {
        let going = self.rows.iter().filter(|row| matches!(row.verdict, PruneVerdict::Go(_)));
        let mut seen = HashSet::new();
        let decision = |row: &PruneRow| {
            let digest: Digest = row.digest.strip_prefix("sha256:")?.parse().ok()?;
            let selector = match &row.tag {
                Some(tag) => Selector::Tag(tag.clone()),
                None => Selector::Digest(digest.to_string()),
            };
            seen.insert((row.tag.clone(), digest)).then_some((selector, digest))
        };
        going.filter_map(decision).collect()
    }
}

/// Decides what is to go at the time `now_seconds`, in seconds since 1970. Writes nothing.
pub fn plan(
    store: &Store,
    policy: &PrunePolicy,
    now_seconds: i64,
    watch: &dyn Observer,
) -> Result<PrunePlan, PruneError> {
    let (facts, index) = current_facts(store, now_seconds, watch)?;
    let entries = entries(store, &facts, index.document(), now_seconds)?;
    let mut verdicts = policy.decide(&entries, now_seconds);
    let mut gains = Gains::new(&facts, &entries);
    let mut frees = gains.remove_going(&verdicts);
    if let Some(wanted) = policy.free_bytes {
        gains.choose(&entries, &mut verdicts, &mut frees, wanted);
    }
    let rows = entries.into_iter().zip(verdicts).zip(frees).map(|((entry, verdict), frees)| PruneRow {
        tag: entry.tag,
        digest: entry.digest,
        created_seconds: entry.created_seconds,
        verdict,
        frees,
    });
    let rows = rows.collect();
    let is_enough = policy.free_bytes.is_none_or(|wanted| gains.freed >= wanted);
    Ok(PrunePlan { rows, freed_bytes: gains.freed, is_enough })
}

/// Facts, and the index that they were gathered from.
fn current_facts(store: &Store, now_seconds: i64, watch: &dyn Observer) -> Result<(Facts, IndexSnapshot), PruneError> {
    for _ in 0..TRIES {
        let facts = Facts::gather(store, Roots::Current, now_seconds, watch)?;
        let index = store.index()?;
        if facts.marks.are_current(store)? {
            return Ok((facts, index));
        }
    }
    Err(GcError::Restless.into())
}

/// How often facts are gathered while the store changes.
const TRIES: u32 = 8;

/// The facts of each entry, in the order of the index.
fn entries(store: &Store, facts: &Facts, index: &IndexDocument, now_seconds: i64) -> Result<Vec<Entry>, StoreError> {
    let holds = Holds::of(store, facts, now_seconds)?;
    let dangling = dangling(index, &facts.marks.graph, &holds.all());
    let nodes = facts.marks.graph.roots().iter();
    let nodes = nodes.filter(|(root, _)| matches!(root.origin, RootOrigin::Entry(..))).map(|(_, node)| *node);
    let digests_of = digests_of_tags(index);
    let times = store.tag_times(index)?;
    let entry = |(place, node): (usize, usize)| {
        let entry = &index.entries()[place];
        let (digest, own) = match &entry.descriptor.digest {
            DescriptorDigest::Sha256(digest) => (digest.to_oci(), Some(*digest)),
            DescriptorDigest::Other(text) => (text.clone(), None),
        };
        let family = facts.marks.graph.documents(&[node]);
        Entry {
            tag: entry.tag.clone(),
            digest,
            node,
            created_seconds: times
                .of(entry)
                .or_else(|| own.and_then(|own| facts.inventory.get(&own)).map(|stat| stat.made_seconds)),
            set_nanoseconds: times.nanoseconds_of(entry),
            is_dangling: dangling.binary_search(&place).is_ok(),
            is_mounted: !family.is_disjoint(&holds.mounted) || holds.is_served(facts, &family),
            is_pinned: !family.is_disjoint(&holds.pinned),
            is_ambiguous: entry.tag.as_ref().is_some_and(|tag| digests_of[tag].len() > 1),
        }
    };
    Ok(nodes.enumerate().map(entry).collect())
}

fn digests_of_tags(index: &IndexDocument) -> HashMap<Tag, Vec<DescriptorDigest>> {
    let mut digests: HashMap<Tag, Vec<DescriptorDigest>> = HashMap::new();
    for entry in index.entries() {
        let Some(tag) = &entry.tag else { continue };
        let of_tag = digests.entry(tag.clone()).or_default();
        if !of_tag.contains(&entry.descriptor.digest) {
            of_tag.push(entry.descriptor.digest.clone());
        }
    }
    digests
}

/// What is mounted and pinned, by manifest; and the rootfs blobs that processes without a lease have mapped, as
/// puzzlefs's own mounts do.
struct Holds {
    mounted: HashSet<Digest>,
    pinned: HashSet<Digest>,
    served: HashSet<Digest>,
}

impl Holds {
    fn of(store: &Store, facts: &Facts, now_seconds: i64) -> Result<Self, StoreError> {
        let leases = store.leases()?;
        let live = leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref());
        let mounts = live.filter(|record| record.kind == LeaseKind::Mount);
        let pins = store.pins()?.into_iter().filter(|pin| !pin.is_over(now_seconds));
        let served = facts.marks.processes.processes.iter().flat_map(|process| process.blobs.iter().copied());
        Ok(Self {
            mounted: mounts.filter_map(|record| record.manifest).collect(),
            pinned: pins.map(|pin| pin.digest).collect(),
            served: served.collect(),
        })
    }

    fn all(&self) -> HashSet<Digest> {
        self.mounted.union(&self.pinned).copied().collect()
    }

    fn is_served(&self, facts: &Facts, family: &HashSet<Digest>) -> bool {
        let graph = &facts.marks.graph;
        let rootfs = |digest: &Digest| match graph.nodes()[graph.node_of(digest)?].kind {
            NodeKind::Rootfs => Some(*digest),
            NodeKind::Manifest(rootfs) => rootfs.map(|blob| graph.digest(blob)),
            _ => None,
        };
        family.iter().filter_map(rootfs).any(|rootfs| self.served.contains(&rootfs))
    }
}
