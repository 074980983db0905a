//! Mounting an image, unmounting it, and listing what is mounted.
//!
//! A mount is alive exactly as long as its process holds the flock of its lease; everything else, the line in the mount
//! table among it, is only evidence.

mod attach;
pub mod background;
mod detach;
mod error;
mod list;
mod mountinfo;
mod options;
mod preflight;
mod serve;

pub use detach::{WhenBusy, umount, umount_image};
pub use error::MountError;
pub use list::{Life, MountState, mounts};
pub use mountinfo::{FSTYPE, MountLine};
pub use options::MountOptions;
pub use serve::{MountRequest, Mounted, mount};
