//! What lies in a layout directory, file by file: the bytes that `du -sb` counts, each with its place.
//!
//! Lengths are those that files claim (`st_size`), a file with several names counts once, links are not followed, and
//! directories count with a size of their own: so `du -sb` does it up to coreutils 9.1.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path},
};

use walkdir::WalkDir;

use super::{Store, StoreError, layout::STATE};
use crate::name::Digest;

/// Where a file lies. A file with several names lies where the first of these is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the blob directory, under a digest.
    Blob(Digest),
    /// In quarantine.
    Quarantine(Digest),
    /// Among the pins of a mount: the manifest, and the blob.
    Pin(Digest, Digest),
    /// In the staging directory, under this name there.
    Staging(String),
    /// Among the files of wrong content that a repair has set aside.
    Damaged,
    /// Elsewhere in the directory of ours.
    State,
    /// `index.json` or `oci-layout`, or a link in the place of a blob directory.
    Layout,
    /// Anywhere else: not ours, and no part of the layout.
    Foreign,
}

/// A file, of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedFile {
    /// Where it lies.
    pub place: Place,
    /// Its length in bytes.
    pub size: u64,
}

/// Everything in a layout directory.
#[derive(Debug, Default)]
pub struct Usage {
    /// The files, each once.
    pub files: Vec<UsedFile>,
    /// How many directories there are, the layout itself included.
    pub directories: u64,
    /// Their own sizes in bytes.
    pub directories_bytes: u64,
}

impl Store {
    /// Looks at everything in the layout directory. What vanishes meanwhile is left out.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        let mut files: HashMap<(u64, u64), UsedFile> = HashMap::new();
        for entry in WalkDir::new(self.path()) {
            let Some((path, facts)) = present(entry, self.path())? else { continue };
            if facts.is_dir() {
                usage.directories += 1;
                usage.directories_bytes += facts.len();
                continue;
            }
            let place = place_of(path.strip_prefix(self.path()).unwrap_or(&path), facts.is_file());
            let file = UsedFile { place, size: facts.len() };
            let known = files.entry((facts.dev(), facts.ino())).or_insert_with(|| file.clone());
            if file.place < known.place {
                *known = file;
            }
        }
        usage.files = files.into_values().collect();
        Ok(usage)
    }
}

type Found = (std::path::PathBuf, std::fs::Metadata);

fn present(entry: walkdir::Result<walkdir::DirEntry>, root: &Path) -> Result<Option<Found>, StoreError> {
    let found = entry.and_then(|entry| {
        let facts = entry.metadata()?;
        Ok((entry.into_path(), facts))
    });
    found.map(Some).or_else(|error| {
        let path = error.path().unwrap_or(root).to_path_buf();
        let source = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
        match source.kind() {
            io::ErrorKind::NotFound => Ok(None),
            _ => Err(StoreError::Io { action: "read the attributes of", path, source }),
        }
    })
}

/// The place of a path in the layout. Only a regular file is a blob.
fn place_of(path: &Path, regular: bool) -> Place {
    let normal = |part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    };
    let names: Vec<_> = path.components().filter_map(normal).collect();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let digest = |name: &str| name.parse::<Digest>().ok().filter(|_| regular);
    match names[..] {
        ["index.json" | "oci-layout"] | ["blobs"] | ["blobs", "sha256"] => Place::Layout,
        ["blobs", "sha256", name] => digest(name).map_or(Place::Foreign, Place::Blob),
        [STATE, "quarantine", _, name] => digest(name).map_or(Place::State, Place::Quarantine),
        [STATE, "pins", manifest, name] => match (manifest.parse(), digest(name)) {
            (Ok(manifest), Some(blob)) => Place::Pin(manifest, blob),
            _ => Place::State,
        },
        [STATE, "tmp", name, ..] => Place::Staging(name.into()),
        [STATE, "damaged", ..] => Place::Damaged,
        [STATE, ..] => Place::State,
        _ => Place::Foreign,
    }
}
