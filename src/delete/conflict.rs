//! What speaks against a deletion: the table of `docs/deletion.md`, decided in one place.

use std::{collections::HashSet, path::PathBuf};

use super::{DeleteOptions, Target};
use crate::{
    format::{DescriptorDigest, IndexDocument},
    graph::ImageGraph,
    name::{Digest, Selector, Tag},
    store::{LeaseKind, LeaseState, Pin},
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
    /// Where nobody here can tell whether it is over: the name of its lease, and why.
    pub foreign: Option<(String, String)>,
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
    /// Its last name, and it is pinned. Soft: forcing takes the pin back too.
    #[error("cannot delete {selector}: it is pinned{}", terms(pin))]
    Pinned {
        /// As it was asked for.
        selector: Selector,
        /// The pin.
        pin: Box<Pin>,
    },
}

/// Since when, until when and why, in brackets.
fn terms(pin: &Pin) -> String {
    let until = pin.until.map(|until| format!(", until {until}")).unwrap_or_default();
    let reason = pin.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!(" (since {}{until}{reason})", whole_second(pin.since))
}

fn whole_second(time: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn places(at: &[MountedAt]) -> String {
    let place = |at: &MountedAt| {
        let doubt = at.foreign.as_ref().map(|(_, why)| format!("; {why}")).unwrap_or_default();
        format!("{} (pid {}, since {}{doubt})", at.mountpoint.display(), at.pid, whole_second(at.since))
    };
    at.iter().map(place).collect::<Vec<_>>().join(", ")
}

fn list(tags: &[Tag]) -> String {
    tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", ")
}

/// What speaks for an image: who holds it, and in which index it would be left.
pub(super) struct Holders<'a> {
    /// What the index as it would be afterwards points at.
    pub stays: &'a HashSet<Digest>,
    /// What refers to what, as far as it can be read.
    pub graph: Option<&'a ImageGraph>,
    /// All leases.
    pub leases: &'a [LeaseState],
    /// The pins whose time is not over.
    pub pins: &'a [Pin],
}

/// The rows of the table. Gives the pins that go along.
pub(super) fn check(
    targets: &[Target],
    holders: &Holders<'_>,
    options: &DeleteOptions,
) -> Result<Vec<Digest>, Conflict> {
    let mut unpinned = Vec::new();
    for target in targets {
        let by_digest = matches!(target.selector, Selector::Digest(_));
        let (at, pins) = holders.of(&target.digest);
        let selector = target.selector.clone();
        match (by_digest, at.is_empty(), pins.first(), options.force) {
            (true, false, ..) => return Err(Conflict::DigestMounted { selector, at }),
            (false, false, _, false) => return Err(Conflict::Mounted { selector, at }),
            (true, true, _, false) if target.tags.len() > 1 => {
                return Err(Conflict::SeveralTags { selector, tags: target.tags.clone() });
            }
            (_, _, Some(pin), false) => return Err(Conflict::Pinned { selector, pin: Box::new((*pin).clone()) }),
            _ => unpinned.extend(pins.iter().map(|pin| pin.digest)),
        }
    }
    Ok(unpinned)
}

impl Holders<'_> {
    /// The mounts and pins of an image, or of any image under an index; none while it keeps a name.
    fn of(&self, digest: &Digest) -> (Vec<MountedAt>, Vec<&Pin>) {
        if self.stays.contains(digest) {
            return (Vec::new(), Vec::new());
        }
        let family = self.graph.map_or_else(|| vec![*digest], |graph| graph.family(digest));
        let nameless = |pin: &&Pin| family.contains(&pin.digest) && !self.stays.contains(&pin.digest);
        (mounts_of(&family, self.leases), self.pins.iter().filter(nameless).collect())
    }
}

/// What the entries of an index point at, but for those at these places.
pub(super) fn digests_without(index: &IndexDocument, places: &[usize]) -> HashSet<Digest> {
    let mut stays = vec![true; index.entries().len()];
    places.iter().for_each(|place| stays[*place] = false);
    let entries = index.entries().iter().zip(stays).filter(|(_, stays)| *stays);
    let digests = entries.filter_map(|(entry, _)| match entry.descriptor.digest {
        DescriptorDigest::Sha256(digest) => Some(digest),
        DescriptorDigest::Other(_) => None,
    });
    digests.collect()
}

/// The live mounts of these manifests.
fn mounts_of(family: &[Digest], leases: &[LeaseState]) -> Vec<MountedAt> {
    let live = leases.iter().filter(|lease| lease.live);
    let mounts = live.filter_map(|lease| Some((lease, lease.record.as_ref()?)));
    mounts
        .filter(|(_, record)| record.kind == LeaseKind::Mount)
        .filter(|(_, record)| record.manifest.is_some_and(|manifest| family.contains(&manifest)))
        .map(|(lease, record)| MountedAt {
            mountpoint: record.mountpoint.clone().unwrap_or_default(),
            pid: record.pid,
            since: record.since,
            foreign: lease.foreign.clone().map(|why| (lease.id.clone(), why)),
        })
        .collect()
}
