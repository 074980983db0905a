//! Checking a store: everything that is wrong with it, with the way from the tag to it. Reports many, and changes nothing but in [`repair`].

mod data;
mod finding;
mod image;
mod repair;

pub use finding::{Finding, Severity};
pub use repair::{Repair, RepairAction, repair};

use std::collections::HashSet;

use self::data::Problem;
use crate::{
    graph::{Afresh, ImageError, Root, pick, walk},
    name::{Digest, Selector},
    observe::{Event, Observer},
    store::{Inventory, Store, StoreError},
};

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// One image; the whole store if `None`.
    pub selector: Option<Selector>,
    /// Hash every blob too.
    pub data: bool,
}

/// What a check has found.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// What is worth knowing, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// How many entries of the index were looked at.
    pub entries: u64,
    /// How many blobs were hashed, and their bytes.
    pub hashed: (u64, u64),
}

impl CheckReport {
    /// Whether nothing is damaged; notices are no damage.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Damage)
    }
}

/// Why a check could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The image to check is not there.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The index or the blob directory cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks a store or one image of it.
pub fn check(store: &Store, options: &CheckOptions, watch: &dyn Observer) -> Result<CheckReport, CheckError> {
    let index = store.index()?;
    let inventory = store.inventory()?;
    let mut roots = Root::of_index(index.document());
    if let Some(selector) = &options.selector {
        let picked = pick(index.document(), selector)?;
        roots = picked.places.into_iter().map(|place| roots[place].clone()).collect();
    }
    let mut report = CheckReport { entries: roots.len() as u64, ..CheckReport::default() };
    let mut needed = HashSet::new();
    watch.event(Event::Phase("checking images"));
    for root in roots {
        let name = root.origin.to_string();
        match walk(&Afresh(store), vec![root]) {
            Ok(graph) => {
                image::check_nodes(store, &graph, &inventory, &name, &mut report.findings);
                needed.extend(graph.digests());
            }
            Err(error) => report.findings.push(Finding::unreadable(&error)),
        }
    }
    if options.selector.is_none() {
        check_strangers(&inventory, &mut report.findings);
    }
    if options.data {
        check_data(store, options, &inventory, &needed, watch, &mut report);
    }
    Ok(report)
}

fn check_strangers(inventory: &Inventory, findings: &mut Vec<Finding>) {
    for stranger in &inventory.strangers {
        let subject = stranger.path.display().to_string();
        let problem = format!("{} among the blobs, which is none of ours and is left alone", stranger.what);
        findings.push(Finding { severity: Severity::Notice, subject, problem });
    }
}

/// Hashes the blobs: of one image those that it needs, else all. A wrong one that nothing needs is garbage, no damage.
fn check_data(
    store: &Store,
    options: &CheckOptions,
    inventory: &Inventory,
    needed: &HashSet<Digest>,
    watch: &dyn Observer,
    report: &mut CheckReport,
) {
    watch.event(Event::Phase("hashing blobs"));
    let wanted = |digest: &Digest| options.selector.is_none() || needed.contains(digest);
    let present = inventory.blobs.iter().filter(|(digest, _)| wanted(digest));
    let mut blobs: Vec<_> = present.map(|(digest, stat)| (stat.identity, *digest, stat.size)).collect();
    // What lies aside is read from there, so its bytes count as well.
    let aside = needed.iter().filter(|digest| inventory.get(digest).is_none());
    blobs.extend(aside.map(|digest| ((0, 0), *digest, 0)));
    // Files that were made one after the other mostly lie one after the other.
    blobs.sort_unstable();
    let blobs: Vec<_> = blobs.into_iter().map(|(_, digest, size)| (digest, size)).collect();
    let hashed = data::hash_all(store, &blobs, watch);
    report.hashed = (hashed.blobs, hashed.bytes);
    for (digest, problem) in hashed.problems {
        let (severity, problem) = match problem {
            Problem::Content(actual) if needed.contains(&digest) => {
                (Severity::Damage, format!("its bytes have the digest {actual}"))
            }
            Problem::Content(actual) => (Severity::Notice, format!("its bytes have the digest {actual}")),
            Problem::Unreadable(problem) => (Severity::Damage, problem),
        };
        report.findings.push(Finding { severity, subject: format!("blob {digest}"), problem });
    }
}
