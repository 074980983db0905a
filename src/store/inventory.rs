//! What lies in `blobs/sha256`.

use std::path::PathBuf;

use rustix::fs::FileType;

use super::{BlobStat, Store, StoreError, disk::describe};
use crate::name::Digest;

/// Every name in the blob directory.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The blobs, sorted by digest.
    pub blobs: Vec<(Digest, BlobStat)>,
    /// What is no blob: other programs' temporary files, directories, links. Never touched.
    pub strangers: Vec<Stranger>,
}

/// Something in the blob directory that is not a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, as in "a directory".
    pub what: &'static str,
    /// Its length in bytes.
    pub size: u64,
}

impl Inventory {
    /// The facts of one blob.
    pub fn get(&self, digest: &Digest) -> Option<&BlobStat> {
        let at = self.blobs.binary_search_by_key(digest, |(digest, _)| *digest).ok()?;
        Some(&self.blobs[at].1)
    }
}

impl Store {
    /// Lists the blob directory and takes the facts of each name. A name that vanishes meanwhile is left out.
    pub fn inventory(&self) -> Result<Inventory, StoreError> {
        let mut inventory = Inventory::default();
        for name in self.blobs.names()? {
            let Ok(text) = std::str::from_utf8(&name) else {
                let path = self.blobs.join(&String::from_utf8_lossy(&name));
                inventory.strangers.push(Stranger { path, what: "a name that is not UTF-8", size: 0 });
                continue;
            };
            let Some(stat) = self.blobs.stat(text)? else { continue };
            let kind = FileType::from_raw_mode(stat.stx_mode.into());
            match text.parse::<Digest>() {
                Ok(digest) if kind == FileType::RegularFile => inventory.blobs.push((digest, BlobStat::of(&stat))),
                _ => inventory.strangers.push(Stranger {
                    path: self.blobs.join(text),
                    what: describe(kind),
                    size: stat.stx_size,
                }),
            }
        }
        Ok(inventory)
    }

    /// The file system's own idea of now, in seconds since 1970: the change time of a file of ours touched just then.
    pub fn clock_seconds(&self) -> Result<i64, StoreError> {
        let state = self.state()?;
        state.write_durably(&self.temp()?, "clock", b"")?;
        let stat = state.stat("clock")?.ok_or_else(|| StoreError::Io {
            action: "read the attributes of",
            path: state.join("clock"),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        Ok(stat.stx_ctime.tv_sec)
    }
}
