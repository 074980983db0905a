//! What speaks against a deletion: the table of `docs/deletion.md`, decided in one place.

use std::path::PathBuf;

use super::{DeleteOptions, Target};
use crate::{
    format::{DescriptorDigest, IndexDocument},
    graph::ImageGraph,
    name::{Digest, Selector, Tag},
    store::{LeaseKind, LeaseState},
};

/// Where an image is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedAt {
    /// The mountpoint.
    pub mountpoint: PathBuf,
    /// The process that serves it.
    pub pid: u32,
    /// Since when.
    pub since: jiff::Timestamp,
}

/// Why an image cannot be deleted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// Its last name, and it is mounted. Soft: forcing untags it and leaves the content until the mount ends.
    #[error("cannot delete {selector}: it is mounted at {}", places(at))]
    Mounted {
        /// As it was asked for.
        selector: Selector,
        /// Where.
        at: Vec<MountedAt>,
    },
    /// Asked for by digest, and mounted. Hard: cannot be forced.
    #[error(
        "cannot delete {selector}: it is mounted at {}, and a digest that is mounted cannot be deleted",
        places(at)
    )]
    DigestMounted {
        /// As it was asked for.
        selector: Selector,
        /// Where.
        at: Vec<MountedAt>,
    },
    /// Asked for by digest, and it has several tags. Soft.
    #[error("cannot delete {selector}: it has several tags: {}", list(tags))]
    SeveralTags {
        /// As it was asked for.
        selector: Selector,
        /// The tags.
        tags: Vec<Tag>,
    },
}

fn places(at: &[MountedAt]) -> String {
    let second = |time: &jiff::Timestamp| jiff::Timestamp::from_second(time.as_second()).unwrap_or(*time);
    let place = |at: &MountedAt| format!("{} (pid {}, since {})", at.mountpoint.display(), at.pid, second(&at.since));
    at.iter().map(place).collect::<Vec<_>>().join(", ")
}

fn list(tags: &[Tag]) -> String {
    tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", ")
}

/// The rows of the table. `edited` is the index as it would be afterwards.
pub(super) fn check(
    targets: &[Target],
    edited: &IndexDocument,
    graph: Option<&ImageGraph>,
    leases: &[LeaseState],
    options: &DeleteOptions,
) -> Result<(), Conflict> {
    for target in targets {
        let by_digest = matches!(target.selector, Selector::Digest(_));
        let loses_last_name = !has_entry(edited, &target.digest);
        let at = if loses_last_name { mounts_of(&target.digest, graph, leases) } else { Vec::new() };
        let selector = target.selector.clone();
        match (by_digest, at.is_empty(), options.force) {
            (true, false, _) => return Err(Conflict::DigestMounted { selector, at }),
            (false, false, false) => return Err(Conflict::Mounted { selector, at }),
            (true, true, false) if target.tags.len() > 1 => {
                return Err(Conflict::SeveralTags { selector, tags: target.tags.clone() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_entry(index: &IndexDocument, digest: &Digest) -> bool {
    index.entries().iter().any(|entry| entry.descriptor.digest == DescriptorDigest::Sha256(*digest))
}

/// The live mounts of a manifest, or of any manifest under an index.
fn mounts_of(digest: &Digest, graph: Option<&ImageGraph>, leases: &[LeaseState]) -> Vec<MountedAt> {
    let family = graph.map_or_else(|| vec![*digest], |graph| graph.family(digest));
    let live = leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref());
    let mounts = live.filter(|record| record.kind == LeaseKind::Mount);
    mounts
        .filter(|record| record.manifest.is_some_and(|manifest| family.contains(&manifest)))
        .map(|record| MountedAt {
            mountpoint: record.mountpoint.clone().unwrap_or_default(),
            pid: record.pid,
            since: record.since,
        })
        .collect()
}
