//! `.pfs/leases/`: one file for each live mount and each running build.
//!
//! A lease is alive exactly while somebody holds its flock. The owner takes the lock before the file has a name, so no
//! lease is ever seen unlocked while its owner lives; the kernel releases it however the owner ends. The text inside is
//! for people and for the collector; a pid in it is never taken for proof of life.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use super::{SharedGuard, Store, StoreError, disk::Dir, error::At};
use crate::name::Digest;

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// A mounted image: everything that its manifest needs is kept.
    Mount,
    /// A running build: the blobs that it has claimed are kept.
    Build,
}

/// The text of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// What it is for.
    pub kind: LeaseKind,
    /// The image that is mounted: its manifest, or its rootfs where the image has no manifest.
    pub manifest: Option<Digest>,
    /// Its rootfs blob.
    pub rootfs: Option<Digest>,
    /// The tag that was mounted or is being built, at that time.
    pub tag: Option<String>,
    /// Where it is mounted.
    pub mountpoint: Option<PathBuf>,
    /// The process that holds the lease.
    pub pid: u32,
    /// When that process started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub pid_start: u64,
    /// The boot that pid and start belong to: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The host's name.
    pub host: String,
    /// When the lease was taken.
    pub since: jiff::Timestamp,
}

impl LeaseRecord {
    /// A record of this process, for what it is about to do.
    pub fn of_this_process(kind: LeaseKind, since: jiff::Timestamp) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            kind,
            manifest: None,
            rootfs: None,
            tag: None,
            mountpoint: None,
            pid: std::process::id(),
            pid_start: start_of("self").unwrap_or(0),
            boot_id: boot_id.trim().into(),
            host: host.trim().into(),
            since,
        }
    }

    /// Whether the process of that number here is the one that took the lease: in another pid namespace the number may be
    /// anybody's.
    pub fn is_process_here(&self) -> bool {
        start_of(&self.pid.to_string()) == Some(self.pid_start)
    }
}

/// When a process started: field 22 of its `stat`. The name before it may hold anything, also parentheses.
fn start_of(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

/// A lease that this process holds. Dropping it lets it die; [`Lease::release`] also removes its file.
#[derive(Debug)]
pub struct Lease {
    id: String,
    file: Mutex<File>,
}

/// A lease as somebody else sees it.
#[derive(Debug, Clone)]
pub struct LeaseState {
    /// Its name in `.pfs/leases/`.
    pub id: String,
    /// Its text; `None` for a dead lease that cannot be read.
    pub record: Option<LeaseRecord>,
    /// The blobs that a build has claimed.
    pub claims: Vec<Digest>,
    /// Whether its flock is held.
    pub live: bool,
}

const LEASES: &str = "leases";

impl Store {
    /// Takes a lease. The guard keeps a collector from looking before the lease is there.
    pub fn take_lease(&self, _held: &SharedGuard<'_>, record: &LeaseRecord) -> Result<Lease, StoreError> {
        let state = self.state()?;
        let leases = state.make_sub(LEASES)?;
        let id = lease_id(record);
        let lease = match leases.unnamed_file()? {
            Some(file) => {
                let lease = Lease::locked(&leases, &id, file, record)?;
                lease.with_file(|file| leases.link_unnamed(file, &id)).at("create", leases.join(&id))?;
                lease
            }
            None => {
                let temp = self.temp()?;
                let lease = Lease::locked(&temp, &id, temp.create_file(&id)?, record)?;
                temp.rename_new(&id, &leases, &id).at("create", leases.join(&id))?;
                lease
            }
        };
        Ok(lease)
    }

    /// All leases, dead ones too. Fails if a live one cannot be read, because what it protects is then unknown.
    pub fn leases(&self) -> Result<Vec<LeaseState>, StoreError> {
        let Some(leases) = self.existing_state_sub(LEASES)? else { return Ok(Vec::new()) };
        let mut states = Vec::new();
        for name in leases.names()? {
            let Ok(id) = String::from_utf8(name) else { continue };
            match lease_state(&leases, id) {
                Ok(state) => states.push(state),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(states)
    }

    /// Waits until the lease `id` is dead or gone; at most `tries` times 10 ms. `true` if it is.
    pub fn await_lease_end(&self, id: &str, tries: u32) -> Result<bool, StoreError> {
        for _ in 0..tries {
            match self.leases()?.iter().find(|lease| lease.id == id) {
                Some(lease) if lease.live => std::thread::sleep(std::time::Duration::from_millis(10)),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Removes the file of a lease that is dead. A live one stays, `false` says so.
    pub fn remove_dead_lease(&self, id: &str) -> Result<bool, StoreError> {
        let Some(leases) = self.existing_state_sub(LEASES)? else { return Ok(false) };
        let file = match leases.open_file(id) {
            Err(error) if error.is_not_found() => return Ok(false),
            opened => opened?,
        };
        if file.try_lock_shared().is_err() {
            return Ok(false);
        }
        leases.unlink(id).at("remove", leases.join(id))?;
        Ok(true)
    }

    /// Removes the file of a lease of ours, which is dead when this returns.
    pub fn release(&self, lease: Lease) -> Result<(), StoreError> {
        let leases = self.state()?.make_sub(LEASES)?;
        match leases.unlink(&lease.id) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                Err(cause).at("remove", leases.join(&lease.id))
            }
            _ => Ok(()),
        }
    }
}

/// Unique among live leases: a process takes no two leases in one nanosecond.
fn lease_id(record: &LeaseRecord) -> String {
    let boot = record.boot_id.get(..8).unwrap_or("noboot");
    format!("{boot}-{}-{:x}", record.pid, record.since.as_nanosecond())
}

fn lease_state(leases: &Dir, id: String) -> Result<LeaseState, StoreError> {
    let path = leases.join(&id);
    let mut file = leases.open_file(&id)?;
    let live = match file.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(source)) => return Err(StoreError::Io { action: "lock", path, source }),
    };
    let mut text = String::new();
    file.read_to_string(&mut text).at("read", &path)?;
    match parse(&text) {
        Ok((record, claims)) => Ok(LeaseState { id, record: Some(record), claims, live }),
        Err(problem) if live => Err(StoreError::Lease { path, problem }),
        Err(_) => Ok(LeaseState { id, record: None, claims: Vec::new(), live }),
    }
}

/// One line of JSON, then a line for each claim. A claim's line that is still being written has no end yet, and its
/// owner has not gone on to rely on it.
fn parse(text: &str) -> Result<(LeaseRecord, Vec<Digest>), String> {
    let (first, rest) = text.split_once('\n').ok_or("its first line has no end")?;
    let record = serde_json::from_str(first).map_err(|cause| cause.to_string())?;
    let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let claims = whole.lines().map(|line| line.parse::<Digest>().map_err(|cause| cause.to_string()));
    Ok((record, claims.collect::<Result<_, _>>()?))
}

impl Lease {
    fn locked(dir: &Dir, id: &str, mut file: File, record: &LeaseRecord) -> Result<Self, StoreError> {
        let path = dir.join(id);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(StoreError::Io { action: "lock", path, source }),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path }),
        }
        file.write_all(line(record).as_bytes()).at("write", path)?;
        Ok(Self { id: id.into(), file: Mutex::new(file) })
    }

    /// Its name in `.pfs/leases/`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces its text, in one write: others read it without a lock, and must not find it empty. For leases without claims.
    pub fn update(&self, _held: &SharedGuard<'_>, record: &LeaseRecord) -> Result<(), StoreError> {
        self.with_file(|mut file| {
            let mut text = line(record);
            // What is shorter than the text before is filled up, since cutting the file off would be a second step.
            let missing =
                usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?.saturating_sub(text.len());
            text.insert_str(text.len() - 1, &" ".repeat(missing));
            file.write_all_at(text.as_bytes(), 0)?;
            file.seek(SeekFrom::End(0)).map(|_| ())
        })
        .at("write the lease", &self.id)
    }

    /// Adds claims: blobs that are about to be relied on.
    pub(super) fn claim(&self, _held: &SharedGuard<'_>, digests: &[Digest]) -> Result<(), StoreError> {
        let lines: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        self.with_file(|mut file| file.write_all(lines.as_bytes())).at("write the lease", &self.id)
    }

    fn with_file<T>(&self, act: impl FnOnce(&File) -> std::io::Result<T>) -> std::io::Result<T> {
        act(&self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn line(record: &LeaseRecord) -> String {
    let json = serde_json::to_string(record).expect("a lease record has only texts and numbers");
    json + "\n"
}
