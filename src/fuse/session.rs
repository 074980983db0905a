//! A connection to the kernel that serves one image.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use fuser::{Config, MountOption, SessionACL};

use super::Image;

/// Who may use a mount that fuser makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessList {
    /// The user that mounts it.
    Owner,
    /// Everybody, as far as the permissions in the image go. For ordinary users `/etc/fuse.conf` must allow it.
    Everybody,
}

/// How fuser, or `fusermount3` for it, is to mount.
#[derive(Debug, Clone)]
pub struct HelperOptions {
    /// What the mount table is to call the source.
    pub source: String,
    /// The subtype: the type in the mount table is `fuse.` and this.
    pub subtype: &'static str,
    /// Who may use it.
    pub access: AccessList,
    /// Lets the kernel check permission bits and owners.
    pub default_permissions: bool,
    /// Honour set-id bits, device nodes and executables.
    pub suid: bool,
    /// See `suid`.
    pub dev: bool,
    /// See `suid`.
    pub exec: bool,
}

/// A mounted or mountable image. Nothing is answered before [`Session::run`].
pub struct Session {
    inner: fuser::Session<Image>,
}

impl Session {
    /// Serves an open `/dev/fuse` that somebody else mounts. Returns when the kernel has shaken hands.
    pub fn from_device(image: Image, device: OwnedFd, threads: usize) -> io::Result<Self> {
        // Whom the kernel lets in is decided at the mount; there is nothing left to refuse here.
        let pushing = image.pushing();
        let inner = fuser::Session::from_fd(image, device, SessionACL::All, config(threads))?;
        pushing(inner.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inner })
    }

    /// Mounts by fuser's own means: mount(2) where that is allowed, else `fusermount3`.
    pub fn mount(image: Image, mountpoint: &Path, options: &HelperOptions, threads: usize) -> io::Result<Self> {
        let mut config = config(threads);
        config.mount_options = mount_options(options);
        config.acl = match options.access {
            AccessList::Owner => SessionACL::Owner,
            AccessList::Everybody => SessionACL::All,
        };
        let pushing = image.pushing();
        let inner = fuser::Session::new(image, mountpoint, &config)?;
        pushing(inner.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inner })
    }

    /// Answers until the image is unmounted.
    pub fn run(self) -> io::Result<()> {
        self.inner.run()
    }
}

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(threads.max(1));
    config
}

fn mount_options(options: &HelperOptions) -> Vec<MountOption> {
    let mut list = vec![
        MountOption::RO,
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype(options.subtype.into()),
        if options.suid { MountOption::Suid } else { MountOption::NoSuid },
        if options.dev { MountOption::Dev } else { MountOption::NoDev },
        if options.exec { MountOption::Exec } else { MountOption::NoExec },
    ];
    if options.default_permissions {
        list.push(MountOption::DefaultPermissions);
    }
    list
}
