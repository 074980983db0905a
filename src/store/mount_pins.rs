//! `.pfs/pins/<manifest>/<hex>`: hard links to the blobs of mounted images.
//!
//! Other tools know nothing of leases: `umoci gc` unlinks what a mount still reads. A second name of our own keeps the file.
//! All mounts of a manifest share one directory; it goes when no live lease names that manifest.

use std::{collections::HashMap, io, thread, time::Duration};

use rustix::fs::FileType;

use super::{ExclusiveGuard, Lease, Store, StoreError, disk::Dir, error::At};
use crate::name::Digest;

/// What pinning came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinCount {
    /// Blobs that have a second name now.
    pub linked: u64,
    /// Blobs that could not be had: missing, or the filesystem or its rules forbid the link.
    pub failed: u64,
}

/// The names that ended mounts have left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StalePins {
    /// The manifests whose directories are stale.
    pub manifests: Vec<Digest>,
    /// For each file, by device and inode number: how many stale names it has, how many names in all, and its size.
    pub files: HashMap<(u64, u64), (u32, u32, u64)>,
}

const PINS: &str = "pins";
/// So many names are listed and unlinked in 10 ms or so.
const ENDING_PINS_PER_TURN: usize = 1024;
/// Longer than those who wait for the lock sleep between two looks at it.
const BETWEEN_TURNS: Duration = Duration::from_millis(3);

impl Store {
    /// Gives the blobs of a mounted image a second name. The mount works without; so failures are counted, not returned.
    pub fn link_pins(&self, manifest: &Digest, blobs: &[Digest]) -> Result<PinCount, StoreError> {
        let dir = self.state()?.make_sub(PINS)?.make_sub(&manifest.to_string())?;
        let mut count = PinCount::default();
        for blob in blobs {
            let name = blob.to_string();
            match self.blobs.link_to(&name, &dir, &name) {
                Ok(()) => count.linked += 1,
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => count.linked += 1,
                Err(_) => count.failed += 1,
            }
        }
        Ok(count)
    }

    /// How many blobs of a mounted image have a second name.
    pub fn linked_pins(&self, manifest: &Digest) -> Result<u64, StoreError> {
        match self.pins_of(manifest)? {
            Some(dir) => Ok(dir.names()?.len() as u64),
            None => Ok(0),
        }
    }

    /// Puts a pinned blob back under its name in `blobs/`, where somebody has unlinked it. `false` if no pin has it.
    pub fn heal_from_pins(&self, digest: &Digest) -> Result<bool, StoreError> {
        let name = digest.to_string();
        for dir in self.pin_dirs()? {
            match dir.1.link_to(&name, &self.blobs, &name) {
                Ok(()) => return Ok(true),
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(true),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(source).at("put back", self.blobs.join(&name)),
            }
        }
        Ok(false)
    }

    /// Puts pinned blobs back that are wanted and that somebody has unlinked; gives how many.
    pub fn heal_all_from_pins(&self, wanted: impl Fn(&Digest) -> bool) -> Result<u64, StoreError> {
        let mut healed = 0;
        for (_, dir) in self.pin_dirs()? {
            let names = dir.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
            for digest in names.filter_map(|name| name.parse::<Digest>().ok()).filter(&wanted) {
                let missing = self.blobs.stat(&digest.to_string())?.is_none();
                healed += u64::from(missing && self.heal_from_pins(&digest)?);
            }
        }
        Ok(healed)
    }

    /// The pins of manifests that no live lease names.
    pub fn stale_pins(&self) -> Result<StalePins, StoreError> {
        let dirs = self.pin_dirs()?;
        // The directories first: a mount takes its lease before it pins.
        let leases = self.leases()?;
        let live = |manifest: &Digest| {
            let records = leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref());
            records.filter_map(|record| record.manifest).any(|named| named == *manifest)
        };
        let mut stale = StalePins::default();
        for (manifest, dir) in dirs.into_iter().filter(|(manifest, _)| !live(manifest)) {
            for name in dir.names()? {
                let Some(stat) = dir.stat(&String::from_utf8_lossy(&name))? else { continue };
                let identity = (rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino);
                let file = stale.files.entry(identity).or_insert((0, stat.stx_nlink, stat.stx_size));
                file.0 += 1;
            }
            stale.manifests.push(manifest);
        }
        Ok(stale)
    }

    /// Removes at most `names_max` pins of a manifest, provided that no live lease names it. Gives the bytes that only they held, and
    /// whether none are left.
    pub fn remove_stale_pins(
        &self,
        held: &ExclusiveGuard<'_>,
        manifest: &Digest,
        names_max: usize,
    ) -> Result<(u64, bool), StoreError> {
        match self.is_leased(manifest, None)? {
            true => Ok((0, true)),
            false => self.remove_pins(held, manifest, names_max),
        }
    }

    /// Removes the pins of a mount that is ending, unless another live lease names the manifest. Gives the bytes that only they
    /// held. Takes the store lock exclusively for a few hundred names at a time, and looks for such a lease each time: whoever
    /// mounts the manifest in between keeps what is left and links the rest anew.
    pub fn remove_pins_of_ending(&self, manifest: &Digest, ending: &Lease) -> Result<u64, StoreError> {
        let mut freed = 0;
        loop {
            let held = self.lock_exclusive()?;
            if self.is_leased(manifest, Some(ending.id()))? {
                return Ok(freed);
            }
            let (bytes, is_done) = self.remove_pins(&held, manifest, ENDING_PINS_PER_TURN)?;
            freed += bytes;
            if is_done {
                return Ok(freed);
            }
            drop(held);
            thread::sleep(BETWEEN_TURNS);
        }
    }

    /// Whether a live lease, other than `ending`, names this manifest.
    fn is_leased(&self, manifest: &Digest, ending: Option<&str>) -> Result<bool, StoreError> {
        let leases = self.leases()?;
        let live = leases.iter().filter(|lease| lease.live && Some(lease.id.as_str()) != ending);
        Ok(live.filter_map(|lease| lease.record.as_ref()).any(|record| record.manifest == Some(*manifest)))
    }

    fn remove_pins(
        &self,
        _held: &ExclusiveGuard<'_>,
        manifest: &Digest,
        names_max: usize,
    ) -> Result<(u64, bool), StoreError> {
        let Some(dir) = self.pins_of(manifest)? else { return Ok((0, true)) };
        let mut freed = 0;
        let names = dir.some_names(names_max.saturating_add(1))?;
        let is_last = names.len() <= names_max;
        for name in names.into_iter().take(names_max) {
            let name = String::from_utf8_lossy(&name).into_owned();
            let Some(stat) = dir.stat(&name)? else { continue };
            if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile && stat.stx_nlink == 1 {
                freed += stat.stx_size;
            }
            dir.unlink(&name).at("remove", dir.join(&name))?;
        }
        if is_last {
            let pins = self.state()?.make_sub(PINS)?;
            pins.remove_dir(&manifest.to_string()).at("remove", dir.path())?;
        }
        Ok((freed, is_last))
    }

    fn pins_of(&self, manifest: &Digest) -> Result<Option<Dir>, StoreError> {
        let Some(pins) = self.existing_state_sub(PINS)? else { return Ok(None) };
        match pins.sub(&manifest.to_string()) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn pin_dirs(&self) -> Result<Vec<(Digest, Dir)>, StoreError> {
        let Some(pins) = self.existing_state_sub(PINS)? else { return Ok(Vec::new()) };
        let names = pins.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let digests = names.filter_map(|name| name.parse::<Digest>().ok());
        digests.map(|digest| Ok((digest, pins.sub(&digest.to_string())?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::{LeaseKind, LeaseRecord};

    /// More pins than one turn removes.
    const PINNED: u32 = 3 * 1024 + 5;

    #[test]
    fn pins_go_with_the_last_mount_in_however_many_turns() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let pinned: Vec<Digest> = (0..PINNED).map(|at| Digest::of(&at.to_le_bytes())).collect();
        let blob = |digest: &Digest| dir.path().join("blobs/sha256").join(digest.to_string());
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        for (at, digest) in pinned.iter().enumerate() {
            fs::write(blob(digest), u32::try_from(at).unwrap().to_le_bytes()).unwrap();
        }
        let manifest = pinned[0];
        let lease = |second| {
            let since = jiff::Timestamp::from_second(second).unwrap();
            let mut record = LeaseRecord::of_this_process(LeaseKind::Mount, since);
            record.manifest = Some(manifest);
            store.take_lease(&store.lock_shared().unwrap(), &record).unwrap()
        };
        let (first, second) = (lease(1), lease(2));
        assert_eq!(store.link_pins(&manifest, &pinned).unwrap().linked, u64::from(PINNED));
        fs::remove_file(blob(&pinned[7])).unwrap();
        assert_eq!(store.remove_pins_of_ending(&manifest, &first).unwrap(), 0, "the second mount needs them");
        assert!(store.pins_of(&manifest).unwrap().is_some());
        store.release(first).unwrap();
        assert_eq!(store.remove_pins_of_ending(&manifest, &second).unwrap(), 4, "what only the pin still had");
        assert!(store.pins_of(&manifest).unwrap().is_none());
    }
}
