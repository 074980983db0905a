//! `pfs mount`.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use pfs::{
    image::WantedPlatform,
    mount::{self, MountError, MountOptions, MountRequest, background},
    tree::{DamageObserver, ReadError, Verify},
};

use super::{Context, Ending, Failure};

/// Mount an image, read-only.
///
/// Returns when the mount answers, or has failed; a process in the background serves it. As long as it is mounted, nothing
/// that it needs is freed, whatever happens to its tag.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs mount /srv/oci:app /mnt/app\n  pfs mount -f /srv/oci:app /mnt/app\n  \
        pfs mount -o suid,dev /srv/oci:app /mnt/app\n  pfs mount --verify always /srv/oci:app /mnt/app")]
pub struct Args {
    /// The image.
    #[arg(value_name = "REF")]
    image: String,
    /// The directory to mount it on.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Stay in the foreground, and tell of damaged chunks on stderr.
    #[arg(short, long)]
    foreground: bool,
    /// Which image of an index, as in linux/arm64. The default is that of this machine.
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<WantedPlatform>,
    /// Mount options: [no]allow_other, default_permissions, suid, dev, noexec, verify=, threads=, read_ahead_kb=.
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// When a chunk is compared with its digest: when it is first read, always, or never.
    #[arg(long, value_enum)]
    verify: Option<When>,
    /// How many threads answer.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The process in the background, which this program starts for itself.
    #[arg(long, hide = true)]
    daemon: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    First,
    Always,
    Off,
}

impl From<When> for Verify {
    fn from(when: When) -> Self {
        match when {
            When::First => Self::First,
            When::Always => Self::Always,
            When::Off => Self::Off,
        }
    }
}

/// What stands between the arguments of the parent and the child's own.
const DAEMON: &str = "--daemon";

pub fn run(context: &Context, args: Args) -> Ending {
    let request = request(context, &args)?;
    match (args.daemon, args.foreground) {
        (true, _) => Ok(daemon(&request)),
        (false, true) => {
            mount::mount(&request, jiff::Timestamp::now(), Box::new(tell_on_stderr))?.serve(|| Ok(()))?;
            Ok(0)
        }
        (false, false) => {
            launch()?;
            Ok(0)
        }
    }
}

fn request(context: &Context, args: &Args) -> Result<MountRequest, Failure> {
    let mut options = MountOptions::default();
    args.options.iter().try_for_each(|list| options.apply(list))?;
    if let Some(threads) = args.threads {
        options.apply(&format!("threads={threads}"))?;
    }
    options.verify = args.verify.map_or(options.verify, Verify::from);
    let image = context.reference(&args.image).map_err(|failure| swapped(context, args).unwrap_or(failure))?;
    let platform = args.platform.clone().unwrap_or_else(WantedPlatform::here);
    Ok(MountRequest { image, platform, mountpoint: args.directory.clone(), options })
}

/// What to say if the arguments have changed places.
fn swapped(context: &Context, args: &Args) -> Option<Failure> {
    let reference = args.directory.to_str().filter(|_| Path::new(&args.image).is_dir())?;
    context.reference(reference).ok()?;
    let failure = Failure::usage("the image comes first, then the directory".into());
    Some(failure.hint(format!("pfs mount {reference} {}", args.image)))
}

fn launch() -> Result<(), MountError> {
    let mut own = env::args_os();
    let name = own.next().unwrap_or_else(|| "pfs".into());
    let mut arguments: Vec<OsString> = own.collect();
    // Right after the word `mount`, where no `--` can stand before it.
    let place = arguments.iter().position(|argument| argument == "mount").map_or(0, |at| at + 1);
    arguments.insert(place, DAEMON.into());
    background::launch(&name, &arguments)
}

/// Everything that happens before the parent is told goes to the parent, the exit code with it.
fn daemon(request: &MountRequest) -> u8 {
    let mut told = false;
    let served = background::begin()
        .and_then(|()| mount::mount(request, jiff::Timestamp::now(), log_damage()))
        .and_then(|mounted| {
            mounted.serve(|| {
                background::ready()?;
                told = true;
                Ok(())
            })
        });
    match served.map_err(Failure::from) {
        Ok(()) => 0,
        Err(failure) => {
            match told {
                true => log(&failure.lines().join("; ")),
                false => background::failed(failure.code(), &failure.lines().join("\n")),
            }
            failure.code()
        }
    }
}

fn tell_on_stderr(damage: &ReadError) {
    anstream::eprintln!("{}", damage_text(damage));
}

fn log_damage() -> DamageObserver {
    Box::new(|damage| log(&damage_text(damage)))
}

fn damage_text(damage: &ReadError) -> String {
    format!("{damage}; pfs check lists everything that is damaged")
}

/// Connects anew for each of these few lines, because a syslog daemon may have been restarted since the last. Where
/// there is none, nobody listens.
fn log(line: &str) {
    let formatter = syslog::Formatter3164 {
        facility: syslog::Facility::LOG_DAEMON,
        hostname: None,
        process: "pfs".into(),
        pid: std::process::id(),
    };
    if let Ok(mut logger) = syslog::unix(formatter) {
        let _ = logger.err(line);
    }
}
