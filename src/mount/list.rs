//! Which images are mounted, and what is left of mounts whose process was killed.

use std::path::PathBuf;

use super::{
    MountError,
    detach::{image_of, store_of},
    mountinfo::{self, FSTYPE, MountLine, is_dead},
};
use crate::{
    name::Digest,
    store::{LeaseKind, LeaseState, Store},
};

/// What is known of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountState {
    /// The store, if it can be told.
    pub store: Option<PathBuf>,
    /// Where it is, or was.
    pub mountpoint: Option<PathBuf>,
    /// `STORE:TAG` from the mount table, where it stands there.
    pub source: Option<String>,
    /// The tag at the time of mounting.
    pub tag: Option<String>,
    /// The manifest.
    pub manifest: Option<Digest>,
    /// The process that serves it.
    pub pid: Option<u32>,
    /// Since when.
    pub since: Option<jiff::Timestamp>,
    /// How many of its blobs have a second name of ours, so that they outlive other tools' collections. 0 while they are being
    /// made, and where the filesystem or its rules forbid links.
    pub pins: u64,
    /// The name of its lease.
    pub lease: Option<String>,
    /// Whether it is alive.
    pub life: Life,
}

/// Whether a mount is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Its lease is held.
    Live,
    /// Nobody here can tell whether its lease is held: it counts as live.
    Foreign,
    /// Its process is dead, and it still stands in the mount table.
    DeadMount,
    /// Its process is dead, and only the lease file is left.
    DeadLease,
    /// It answers, but this user cannot see its lease.
    NoLease,
}

/// The mounts of this store and of every store that the mount table names. Mounts in other mount namespaces are known
/// by their leases.
pub fn mounts(store: Option<&Store>) -> Result<Vec<MountState>, MountError> {
    let lines: Vec<MountLine> = mountinfo::read()?.into_iter().filter(|line| line.fstype == FSTYPE).collect();
    let mut states = Vec::new();
    for store in stores(store, &lines)? {
        let leases = store.leases()?;
        let of_mounts = leases.iter().filter(|lease| lease.record.as_ref().is_none_or(|r| r.kind == LeaseKind::Mount));
        states.extend(of_mounts.map(|lease| from_lease(&store, lease, &lines)));
    }
    let known = |line: &MountLine| states.iter().any(|state| state.mountpoint.as_ref() == Some(&line.mountpoint));
    let unknown: Vec<_> = lines.iter().filter(|line| !known(line)).map(from_line).collect();
    states.extend(unknown);
    states.sort_by(|one, other| (&one.mountpoint, one.since).cmp(&(&other.mountpoint, other.since)));
    Ok(states)
}

fn stores(given: Option<&Store>, lines: &[MountLine]) -> Result<Vec<Store>, MountError> {
    let mut stores: Vec<Store> = lines.iter().filter_map(store_of).collect();
    if let Some(given) = given {
        stores.push(Store::open(given.path())?);
    }
    stores.sort_by(|one, other| one.path().cmp(other.path()));
    stores.dedup_by(|one, other| one.path() == other.path());
    Ok(stores)
}

fn from_lease(store: &Store, lease: &LeaseState, lines: &[MountLine]) -> MountState {
    let record = lease.record.as_ref();
    let mountpoint = record.and_then(|record| record.mountpoint.clone());
    let line = lines.iter().find(|line| Some(&line.mountpoint) == mountpoint.as_ref());
    let life = match (lease.live, line) {
        (true, _) if lease.foreign.is_some() => Life::Foreign,
        (true, _) => Life::Live,
        (false, Some(line)) if is_dead(&line.mountpoint) => Life::DeadMount,
        (false, _) => Life::DeadLease,
    };
    MountState {
        store: Some(store.path().into()),
        source: line.map(|line| line.source.clone()),
        tag: record.and_then(|record| record.tag.clone()),
        manifest: record.and_then(|record| record.manifest),
        pid: record.map(|record| record.pid),
        since: record.map(|record| record.since),
        // A number for people: what cannot be listed shows as none.
        pins: record.and_then(|record| store.linked_pins(&record.manifest?).ok()).unwrap_or(0),
        lease: Some(lease.id.clone()),
        mountpoint,
        life,
    }
}

fn from_line(line: &MountLine) -> MountState {
    let image = image_of(line);
    MountState {
        store: image.as_ref().map(|image| image.store.clone()),
        mountpoint: Some(line.mountpoint.clone()),
        source: Some(line.source.clone()),
        tag: image.map(|image| image.selector.to_string()),
        manifest: None,
        pid: None,
        since: None,
        pins: 0,
        lease: None,
        life: if is_dead(&line.mountpoint) { Life::DeadMount } else { Life::NoLease },
    }
}
