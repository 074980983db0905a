//! What a collection did, and what a plan would do, in numbers.

use std::collections::BTreeMap;

use super::{Evidence, GcPlan, Holder, KeepReason, Verdict};
use crate::name::Digest;

/// What a collection has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// The blobs that were unlinked.
    pub freed: Vec<Digest>,
    /// The blobs that went back from quarantine because something needs them.
    pub restored: Vec<Digest>,
    /// The bytes that the filesystem gave back.
    pub freed_bytes: u64,
    /// The blobs that were moved to quarantine and wait there.
    pub held: Vec<Digest>,
    /// Their bytes.
    pub held_bytes: u64,
    /// How long they wait, in seconds.
    pub held_seconds: u64,
    /// What was found when the evidence of other writers was taken again, if anything is held.
    pub evidence: Vec<Evidence>,
    /// How many blobs that an image needs were put back from the pins of its mounts.
    pub healed: u64,
    /// How many leases of ended processes were removed.
    pub dead_leases: u64,
}

/// What a plan says, added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcSummary {
    /// Blobs that go for good.
    pub go: u64,
    /// Blobs that go to quarantine and wait there.
    pub condemned: u64,
    /// Blobs that return from quarantine.
    pub restore: u64,
    /// Blobs that an entry of the index needs, and their bytes.
    pub needed: (u64, u64),
    /// Blobs that are too young to tell, and their bytes.
    pub young: (u64, u64),
    /// The age of the youngest of them, in seconds.
    pub youngest_seconds: Option<u64>,
    /// Blobs that would go if it were certain that no mount that cannot be seen needs them, and their bytes.
    pub hidden: (u64, u64),
    /// Blobs that would go but for the limit, and their bytes.
    pub over_limit: (u64, u64),
    /// Blobs that wait in quarantine, and their bytes.
    pub waiting: (u64, u64),
    /// When the first of them may go, in seconds from now.
    pub waiting_seconds: Option<u64>,
    /// What only mounts, builds, pins and processes hold.
    pub held: Vec<HeldBytes>,
}

/// What something keeps although no entry of the index does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBytes {
    /// Who.
    pub holder: Holder,
    /// How many blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl GcPlan {
    /// The plan in numbers.
    pub fn summary(&self) -> GcSummary {
        let mut summary = GcSummary::default();
        let mut held: BTreeMap<&Holder, (u64, u64)> = BTreeMap::new();
        for blob in self.blobs() {
            let size = blob.stat.size;
            match &blob.verdict {
                Verdict::Condemn if self.hold_seconds() > 0 => summary.condemned += 1,
                Verdict::Condemn | Verdict::Purge => summary.go += 1,
                Verdict::Restore => summary.restore += 1,
                Verdict::Keep(KeepReason::Needed) => count(&mut summary.needed, size),
                Verdict::Keep(KeepReason::Hidden) => count(&mut summary.hidden, size),
                Verdict::Keep(KeepReason::LimitReached) => count(&mut summary.over_limit, size),
                Verdict::Young(age) => {
                    count(&mut summary.young, size);
                    summary.youngest_seconds = Some(summary.youngest_seconds.map_or(*age, |least| least.min(*age)));
                }
                Verdict::Wait(left) => {
                    count(&mut summary.waiting, size);
                    summary.waiting_seconds = Some(summary.waiting_seconds.map_or(*left, |least| least.min(*left)));
                }
                Verdict::Held(holders) => {
                    holders.iter().for_each(|holder| count(held.entry(holder).or_default(), size));
                }
            }
        }
        let rows = held.into_iter();
        summary.held =
            rows.map(|(holder, (blobs, bytes))| HeldBytes { holder: holder.clone(), blobs, bytes }).collect();
        summary
    }
}

fn count(pair: &mut (u64, u64), size: u64) {
    pair.0 += 1;
    pair.1 += size;
}
