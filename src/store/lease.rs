//! `.pfs/leases/`: one file for each live mount and each running build.
//!
//! A lease is alive while somebody holds its flock. The owner takes the lock before the file has a name, so no lease is ever
//! seen unlocked while its owner lives; the kernel releases it however the owner ends. A lock means something only where it was
//! taken, though: behind a FUSE passthrough or on another host it is another lock. So a lease whose lock is free is dead only
//! where that is proven: it was taken through the same filesystem of this boot, or its process can be looked up and is gone, or
//! this machine has booted since. Everything else is foreign, which counts as live.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
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
    /// The pid namespace that the pid is of, by inode number.
    #[serde(default)]
    pub pid_namespace: Option<u64>,
    /// The machine, whatever it has booted: `/etc/machine-id`.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// The device of the filesystem that the lease was taken through. Set by [`Store::take_lease`].
    #[serde(default)]
    pub device: Option<u64>,
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
            pid_namespace: pid_namespace(),
            machine_id: machine_id(),
            device: None,
        }
    }

    /// Whether the process of that number here is the one that took the lease: in another pid namespace the number may be
    /// anybody's.
    pub fn is_process_here(&self) -> bool {
        let is_same_number = self.pid_namespace.is_none() || self.pid_namespace == pid_namespace();
        is_same_number && start_of(&self.pid.to_string()) == Some(self.pid_start)
    }

    /// Whether its owner is alive, if nobody holds its lock as seen through the filesystem `device`.
    fn life_without_lock(&self, device: u64) -> Life {
        let here = Self::of_this_process(self.kind, self.since);
        let is_known = |id: &str| !id.is_empty();
        if is_known(&self.boot_id) && self.boot_id == here.boot_id {
            return self.life_in_this_boot(device, &here);
        }
        let is_this_machine = match (&self.machine_id, &here.machine_id) {
            (Some(theirs), Some(ours)) => theirs == ours,
            // Written before machines were noted, or by a machine without a name of that kind.
            _ => is_known(&self.host) && self.host == here.host,
        };
        if is_this_machine && is_known(&self.boot_id) && is_known(&here.boot_id) {
            return Life::Dead;
        }
        Life::Foreign(format!("it was taken on {}, and nobody here can tell whether it is over", self.host))
    }

    fn life_in_this_boot(&self, device: u64, here: &Self) -> Life {
        if self.device.is_none_or(|taken| taken == device) {
            return Life::Dead;
        }
        let can_look = self.pid_namespace.is_some() && self.pid_namespace == here.pid_namespace && here.pid_start > 0;
        match can_look {
            true if self.is_process_here() => Life::Live,
            true => Life::Dead,
            false => {
                Life::Foreign("it was taken through another filesystem, by a process that cannot be seen here".into())
            }
        }
    }
}

/// What is known of the owner of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    /// It is alive.
    Live,
    /// Nobody here can tell, and why.
    Foreign(String),
    /// It is proven to be gone.
    Dead,
}

fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|meta| meta.ino())
}

fn machine_id() -> Option<String> {
    let texts =
        ["/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.map(|text| text.trim().to_string()).find(|text| text.len() == 32)
}

/// When a process started: field 22 of its `stat`. The name before it may hold anything, also parentheses. One that has ended
/// and only waits for its parent has none.
fn start_of(pid: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// A lease that this process holds. Dropping it lets it die; [`Lease::release`] also removes its file.
#[derive(Debug)]
pub struct Lease {
    id: String,
    file: Mutex<File>,
    device: Option<u64>,
}

/// A lease as somebody else sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// Its name in `.pfs/leases/`.
    pub id: String,
    /// Its text; `None` for a dead lease that cannot be read.
    pub record: Option<LeaseRecord>,
    /// The blobs that a build has claimed.
    pub claims: Vec<Digest>,
    /// Whether it counts as live: its flock is held, its process is alive, or nobody here can tell.
    pub live: bool,
    /// Why nobody here can tell.
    pub foreign: Option<String>,
}

/// What became of a lease that was to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// It is gone.
    Gone,
    /// It stays: a process here holds it.
    Alive,
    /// There is none of that name.
    Unknown,
}

const LEASES: &str = "leases";

impl Store {
    /// Takes a lease. The guard keeps a collector from looking before the lease is there.
    pub fn take_lease(&self, _held: &SharedGuard<'_>, record: &LeaseRecord) -> Result<Lease, StoreError> {
        let state = self.state()?;
        let leases = state.make_sub(LEASES)?;
        let id = lease_id(record);
        let record = &LeaseRecord { device: Some(leases.device()?), ..record.clone() };
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
        match lease_state(&leases, id.into()) {
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
            Ok(state) if state.live => return Ok(false),
            Ok(_) => {}
        }
        leases.unlink(id).at("remove", leases.join(id))?;
        Ok(true)
    }

    /// Removes the file of a lease of which nobody here can tell whether its owner is alive, because somebody knows that it is
    /// not; also of a dead one.
    pub fn forget_lease(&self, id: &str) -> Result<Forgotten, StoreError> {
        let Some(leases) = self.existing_state_sub(LEASES)? else { return Ok(Forgotten::Unknown) };
        // Not a path, but a name that is there.
        if !leases.names()?.iter().any(|name| name == id.as_bytes()) {
            return Ok(Forgotten::Unknown);
        }
        let is_alive = match lease_state(&leases, id.into()) {
            Ok(state) => state.live && state.foreign.is_none(),
            Err(StoreError::Lease { .. }) => leases.open_file(id)?.try_lock_shared().is_err(),
            Err(error) => return Err(error),
        };
        if is_alive {
            return Ok(Forgotten::Alive);
        }
        leases.unlink(id).at("remove", leases.join(id))?;
        Ok(Forgotten::Gone)
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
    let locked = match file.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(source)) => return Err(StoreError::Io { action: "lock", path, source }),
    };
    let mut text = String::new();
    file.read_to_string(&mut text).at("read", &path)?;
    let device = file.metadata().at("read the attributes of", &path)?.dev();
    drop(file);
    match parse(&text) {
        Ok((record, claims)) => {
            let life = if locked { Life::Live } else { record.life_without_lock(device) };
            let live = life != Life::Dead;
            let foreign = if let Life::Foreign(why) = life { Some(why) } else { None };
            Ok(LeaseState { id, record: Some(record), claims, live, foreign })
        }
        // One of a later version, perhaps, on another host: what it protects is unknown.
        Err(problem) if locked || is_of_a_living_owner(&text, device) => Err(StoreError::Lease { path, problem }),
        Err(_) => Ok(LeaseState { id, record: None, claims: Vec::new(), live: false, foreign: None }),
    }
}

/// Whether a text that is no lease that we know tells of an owner who is not proven to be gone.
fn is_of_a_living_owner(text: &str, device: u64) -> bool {
    let line = text.lines().next().unwrap_or_default();
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(line) else { return false };
    let known = LeaseRecord::of_this_process(LeaseKind::Mount, jiff::Timestamp::UNIX_EPOCH);
    let Ok(serde_json::Value::Object(mut record)) = serde_json::to_value(&known) else { return false };
    // Only what tells of the owner is taken over.
    for name in ["pid", "pid_start", "boot_id", "host", "pid_namespace", "machine_id", "device"] {
        record.insert(name.into(), fields.get(name).cloned().unwrap_or_default());
    }
    let record = serde_json::from_value::<LeaseRecord>(record.into());
    record.is_ok_and(|record| record.life_without_lock(device) != Life::Dead)
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
        Ok(Self { id: id.into(), file: Mutex::new(file), device: record.device })
    }

    /// Its name in `.pfs/leases/`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces its text, in one write: others read it without a lock, and must not find it empty. For leases without claims.
    pub fn update(&self, _held: &SharedGuard<'_>, record: &LeaseRecord) -> Result<(), StoreError> {
        self.with_file(|mut file| {
            let mut text = line(&LeaseRecord { device: self.device, ..record.clone() });
            // What is shorter than the text before is filled up, since cutting the file off would be a second step.
            let missing =
                usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?.saturating_sub(text.len());
            text.insert_str(text.len() - 1, &" ".repeat(missing));
            file.write_all_at(text.as_bytes(), 0)?;
            file.seek(SeekFrom::End(0)).map(|_| ())
        })
        .at("write the lease", &self.id)
    }

    /// Whether its file is still what its name stands for, in a store that was opened just now.
    pub fn is_in_place(&self, store: &Store) -> bool {
        let named = store.existing_state_sub(LEASES).ok().flatten().and_then(|leases| leases.open_file(&self.id).ok());
        let of = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let held = self.with_file(of).ok();
        held.is_some() && named.and_then(|file| of(&file).ok()) == held
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LeaseRecord {
        LeaseRecord { device: Some(7), ..LeaseRecord::of_this_process(LeaseKind::Mount, jiff::Timestamp::UNIX_EPOCH) }
    }

    #[test]
    fn a_free_lock_is_death_only_in_its_own_domain() {
        assert_eq!(record().life_without_lock(7), Life::Dead);
        assert_eq!(record().life_without_lock(8), Life::Live, "this process lives");
        let gone = LeaseRecord { pid_start: 1, ..record() };
        assert_eq!(gone.life_without_lock(8), Life::Dead);
        let unseen = LeaseRecord { pid_namespace: Some(1), ..record() };
        assert!(matches!(unseen.life_without_lock(8), Life::Foreign(_)));
    }

    #[test]
    fn a_reboot_leaves_no_ghosts_and_another_machine_does() {
        let id = |digit: &str| Some(digit.repeat(32));
        let before = LeaseRecord { boot_id: "another".into(), ..record() };
        let same_name = LeaseRecord { machine_id: None, ..before.clone() };
        assert_eq!((before.life_without_lock(7), same_name.life_without_lock(7)), (Life::Dead, Life::Dead));
        let elsewhere = LeaseRecord { machine_id: id("a"), host: "elsewhere".into(), ..before };
        assert!(matches!(elsewhere.life_without_lock(7), Life::Foreign(_)));
    }

    #[test]
    fn leases_of_earlier_versions_are_read() {
        let mut json = serde_json::to_value(record()).unwrap();
        let fields = json.as_object_mut().unwrap();
        ["pid_namespace", "machine_id", "device"].iter().for_each(|field| drop(fields.remove(*field)));
        let (old, _) = parse(&format!("{json}\n")).unwrap();
        assert_eq!((old.device, old.life_without_lock(7)), (None, Life::Dead));
    }
}
