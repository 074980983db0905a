//! Taking mounts out of the mount table, dead ones too.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::{io::Errno, mount::UnmountFlags};

use super::{
    Life, MountError, MountState,
    list::mounts,
    mountinfo::{self, FSTYPE, MountLine},
    preflight,
};
use crate::{
    name::{ImageRef, Selector, Surroundings},
    store::{LeaseKind, Store},
};

/// What to do about a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenBusy {
    /// Fail.
    Refuse,
    /// Take it out of sight, and let it end when the last file is closed.
    Detach,
}

const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long `umount` waits for the process of a mount to end: 10 s, in steps of 10 ms.
const PATIENCE_TRIES: u32 = 1000;

/// Unmounts the image on `directory`, and waits until its process has let go of the store, so that what comes next finds
/// it free. Also cleans up after a process that was killed.
pub fn umount(directory: &Path, when_busy: WhenBusy) -> Result<(), MountError> {
    let mountpoint = resolve(directory)?;
    let line = mountinfo::topmost(&mountpoint)?.filter(|line| line.fstype == FSTYPE);
    let line = line.ok_or_else(|| MountError::NotMounted(mountpoint.display().to_string()))?;
    let store = store_of(&line);
    let leases = store.as_ref().map(|store| leases_on(store, &mountpoint)).transpose()?.unwrap_or_default();
    detach_patiently(&mountpoint, when_busy)?;
    let Some(store) = store else { return Ok(()) };
    for id in leases {
        if !store.await_lease_end(&id, if when_busy == WhenBusy::Refuse { PATIENCE_TRIES } else { 1 })? {
            return if when_busy == WhenBusy::Refuse { Err(MountError::StillServing(mountpoint)) } else { Ok(()) };
        }
        store.remove_dead_lease(&id)?;
    }
    Ok(())
}

/// Unmounts every mount of an image, and returns where they were. Fails if there is none.
pub fn umount_image(image: &ImageRef, when_busy: WhenBusy) -> Result<Vec<PathBuf>, MountError> {
    let store = Store::open(&image.store)?;
    let of_image = |state: &MountState| {
        state.store.as_deref() == Some(store.path()) && state.life != Life::DeadLease && shows(state, &image.selector)
    };
    let states = mounts(Some(&store))?.into_iter().filter(of_image);
    let mountpoints: Vec<PathBuf> = states.filter_map(|state| state.mountpoint).collect();
    if mountpoints.is_empty() {
        return Err(MountError::NotMounted(image.to_string()));
    }
    mountpoints.iter().try_for_each(|mountpoint| umount(mountpoint, when_busy))?;
    Ok(mountpoints)
}

fn shows(state: &MountState, selector: &Selector) -> bool {
    match selector {
        Selector::Tag(tag) => state.tag.as_deref() == Some(tag.as_str()),
        Selector::Digest(prefix) => state.manifest.is_some_and(|found| found.to_string().starts_with(prefix)),
    }
}

/// The path of a mountpoint, also where a dead mount keeps it from being resolved.
fn resolve(directory: &Path) -> Result<PathBuf, MountError> {
    let failed = |cause| MountError::Mountpoint { path: directory.into(), cause };
    match directory.canonicalize() {
        Err(cause) if cause.kind() == io::ErrorKind::NotConnected => {
            let absolute = std::path::absolute(directory).map_err(failed)?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
            Ok(parent.canonicalize().map_err(failed)?.join(name))
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(MountError::NoMountpoint(directory.into())),
        resolved => resolved.map_err(failed),
    }
}

/// The store of a mount; `None` if it is gone, moved or unreadable, which is no reason not to unmount.
pub(super) fn store_of(line: &MountLine) -> Option<Store> {
    Store::open(&image_of(line)?.store).ok()
}

/// The image that the mount table names.
pub(super) fn image_of(line: &MountLine) -> Option<ImageRef> {
    let around = Surroundings { store: None, is_store: &Store::is_at, is_directory: &Path::is_dir };
    ImageRef::parse(&line.source, &around).ok()
}

fn leases_on(store: &Store, mountpoint: &Path) -> Result<Vec<String>, MountError> {
    let on_it = |record: &crate::store::LeaseRecord| {
        record.kind == LeaseKind::Mount && record.mountpoint.as_deref() == Some(mountpoint)
    };
    let leases = store.leases()?.into_iter();
    Ok(leases.filter(|lease| lease.record.as_ref().is_some_and(on_it)).map(|lease| lease.id).collect())
}

/// A child of somebody who has read from the mount has its files open for a moment, between fork and exec: what is busy is
/// tried again for a fifth of a second.
fn detach_patiently(mountpoint: &Path, when_busy: WhenBusy) -> Result<(), MountError> {
    for _ in 0..BUSY_TRIES {
        match detach(mountpoint, when_busy) {
            Err(MountError::Busy(_)) => thread::sleep(BUSY_PAUSE),
            ended => return ended,
        }
    }
    detach(mountpoint, when_busy)
}

/// Unmounts a path, as root by umount(2), as an ordinary user through `fusermount3`.
pub(super) fn detach(mountpoint: &Path, when_busy: WhenBusy) -> Result<(), MountError> {
    let flags = match when_busy {
        WhenBusy::Refuse => UnmountFlags::NOFOLLOW,
        WhenBusy::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(MountError::Busy(mountpoint.into())),
        Err(Errno::INVAL) => Err(MountError::NotMounted(mountpoint.display().to_string())),
        Err(Errno::PERM) => detach_by_helper(mountpoint, when_busy),
        Err(cause) => Err(MountError::Kernel { action: "unmount", mountpoint: mountpoint.into(), cause: cause.into() }),
    }
}

fn detach_by_helper(mountpoint: &Path, when_busy: WhenBusy) -> Result<(), MountError> {
    let mut command = Command::new(preflight::helper().ok_or(MountError::NoHelper)?);
    command.arg("-u");
    if when_busy == WhenBusy::Detach {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).stdin(Stdio::null()).output();
    let output = output.map_err(MountError::system("run fusermount3"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(MountError::Busy(mountpoint.into())),
        false => Err(MountError::Helper(said.trim().into())),
    }
}
