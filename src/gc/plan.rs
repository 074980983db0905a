//! The plan: a verdict for every blob, with its reason. A pure function of facts, policy and time.

use std::collections::{HashMap, HashSet};

use super::{Facts, Marks};
use crate::{
    graph::RootOrigin,
    name::Digest,
    store::{BlobStat, QuarantinedBlob, StaleStaging, Stranger},
};

/// What the collector is asked to do.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How old a blob must be that no index we know of ever named.
    pub min_age_seconds: u64,
    /// Stop condemning as soon as this many bytes are to be freed.
    pub max_freed: Option<u64>,
    /// Which blobs are looked at.
    pub scope: Scope,
}

/// Which blobs a plan is about.
#[derive(Debug, Clone)]
pub enum Scope {
    /// All of them.
    Store,
    /// Only these: what a deleted image needed.
    Only(HashSet<Digest>),
}

impl Default for Policy {
    /// An hour of patience, no limit, the whole store.
    fn default() -> Self {
        Self { min_age_seconds: 3600, max_freed: None, scope: Scope::Store }
    }
}

/// What is to become of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep(KeepReason),
    /// It stays for now: no index that we know of ever named it, and it is this many seconds old, so it may be part of
    /// somebody's upload.
    Young(u64),
    /// Only live mounts or builds need it; their leases.
    Held(Vec<String>),
    /// Nothing needs it: into quarantine.
    Condemn,
    /// In quarantine, and needed: back where it was.
    Restore,
    /// In quarantine, and not needed: for good.
    Purge,
}

/// Why a blob stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepReason {
    /// An entry of the index needs it.
    Needed,
    /// Enough was freed already.
    LimitReached,
}

/// A blob and its verdict.
#[derive(Debug, Clone)]
pub struct PlannedBlob {
    /// Its name.
    pub digest: Digest,
    /// What the filesystem says of it.
    pub stat: BlobStat,
    /// What is to become of it.
    pub verdict: Verdict,
    pub(super) quarantined: Option<QuarantinedBlob>,
}

/// Verdicts for a store as it was when the facts were gathered. Applying looks again.
#[derive(Debug)]
pub struct GcPlan {
    pub(super) blobs: Vec<PlannedBlob>,
    strangers: Vec<Stranger>,
    pub(super) stale: Vec<StaleStaging>,
    pub(super) marks: Marks,
    freed_bytes: u64,
}

/// Makes the plan. `now_seconds` is the time that ages are counted to, in seconds since 1970.
pub fn plan(facts: Facts, policy: Policy, now_seconds: i64) -> GcPlan {
    let held = held_only_by_leases(&facts.marks);
    let in_scope = |digest: &Digest| match &policy.scope {
        Scope::Store => true,
        Scope::Only(digests) => digests.contains(digest),
    };
    let mut tally = Tally::default();
    let mut blobs = Vec::new();
    for blob in facts.quarantined.iter().filter(|blob| in_scope(&blob.digest)) {
        let verdict = if facts.marks.needs(&blob.digest) { Verdict::Restore } else { Verdict::Purge };
        if verdict == Verdict::Purge {
            tally.add(&blob.stat);
        }
        let quarantined = Some(blob.clone());
        blobs.push(PlannedBlob { digest: blob.digest, stat: blob.stat, verdict, quarantined });
    }
    for (digest, stat) in facts.inventory.blobs.iter().filter(|(digest, _)| in_scope(digest)) {
        let mut verdict = judge(digest, stat, &facts, &held, &policy, now_seconds);
        if verdict == Verdict::Condemn && policy.max_freed.is_some_and(|limit| tally.bytes >= limit) {
            verdict = Verdict::Keep(KeepReason::LimitReached);
        }
        if verdict == Verdict::Condemn {
            tally.add(stat);
        }
        blobs.push(PlannedBlob { digest: *digest, stat: *stat, verdict, quarantined: None });
    }
    let stale = if matches!(policy.scope, Scope::Store) { facts.stale } else { Vec::new() };
    let freed_bytes = tally.bytes + stale.iter().map(|stale| stale.bytes).sum::<u64>();
    let (strangers, marks) = (facts.inventory.strangers, facts.marks);
    GcPlan { blobs, strangers, stale, marks, freed_bytes }
}

/// The verdict for a blob in the blob directory.
fn judge(
    digest: &Digest,
    stat: &BlobStat,
    facts: &Facts,
    held: &HashMap<Digest, Vec<String>>,
    policy: &Policy,
    now_seconds: i64,
) -> Verdict {
    let age = age_seconds(stat, now_seconds);
    match () {
        () if held.contains_key(digest) => Verdict::Held(held[digest].clone()),
        () if facts.marks.graph.needs(digest) => Verdict::Keep(KeepReason::Needed),
        () if facts.marks.claims.contains(digest) => Verdict::Held(vec!["a running build".into()]),
        () if facts.released.contains(digest) => Verdict::Condemn,
        () if age < policy.min_age_seconds => Verdict::Young(age),
        () => Verdict::Condemn,
    }
}

/// A time in the future is no age at all.
fn age_seconds(stat: &BlobStat, now_seconds: i64) -> u64 {
    u64::try_from(now_seconds.saturating_sub(stat.newest_seconds)).unwrap_or(0)
}

/// The blobs that no entry of the index needs, and some live lease does.
fn held_only_by_leases(marks: &Marks) -> HashMap<Digest, Vec<String>> {
    let graph = &marks.graph;
    let entries: Vec<usize> = graph
        .roots()
        .iter()
        .filter(|(root, _)| matches!(root.origin, RootOrigin::Entry(..)))
        .map(|(_, node)| *node)
        .collect();
    let mut needed = vec![false; graph.len()];
    graph.closure(&entries).0.iter().for_each(|blob| needed[*blob as usize] = true);
    let mut held: HashMap<Digest, Vec<String>> = HashMap::new();
    for (root, node) in graph.roots() {
        let RootOrigin::Lease(id) = &root.origin else { continue };
        for blob in graph.closure(&[*node]).0.iter().filter(|blob| !needed[**blob as usize]) {
            let leases = held.entry(graph.digest(*blob)).or_default();
            if !leases.contains(id) {
                leases.push(id.clone());
            }
        }
    }
    held
}

/// Adds up what the filesystem gives back. A file with several names is given back when all of them have gone.
#[derive(Default)]
struct Tally {
    bytes: u64,
    partly: HashMap<(u64, u64), u32>,
}

impl Tally {
    fn add(&mut self, stat: &BlobStat) {
        if stat.links <= 1 {
            self.bytes += stat.size;
            return;
        }
        let gone = self.partly.entry(stat.identity).or_default();
        *gone += 1;
        if *gone == stat.links {
            self.bytes += stat.size;
        }
    }
}

impl GcPlan {
    /// Every blob that the plan is about, with its verdict.
    pub fn blobs(&self) -> &[PlannedBlob] {
        &self.blobs
    }

    /// What lies in the blob directory and is no blob; it stays.
    pub fn strangers(&self) -> &[Stranger] {
        &self.strangers
    }

    /// What dead builds have left behind, which goes.
    pub fn stale(&self) -> &[StaleStaging] {
        &self.stale
    }

    /// The bytes that applying the plan gives back, if nothing changes until then.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    /// What was needed when the facts were gathered.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }
}
