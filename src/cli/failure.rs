//! How an error of the library becomes an exit code and a hint. One place, one table.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anstyle::{AnsiColor, Style};
use pfs::{
    build::BuildError,
    check::CheckError,
    delete::{Conflict, DeleteError, MountedAt},
    explain::ExplainError,
    gc::GcError,
    graph::{ImageError, RootOrigin, WalkError, WalkProblem},
    mount::MountError,
    name::ReferenceError,
    pin::PinError,
    prune::PruneError,
    store::StoreError,
    undo::UndoError,
};

/// The exit code of a command that has done some of what it was asked for.
pub const PARTLY_DONE: u8 = 3;

/// What an error means to whoever called the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Failed,
    Usage,
    PartlyDone,
    NotAStore,
    Busy,
    NotFound,
    InUse,
    Refused,
    Integrity,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Failed,
        Self::Usage,
        Self::PartlyDone,
        Self::NotAStore,
        Self::Busy,
        Self::NotFound,
        Self::InUse,
        Self::Refused,
        Self::Integrity,
    ];

    /// The kind that ends with this exit code.
    fn of_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(Self::Failed)
    }

    /// The exit code: a promise to scripts, listed in `pfs --help`.
    fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::PartlyDone => PARTLY_DONE,
            Self::NotAStore => 10,
            Self::Busy => 11,
            Self::NotFound => 12,
            Self::InUse => 13,
            Self::Refused => 14,
            Self::Integrity => 15,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::PartlyDone => "partly-done",
            Self::NotAStore => "not-a-store",
            Self::Busy => "busy",
            Self::NotFound => "not-found",
            Self::InUse => "in-use",
            Self::Refused => "refused",
            Self::Integrity => "integrity",
        }
    }
}

/// An error, ready for people: a sentence, and hints that can be run.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    error: anyhow::Error,
    hints: Vec<String>,
    json: bool,
}

impl Failure {
    pub fn new(kind: Kind, error: impl Into<anyhow::Error>) -> Self {
        Self { kind, error: error.into(), hints: Vec::new(), json: false }
    }

    pub fn usage(message: String) -> Self {
        Self::new(Kind::Usage, anyhow::Error::msg(message))
    }

    pub fn failed(message: String) -> Self {
        Self::new(Kind::Failed, anyhow::Error::msg(message))
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Whether the error itself is printed as JSON.
    #[must_use]
    pub fn json(mut self, json: bool) -> Self {
        self.json = json;
        self
    }

    pub fn code(&self) -> u8 {
        self.kind.code()
    }

    /// The sentence and then the hints, for handing them on.
    pub fn lines(&self) -> Vec<String> {
        std::iter::once(self.error.to_string()).chain(self.hints.iter().cloned()).collect()
    }

    /// What another process of ours said: the lines of its failure.
    fn relayed(code: u8, text: &str) -> Self {
        let mut lines = text.lines().map(str::to_owned);
        let message = lines.next().unwrap_or_default();
        Self { hints: lines.collect(), ..Self::new(Kind::of_code(code), anyhow::Error::msg(message)) }
    }

    pub fn print(&self, quiet: bool) {
        // Whom it cannot be told, the exit code tells.
        let mut stderr = anstream::stderr();
        if self.json {
            let error = serde_json::json!({"error": {
                "code": self.kind.name(),
                "exit": self.kind.code(),
                "message": self.error.to_string(),
                "hints": self.hints,
            }});
            let _ = writeln!(stderr, "{error}");
            return;
        }
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let _ = writeln!(stderr, "{red}error:{red:#} {}", self.error);
        let cyan = Style::new().fg_color(Some(AnsiColor::Cyan.into()));
        for hint in self.hints.iter().filter(|_| !quiet) {
            let _ = writeln!(stderr, "{cyan}hint:{cyan:#} {hint}");
        }
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Self::new(Kind::Usage, error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
        let (kind, hint) = match &error {
            StoreError::NotAStore { .. } => {
                (Kind::NotAStore, Some("a store is an OCI layout directory; pfs build DIR STORE:TAG makes one".into()))
            }
            StoreError::Locked { .. } => (Kind::Busy, Some("try again when the other pfs command has ended".into())),
            StoreError::LockedBy { .. } => (Kind::Busy, Some("try again when that process has ended".into())),
            StoreError::FreedMeanwhile(_) => {
                (Kind::Busy, Some("build it again when the other program has ended".into()))
            }
            StoreError::IndexOverwritten { .. } => {
                (Kind::Busy, Some("look which tag is missing, and have the other program set it again".into()))
            }
            StoreError::IndexBusy { .. } => (Kind::Busy, Some("try again when the other program has ended".into())),
            StoreError::Missing(_) | StoreError::Damaged { .. } | StoreError::NotAFile { .. } => {
                (Kind::Integrity, Some("pfs check STORE lists everything that is damaged".into()))
            }
            StoreError::Index { path, .. } => (
                Kind::Integrity,
                Some(format!(
                    "nothing was changed; pfs check --repair STORE puts the newest text of {} in .pfs/index-log/ back",
                    path.display()
                )),
            ),
            StoreError::LedAway { .. } => (
                Kind::Refused,
                Some("run it as the user that the store belongs to, or name the other store itself".into()),
            ),
            StoreError::NotedLayout { note, .. } => (
                Kind::Refused,
                Some(format!("if that layout is gone for good, take the note away: rm {}", note.display())),
            ),
            StoreError::Pin { path, .. } => {
                let digest = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (Kind::Refused, Some(format!("pfs unpin STORE@sha256:{digest} removes it")))
            }
            StoreError::Lease { path, .. } => {
                let name = path.file_name().unwrap_or_default().display();
                (Kind::Refused, Some(format!("if what held it is over: pfs mounts --forget {name} STORE")))
            }
            StoreError::NoState { .. } => (Kind::Refused, Some("run it as the user that the store belongs to".into())),
            StoreError::Io { source, .. } if source.kind() == StorageFull => {
                (Kind::Failed, Some("nothing was published; pfs gc STORE may free some space".into()))
            }
            StoreError::Io { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) => {
                (Kind::Failed, Some("run it as the user that the store belongs to".into()))
            }
            _ => (Kind::Failed, None),
        };
        Self { kind, error: error.into(), hints: hint.into_iter().collect(), json: false }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Store(error) => error.into(),
            ImageError::NotFound { ref near, .. } => {
                let hint = match &near[..] {
                    [] => "pfs ls STORE lists the tags".into(),
                    near => format!("did you mean {}?", near.join(", or ")),
                };
                Self::new(Kind::NotFound, error).hint(hint)
            }
            ImageError::Ambiguous { .. } => Self::new(Kind::Refused, error)
                .hint("name one of them by its digest, STORE@sha256:PREFIX; pfs delete --all takes them all"),
            ImageError::NoPlatform { .. } => Self::new(Kind::NotFound, error)
                .hint("--platform OS/ARCH takes another one; STORE@DIGEST names an image inside an index"),
            ImageError::NotPuzzlefs { .. } => {
                Self::new(Kind::Failed, error).hint("pfs ls STORE tells what its entries are")
            }
            ImageError::Manifest { .. } | ImageError::Rootfs { .. } | ImageError::Algorithm(_) => {
                Self::new(Kind::Integrity, error).hint("pfs check STORE lists everything that is damaged")
            }
            _ => Self::new(Kind::Failed, error),
        }
    }
}

impl From<WalkError> for Failure {
    fn from(error: WalkError) -> Self {
        let kind = match &error.cause {
            WalkProblem::Store(StoreError::Missing(_) | StoreError::Damaged { .. } | StoreError::NotAFile { .. })
            | WalkProblem::Format(_) => Kind::Integrity,
            WalkProblem::Store(_) => Kind::Failed,
            _ => Kind::Refused,
        };
        Self::new(kind, error).hint("pfs check STORE lists everything that is damaged")
    }
}

impl From<ExplainError> for Failure {
    fn from(error: ExplainError) -> Self {
        match error {
            ExplainError::Image(error) => error.into(),
            ExplainError::Walk(error) => error.into(),
            ExplainError::Store(error) => error.into(),
            ExplainError::NoBlob(_) => {
                Self::new(Kind::NotFound, error).hint("write the first 6 to 64 digits of its digest, or STORE:TAG")
            }
            ExplainError::SeveralBlobs { .. } => Self::new(Kind::Refused, error).hint("write more of its digits"),
            error => Self::new(Kind::Integrity, error),
        }
    }
}

impl From<PinError> for Failure {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Image(error) => error.into(),
            PinError::Store(error) => error.into(),
            PinError::NotPinned(_) => Self::new(Kind::NotFound, error).hint("pfs pins STORE lists what is pinned"),
            PinError::Unreadable(_) => {
                Self::new(Kind::Integrity, error).hint("pfs check STORE lists everything that is damaged")
            }
            error => Self::new(Kind::Failed, error),
        }
    }
}

impl From<PruneError> for Failure {
    fn from(error: PruneError) -> Self {
        match error {
            PruneError::Gc(error) => error.into(),
            PruneError::Store(error) => error.into(),
            error => Self::new(Kind::Failed, error),
        }
    }
}

impl From<UndoError> for Failure {
    fn from(error: UndoError) -> Self {
        match error {
            UndoError::Store(error) => error.into(),
            UndoError::NotFound(_) | UndoError::Nothing => {
                Self::new(Kind::NotFound, error).hint("pfs undo --list STORE lists what the log still knows")
            }
            UndoError::Taken { .. } => Self::new(Kind::Refused, error)
                .hint("--force moves the tag back; pfs undo then brings the other one back"),
            UndoError::Incomplete { .. } | UndoError::Unreadable { .. } => Self::new(Kind::Integrity, error)
                .hint("nothing was changed; pfs gc --hold 7d keeps what it frees in quarantine for a week"),
            error => Self::new(Kind::Failed, error),
        }
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Image(error) => error.into(),
            error @ CheckError::IndexLost { .. } => Self::new(Kind::Integrity, error)
                .hint("copy a text from .pfs/index-log/ to index.json yourself, to keep the images that are whole"),
            CheckError::Store(error) => error.into(),
            error => Self::new(Kind::Failed, error),
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Store(error) => error.into(),
            error => Self::new(Kind::Failed, error),
        }
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        let umount = |path: &PathBuf| format!("pfs umount {}", path.display());
        let (kind, hint) = match &error {
            MountError::NoMountpoint(path) => (Kind::Failed, Some(format!("mkdir {}", path.display()))),
            MountError::AlreadyMounted { mountpoint, .. } => (Kind::InUse, Some(umount(mountpoint))),
            MountError::DeadMount(path) => (Kind::Failed, Some(umount(path))),
            MountError::NoDevice => (Kind::Failed, Some("modprobe fuse".into())),
            MountError::DeviceRefused(_) => (Kind::Failed, Some("chmod 666 /dev/fuse, as root".into())),
            MountError::NoHelper => (Kind::Failed, Some("apt-get install fuse3".into())),
            MountError::Helper(said) if said.contains("user_allow_other") => {
                (Kind::Failed, Some("add a line user_allow_other to /etc/fuse.conf, as root".into()))
            }
            MountError::Option(_) => (Kind::Usage, Some("pfs mount --help lists the options".into())),
            MountError::Tree { .. } => {
                (Kind::Integrity, Some("pfs check STORE lists everything that is damaged".into()))
            }
            MountError::NotMounted(_) => (Kind::Failed, Some("pfs mounts lists what is mounted".into())),
            MountError::Busy(path) => (Kind::InUse, Some(format!("pfs umount --lazy {}", path.display()))),
            MountError::StillServing(_) => (Kind::InUse, Some("it ends when the last file is closed".into())),
            _ => (Kind::Failed, None),
        };
        match error {
            MountError::Store(error) => error.into(),
            MountError::Image(error) => error.into(),
            MountError::Background { code, text } => Self::relayed(code, &text),
            error => Self { kind, error: error.into(), hints: hint.into_iter().collect(), json: false },
        }
    }
}

impl From<GcError> for Failure {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Store(error) => error.into(),
            GcError::Incomplete(WalkError { ref origin, .. }) => {
                let way_out = match origin.as_deref() {
                    Some(RootOrigin::Lease(_)) => "pfs mounts STORE says what is mounted, and pfs umount DIR lets go of it",
                    Some(RootOrigin::Pin(_)) => "pfs unpin STORE:TAG lets go of a damaged image",
                    Some(RootOrigin::Process(..)) => "it is let go of when that process ends",
                    _ => "pfs delete --keep-blobs STORE:TAG takes a damaged image out of the way",
                };
                Self::new(Kind::Refused, error).hint(format!("pfs check STORE says what is damaged; {way_out}"))
            }
            GcError::SharedBlobs { .. } => Self::new(Kind::Refused, error).hint(
                "name the others: pfs gc --also LAYOUT or --roots 'GLOB', or write them into the file roots in .pfs; or untag only: pfs delete --keep-blobs",
            ),
            GcError::Managed { .. } => Self::new(Kind::Refused, error)
                .hint("delete the tag with that program, and let its own garbage collection free it"),
            GcError::MountPending(_) | GcError::Restless => Self::new(Kind::Busy, error).hint("try again"),
            GcError::CannotSee(_) => Self::new(Kind::Refused, error)
                .hint("run pfs gc STORE as root, where /proc shows all processes of the machine"),
            GcError::Clock { .. } => Self::new(Kind::Refused, error).hint("set the clock, or wait until both agree"),
            error => Self::new(Kind::Failed, error),
        }
    }
}

impl From<DeleteError> for Failure {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Image(error) => error.into(),
            DeleteError::Gc(error) => error.into(),
            DeleteError::Inside { .. } => {
                Self::new(Kind::InUse, error).hint("delete the index, with all its images, by its tag")
            }
            DeleteError::Conflict(conflict) => conflict.into(),
            DeleteError::UntaggedOnly(_) => Self::new(Kind::PartlyDone, error).hint("pfs gc STORE frees it later"),
            DeleteError::Changed => Self::new(Kind::Busy, error).hint("look at pfs ls STORE, then try again"),
            error => Self::new(Kind::Failed, error),
        }
    }
}

/// What a person may do who knows that a mount is over, where pfs cannot know.
pub(super) fn forget_hint(at: &MountedAt, store: &Path) -> Option<String> {
    let (lease, _) = at.foreign.as_ref()?;
    Some(format!("if that mount is over: pfs mounts --forget {lease} {}", store.display()))
}

impl From<Conflict> for Failure {
    fn from(conflict: Conflict) -> Self {
        let first = |at: &[MountedAt]| at.first().map(|at| at.mountpoint.clone()).unwrap_or_default();
        let umount = |path: PathBuf| format!("pfs umount {}", path.display());
        match conflict {
            Conflict::DigestMounted { ref at, .. } => {
                let hint =
                    at.iter().find_map(|at| forget_hint(at, Path::new("STORE"))).unwrap_or_else(|| umount(first(at)));
                Self::new(Kind::InUse, conflict).hint(hint)
            }
            Conflict::SeveralTags { .. } => {
                Self::new(Kind::InUse, conflict).hint("name one tag to remove only that, or --force to remove them all")
            }
            Conflict::Pinned { .. } => {
                Self::new(Kind::InUse, conflict).hint("pfs unpin it first, or --force to take the pin back as well")
            }
            conflict => Self::new(Kind::InUse, conflict),
        }
    }
}
