//! Why a mount or an unmount did not come about.

use std::{io, path::PathBuf};

use crate::{graph::ImageError, store::StoreError, tree::TreeError};

/// What went wrong, in one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The directory to mount on does not exist.
    #[error("the mountpoint {} does not exist", .0.display())]
    NoMountpoint(PathBuf),
    /// It is something else than a directory.
    #[error("the mountpoint {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// An image is mounted there.
    #[error("{source_name} is already mounted on {}", mountpoint.display())]
    AlreadyMounted {
        /// Where.
        mountpoint: PathBuf,
        /// `STORE:TAG` of what is mounted there.
        source_name: String,
    },
    /// A mount whose daemon is dead is in the way.
    #[error("{} has a mount whose process is dead", .0.display())]
    DeadMount(PathBuf),
    /// The mountpoint cannot be looked at.
    #[error("the mountpoint {} cannot be used: {cause}", path.display())]
    Mountpoint {
        /// Which one.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The kernel has no FUSE, or the container hides it.
    #[error("there is no /dev/fuse here: the kernel module fuse is not loaded, or the device is not in this container")]
    NoDevice,
    /// `/dev/fuse` is there, but not for this user.
    #[error("/dev/fuse cannot be opened by this user: {0}")]
    DeviceRefused(io::Error),
    /// An ordinary user needs `fusermount3`, and it is not installed.
    #[error("fusermount3 is not installed, and only root can mount without it")]
    NoHelper,
    /// `fusermount3` refused.
    #[error("fusermount3 refused: {0}")]
    Helper(String),
    /// The kernel refused a step of mounting.
    #[error("cannot {action} on {}: {cause}", mountpoint.display())]
    Kernel {
        /// The step, as a verb phrase.
        action: &'static str,
        /// Where.
        mountpoint: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A word after `-o` that means nothing here.
    #[error("the mount option {0:?} is not known")]
    Option(String),
    /// The store or a lease in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image cannot be found or read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image is not a tree.
    #[error("{image}: {source}")]
    Tree {
        /// `STORE:TAG`.
        image: String,
        /// What is wrong with it.
        source: TreeError,
    },
    /// Serving or starting to serve failed.
    #[error("cannot {action}: {cause}")]
    System {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The cause.
        cause: io::Error,
    },
    /// The process in the background failed, and this is what it said.
    #[error("{text}")]
    Background {
        /// Its exit code.
        code: u8,
        /// Its words.
        text: String,
    },
    /// No image is mounted on that directory, or that image on none.
    #[error("nothing is mounted: {0}")]
    NotMounted(String),
    /// Something is in use.
    #[error("{} is in use: a process has a file open or its working directory there", .0.display())]
    Busy(PathBuf),
    /// It was unmounted, but somebody still has files of it open, so that its lease lives on.
    #[error("{} is unmounted, but its process still serves files that are open", .0.display())]
    StillServing(PathBuf),
}

impl MountError {
    /// Puts an act on an error of the system.
    pub(super) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::System { action, cause: cause.into() }
    }
}
