//! `.pfs/damaged/`: files that stood under the name of a blob without having its bytes. Nothing of pfs reads or removes
//! them; what they are worth is for a person to say.

use std::{io, path::PathBuf};

use super::{
    ExclusiveGuard, FileStamp, Store, StoreError,
    blobs::{hash, stat_file},
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
    stamp: FileStamp,
    dir: Dir,
    place: &'static str,
}

const DAMAGED: &str = "damaged";
/// How many wrong files of one name are kept apart.
const COPIES_MAX: u32 = 1000;

impl Store {
    /// Hashes a blob. `None` if it is right, or not there.
    pub fn wrong_content(&self, digest: &Digest) -> Result<Option<WrongContent>, StoreError> {
        let judged = judge(&self.blobs, digest)?;
        Ok(judged.filter(|(is_right, _)| !is_right).map(|(_, stamp)| WrongContent { digest: *digest, stamp }))
    }

    /// Moves a blob of wrong content out of the blob directory, and says where to. `None` if it is another file by now, or
    /// was changed.
    pub fn remove_wrong_content(
        &self,
        _held: &ExclusiveGuard<'_>,
        wrong: &WrongContent,
    ) -> Result<Option<PathBuf>, StoreError> {
        let name = wrong.digest.to_string();
        if !is_still(&self.blobs, &name, &wrong.stamp)? {
            return Ok(None);
        }
        let damaged = self.state()?.make_sub(DAMAGED)?;
        for copy in 0..COPIES_MAX {
            let aside = format!("{name}-{copy}");
            match self.blobs.rename_new(&name, &damaged, &aside) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                moved => return moved.at("set aside", self.blobs.join(&name)).map(|()| Some(damaged.join(&aside))),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists)).at("set aside", self.blobs.join(&name))
    }

    /// Looks for a copy of a blob in quarantine and among the pins of mounts, and hashes what it finds. Only a copy whose
    /// bytes are right will do; `None` if there is none.
    pub fn right_copy(&self, digest: &Digest) -> Result<Option<RightCopy>, StoreError> {
        for place in ["quarantine", "pins"] {
            let Some(parent) = self.existing_state_sub(place)? else { continue };
            for part in parent.names()? {
                let Ok(part) = String::from_utf8(part) else { continue };
                let Some(dir) = parent.sub_if_any(&part)? else { continue };
                if let Some((true, stamp)) = judge(&dir, digest)? {
                    return Ok(Some(RightCopy { digest: *digest, stamp, dir, place }));
                }
            }
        }
        Ok(None)
    }

    /// Puts a blob back into the blob directory, where there is none of that name, and says from where it came. `None` if the
    /// copy is not what it was any more, or the name is taken.
    pub fn heal(&self, _held: &ExclusiveGuard<'_>, copy: &RightCopy) -> Result<Option<&'static str>, StoreError> {
        let name = copy.digest.to_string();
        if !is_still(&copy.dir, &name, &copy.stamp)? {
            return Ok(None);
        }
        match copy.dir.link_to(&name, &self.blobs, &name) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            linked => linked.at("put back", self.blobs.join(&name))?,
        }
        if copy.place == "quarantine" {
            copy.dir.unlink(&name).at("remove", copy.dir.join(&name))?;
        }
        Ok(Some(copy.place))
    }
}

/// Whether the file under that digest in `dir` has its bytes, and the state it was in before they were read; `None` if there
/// is no such file.
fn judge(dir: &Dir, digest: &Digest) -> Result<Option<(bool, FileStamp)>, StoreError> {
    let name = digest.to_string();
    match dir.open_file(&name) {
        Ok(file) => {
            let stamp = FileStamp::of(&stat_file(&file).at("read the attributes of", dir.join(&name))?);
            Ok(Some((hash(&file).at("read", dir.join(&name))? == *digest, stamp)))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(StoreError::NotAFile { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_still(dir: &Dir, name: &str, stamp: &FileStamp) -> Result<bool, StoreError> {
    Ok(dir.stat(name)?.is_some_and(|now| FileStamp::of(&now) == *stamp))
}
