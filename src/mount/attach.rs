//! Putting an image into the mount table.
//!
//! Root uses the new mount API, because mount(2) cannot give a FUSE mount its own type and source; the mount appears
//! when the kernel and we have shaken hands, so nobody sees half of it. Everybody else goes through `fusermount3`.

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::CWD,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags},
};

use super::{MountError, MountOptions, mountinfo};
use crate::fuse::{AccessList, HelperOptions, Image, Session};

/// What the mount table calls our kind of FUSE filesystem.
const SUBTYPE: &str = "pfs";
/// The mode of the root until the kernel asks for it: a directory.
const ROOT_MODE: &str = "40755";
/// The largest read that the kernel may send; it never sends more than 1 MiB.
const READ_BYTES_MAX: &str = "1048576";

/// Mounts the image.
pub(super) fn attach(
    image: Image,
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<Session, MountError> {
    let root = rustix::process::geteuid().is_root();
    match if root { open_context() } else { None } {
        Some(context) => attach_new(context, image, mountpoint, source, options),
        None => attach_by_fuser(image, mountpoint, source, options, root),
    }
}

/// `None` where the kernel is too old for the new mount API, or a container forbids it.
fn open_context() -> Option<OwnedFd> {
    rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).ok()
}

fn attach_new(
    context: OwnedFd,
    image: Image,
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<Session, MountError> {
    let failed = |action| move |cause: io::Error| MountError::Kernel { action, mountpoint: mountpoint.into(), cause };
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(MountError::DeviceRefused)?;
    configure(&context, &device, source, options).map_err(failed("set up the mount"))?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(&context, flags, attributes(options));
    let mount = mount.map_err(|cause| failed("make the mount")(cause.into()))?;
    let session = Session::from_device(image, device.into(), options.threads).map_err(failed("start FUSE"))?;
    rustix::mount::move_mount(&mount, "", CWD, mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|cause| failed("mount")(cause.into()))?;
    Ok(session)
}

fn configure(context: &OwnedFd, device: &fs::File, source: &str, options: &MountOptions) -> io::Result<()> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};
    let texts = [
        ("source", source),
        ("subtype", SUBTYPE),
        ("fd", &device.as_raw_fd().to_string()),
        ("rootmode", ROOT_MODE),
        ("user_id", &rustix::process::getuid().as_raw().to_string()),
        ("group_id", &rustix::process::getgid().as_raw().to_string()),
        ("max_read", READ_BYTES_MAX),
    ];
    for (key, value) in texts {
        fsconfig_set_string(context, key, value)?;
    }
    let flags = [
        ("ro", true),
        ("allow_other", options.lets_others_in(true)),
        ("default_permissions", options.checks_permissions(true)),
    ];
    for (key, _) in flags.into_iter().filter(|(_, on)| *on) {
        fsconfig_set_flag(context, key)?;
    }
    Ok(fsconfig_create(context)?)
}

fn attributes(options: &MountOptions) -> MountAttrFlags {
    let refused = [
        (options.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (options.dev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (options.exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    let refused = refused.into_iter().filter(|(allowed, _)| !allowed).map(|(_, flag)| flag);
    refused.fold(MountAttrFlags::MOUNT_ATTR_RDONLY, |all, flag| all | flag)
}

fn attach_by_fuser(
    image: Image,
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
    root: bool,
) -> Result<Session, MountError> {
    let helper = HelperOptions {
        source: if root { source.into() } else { escape(source) },
        subtype: SUBTYPE,
        access: if options.lets_others_in(root) { AccessList::Everybody } else { AccessList::Owner },
        default_permissions: options.checks_permissions(root),
        suid: options.suid,
        dev: options.dev,
        exec: options.exec,
    };
    Session::mount(image, mountpoint, &helper, options.threads).map_err(|cause| MountError::Helper(one_line(&cause)))
}

/// `fusermount3` takes its options apart at commas.
fn escape(source: &str) -> String {
    source.replace('\\', r"\\").replace(',', r"\,")
}

fn one_line(cause: &io::Error) -> String {
    cause.to_string().trim().trim_start_matches("fusermount3: ").replace('\n', "; ")
}

/// Raises the readahead of a mount, which FUSE leaves at 128 KiB. Has to happen before files are opened.
pub(super) fn raise_read_ahead(mountpoint: &Path, kb: u32) -> Result<(), MountError> {
    let Some(line) = mountinfo::topmost(mountpoint)? else { return Ok(()) };
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", line.device);
    fs::write(path, kb.to_string()).map_err(MountError::system("set the readahead of the mount"))
}
