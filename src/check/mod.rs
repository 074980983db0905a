//! Checking a store: everything that is wrong with it, with the way from the tag to it. Reports many, and changes nothing but in [`repair`].

mod data;
mod finding;
mod image;
mod repair;

pub use finding::{Finding, Severity};
pub use repair::{Repair, RepairAction, RepairOptions, repair};

use std::collections::HashSet;

use self::data::Problem;
use crate::{
    graph::{Afresh, ImageError, Root, pick, walk},
    name::{Digest, Selector},
    observe::{Event, Observer},
    store::{BlobStat, Inventory, Store, StoreError},
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
    /// The index cannot be read, and the newest text of it in the log needs what is gone.
    #[error(
        "index.json cannot be read, and of what its newest text in .pfs/index-log/ needs, {missing} blobs are gone"
    )]
    IndexLost {
        /// How many blobs, or images that cannot be read.
        missing: usize,
    },
    /// The index or the blob directory cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks a store or one image of it.
///
/// The blobs of a whole store are hashed while its images are checked; only those of one image are known later.
pub fn check(store: &Store, options: &CheckOptions, watch: &dyn Observer) -> Result<CheckReport, CheckError> {
    let index = store.index()?;
    let inventory = store.inventory()?;
    let mut roots = Root::of_index(index.document());
    if let Some(selector) = &options.selector {
        let picked = pick(index.document(), selector)?;
        roots = picked.places.into_iter().map(|place| roots[place].clone()).collect();
    }
    let entries = roots.len() as u64;
    let early = match options {
        CheckOptions { data: true, selector: None } => {
            in_order_of_inodes(inventory.blobs.iter().map(|(digest, stat)| (*digest, Some(stat))))
        }
        _ => Vec::new(),
    };
    watch.event(Event::Phase(if early.is_empty() { "checking images" } else { "checking images and hashing blobs" }));
    let (mut hashed, mut images) = data::hash_all(store, &early, watch, || check_images(store, &inventory, roots));
    if options.selector.is_none() {
        check_strangers(&inventory, &mut images.findings);
    }
    if options.data {
        let late = blobs_for_later(options, &inventory, &images.needed);
        watch.event(Event::Phase("hashing blobs"));
        hashed.append(data::hash_all(store, &late, watch, || ()).0);
    }
    let mut report = CheckReport { findings: images.findings, entries, hashed: (hashed.blobs, hashed.bytes) };
    report.findings.extend(hashed.problems.into_iter().map(|problem| finding(problem, &images.needed)));
    Ok(report)
}

/// What is wrong with the images under some entries, and which blobs they need.
#[derive(Default)]
struct Images {
    findings: Vec<Finding>,
    needed: HashSet<Digest>,
}

fn check_images(store: &Store, inventory: &Inventory, roots: Vec<Root>) -> Images {
    let mut images = Images::default();
    for root in roots {
        let name = root.origin.to_string();
        match walk(&Afresh(store), vec![root]) {
            Ok(graph) => {
                image::check_nodes(store, &graph, inventory, &name, &mut images.findings);
                images.needed.extend(graph.digests());
            }
            Err(error) => images.findings.push(Finding::unreadable(&error)),
        }
    }
    images
}

fn check_strangers(inventory: &Inventory, findings: &mut Vec<Finding>) {
    for stranger in &inventory.strangers {
        let subject = stranger.path.display().to_string();
        let problem = format!("{} among the blobs, which is none of ours and is left alone", stranger.what);
        findings.push(Finding { severity: Severity::Notice, subject, problem });
    }
}

/// Blobs with their sizes; what the inventory has not, first. Files that were made one after the other mostly lie one after the
/// other.
fn in_order_of_inodes<'a>(blobs: impl Iterator<Item = (Digest, Option<&'a BlobStat>)>) -> Vec<(Digest, u64)> {
    let place = |stat: Option<&BlobStat>| stat.map_or(((0, 0), 0), |stat| (stat.identity, stat.size));
    let mut blobs: Vec<_> = blobs.map(|(digest, stat)| (place(stat), digest)).collect();
    blobs.sort_unstable();
    blobs.into_iter().map(|((_, size), digest)| (digest, size)).collect()
}

/// What is hashed once the images are known: all that one image needs, and what is needed and lies aside, which is read from
/// there, so that its bytes count as well.
fn blobs_for_later(options: &CheckOptions, inventory: &Inventory, needed: &HashSet<Digest>) -> Vec<(Digest, u64)> {
    let is_whole = options.selector.is_none();
    let stats = needed.iter().map(|digest| (*digest, inventory.get(digest)));
    in_order_of_inodes(stats.filter(|(_, stat)| !is_whole || stat.is_none()))
}

/// A wrong blob that nothing needs is garbage, no damage.
fn finding((digest, problem): (Digest, Problem), needed: &HashSet<Digest>) -> Finding {
    let (severity, problem) = match problem {
        Problem::Content(actual) if needed.contains(&digest) => {
            (Severity::Damage, format!("its bytes have the digest {actual}"))
        }
        Problem::Content(actual) => (Severity::Notice, format!("its bytes have the digest {actual}")),
        Problem::Unreadable(problem) => (Severity::Damage, problem),
    };
    Finding { severity, subject: format!("blob {digest}"), problem }
}
