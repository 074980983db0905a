//! The locks of a store. A held flock is the permission, and the guard is the proof of it.
//!
//! `.pfs/lock` is never unlinked: two processes could otherwise hold locks on two files of the same name. Locks of ours
//! bind only pfs; other tools know nothing of them, which is why every act re-reads what it stands on.

use std::{
    fs::{File, TryLockError},
    marker::PhantomData,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{Store, StoreError};

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
        let file = state.open_or_create(name)?;
        let path: PathBuf = state.join(name);
        let deadline = Instant::now() + patience;
        loop {
            match try_lock(&file) {
                Ok(()) => {
                    let held = Held { file, store: PhantomData };
                    self.note_layout_once()?;
                    return Ok(held);
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path }),
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { action: "lock", path, source }),
            }
        }
    }
}
