//! The plan: a verdict for every blob, with its reason. A pure function of facts, policy and time.

use std::collections::{HashMap, HashSet};

use super::{
    Facts, Marks, Scope,
    hold::{self, Evidence, Hold},
};
use crate::{
    graph::RootOrigin,
    name::Digest,
    store::{BlobStat, QuarantinedBlob, StalePins, StaleStaging, Stranger},
};

/// What the collector is asked to do.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How old a blob must be that no index we know of ever named.
    pub min_age_seconds: u64,
    /// Stop condemning as soon as this many bytes are to be freed.
    pub max_freed: Option<u64>,
    /// How long a condemned blob waits in quarantine.
    pub hold: Hold,
}

impl Default for Policy {
    /// An hour of patience, no limit, held if there is evidence of another writer.
    fn default() -> Self {
        Self { min_age_seconds: 3600, max_freed: None, hold: Hold::Auto }
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
    /// No entry of the index needs it, but these do: mounts, builds, pins, processes.
    Held(Vec<Holder>),
    /// Nothing needs it: into quarantine.
    Condemn,
    /// In quarantine, and needed: back where it was.
    Restore,
    /// In quarantine, and not needed: it waits there for so many seconds more.
    Wait(u64),
    /// In quarantine, and not needed: for good.
    Purge,
}

/// Who needs a blob that no entry of the index needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A root that is no entry: a mount's lease, a pin, a process.
    Root(RootOrigin),
    /// A running build has claimed it.
    Build,
}

/// Why a blob stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepReason {
    /// An entry of the index needs it.
    Needed,
    /// Enough was freed already.
    LimitReached,
    /// Nothing that can be seen needs it, but a mount that cannot be seen may.
    Hidden,
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
    pub(super) quarantined: Option<Box<QuarantinedBlob>>,
    /// It must not be found younger than this when its turn comes. A blob that was published once may be: links come and
    /// go. One that was not is somebody's as soon as it is touched.
    pub(super) newest_max: i64,
}

/// Verdicts for a store as it was when the facts were gathered. Applying looks again.
#[derive(Debug)]
pub struct GcPlan {
    pub(super) blobs: Vec<PlannedBlob>,
    strangers: Vec<Stranger>,
    pub(super) stale: Vec<StaleStaging>,
    pub(super) stale_pins: StalePins,
    pub(super) marks: Marks,
    pub(super) hold: Hold,
    pub(super) waits: Waits,
    /// Another collector is waited for: the index has been edited already, and what it released is to go.
    pub(super) waits_for_collector: bool,
    pub(super) hold_seconds: u64,
    evidence: Vec<Evidence>,
    freed_bytes: u64,
    quarantine_bytes: u64,
}

/// Makes the plan. `now_seconds` is the time that ages are counted to, in seconds since 1970.
pub fn plan(facts: Facts, policy: Policy, now_seconds: i64) -> GcPlan {
    let held = held_by_others(&facts.marks);
    let mut young = 0;
    let mut present = Vec::new();
    for (digest, stat) in &facts.inventory.blobs {
        let verdict = judge(digest, stat, &facts, &held, &policy, now_seconds);
        young += u64::from(matches!(verdict, Verdict::Young(_)));
        if facts.scope.has(digest) {
            let newest_max = if facts.is_released(digest, stat) { i64::MAX } else { stat.newest_seconds };
            present.push(PlannedBlob { digest: *digest, stat: *stat, verdict, quarantined: None, newest_max });
        }
    }
    let is_hidden = policy.hold != Hold::Seconds(0) && facts.marks.processes.hidden.is_some();
    if is_hidden {
        let condemned = present.iter_mut().filter(|blob| blob.verdict == Verdict::Condemn);
        condemned.for_each(|blob| blob.verdict = Verdict::Keep(KeepReason::Hidden));
    }
    let stale_pins = if is_hidden { StalePins::default() } else { facts.stale_pins.clone() };
    let evidence = hold::evidence(&facts.traces, &facts.marks.processes, young, now_seconds);
    let hold_seconds = policy.hold.seconds(&evidence);
    let mut tally = Tally::new(&stale_pins, &facts.marks);
    let mut condemned = Tally::default();
    let waiting = match (waits(policy.hold, &evidence, is_hidden), &facts.scope) {
        // The quarantine that a deletion finds belongs to earlier runs, which may have promised a time.
        (Waits::Not, Scope::Only(_)) => Waits::AsSaid,
        (waits, _) => waits,
    };
    let mut blobs = plan_quarantined(&facts, waiting, now_seconds, &mut tally, &mut condemned);
    for blob in present.iter_mut().filter(|blob| blob.verdict == Verdict::Condemn) {
        let going = if hold_seconds == 0 { &mut tally } else { &mut condemned };
        match policy.max_freed {
            Some(limit) if going.bytes >= limit => blob.verdict = Verdict::Keep(KeepReason::LimitReached),
            _ => going.add(&blob.stat),
        }
    }
    blobs.append(&mut present);
    let stale = if matches!(facts.scope, Scope::Store) { facts.stale } else { Vec::new() };
    GcPlan {
        freed_bytes: tally.bytes + stale.iter().map(|stale| stale.bytes).sum::<u64>(),
        quarantine_bytes: condemned.bytes,
        blobs,
        strangers: facts.inventory.strangers,
        stale,
        stale_pins,
        marks: facts.marks,
        waits: waits(policy.hold, &evidence, is_hidden),
        hold: policy.hold,
        waits_for_collector: matches!(facts.scope, Scope::Only(_)),
        hold_seconds,
        evidence,
    }
}

/// What the blobs in quarantine wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: a person said that they go now.
    Not,
    /// The time that their epoch says.
    AsSaid,
    /// A day more: somebody else may be at work, and a collector that was killed may not have looked.
    ForOthers,
    /// That somebody collects who sees all mounts.
    ForSight,
    /// That, and the end of a process that may use the store.
    ForProcess,
}

/// What the blobs in quarantine wait for in the face of this evidence.
pub(super) fn waits(hold: Hold, evidence: &[Evidence], is_hidden: bool) -> Waits {
    match hold {
        Hold::Seconds(0) => Waits::Not,
        _ if is_hidden => Waits::ForSight,
        Hold::Auto if evidence.iter().any(|evidence| matches!(evidence, Evidence::Process { .. })) => Waits::ForProcess,
        Hold::Auto if !evidence.is_empty() => Waits::ForOthers,
        _ => Waits::AsSaid,
    }
}

/// What becomes of the blobs in quarantine. Adds what is freed to `freed`, and what goes on waiting to `waiting`.
fn plan_quarantined(
    facts: &Facts,
    waits: Waits,
    now_seconds: i64,
    freed: &mut Tally,
    waiting: &mut Tally,
) -> Vec<PlannedBlob> {
    let mut back = HashSet::new();
    let mut blobs = Vec::new();
    for blob in facts.quarantined.iter().filter(|blob| facts.scope.has(&blob.digest)) {
        let left = match waits {
            Waits::Not => 0,
            Waits::AsSaid => seconds_left(&blob.epoch, now_seconds),
            Waits::ForSight => seconds_left(&blob.epoch, now_seconds).max(1),
            Waits::ForOthers => seconds_left(&blob.epoch, now_seconds.saturating_sub_unsigned(hold::AUTO_SECONDS)),
            Waits::ForProcess => {
                seconds_left(&blob.epoch, now_seconds.saturating_sub_unsigned(hold::AUTO_SECONDS)).max(1)
            }
        };
        let verdict = match left {
            _ if facts.marks.needs(&blob.digest) => Verdict::Restore,
            0 => Verdict::Purge,
            left => Verdict::Wait(left),
        };
        match verdict {
            Verdict::Purge => freed.add(&blob.stat),
            Verdict::Wait(_) => waiting.add(&blob.stat),
            // Somebody has written it anew meanwhile, so one of the two goes; it may have been condemned again since.
            Verdict::Restore if facts.inventory.get(&blob.digest).is_some() || !back.insert(blob.digest) => {
                freed.add(&blob.stat);
            }
            _ => {}
        }
        let quarantined = Some(Box::new(blob.clone()));
        blobs.push(PlannedBlob { digest: blob.digest, stat: blob.stat, verdict, quarantined, newest_max: i64::MAX });
    }
    blobs
}

/// How long the blobs of an epoch still have to wait: it is named after the second from which on they may go. One whose name
/// says nothing waits until a person says that it may go.
fn seconds_left(epoch: &str, now_seconds: i64) -> u64 {
    let until = epoch.split('-').next().and_then(|seconds| seconds.parse::<i64>().ok());
    until.map_or(hold::AUTO_SECONDS, |until| u64::try_from(until.saturating_sub(now_seconds)).unwrap_or(0))
}

/// The verdict for a blob in the blob directory.
fn judge(
    digest: &Digest,
    stat: &BlobStat,
    facts: &Facts,
    held: &HashMap<Digest, Vec<Holder>>,
    policy: &Policy,
    now_seconds: i64,
) -> Verdict {
    let age = age_seconds(stat, now_seconds);
    match () {
        () if held.contains_key(digest) => Verdict::Held(held[digest].clone()),
        () if facts.marks.graph.needs(digest) => Verdict::Keep(KeepReason::Needed),
        () if facts.marks.claims.contains(digest) => Verdict::Held(vec![Holder::Build]),
        () if facts.is_released(digest, stat) => Verdict::Condemn,
        () if age < policy.min_age_seconds || stat.newest_seconds > now_seconds => Verdict::Young(age),
        () => Verdict::Condemn,
    }
}

/// A time in the future is no age at all.
fn age_seconds(stat: &BlobStat, now_seconds: i64) -> u64 {
    u64::try_from(now_seconds.saturating_sub(stat.newest_seconds)).unwrap_or(0)
}

/// The blobs that no entry of the index needs, and some other root does.
fn held_by_others(marks: &Marks) -> HashMap<Digest, Vec<Holder>> {
    let graph = &marks.graph;
    let needed = marks.needed_by_entries();
    let mut held: HashMap<Digest, Vec<Holder>> = HashMap::new();
    for (root, node) in graph.roots().iter().filter(|(root, _)| !root.origin.is_entry()) {
        let holder = Holder::Root(root.origin.clone());
        for blob in graph.closure(&[*node]).0.iter().filter(|blob| !needed[**blob as usize]) {
            let holders = held.entry(graph.digest(*blob)).or_default();
            if !holders.contains(&holder) {
                holders.push(holder.clone());
            }
        }
    }
    held
}

/// Adds up what the filesystem gives back. A file with several names is given back when all of them have gone.
#[derive(Default)]
struct Tally {
    bytes: u64,
    gone: HashMap<(u64, u64), u32>,
}

impl Tally {
    /// Begins with the stale pins, which go first; but for those that are the last names of what is needed.
    fn new(stale_pins: &StalePins, marks: &Marks) -> Self {
        let mut tally = Self::default();
        for (identity, pin) in &stale_pins.files {
            let is_freed = pin.stale_names == pin.links && !marks.needs(&pin.digest);
            tally.bytes += if is_freed { pin.size } else { 0 };
            tally.gone.insert(*identity, pin.stale_names);
        }
        tally
    }

    fn add(&mut self, stat: &BlobStat) {
        if stat.links <= 1 {
            self.bytes += stat.size;
            return;
        }
        let gone = self.gone.entry(stat.identity).or_default();
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

    /// The manifests whose pins are stale, which go.
    pub fn stale_pins(&self) -> &[Digest] {
        &self.stale_pins.manifests
    }

    /// What speaks for another writer.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// How long what is condemned waits in quarantine before it goes for good; 0 if it goes at once.
    pub fn hold_seconds(&self) -> u64 {
        self.hold_seconds
    }

    /// The bytes that are in quarantine, or will be, and stay there for now.
    pub fn quarantine_bytes(&self) -> u64 {
        self.quarantine_bytes
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
