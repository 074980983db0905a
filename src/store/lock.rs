//! The locks of a store. A held flock is the permission, and the guard is the proof of it.
//!
//! `.pfs/lock` is never unlinked: two processes could otherwise hold locks on two files of the same name. Locks of ours
//! bind only pfs; other tools know nothing of them, which is why every act re-reads what it stands on.

use std::{
    fs::{File, TryLockError},
    io,
    marker::PhantomData,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::Mode;

use super::{Store, StoreError, disk::Dir};

/// The store lock is held shared: nothing is condemned or purged while this lives.
#[derive(Debug)]
pub struct SharedGuard<'s> {
    _held: Held<'s>,
}

/// The store lock is held exclusively: blobs may leave while this lives.
#[derive(Debug)]
pub struct ExclusiveGuard<'s> {
    _held: Held<'s>,
}

/// This process is the one collector of the store.
#[derive(Debug)]
pub struct CollectorGuard<'s> {
    _held: Held<'s>,
}

/// An open file description with a flock; closing it releases the lock.
#[derive(Debug)]
pub(super) struct Held<'s> {
    file: File,
    store: PhantomData<&'s Store>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Closing releases the lock as well, but not while a forked child still has the description open.
        let _ = self.file.unlock();
    }
}

/// How long a process waits for others to leave; they hold the lock for milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a delete waits for a collector that is at work.
const COLLECTOR_PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(2);
/// After so long the exclusive lock is released, so that mounts and builds need not wait. Each step under it is a handful of
/// system calls, but the disk decides how long an unlink takes, so the time is limited and not the number of steps.
const TURN: Duration = Duration::from_millis(15);
/// Longer than those who wait for the lock sleep between two looks at it.
const BETWEEN_TURNS: Duration = Duration::from_millis(3);

/// One of several turns of work under the exclusive lock. Between two of them the others get it: a lock that is taken again at
/// once is never free for those who wait.
#[derive(Debug)]
pub struct Turn(Instant);

impl Turn {
    /// Begins now.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Whether there is time for another step.
    pub fn goes_on(&self) -> bool {
        self.0.elapsed() < TURN
    }

    /// Releases the lock, and lets others have it if there is another turn to come.
    pub fn end(self, held: ExclusiveGuard<'_>, is_last: bool) {
        drop(held);
        if !is_last {
            thread::sleep(BETWEEN_TURNS);
        }
    }
}

impl Store {
    /// Takes the store lock shared, waiting up to 30 s. Fails with [`StoreError::NoState`] where `.pfs/` cannot be made.
    pub fn lock_shared(&self) -> Result<SharedGuard<'_>, StoreError> {
        self.lock("lock", PATIENCE, File::try_lock_shared).map(|_held| SharedGuard { _held })
    }

    /// Takes the store lock exclusively, waiting up to 30 s. Everybody waits for whoever has it, so nothing that is done under
    /// it waits for the disk; noting the layout, which does, comes before.
    pub fn lock_exclusive(&self) -> Result<ExclusiveGuard<'_>, StoreError> {
        if !self.is_noted() {
            drop(self.lock_shared()?);
        }
        self.lock("lock", PATIENCE, File::try_lock).map(|_held| ExclusiveGuard { _held })
    }

    /// Becomes the collector, or fails with [`StoreError::Locked`] at once if there is one.
    pub fn lock_collector(&self) -> Result<CollectorGuard<'_>, StoreError> {
        self.lock("gc.lock", Duration::ZERO, File::try_lock).map(|_held| CollectorGuard { _held })
    }

    /// Becomes the collector, waiting up to 10 minutes for another one to end.
    pub fn await_collector(&self) -> Result<CollectorGuard<'_>, StoreError> {
        self.lock("gc.lock", COLLECTOR_PATIENCE, File::try_lock).map(|_held| CollectorGuard { _held })
    }

    pub(super) fn lock(
        &self,
        name: &str,
        patience: Duration,
        try_lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Held<'_>, StoreError> {
        let state = self.state()?;
        let path: PathBuf = state.join(name);
        let file = open_lock(state, name)?;
        let deadline = Instant::now() + patience;
        loop {
            match try_lock(&file) {
                Ok(()) => {
                    let held = Held { file, store: PhantomData };
                    self.note_layout_once()?;
                    return Ok(held);
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Err(locked(&file, path)),
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { action: "lock", path, source }),
            }
        }
    }
}

/// Opens a lock file. A user who may not write the store is not to hold its lock, so the file is for those alone who may.
fn open_lock(state: &Dir, name: &str) -> Result<File, StoreError> {
    let file = state.open_or_create(name).map_err(|error| match error {
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            StoreError::NoState { path: state.path().into(), source }
        }
        other => other,
    })?;
    close_to_strangers(state, &file);
    Ok(file)
}

/// Gives a lock file to whom its directory belongs, and takes from all others what they may not do with the directory either. Where that
/// cannot be done the lock works as before.
fn close_to_strangers(state: &Dir, file: &File) {
    let (Ok(home), Ok(lock)) = (state.own_stat(), rustix::fs::fstat(file)) else { return };
    let me = rustix::process::geteuid();
    let writers = home.st_mode & 0o022;
    let wanted = 0o600 | writers | (writers << 1);
    let is_right = lock.st_mode & 0o777 == wanted && lock.st_uid == home.st_uid;
    if is_right || !(me.is_root() || me.as_raw() == lock.st_uid) {
        return;
    }
    // A file of somebody else's would be closed to the owner of the store, and so it is given away first.
    let owner = (lock.st_uid != home.st_uid).then(|| rustix::fs::Uid::from_raw(home.st_uid));
    let group = (lock.st_gid != home.st_gid).then(|| rustix::fs::Gid::from_raw(home.st_gid));
    if (owner.is_some() || group.is_some() && writers & 0o020 != 0) && rustix::fs::fchown(file, owner, group).is_err() {
        return;
    }
    let _ = rustix::fs::fchmod(file, Mode::from_raw_mode(wanted));
}

/// The error of waiting in vain, with the name of whoever holds the lock, if the kernel tells.
fn locked(file: &File, path: PathBuf) -> StoreError {
    match holders(file) {
        Some(holder) => StoreError::LockedBy { path, holder },
        None => StoreError::Locked { path },
    }
}

/// The processes that hold a lock on this file: `/proc/locks` names them by its device and inode.
fn holders(file: &File) -> Option<String> {
    let stat = rustix::fs::fstat(file).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let wanted = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    let mut found: Vec<String> = table.lines().filter_map(|line| holder(line, &wanted)).collect();
    found.dedup();
    (!found.is_empty()).then(|| found.join(" and "))
}

/// Who holds the lock of a line of `/proc/locks`, if it is one on that file; proc_locks(5). Those who wait have `->` in front.
fn holder(line: &str, wanted: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK" | "POSIX" | "OFDLCK", _, _, pid, file, ..] = fields[..] else { return None };
    if file != wanted {
        return None;
    }
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let user = std::fs::metadata(format!("/proc/{pid}")).map(|data| std::os::unix::fs::MetadataExt::uid(&data));
    Some(match (name.trim(), user) {
        ("", _) | (_, Err(_)) => format!("number {pid}, which cannot be looked at"),
        (name, Ok(user)) => format!("{name}, number {pid}, of user {user}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_named_and_who_waits_is_not() {
        let line = format!("3: FLOCK  ADVISORY  READ {} 08:01:77 0 EOF", std::process::id());
        assert!(holder(&line, "08:01:77").unwrap().contains(&std::process::id().to_string()));
        assert_eq!(holder(&line, "08:01:78"), None);
        assert_eq!(holder("3: -> FLOCK  ADVISORY  WRITE 1 08:01:77 0 EOF", "08:01:77"), None);
        let store = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(store.path()).unwrap();
        let _held = store.lock_collector().unwrap();
        match store.lock_collector() {
            Err(StoreError::LockedBy { holder, .. }) => assert!(holder.contains(&std::process::id().to_string())),
            Err(StoreError::Locked { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
