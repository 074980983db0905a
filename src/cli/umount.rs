//! `pfs umount`.

use std::path::Path;

use pfs::mount::{self, WhenBusy};

use super::{Context, Ending};

/// Unmount an image, and wait until its process has let go of the store.
///
/// What is named is a directory, or an image, of which all mounts go. A mount whose process was killed is cleared away.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs umount /mnt/app\n  pfs umount /srv/oci:app\n  pfs umount --lazy /mnt/app")]
pub struct Args {
    /// A directory or an image.
    #[arg(value_name = "DIR|REF", required = true)]
    targets: Vec<String>,
    /// Take it out of sight at once, and let it end when the last file is closed.
    #[arg(short = 'z', long)]
    lazy: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let when_busy = if args.lazy { WhenBusy::Detach } else { WhenBusy::Refuse };
    for target in &args.targets {
        match context.reference(target) {
            Ok(image) if !is_path(target) => drop(mount::umount_image(&image, when_busy)?),
            _ => mount::umount(Path::new(target), when_busy)?,
        }
    }
    Ok(0)
}

/// A dead mountpoint is one too, although it cannot be looked into.
fn is_path(target: &str) -> bool {
    match std::fs::symlink_metadata(target) {
        Ok(_) => true,
        Err(cause) => !matches!(cause.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory),
    }
}
