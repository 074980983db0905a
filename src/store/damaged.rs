//! `.pfs/damaged/`: files that stood under the name of a blob without having its bytes. Nothing of pfs reads or removes
//! them; what they are worth is for a person to say.

use std::{io, path::PathBuf};

use super::{ExclusiveGuard, Store, StoreError, blobs::hash, disk::Dir, error::At};
use crate::name::Digest;

const DAMAGED: &str = "damaged";
/// How many wrong files of one name are kept apart.
const COPIES_MAX: u32 = 1000;

impl Store {
    /// Moves a blob of wrong content out of the blob directory, and says where to. `None` if it is not there, or right by
    /// now.
    pub fn remove_wrong_content(
        &self,
        _held: &ExclusiveGuard<'_>,
        digest: &Digest,
    ) -> Result<Option<PathBuf>, StoreError> {
        let name = digest.to_string();
        if is_right(&self.blobs, digest)? != Some(false) {
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

    /// Puts a blob that is not in the blob directory back, from quarantine or from the pins of a mount, and says from
    /// which. Only a copy whose bytes are right will do; `None` if there is none.
    pub fn heal(&self, _held: &ExclusiveGuard<'_>, digest: &Digest) -> Result<Option<&'static str>, StoreError> {
        let name = digest.to_string();
        for place in ["quarantine", "pins"] {
            let Some(parent) = self.existing_state_sub(place)? else { continue };
            for part in parent.names()? {
                let Ok(part) = String::from_utf8(part) else { continue };
                let Some(dir) = parent.sub_if_any(&part)? else { continue };
                if is_right(&dir, digest)? == Some(true) {
                    dir.link_to(&name, &self.blobs, &name).at("put back", self.blobs.join(&name))?;
                    if place == "quarantine" {
                        dir.unlink(&name).at("remove", dir.join(&name))?;
                    }
                    return Ok(Some(place));
                }
            }
        }
        Ok(None)
    }
}

/// Whether the file under that digest in `dir` has its bytes; `None` if there is no such file.
fn is_right(dir: &Dir, digest: &Digest) -> Result<Option<bool>, StoreError> {
    let name = digest.to_string();
    match dir.open_file(&name) {
        Ok(file) => Ok(Some(hash(&file).at("read", dir.join(&name))? == *digest)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(StoreError::NotAFile { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
