//! Opening and making a store.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{OnceLock, RwLock},
};

use serde::Deserialize;

use super::{
    StoreError,
    disk::{Dir, PARTIAL},
    error::At,
    reference_cache::Memory,
    sharing::{Declared, behind_bind_mount},
};
use crate::format::IndexDocument;

/// An open store. Cheap to keep, safe to share between threads.
#[derive(Debug)]
pub struct Store {
    pub(super) root: Dir,
    pub(super) blobs: Dir,
    state: OnceLock<Dir>,
    pub(super) memory: OnceLock<RwLock<Memory>>,
    state_parent: PathBuf,
    shared_blobs: Option<PathBuf>,
    pub(super) declared: Declared,
    noted: OnceLock<()>,
}

const LAYOUT_FILE: &str = "oci-layout";
const INDEX: &str = "index.json";
/// OCI image layout 1.0.0, and what puzzlefs 0.1.0 wrote there.
const LAYOUT_VERSIONS: &[&str] = &["1.0.0", "puzzlefs-dev"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

impl Store {
    /// Opens the layout at `path`. Fails with [`StoreError::NotAStore`] unless it has a readable `oci-layout` of a known
    /// version, an `index.json` and a `blobs/sha256`. Writes nothing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let not_a_store = |why: String| StoreError::NotAStore { path: path.into(), why };
        let path = path.canonicalize().map_err(|cause| not_a_store(cause.to_string()))?;
        if !path.is_dir() {
            return Err(not_a_store("it is not a directory".into()));
        }
        check_layout_file(&path).map_err(not_a_store)?;
        if !path.join("index.json").exists() {
            return Err(not_a_store("it has no index.json".into()));
        }
        let root = Dir::open(&path)?;
        let blobs_path = path.join("blobs/sha256");
        let mut physical = blobs_path.canonicalize().map_err(|_| not_a_store("it has no blobs/sha256".into()))?;
        let mut blobs = Dir::open(&physical)?;
        let bind_mounted = blobs.mount_id() != Dir::open(physical.parent().unwrap_or(&physical))?.mount_id()
            || Dir::open(&path.join("blobs"))?.mount_id() != root.mount_id();
        if let Some(behind) = bind_mounted.then(|| behind_bind_mount(&blobs)).flatten() {
            blobs = Dir::open(&behind)?;
            physical = behind;
        }
        let shared_blobs = (physical != blobs_path || bind_mounted).then(|| physical.clone());
        let state_parent = match &shared_blobs {
            Some(physical) => home_of_shared(physical),
            None => path,
        };
        let (declared, memory) = (Declared::default(), OnceLock::new());
        let (state, noted) = (OnceLock::new(), OnceLock::new());
        Ok(Self { root, blobs, state, memory, state_parent, shared_blobs, declared, noted })
    }

    /// Opens the layout at `path`, or makes an empty one if there is nothing, an empty directory, or a layout that
    /// somebody is making or was killed while making.
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        if !path.join(LAYOUT_FILE).exists() && can_become_layout(path) {
            create_layout(path)?;
        }
        Self::open(path)
    }

    /// The layout directory, absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Where the blobs really are, if they are reached through a symbolic link or a bind mount: other layouts may use them
    /// too.
    pub fn shared_blobs(&self) -> Option<&Path> {
        self.shared_blobs.as_deref()
    }

    /// The path of the index, for messages.
    pub fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// Whether this layout was noted beside its blobs in the life of this value.
    pub(super) fn is_noted(&self) -> bool {
        self.noted.get().is_some()
    }

    /// Notes this layout beside its blobs, once in the life of this value.
    pub(super) fn note_layout_once(&self) -> Result<(), StoreError> {
        if !self.is_noted() {
            self.note_layout()?;
            let _ = self.noted.set(());
        }
        Ok(())
    }

    /// The directory of ours, made if it is not there.
    pub(super) fn state(&self) -> Result<&Dir, StoreError> {
        if let Some(state) = self.state.get() {
            return Ok(state);
        }
        let made = Dir::open(&self.state_parent).and_then(|parent| parent.make_sub(STATE));
        let state = made.map_err(|error| match error {
            StoreError::Io { source, .. } => StoreError::NoState { path: self.state_parent.join(STATE), source },
            other => other,
        })?;
        Ok(self.state.get_or_init(|| state))
    }

    /// Whether the directory of ours lies in this layout, and not with blobs that are shared.
    pub(super) fn has_own_state(&self) -> bool {
        self.state_parent == self.path()
    }

    /// The directory of ours, if it is there.
    pub(super) fn existing_state(&self) -> Result<Option<&Dir>, StoreError> {
        if let Some(state) = self.state.get() {
            return Ok(Some(state));
        }
        match Dir::open(&self.state_parent)?.sub(STATE) {
            Ok(state) => Ok(Some(self.state.get_or_init(|| state))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where files of ours are written before they get their names. What a crash leaves there is garbage for the collector,
    /// so everybody who writes holds the store lock, is the collector, or holds the lock of a [`super::partial::Partial`].
    pub(super) fn temp(&self) -> Result<Dir, StoreError> {
        self.state()?.make_sub("tmp")
    }

    /// A directory in the directory of ours, if it is there.
    pub(super) fn existing_state_sub(&self, name: &str) -> Result<Option<Dir>, StoreError> {
        let Some(state) = self.existing_state()? else { return Ok(None) };
        match state.sub(name) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The directory of ours: every known tool leaves it alone.
pub(super) const STATE: &str = ".pfs";

/// Where `.pfs` lies for a shared blob directory: in the layout that it belongs to, if there is one, else beside it.
fn home_of_shared(physical: &Path) -> PathBuf {
    let beside = physical.parent().unwrap_or(physical);
    match physical.ancestors().nth(2) {
        Some(layout) if physical.ends_with("blobs/sha256") && layout.join(LAYOUT_FILE).exists() => layout.into(),
        _ => beside.into(),
    }
}

fn check_layout_file(path: &Path) -> Result<(), String> {
    let text = match fs::read(path.join(LAYOUT_FILE)) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Err(format!("it has no {LAYOUT_FILE} file")),
        Err(cause) => return Err(format!("its {LAYOUT_FILE} file: {cause}")),
    };
    let file: LayoutFile = serde_json::from_slice(&text).map_err(|cause| format!("its {LAYOUT_FILE} file: {cause}"))?;
    if !LAYOUT_VERSIONS.contains(&file.image_layout_version.as_str()) {
        return Err(format!("its layout version {:?} is not known", file.image_layout_version));
    }
    Ok(())
}

/// Whether there is nothing but what an interrupted [`create_layout`] leaves.
fn can_become_layout(path: &Path) -> bool {
    let Ok(entries) = path.read_dir() else { return !path.exists() };
    let is_start = |name: &str| match name {
        "blobs" => holds_at_most(&path.join(name), "sha256") && holds_at_most(&path.join("blobs/sha256"), ""),
        INDEX => fs::read(path.join(name)).is_ok_and(|text| text == IndexDocument::empty().bytes()),
        _ => name.ends_with(PARTIAL),
    };
    entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_start)))
}

/// Whether a directory is empty, does not exist, or holds nothing but `name`.
fn holds_at_most(path: &Path, name: &str) -> bool {
    match path.read_dir() {
        Ok(entries) => entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.file_name() == *name)),
        Err(cause) => cause.kind() == io::ErrorKind::NotFound,
    }
}

/// Makes an empty layout. `oci-layout` is written last, because it is what makes a directory a layout. Nothing that is
/// there is replaced: another process may make the same layout, and have published an image in it already.
fn create_layout(path: &Path) -> Result<(), StoreError> {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).at("make the directory", &blobs)?;
    let root = Dir::open(path)?;
    for (name, text) in
        [(INDEX, IndexDocument::empty().bytes()), (LAYOUT_FILE, br#"{"imageLayoutVersion":"1.0.0"}"# as &[u8])]
    {
        root.write_unless_there(name, text)?;
        root.sync()?;
    }
    Ok(())
}
