//! The command line: the only room that speaks to people, picks exit codes, or asks for the time and the environment.
//!
//! One file a command, each of one shape: parse, open, act, print.

mod build;
mod check;
mod delete;
mod du;
mod duration;
mod failure;
mod gc;
mod inspect;
mod ls;
mod mount;
mod mounts;
mod output;
mod pin;
mod pins;
mod progress;
mod prune;
mod refs;
mod umount;
mod undo;
mod unpin;
mod why;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use failure::Failure;
use pfs::{
    name::{ImageRef, ReferenceError, Selector, Surroundings, is_digest_prefix},
    store::Store,
};

/// How a command ends when nothing goes wrong: an exit code, 0 for done.
type Ending = Result<u8, Failure>;

#[derive(Parser)]
#[command(
    name = "pfs",
    version,
    about = "Mounts, counts, deletes and collects puzzlefs images without losing a chunk that anything still needs",
    after_help = "A reference is STORE:TAG or STORE@DIGEST, of which the first digits will do; or just TAG or DIGEST with -s STORE, with\n\
        PFS_STORE, or in the directory of a store. A reference in full always wins over PFS_STORE.\n\n\
        Examples:\n  pfs build ./rootfs /srv/oci:app\n  pfs mount /srv/oci:app /mnt/app\n  pfs umount /mnt/app\n  \
        pfs delete /srv/oci:app\n  pfs gc -n /srv/oci\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 4 findings, 10 not a store, 11 locked or busy,\n\
        12 no such tag or digest, 13 in use, 14 refused for safety, 15 integrity failure."
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Globals {
    /// The store of a bare TAG or DIGEST.
    #[arg(short, long, global = true, value_name = "STORE", env = "PFS_STORE")]
    store: Option<PathBuf>,
    /// No progress, no hints; only what was asked for.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
enum Command {
    Build(build::Args),
    #[command(visible_alias = "images")]
    Ls(ls::Args),
    Inspect(inspect::Args),
    Mount(mount::Args),
    #[command(visible_alias = "unmount")]
    Umount(umount::Args),
    Mounts(mounts::Args),
    #[command(visible_aliases = ["rm", "rmi"])]
    Delete(delete::Args),
    Gc(gc::Args),
    Prune(prune::Args),
    Undo(undo::Args),
    Du(du::Args),
    Refs(refs::Args),
    Why(why::Args),
    Pin(pin::Args),
    Unpin(unpin::Args),
    Pins(pins::Args),
    #[command(visible_aliases = ["fsck", "verify"])]
    Check(check::Args),
}

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.globals.color {
        Color::Auto => {}
        Color::Always => colorchoice::ColorChoice::Always.write_global(),
        Color::Never => colorchoice::ColorChoice::Never.write_global(),
    }
    let context = Context { globals: cli.globals };
    match context.run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print(context.globals.quiet);
            ExitCode::from(failure.code())
        }
    }
}

/// Help and version go to stdout with code 0, everything else to stderr with code 2.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What every command gets.
struct Context {
    globals: Globals,
}

impl Context {
    fn run(&self, command: Command) -> Ending {
        match command {
            Command::Build(args) => build::run(self, args),
            Command::Ls(args) => ls::run(self, args),
            Command::Inspect(args) => inspect::run(self, args),
            Command::Mount(args) => mount::run(self, args),
            Command::Umount(args) => umount::run(self, args),
            Command::Mounts(args) => mounts::run(self, args),
            Command::Delete(args) => delete::run(self, args),
            Command::Gc(args) => gc::run(self, args),
            Command::Prune(args) => prune::run(self, args),
            Command::Undo(args) => undo::run(self, args),
            Command::Du(args) => du::run(self, args),
            Command::Refs(args) => refs::run(self, args),
            Command::Why(args) => why::run(self, args),
            Command::Pin(args) => pin::run(self, args),
            Command::Unpin(args) => unpin::run(self, args),
            Command::Pins(args) => pins::run(self, args),
            Command::Check(args) => check::run(self, args),
        }
    }

    /// The store that a bare tag is looked for in: the one that is set, or the current directory.
    fn known_store(&self) -> Option<PathBuf> {
        let here = || Some(PathBuf::from(".")).filter(|here| Store::is_at(here));
        self.globals.store.clone().or_else(here)
    }

    /// Reads a reference to an image that exists. Digits that are no tag are a digest, as `pfs ls` prints it.
    fn reference(&self, text: &str) -> Result<ImageRef, Failure> {
        let known = self.known_store();
        let image = match ImageRef::parse(text, &surroundings(known.as_deref())) {
            Err(ReferenceError::NoStore(_)) if Store::is_at(Path::new(text)) => {
                let problem = format!("{text} is a store; this command takes an image");
                return Err(Failure::usage(problem).hint(format!("write {text}:TAG; pfs ls {text} lists the tags")));
            }
            parsed => parsed?,
        };
        let Selector::Tag(tag) = &image.selector else { return Ok(image) };
        if !is_digest_prefix(tag.as_str()) {
            return Ok(image);
        }
        let index = Store::open(&image.store)?.index()?;
        let is_tag = index.document().entries().iter().any(|entry| entry.tag.as_ref() == Some(tag));
        match is_tag {
            true => Ok(image),
            false => Ok(ImageRef { selector: Selector::Digest(tag.to_string()), ..image }),
        }
    }

    /// Reads a reference to an image that is about to be made, perhaps in a new store.
    fn new_reference(&self, text: &str) -> Result<ImageRef, Failure> {
        Ok(ImageRef::parse_new(text, &surroundings(self.known_store().as_deref()))?)
    }

    /// Takes several references apart, which must be of one store.
    fn references(&self, texts: &[String]) -> Result<(PathBuf, Vec<ImageRef>), Failure> {
        let references = texts.iter().map(|text| self.reference(text)).collect::<Result<Vec<_>, _>>()?;
        let store = references.first().map(|first| first.store.clone()).unwrap_or_default();
        match references.iter().find(|reference| reference.store != store) {
            Some(other) => Err(Failure::usage(format!("{} and {} are of different stores", references[0], other))),
            None => Ok((store, references)),
        }
    }

    /// Opens the store that was named, or the one that is set.
    fn open(&self, named: Option<&PathBuf>) -> Result<Store, Failure> {
        let path = named.cloned().or_else(|| self.known_store());
        let path = path.ok_or_else(|| Failure::usage("which store? Name it, or set PFS_STORE".into()))?;
        self.open_named(&path)
    }

    /// Opens a store; says so if it is an image that was named.
    fn open_named(&self, path: &Path) -> Result<Store, Failure> {
        Store::open(path).map_err(|error| {
            let image = path.to_str().and_then(|text| ImageRef::parse(text, &surroundings(None)).ok());
            match image.filter(|image| Store::is_at(&image.store) && !path.exists()) {
                Some(image) => Failure::usage(format!("{} is an image; this command takes a store", path.display()))
                    .hint(format!("its store is {}", image.store.display())),
                None => error.into(),
            }
        })
    }

    fn progress(&self, json: bool) -> progress::Progress {
        progress::Progress::new(self.globals.quiet || json)
    }

    /// The time by this machine's clock, in seconds since 1970.
    fn now_seconds(&self) -> i64 {
        jiff::Timestamp::now().as_second()
    }
}

fn surroundings(store: Option<&Path>) -> Surroundings<'_> {
    Surroundings { store, is_store: &Store::is_at, is_directory: &is_directory }
}

/// The parent of a path of one name is the empty path, which is the current directory.
fn is_directory(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.is_dir()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_text_ends_with_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  pfs "), "{}", command.get_name());
        }
    }
}
