//! What must be so before a mount is tried, checked first, so that the reason given is the real one.

use std::{
    env, fs,
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use super::{
    MountError,
    mountinfo::{self, FSTYPE},
};

const DEVICE: &str = "/dev/fuse";
/// As fuser looks for them.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];
const HELPER_VARIABLE: &str = "FUSERMOUNT_PATH";

/// Checks the mountpoint, and returns it absolute and without symbolic links.
pub(super) fn mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let absolute = path.canonicalize().map_err(|cause| mountpoint_error(path, cause))?;
    if !fs::metadata(&absolute).map_err(|cause| mountpoint_error(path, cause))?.is_dir() {
        return Err(MountError::NotADirectory(absolute));
    }
    match mountinfo::topmost(&absolute)? {
        Some(_) if mountinfo::is_dead(&absolute) => Err(MountError::DeadMount(absolute)),
        Some(line) if line.fstype == FSTYPE => {
            Err(MountError::AlreadyMounted { mountpoint: absolute, source_name: line.source })
        }
        _ => Ok(absolute),
    }
}

fn mountpoint_error(path: &Path, cause: io::Error) -> MountError {
    match cause.kind() {
        io::ErrorKind::NotFound => MountError::NoMountpoint(path.into()),
        io::ErrorKind::NotADirectory => MountError::NotADirectory(path.into()),
        io::ErrorKind::NotConnected => MountError::DeadMount(path.into()),
        _ => MountError::Mountpoint { path: path.into(), cause },
    }
}

/// Checks that FUSE can be used at all, by root or by an ordinary user.
pub(super) fn fuse(root: bool) -> Result<(), MountError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(device_error)?;
    if root || has_helper() { Ok(()) } else { Err(MountError::NoHelper) }
}

fn device_error(cause: io::Error) -> MountError {
    match cause.kind() {
        io::ErrorKind::NotFound => MountError::NoDevice,
        // No module behind the device node: ENODEV or ENXIO.
        _ if matches!(cause.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => MountError::NoDevice,
        _ => MountError::DeviceRefused(cause),
    }
}

fn has_helper() -> bool {
    helper().is_some()
}

/// Where `fusermount3` is.
pub(super) fn helper() -> Option<PathBuf> {
    if let Some(path) = env::var_os(HELPER_VARIABLE) {
        return Some(path.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).chain([PathBuf::from("/sbin"), PathBuf::from("/bin")]).collect();
    HELPERS.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|path| path.is_file())
}
