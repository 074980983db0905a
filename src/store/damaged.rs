//! `.pfs/damaged/`: files that stood under the name of a blob without having its bytes. A program that writes in place may have
//! been at it, so a later repair looks whether one has become right. Nothing of pfs removes those that have not; what they are
//! worth is for a person to say.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    ExclusiveGuard, FileStamp, Store, StoreError,
    blobs::{BlobStat, hash, stat_file},
    disk::Dir,
    error::At,
};
use crate::name::Digest;

/// A file under the name of a blob whose bytes are others. Hashing it takes as long as it is large, so it is found without
/// the lock, and removed under it if it is still in the state that was hashed.
#[derive(Debug)]
pub struct WrongContent {
    digest: Digest,
    stamp: FileStamp,
}

/// A file aside whose bytes are those of a blob, in the state that was hashed.
#[derive(Debug)]
pub struct RightCopy {
    digest: Digest,
    name: String,
    stamp: FileStamp,
    dir: Dir,
    place: &'static str,
}

/// What became of a blob of wrong content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aside {
    /// It was moved here.
    Moved(PathBuf),
    /// It stays, for this reason: it may become right yet.
    Left(&'static str),
}

pub(super) const DAMAGED: &str = "damaged";
/// How many wrong files of one name are kept apart.
const COPIES_MAX: u32 = 1000;

impl Store {
    /// Hashes a blob. `None` if it is right, or not there.
    pub fn wrong_content(&self, digest: &Digest) -> Result<Option<WrongContent>, StoreError> {
        let judged = judge(&self.blobs, digest)?;
        Ok(judged.filter(|(is_right, _)| !is_right).map(|(_, stamp)| WrongContent { digest: *digest, stamp }))
    }

    /// Moves a blob of wrong content out of the blob directory, and says where to. What is younger than `min_age`, was changed
    /// since it was hashed, or is open for writing may become right yet: it is left where it is. `None` if nothing is to be done.
    pub fn remove_wrong_content(
        &self,
        _held: &ExclusiveGuard<'_>,
        wrong: &WrongContent,
        min_age: Duration,
    ) -> Result<Option<Aside>, StoreError> {
        let name = wrong.digest.to_string();
        let Some(now) = self.blobs.stat(&name)? else { return Ok(None) };
        if FileStamp::of(&now) != wrong.stamp {
            return Ok(Some(Aside::Left("it is being changed")));
        }
        let identity = BlobStat::of(&now).identity;
        if let Some(reason) = reason_to_leave(&BlobStat::of(&now), min_age) {
            return Ok(Some(Aside::Left(reason)));
        }
        let damaged = self.state()?.make_sub(DAMAGED)?;
        for copy in 0..COPIES_MAX {
            let aside = format!("{name}-{copy}");
            match self.blobs.rename_new(&name, &damaged, &aside) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
                moved => moved.at("set aside", self.blobs.join(&name))?,
            }
            // Somebody may have opened it a moment before it was moved; nobody can by its name afterwards.
            if is_open_for_writing(identity) && damaged.rename_new(&aside, &self.blobs, &name).is_ok() {
                return Ok(Some(Aside::Left("a process has it open for writing")));
            }
            return Ok(Some(Aside::Moved(damaged.join(&aside))));
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists)).at("set aside", self.blobs.join(&name))
    }

    /// The blobs of which a file was set aside, in ascending order.
    pub fn set_aside(&self) -> Result<Vec<Digest>, StoreError> {
        let Some(damaged) = self.existing_state_sub(DAMAGED)? else { return Ok(Vec::new()) };
        let mut digests: Vec<Digest> = damaged.names()?.iter().filter_map(|name| digest_aside(name)).collect();
        digests.dedup();
        Ok(digests)
    }

    /// Looks for a copy of a blob in quarantine, among the pins of mounts and among what was set aside, and hashes what it finds. Only a copy whose
    /// bytes are right will do; `None` if there is none.
    pub fn right_copy(&self, digest: &Digest) -> Result<Option<RightCopy>, StoreError> {
        for place in ["quarantine", "pins"] {
            let Some(parent) = self.existing_state_sub(place)? else { continue };
            for part in parent.names()? {
                let Ok(part) = String::from_utf8(part) else { continue };
                let Some(dir) = parent.sub_if_any(&part)? else { continue };
                let name = digest.to_string();
                if let Some((true, stamp)) = judge_as(&dir, &name, digest)? {
                    return Ok(Some(RightCopy { digest: *digest, name, stamp, dir, place }));
                }
            }
        }
        let Some(dir) = self.existing_state_sub(DAMAGED)? else { return Ok(None) };
        for name in dir.names()? {
            if digest_aside(&name) != Some(*digest) {
                continue;
            }
            let Ok(name) = String::from_utf8(name) else { continue };
            if let Some((true, stamp)) = judge_as(&dir, &name, digest)? {
                return Ok(Some(RightCopy { digest: *digest, name, stamp, dir, place: DAMAGED }));
            }
        }
        Ok(None)
    }

    /// Puts a blob back into the blob directory, where there is none of that name, and says from where it came. `None` if the
    /// copy is not what it was any more, or the name is taken.
    pub fn heal(&self, _held: &ExclusiveGuard<'_>, copy: &RightCopy) -> Result<Option<&'static str>, StoreError> {
        let name = copy.digest.to_string();
        if !is_still(&copy.dir, &copy.name, &copy.stamp)? {
            return Ok(None);
        }
        match copy.dir.link_to(&copy.name, &self.blobs, &name) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            linked => linked.at("put back", self.blobs.join(&name))?,
        }
        if matches!(copy.place, "quarantine" | DAMAGED) {
            copy.dir.unlink(&copy.name).at("remove", copy.dir.join(&copy.name))?;
        }
        Ok(Some(copy.place))
    }
}

/// Whether the file under that digest in `dir` has its bytes, and the state it was in before they were read; `None` if there
/// is no such file.
fn judge(dir: &Dir, digest: &Digest) -> Result<Option<(bool, FileStamp)>, StoreError> {
    judge_as(dir, &digest.to_string(), digest)
}

/// The same for a file of another name.
fn judge_as(dir: &Dir, name: &str, digest: &Digest) -> Result<Option<(bool, FileStamp)>, StoreError> {
    match dir.open_file(name) {
        Ok(file) => {
            let stamp = FileStamp::of(&stat_file(&file).at("read the attributes of", dir.join(name))?);
            Ok(Some((hash(&file).at("read", dir.join(name))? == *digest, stamp)))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(StoreError::NotAFile { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_still(dir: &Dir, name: &str, stamp: &FileStamp) -> Result<bool, StoreError> {
    Ok(dir.stat(name)?.is_some_and(|now| FileStamp::of(&now) == *stamp))
}

/// The blob of which a file in `damaged/` was: its name is the digest and a number.
fn digest_aside(name: &[u8]) -> Option<Digest> {
    std::str::from_utf8(name).ok()?.split_once('-')?.0.parse().ok()
}

/// Why a file of wrong bytes may become right yet.
fn reason_to_leave(stat: &BlobStat, min_age: Duration) -> Option<&'static str> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let age = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(stat.newest_seconds);
    let is_young = !min_age.is_zero() && u64::try_from(age).map_or(true, |age| age < min_age.as_secs());
    if is_young {
        return Some("it was changed a short time ago");
    }
    is_open_for_writing(stat.identity).then_some("a process has it open for writing")
}

/// Whether another process has this file open for writing, as far as one can see.
pub(super) fn is_open_for_writing(identity: (u64, u64)) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let is_other = |name: &str| name.parse::<u32>().is_ok_and(|pid| pid != std::process::id());
    let others = processes.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_other));
    others.into_iter().any(|process| {
        let Ok(opened) = fs::read_dir(process.path().join("fd")) else { return false };
        opened.flatten().any(|fd| {
            let is_it = fs::metadata(fd.path()).is_ok_and(|data| (data.dev(), data.ino()) == identity);
            is_it && may_write(&process.path().join("fdinfo").join(fd.file_name()))
        })
    })
}

/// Whether an open file is open for writing; what cannot be read may be.
fn may_write(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & 0o3 != 0)
}
