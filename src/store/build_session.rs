//! Bringing an image in: everything is staged aside and becomes visible at the end, or not at all.
//!
//! New blobs are written to `.pfs/tmp/<lease>/`. Publishing makes them durable, gives them their names in `blobs/`, then
//! writes the manifest, then the index: nothing ever names what is not there yet. A build that fails or is killed leaves
//! `blobs/` as it was; what it staged is garbage as soon as its lease is dead.

use std::{
    collections::HashSet,
    io::{self, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    ExclusiveGuard, Lease, LeaseKind, LeaseRecord, Put, SharedGuard, Store, StoreError, Stored,
    blobs::{hash, hash_seen, holds},
    disk::Dir,
    error::At,
    partial::is_being_written,
    spool::Spool,
};
use crate::{
    codec::Hashed,
    format::MessageSink,
    name::{Digest, Tag},
};

/// A running build: holds a lease and a staging directory.
#[derive(Debug)]
pub struct BuildSession<'s> {
    store: &'s Store,
    lease: Option<Lease>,
    staging: Dir,
    known: Mutex<HashSet<Digest>>,
    staged: Mutex<Vec<Digest>>,
    staged_bytes: AtomicU64,
    early_sync: Mutex<()>,
    reused: Mutex<Vec<Digest>>,
}

/// What publishing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The manifest.
    pub manifest: Digest,
    /// What the tag stood for before, if it stood for something else.
    pub replaced: Option<Digest>,
}

const RESERVE: &str = "reserve";
/// A blob that is being written in pieces, before its digest is known.
const WRITTEN: &str = "written";
/// Listing more than can be removed in one go would only take time.
const NAMES_PER_LOOK: usize = 1024;
const BLOCK_BYTES: usize = 4096;
/// How much is staged between one early sync and the next.
const EARLY_SYNC_BYTES: u64 = 64 << 20;

impl Store {
    /// Begins a build that will be published as `tag`.
    pub fn begin_build(&self, tag: &Tag) -> Result<BuildSession<'_>, StoreError> {
        let guard = self.lock_shared()?;
        let mut record = LeaseRecord::of_this_process(LeaseKind::Build, jiff::Timestamp::now());
        record.tag = Some(tag.to_string());
        let lease = self.take_lease(&guard, &record)?;
        let staging = self.temp()?.make_sub(lease.id())?;
        Ok(BuildSession {
            store: self,
            lease: Some(lease),
            staging,
            known: Mutex::default(),
            staged: Mutex::default(),
            staged_bytes: AtomicU64::new(0),
            early_sync: Mutex::default(),
            reused: Mutex::default(),
        })
    }
}

impl Store {
    /// Keeps blobs that are about to be published again: they are claimed as those of a build are. Whoever calls it holds
    /// the lock since it has seen that they are there, and gives the lease back when the index names them.
    pub fn claim_blobs(&self, held: &SharedGuard<'_>, name: &str, digests: &[Digest]) -> Result<Lease, StoreError> {
        let mut record = LeaseRecord::of_this_process(LeaseKind::Build, jiff::Timestamp::now());
        record.tag = Some(name.into());
        let lease = self.take_lease(held, &record)?;
        lease.claim(held, digests)?;
        Ok(lease)
    }
}

impl BuildSession<'_> {
    /// Takes in a blob: found in the store with the same bytes, or staged. Safe to call from several threads.
    pub fn put(&self, bytes: &[u8]) -> Result<Stored, StoreError> {
        self.put_hashed(Hashed::new(bytes))
    }

    /// The same of what has been hashed already.
    pub fn put_hashed(&self, blob: Hashed<'_>) -> Result<Stored, StoreError> {
        let (digest, bytes) = (blob.digest(), blob.bytes());
        let name = digest.to_string();
        self.admit(digest, bytes.len() as u64, || holds(&self.store.blobs, &name, bytes), || self.stage(&digest, bytes))
    }

    /// Takes in a blob of `size` bytes that need not fit into memory: `write` writes it, `see` is shown it from begin to end.
    pub fn put_written(
        &self,
        size: u64,
        write: &mut dyn FnMut(&mut dyn MessageSink),
        see: &mut dyn FnMut(&[u8]),
    ) -> Result<Stored, StoreError> {
        let path = self.staging.join(WRITTEN);
        let file = self.staging.create_file(WRITTEN)?;
        file.set_len(size).at("write", &path)?;
        let mut spool = Spool::new(&file);
        write(&mut spool);
        spool.finish().at("write", &path)?;
        let digest = hash_seen(&file, see).at("read", &path)?;
        let stored = self.admit(digest, size, || self.has(&digest), || self.stage_written(&digest, size))?;
        if stored.put == Put::Reused {
            self.staging.unlink(WRITTEN).at("remove", path)?;
        }
        Ok(stored)
    }

    /// Decides what becomes of a blob: `holds` looks whether the store has it with the right bytes, `None` if it has none of
    /// that name, and `stage` stages it.
    fn admit(
        &self,
        digest: Digest,
        size: u64,
        holds: impl FnOnce() -> Result<Option<bool>, StoreError>,
        stage: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Stored, StoreError> {
        let stored = |put| Ok(Stored { digest, size, put });
        if !lock(&self.known).insert(digest) {
            return stored(Put::Reused);
        }
        if self.store.blobs.stat(&digest.to_string())?.is_none() {
            stage()?;
            return stored(Put::Written);
        }
        self.lease()?.claim(&self.store.lock_shared()?, &[digest])?;
        match holds()? {
            Some(true) => {
                lock(&self.reused).push(digest);
                stored(Put::Reused)
            }
            found => {
                stage()?;
                stored(if found.is_some() { Put::Replaced } else { Put::Written })
            }
        }
    }

    /// Whether the blob of that name in the store has the right bytes.
    fn has(&self, digest: &Digest) -> Result<Option<bool>, StoreError> {
        let name = digest.to_string();
        match self.store.blobs.open_file(&name) {
            Ok(file) => Ok(Some(hash(&file).at("read", self.store.blobs.join(&name))? == *digest)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(StoreError::NotAFile { what: "a symbolic link", .. }) => Ok(Some(false)),
            Err(error) => Err(error),
        }
    }

    /// Publishes what was put, with `manifest` and an index entry that `entry` makes of its digest and size. The entry
    /// takes the place of those with the same tag. When this returns, all of it is on stable storage.
    pub fn publish(
        mut self,
        manifest: &[u8],
        tag: &Tag,
        entry: impl Fn(&Digest, u64) -> String,
    ) -> Result<Published, StoreError> {
        let digest = self.put(manifest)?.digest;
        self.staging.sync_filesystem()?;
        let entry = entry(&digest, manifest.len() as u64);
        self.reserve_for_index(entry.len())?;
        self.look_at_reused()?;
        // From here on the claims of the lease keep the blobs.
        self.reveal(&self.store.lock_shared()?)?;
        self.look_at_reused()?;
        self.store.blobs.sync()?;
        self.staging.unlink(RESERVE).at("remove", self.staging.join(RESERVE))?;
        let mut replaced = None;
        self.store.put_entry(&entry, |index| -> Result<_, StoreError> {
            let entries = index.entries().iter().enumerate();
            let same: Vec<_> = entries.filter(|(_, entry)| entry.tag.as_ref() == Some(tag)).collect();
            replaced = same.iter().find_map(|(_, entry)| match &entry.descriptor.digest {
                crate::format::DescriptorDigest::Sha256(old) if *old != digest => Some(*old),
                _ => None,
            });
            Ok(same.iter().map(|(at, _)| *at).collect())
        })?;
        self.end()?;
        Ok(Published { manifest: digest, replaced })
    }

    fn lease(&self) -> Result<&Lease, StoreError> {
        Ok(self.lease.as_ref().expect("a session has its lease until it is published or dropped"))
    }

    /// Fails if a blob that was found in the store has gone since: claims bind pfs only, and an image that names what another
    /// tool has freed meanwhile must not be published.
    fn look_at_reused(&self) -> Result<(), StoreError> {
        let reused = lock(&self.reused);
        let gone = reused.iter().find_map(|digest| match self.store.blobs.stat(&digest.to_string()) {
            Ok(Some(_)) => None,
            Ok(None) => Some(StoreError::FreedMeanwhile(*digest)),
            Err(error) => Some(error),
        });
        gone.map_or(Ok(()), Err)
    }

    /// Takes the space that the index and its two notes in the log will need, while a full disk still leaves `blobs/` as it was.
    fn reserve_for_index(&self, entry_bytes: usize) -> Result<(), StoreError> {
        let index_bytes = self.store.index()?.document().bytes().len() + entry_bytes;
        let mut file = self.staging.create_file(RESERVE)?;
        let reserved = vec![0; 3 * index_bytes.next_multiple_of(BLOCK_BYTES) + 4 * BLOCK_BYTES];
        file.write_all(&reserved).at("write", self.staging.join(RESERVE))
    }

    fn stage(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let name = digest.to_string();
        let mut file = self.staging.create_file(&name)?;
        file.write_all(bytes).at("write", self.staging.join(&name))?;
        lock(&self.staged).push(*digest);
        self.sync_early(bytes.len() as u64)
    }

    fn stage_written(&self, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let name = digest.to_string();
        self.staging.rename_over(WRITTEN, &self.staging, &name).at("write", self.staging.join(&name))?;
        lock(&self.staged).push(*digest);
        self.sync_early(size)
    }

    /// Has the disk write what is staged while the build goes on: else it idles until [`Self::publish`], which then waits
    /// for all of it at once. Whoever stages the byte that makes a portion full waits for the disk; others go on, also past
    /// the next portion.
    fn sync_early(&self, more_bytes: u64) -> Result<(), StoreError> {
        let before = self.staged_bytes.fetch_add(more_bytes, Ordering::Relaxed);
        let is_full = before / EARLY_SYNC_BYTES != (before + more_bytes) / EARLY_SYNC_BYTES;
        match self.early_sync.try_lock() {
            Ok(_syncing) if is_full => self.staging.sync_filesystem(),
            _ => Ok(()),
        }
    }

    /// Claims the staged blobs and moves them to their names. One that is there already with the right bytes stays; wrong
    /// bytes give way.
    fn reveal(&self, guard: &SharedGuard<'_>) -> Result<(), StoreError> {
        let staged = lock(&self.staged);
        self.lease()?.claim(guard, &staged)?;
        for digest in staged.iter() {
            let name = digest.to_string();
            match self.staging.rename_new(&name, &self.store.blobs, &name) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => self.settle(&name)?,
                moved => moved.at("publish", self.store.blobs.join(&name))?,
            }
        }
        Ok(())
    }

    fn settle(&self, name: &str) -> Result<(), StoreError> {
        let bytes = self.staging.read_small(name)?;
        if holds(&self.store.blobs, name, &bytes)? == Some(true) {
            return self.staging.unlink(name).at("remove", self.staging.join(name));
        }
        self.staging.rename_over(name, &self.store.blobs, name).at("publish", self.store.blobs.join(name))
    }

    fn end(&mut self) -> Result<(), StoreError> {
        let Some(lease) = self.lease.take() else { return Ok(()) };
        self.store.remove_own_staging(lease.id())?;
        self.store.release(lease)
    }
}

impl Drop for BuildSession<'_> {
    /// A build that was not published takes its staging along. What cannot be removed now is garbage for the next
    /// collection, since the lease is dead.
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let _ = self.store.remove_own_staging(lease.id());
        let _ = self.store.release(lease);
    }
}

impl Store {
    /// Removes the staging directory of a lease, if there is one.
    fn remove_own_staging(&self, id: &str) -> Result<(), StoreError> {
        let Some(temp) = self.existing_state_sub("tmp")? else { return Ok(()) };
        remove_staging(&temp, id, || true).map(|_| ())
    }
}

/// Removes what lies in a staging directory, and at last itself, until `goes_on` says no. Gives the bytes that were freed, and
/// whether it is done.
fn remove_staging(temp: &Dir, id: &str, goes_on: impl Fn() -> bool) -> Result<(u64, bool), StoreError> {
    let staging = match temp.sub(id) {
        Err(error) if error.is_not_found() => return Ok((0, true)),
        opened => opened?,
    };
    let mut freed = 0;
    loop {
        let names = staging.some_names(NAMES_PER_LOOK)?;
        if names.is_empty() {
            temp.remove_dir(id).at("remove", temp.join(id))?;
            return Ok((freed, true));
        }
        for name in names {
            let name = String::from_utf8_lossy(&name).into_owned();
            freed += staging.stat(&name)?.map_or(0, |stat| stat.stx_size);
            staging.unlink(&name).at("remove", staging.join(&name))?;
            if !goes_on() {
                return Ok((freed, false));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something in the staging directory that no live build owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleStaging {
    /// Its name in `.pfs/tmp/`.
    pub name: String,
    /// The bytes in it.
    pub bytes: u64,
}

impl Store {
    /// What dead builds, and programs killed while they edited the index, have left in the staging directory.
    pub fn stale_staging(&self) -> Result<Vec<StaleStaging>, StoreError> {
        let Some(temp) = self.existing_state_sub("tmp")? else { return Ok(Vec::new()) };
        // The names first: a build takes its lease before it makes its directory.
        let names = temp.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect::<Vec<_>>();
        let live = self.live_leases()?;
        let lost = self.lost_indexes()?;
        let is_lost = |name: &String| lost.iter().any(|lost| lost.name() == name);
        let dead = names.into_iter().filter(|name| !live.contains(name) && !is_lost(name));
        let stale = dead.map(|name| stale(&temp, name));
        stale.filter_map(Result::transpose).collect()
    }

    /// Removes such a thing, or what it can of it until `goes_on` says no, unless somebody owns it after all. Gives the bytes
    /// that were freed, and whether it is done.
    pub fn remove_stale_staging(
        &self,
        _held: &ExclusiveGuard<'_>,
        name: &str,
        goes_on: impl Fn() -> bool,
    ) -> Result<(u64, bool), StoreError> {
        let Some(temp) = self.existing_state_sub("tmp")? else { return Ok((0, true)) };
        if self.live_leases()?.contains(name) {
            return Ok((0, true));
        }
        match temp.stat(name)? {
            Some(stat) if is_dir(&stat) => remove_staging(&temp, name, goes_on),
            Some(stat) if !is_being_written(&temp, name)? && !self.is_lost_index(name)? => {
                temp.unlink(name).at("remove", temp.join(name))?;
                Ok((stat.stx_size, true))
            }
            _ => Ok((0, true)),
        }
    }

    fn live_leases(&self) -> Result<HashSet<String>, StoreError> {
        Ok(self.leases()?.into_iter().filter(|lease| lease.live).map(|lease| lease.id).collect())
    }
}

/// `None` for a file that somebody is writing, and for what has gone.
fn stale(temp: &Dir, name: String) -> Result<Option<StaleStaging>, StoreError> {
    let bytes = match temp.stat(&name)? {
        Some(stat) if is_dir(&stat) => {
            let dir = temp.sub(&name)?;
            let mut bytes = 0;
            for file in dir.names()? {
                bytes += dir.stat(&String::from_utf8_lossy(&file))?.map_or(0, |stat| stat.stx_size);
            }
            bytes
        }
        Some(stat) if !is_being_written(temp, &name)? => stat.stx_size,
        _ => return Ok(None),
    };
    Ok(Some(StaleStaging { name, bytes }))
}

fn is_dir(stat: &rustix::fs::Statx) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) == rustix::fs::FileType::Directory
}
