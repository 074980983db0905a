//! `.pfs/quarantine/<until>-<number>/<hex>`: condemned blobs. The place is the state; there is no journal to disagree with it.
//! The name of the epoch says from which second on its blobs may be purged. The run that condemned them decides that, and
//! a later run can only put it off.
//!
//! A condemned blob was moved by rename, so a reader that has it open reads on, and one that comes too late finds it
//! here. Restoring links it back first and only then removes the name here, so it is never without a name.

use std::io;

use rustix::fs::FileType;

use super::{BlobStat, ExclusiveGuard, Store, StoreError, disk::Dir, error::At};
use crate::name::Digest;

/// A blob in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedBlob {
    /// Its name.
    pub digest: Digest,
    /// The directory that it lies in: the run that condemned it.
    pub epoch: String,
    /// What the filesystem says of it.
    pub stat: BlobStat,
}

const QUARANTINE: &str = "quarantine";

impl Store {
    /// Everything in quarantine. Files that no collector put there are left out, and left alone.
    pub fn quarantined(&self) -> Result<Vec<QuarantinedBlob>, StoreError> {
        let Some(quarantine) = self.existing_state_sub(QUARANTINE)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for epoch in quarantine.names()? {
            let Ok(epoch) = String::from_utf8(epoch) else { continue };
            let Some(dir) = quarantine.sub_if_any(&epoch)? else { continue };
            for name in dir.names()? {
                let Some(digest) = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<Digest>().ok()) else {
                    continue;
                };
                let Some(stat) = dir.stat(&digest.to_string())? else { continue };
                if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile {
                    found.push(QuarantinedBlob { digest, epoch: epoch.clone(), stat: BlobStat::of(&stat) });
                }
            }
        }
        Ok(found)
    }

    /// Makes a new epoch, for one run, whose blobs may be purged from the second `until_seconds` on. Each run has an epoch of
    /// its own: a blob may be condemned, written again and condemned again meanwhile.
    pub fn begin_epoch(&self, _held: &ExclusiveGuard<'_>, until_seconds: i64) -> Result<String, StoreError> {
        let quarantine = self.state()?.make_sub(QUARANTINE)?;
        for number in 0.. {
            let epoch = format!("{until_seconds}-{number}");
            if quarantine.make_new_sub(&epoch)? {
                return Ok(epoch);
            }
        }
        unreachable!("the numbers do not end")
    }

    /// Puts off the time from which on the blobs of an epoch may be purged. Gives the new name of the epoch.
    pub fn put_off_epoch(
        &self,
        held: &ExclusiveGuard<'_>,
        epoch: &str,
        until_seconds: i64,
    ) -> Result<String, StoreError> {
        let new = self.begin_epoch(held, until_seconds)?;
        let quarantine = self.state()?.make_sub(QUARANTINE)?;
        quarantine.rename_over(epoch, &quarantine, &new).at("put off", quarantine.join(epoch))?;
        Ok(new)
    }

    /// Moves a blob into the quarantine of `epoch`, provided that it is still the file that `planned` describes and not younger
    /// than `newest_max`, in seconds since 1970. `false` if it is gone, touched or another file by now; nothing has
    /// happened then.
    pub fn condemn(
        &self,
        _held: &ExclusiveGuard<'_>,
        digest: &Digest,
        planned: &BlobStat,
        newest_max: i64,
        epoch: &str,
    ) -> Result<bool, StoreError> {
        let name = digest.to_string();
        let is_planned = |now: BlobStat| {
            let is_untouched =
                now.written_nanoseconds <= planned.written_nanoseconds && now.newest_seconds <= newest_max;
            now.is_same_file(planned) && is_untouched
        };
        if !self.stat_blob(digest)?.is_some_and(is_planned) {
            return Ok(false);
        }
        let dir = self.state()?.make_sub(QUARANTINE)?.make_sub(epoch)?;
        match self.blobs.rename_new(&name, &dir, &name) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
            moved => moved.at("move to quarantine", self.blobs.join(&name))?,
        }
        let moved = dir.stat(&name)?.map(|stat| BlobStat::of(&stat));
        if moved.is_some_and(|moved| moved.is_same_file(planned)) {
            return Ok(true);
        }
        put_back(&dir, &name, &self.blobs)?;
        Ok(false)
    }

    /// Puts a blob from quarantine back where it was. Where somebody has written it anew meanwhile, the one that has the
    /// right bytes stays, and the other goes. Gives the bytes that the filesystem gave back.
    pub fn restore(&self, blob: &QuarantinedBlob) -> Result<u64, StoreError> {
        let Some(quarantine) = self.existing_state_sub(QUARANTINE)? else { return Ok(0) };
        let dir = quarantine.sub(&blob.epoch)?;
        let name = blob.digest.to_string();
        let Some(there) = self.stat_blob(&blob.digest)? else {
            put_back(&dir, &name, &self.blobs)?;
            return Ok(0);
        };
        if there.identity == blob.stat.identity || self.hash_blob(&blob.digest)?.is_none() {
            put_back(&dir, &name, &self.blobs)?;
            return Ok(blob.stat.freed_bytes());
        }
        dir.rename_over(&name, &self.blobs, &name).at("put back", self.blobs.join(&name))?;
        Ok(there.freed_bytes())
    }

    /// Unlinks a blob in quarantine, for good. Gives the bytes that the filesystem gave back.
    pub fn purge(&self, _held: &ExclusiveGuard<'_>, blob: &QuarantinedBlob) -> Result<u64, StoreError> {
        let Some(quarantine) = self.existing_state_sub(QUARANTINE)? else { return Ok(0) };
        let dir = quarantine.sub(&blob.epoch)?;
        let name = blob.digest.to_string();
        let Some(stat) = dir.stat(&name)? else { return Ok(0) };
        dir.unlink(&name).at("remove", dir.join(&name))?;
        Ok(BlobStat::of(&stat).freed_bytes())
    }

    /// Removes the directories of runs that hold nothing any more.
    pub fn remove_empty_epochs(&self, _held: &ExclusiveGuard<'_>) -> Result<(), StoreError> {
        let Some(quarantine) = self.existing_state_sub(QUARANTINE)? else { return Ok(()) };
        for epoch in quarantine.names()? {
            let Ok(epoch) = String::from_utf8(epoch) else { continue };
            match quarantine.remove_dir(&epoch) {
                Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                removed => removed.at("remove", quarantine.join(&epoch))?,
            }
        }
        Ok(())
    }
}

fn put_back(from: &Dir, name: &str, blobs: &Dir) -> Result<(), StoreError> {
    match from.link_to(name, blobs, name) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
        linked => linked.at("put back", blobs.join(name))?,
    }
    match from.unlink(name) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", from.join(name)),
    }
}
