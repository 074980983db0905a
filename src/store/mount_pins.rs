//! `.pfs/pins/<manifest>/<hex>`: hard links to the blobs of mounted images.
//!
//! Other tools know nothing of leases: `umoci gc` unlinks what a mount still reads. A second name of our own keeps the file.
//! All mounts of a manifest share one directory; it is stale when no live lease names that manifest.
//!
//! A pin may be the last name of a blob that a tag still needs. So a mount that ends takes only pins whose blob is in its place;
//! the others are for a collector, which knows what is needed: it puts the blob back, or frees it.

use std::{collections::HashMap, fs::File, io};

use super::{BlobStat, ExclusiveGuard, Lease, Store, StoreError, Turn, blobs::hash, disk::Dir, error::At};
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
    /// The files that have names there, by device and inode number.
    pub files: HashMap<(u64, u64), StalePin>,
}

/// A file that ended mounts have pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StalePin {
    /// The blob.
    pub digest: Digest,
    /// How many stale names it has.
    pub stale_names: u32,
    /// How many names it has in all.
    pub links: u32,
    /// Its size in bytes.
    pub size: u64,
}

/// What became of stale pins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinsRemoved {
    /// The bytes that only they held, and nothing needs.
    pub freed_bytes: u64,
    /// How many blobs that are needed and that only they had are in their place again.
    pub healed: u64,
}

const PINS: &str = "pins";

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
                // Somebody has unlinked the blob, and an earlier mount had pinned it.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound && dir.stat(&name)?.is_some() => {
                    count.linked += 1;
                }
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

    /// Puts a pinned blob back under its name in `blobs/`, where somebody has unlinked it. `false` if no pin has it. Anybody may
    /// have put the pin there, so its bytes are hashed first: wrong ones are left where they are.
    pub fn heal_from_pins(&self, digest: &Digest) -> Result<bool, StoreError> {
        let name = digest.to_string();
        for dir in self.pin_dirs()? {
            let Some(pinned) = right_file(&dir.1, digest)? else { continue };
            match self.blobs.link_unnamed(&pinned, &name) {
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
            for digest in digests_in(&dir)?.into_iter().filter(&wanted) {
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
            for digest in digests_in(&dir)? {
                let Some(stat) = dir.stat(&digest.to_string())? else { continue };
                let BlobStat { identity, links, size, .. } = BlobStat::of(&stat);
                let pin = StalePin { digest, stale_names: 0, links, size };
                stale.files.entry(identity).or_insert(pin).stale_names += 1;
            }
            stale.manifests.push(manifest);
        }
        Ok(stale)
    }

    /// The blobs that mounts of a manifest have pinned, in ascending order.
    pub fn pinned_by(&self, manifest: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.pins_of(manifest)?.map_or_else(|| Ok(Vec::new()), |dir| digests_in(&dir))
    }

    /// Removes these pins of a manifest, provided that no live lease names it. A blob that is needed and that only pins have is
    /// put back first; where another file has its name, which may be a wrong one, the pin stays.
    pub fn remove_stale_pins(
        &self,
        _held: &ExclusiveGuard<'_>,
        manifest: &Digest,
        pins: &[Digest],
        is_needed: impl Fn(&Digest) -> bool,
    ) -> Result<PinsRemoved, StoreError> {
        let mut removed = PinsRemoved::default();
        if self.is_leased(manifest, None)? {
            return Ok(removed);
        }
        let Some(dir) = self.pins_of(manifest)? else { return Ok(removed) };
        for digest in pins {
            let name = digest.to_string();
            if is_needed(digest) {
                let is_missing = self.blobs.stat(&name)?.is_none();
                removed.healed += u64::from(is_missing && self.heal_from_pins(digest)?);
                if !self.is_in_its_place(&dir, &name)? {
                    continue;
                }
            }
            let Some(stat) = dir.stat(&name)? else { continue };
            removed.freed_bytes += BlobStat::of(&stat).freed_bytes();
            dir.unlink(&name).at("remove", dir.join(&name))?;
        }
        self.remove_emptied(&dir, manifest)?;
        Ok(removed)
    }

    /// Removes the pins of a mount that is ending, unless another live lease names the manifest; but for those whose blob is no
    /// longer in its place. Takes the store lock exclusively for 15 ms at a time, and looks for such a lease each
    /// time: whoever mounts the manifest in between keeps what is left and links the rest anew.
    pub fn remove_pins_of_ending(&self, manifest: &Digest, ending: &Lease) -> Result<(), StoreError> {
        let pinned = self.pinned_by(manifest)?;
        let mut left = pinned.iter().map(Digest::to_string);
        loop {
            let held = self.lock_exclusive()?;
            if self.is_leased(manifest, Some(ending.id()))? {
                return Ok(());
            }
            let turn = Turn::begin();
            self.remove_spare_pins(&held, manifest, &mut left, &turn)?;
            let is_last = left.len() == 0;
            turn.end(held, is_last);
            if is_last {
                return Ok(());
            }
        }
    }

    /// Removes those of these pins whose blob is in its place, as far as the turn goes.
    fn remove_spare_pins(
        &self,
        _held: &ExclusiveGuard<'_>,
        manifest: &Digest,
        pins: &mut impl ExactSizeIterator<Item = String>,
        turn: &Turn,
    ) -> Result<(), StoreError> {
        let Some(dir) = self.pins_of(manifest)? else {
            // Somebody has removed them all, so there is nothing to take turns for.
            pins.for_each(drop);
            return Ok(());
        };
        while turn.goes_on()
            && let Some(name) = pins.next()
        {
            if self.is_in_its_place(&dir, &name)? {
                dir.unlink(&name).at("remove", dir.join(&name))?;
            }
        }
        self.remove_emptied(&dir, manifest)
    }

    /// Whether the blob directory has the very file that is pinned in `dir`. Another file of that name may have other bytes, and
    /// other names of the pinned one may lie anywhere.
    fn is_in_its_place(&self, dir: &Dir, name: &str) -> Result<bool, StoreError> {
        let identity = |dir: &Dir| Ok::<_, StoreError>(dir.stat(name)?.map(|stat| BlobStat::of(&stat).identity));
        let pinned = identity(dir)?;
        Ok(pinned.is_some() && pinned == identity(&self.blobs)?)
    }

    /// Removes the directory of a manifest's pins, if nothing is left in it.
    fn remove_emptied(&self, dir: &Dir, manifest: &Digest) -> Result<(), StoreError> {
        match self.state()?.make_sub(PINS)?.remove_dir(&manifest.to_string()) {
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.at("remove", dir.path()),
        }
    }

    /// Whether a live lease, other than `ending`, names this manifest.
    fn is_leased(&self, manifest: &Digest, ending: Option<&str>) -> Result<bool, StoreError> {
        let leases = self.leases()?;
        let live = leases.iter().filter(|lease| lease.live && Some(lease.id.as_str()) != ending);
        Ok(live.filter_map(|lease| lease.record.as_ref()).any(|record| record.manifest == Some(*manifest)))
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
        digests_in(&pins)?.into_iter().map(|digest| Ok((digest, pins.sub(&digest.to_string())?))).collect()
    }
}

/// The file of that digest, if there is one and it has the right bytes. What is linked afterwards is this very file, whatever the
/// name stands for by then.
fn right_file(dir: &Dir, digest: &Digest) -> Result<Option<File>, StoreError> {
    let name = digest.to_string();
    match dir.open_file(&name) {
        Ok(file) => Ok((hash(&file).at("read", dir.join(&name))? == *digest).then_some(file)),
        Err(StoreError::NotAFile { .. }) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a directory that are digests, in ascending order. Others are none of ours.
fn digests_in(dir: &Dir) -> Result<Vec<Digest>, StoreError> {
    let names = dir.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
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
        fs::remove_file(blob(&pinned[8])).unwrap();
        fs::write(blob(&pinned[8]), "other bytes").unwrap();
        store.remove_pins_of_ending(&manifest, &first).unwrap();
        assert_eq!(store.linked_pins(&manifest).unwrap(), u64::from(PINNED), "the second mount needs them");
        store.release(first).unwrap();
        store.remove_pins_of_ending(&manifest, &second).unwrap();
        let mut last_names = [pinned[7], pinned[8]];
        last_names.sort_unstable();
        assert_eq!(store.pinned_by(&manifest).unwrap(), last_names, "whose blob is no longer in its place");
        fs::rename(
            dir.path().join(".pfs/pins").join(manifest.to_string()).join(pinned[7].to_string()),
            blob(&pinned[7]),
        )
        .unwrap();
        fs::remove_file(dir.path().join(".pfs/pins").join(manifest.to_string()).join(pinned[8].to_string())).unwrap();
        store.remove_pins_of_ending(&manifest, &second).unwrap();
        assert!(store.pins_of(&manifest).unwrap().is_none(), "an empty directory goes");
    }
}
