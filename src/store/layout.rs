//! Opening and making a store.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{OnceLock, RwLock},
    thread,
};

use rustix::fs::FileType;
use serde::Deserialize;

use super::{
    StoreError,
    disk::{Dir, PARTIAL},
    error::At,
    index::{FIRST_PAUSE, HashedIndex, INDEX, TRIES},
    neighbours::Neighbours,
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
    /// Where `.pfs` lies or would lie.
    home: Dir,
    has_own_state: bool,
    shared_blobs: Option<PathBuf>,
    pub(super) declared: Declared,
    noted: OnceLock<()>,
    pub(super) hashed_index: HashedIndex,
    pub(super) neighbours: Neighbours,
}

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT_FILE_BYTES_MAX: u64 = 64 << 10;
/// The user who may do everything, and is led nowhere by others.
const ROOT: u32 = 0;
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
    ///
    /// Every directory is opened in one that is held open. A link is followed only where `blobs` or `blobs/sha256` is one, once,
    /// and what it leads to is held open from then on: to swap names afterwards changes nothing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let not_a_store = |why: String| StoreError::NotAStore { path: path.into(), why };
        let root = match Dir::open_physical(path) {
            Ok(root) => root,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
                return Err(not_a_store("it is not a directory".into()));
            }
            Err(StoreError::Io { source, .. }) => return Err(not_a_store(source.to_string())),
            Err(error) => return Err(error),
        };
        check_layout_file(&root).map_err(not_a_store)?;
        if root.stat(INDEX)?.is_none() {
            return Err(not_a_store("it has no index.json".into()));
        }
        let no_blobs = |error: StoreError| match error {
            StoreError::Io { .. } => not_a_store("it has no blobs/sha256".into()),
            other => other,
        };
        let parent = open_blobs_part(&root, &root, "blobs").map_err(no_blobs)?;
        let mut blobs = open_blobs_part(&root, &parent, "sha256").map_err(no_blobs)?;
        let bind_mounted = blobs.mount_id() != blobs.parent()?.mount_id() || parent.mount_id() != root.mount_id();
        if let Some(behind) = bind_mounted.then(|| behind_bind_mount(&blobs)).flatten() {
            blobs = behind;
        }
        let is_shared = bind_mounted || blobs.path() != root.join("blobs/sha256");
        let shared_blobs = is_shared.then(|| blobs.path().to_owned());
        let (home, has_own_state) = match is_shared {
            true => home_of_shared(&blobs, &root)?,
            false => (root.again()?, true),
        };
        let (declared, memory) = (Declared::default(), OnceLock::new());
        let (state, noted) = (OnceLock::new(), OnceLock::new());
        let (hashed_index, neighbours) = (HashedIndex::default(), Neighbours::default());
        Ok(Self {
            root,
            blobs,
            state,
            memory,
            home,
            has_own_state,
            shared_blobs,
            declared,
            noted,
            hashed_index,
            neighbours,
        })
    }

    /// Opens the layout at `path`, or makes an empty one if there is nothing, an empty directory, or a layout that
    /// somebody is making or was killed while making.
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        if !path.join(LAYOUT_FILE).exists() && can_become_layout(path) {
            create_layout(path)?;
        }
        Self::open(path)
    }

    /// Device and inode of the layout directory.
    pub fn identity(&self) -> Result<(u64, u64), StoreError> {
        let stat = self.root.own_stat()?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Whether there is a layout at this path, as far as names tell.
    pub fn is_at(path: &Path) -> bool {
        [LAYOUT_FILE, INDEX].iter().all(|name| path.join(name).symlink_metadata().is_ok())
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
        let state = self.home.make_sub(STATE).map_err(|error| match error {
            StoreError::Io { source, .. } => StoreError::NoState { path: self.home.join(STATE), source },
            other => other,
        })?;
        Ok(self.state.get_or_init(|| state))
    }

    /// Whether the directory of ours lies in this layout, and not with blobs that are shared.
    pub(super) fn has_own_state(&self) -> bool {
        self.has_own_state
    }

    /// The directory of ours, if it is there.
    pub(super) fn existing_state(&self) -> Result<Option<&Dir>, StoreError> {
        if let Some(state) = self.state.get() {
            return Ok(Some(state));
        }
        match self.home.sub(STATE) {
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

/// Opens a directory on the way to the blobs. A link is followed once. Where root works in a store, it is not led by a link
/// that somebody else has made to what is not theirs.
fn open_blobs_part(root: &Dir, dir: &Dir, name: &str) -> Result<Dir, StoreError> {
    let is_link =
        dir.stat(name)?.is_some_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Symlink);
    if !is_link {
        return dir.sub(name);
    }
    let link_owner = dir.stat(name)?.map_or(0, |stat| stat.stx_uid);
    let led_to = dir.sub_through_link(name)?;
    let owner = led_to.owner()?;
    let is_led_astray = [link_owner, dir.owner()?, root.owner()?].iter().any(|who| *who != ROOT && *who != owner);
    match rustix::process::geteuid().is_root() && is_led_astray {
        true => Err(StoreError::LedAway { path: dir.join(name), to: led_to.path().into() }),
        false => Ok(led_to),
    }
}

/// Where `.pfs` lies for a shared blob directory: in the layout that it belongs to, if there is one, else beside it; and whether
/// that is the layout that was opened.
fn home_of_shared(blobs: &Dir, root: &Dir) -> Result<(Dir, bool), StoreError> {
    let beside = blobs.parent()?;
    if blobs.path().ends_with("blobs/sha256") {
        let layout = beside.parent()?;
        if layout.stat(LAYOUT_FILE)?.is_some() {
            let is_own = layout.path() == root.path();
            return Ok((layout, is_own));
        }
    }
    let is_own = beside.path() == root.path();
    Ok((beside, is_own))
}

/// skopeo writes this file in place on every copy, so a torn one is read again for a third of a second.
fn check_layout_file(root: &Dir) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match root.read_at_most(LAYOUT_FILE, LAYOUT_FILE_BYTES_MAX) {
            Ok(text) if serde_json::from_slice::<LayoutFile>(&text).is_err() => thread::sleep(pause),
            _ => break,
        }
        pause *= 2;
    }
    check_layout_file_once(root)
}

fn check_layout_file_once(root: &Dir) -> Result<(), String> {
    let text = match root.read_at_most(LAYOUT_FILE, LAYOUT_FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Err(format!("it has no {LAYOUT_FILE} file")),
        Err(StoreError::NotAFile { what, .. }) => return Err(format!("its {LAYOUT_FILE} is {what}, not a file")),
        Err(StoreError::Io { source, .. }) => return Err(format!("its {LAYOUT_FILE} file: {source}")),
        Err(error) => return Err(error.to_string()),
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
        INDEX => is_empty_index(path),
        _ => name.ends_with(PARTIAL),
    };
    entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_start)))
}

/// Whether the index is that of a new layout.
fn is_empty_index(path: &Path) -> bool {
    let empty = IndexDocument::empty();
    let text = Dir::open(path).and_then(|dir| dir.read_at_most(INDEX, empty.bytes().len() as u64));
    text.is_ok_and(|text| text == empty.bytes())
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
    fs::create_dir_all(path).at("make the directory", path)?;
    let root = Dir::open(path)?;
    root.make_new_sub("blobs")?;
    open_blobs_part(&root, &root, "blobs")?.make_new_sub("sha256")?;
    for (name, text) in
        [(INDEX, IndexDocument::empty().bytes()), (LAYOUT_FILE, br#"{"imageLayoutVersion":"1.0.0"}"# as &[u8])]
    {
        root.write_unless_there(name, text)?;
        root.sync()?;
    }
    Ok(())
}
