//! How a new index takes the place of the old one where the filesystem cannot exchange two names: exfat, and many
//! filesystems in user space or on a network.
//!
//! A rename destroys the file that it replaces, and with it an edit that another program published just before. Two things
//! prevent that. The old index stays open and keeps a second name, which shows edits that were written into it in place. And
//! inotify reports every file that takes the name `index.json` to a thread, which opens it: an open file keeps its bytes when
//! it is replaced. If another program's edit is found, it goes back to its place and ours begins again.
//!
//! Limits: inotify reports only what happens through this mount of the filesystem. A file that had the name for a few
//! microseconds may be gone before the thread can open it; then the edit fails with an error.

use std::{
    fs::File,
    io::{Read, Seek},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{
        AtFlags, Statx, StatxFlags,
        inotify::{self, ReadFlags, WatchFlags},
    },
    io::Errno,
};

use super::{Store, StoreError, disk::Dir, error::At, index::INDEX, partial::Partial};
use crate::name::Digest;

/// How often the watcher checks whether the rename is done.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// The end of the old index's second name.
const SECOND: &str = ".before";
/// Room for the events that are read at once.
const EVENT_BYTES: usize = 4096;

/// What inotify reported about the name of the index.
#[derive(Default)]
struct Seen {
    /// How often a file got the name by a rename or a link.
    arrivals: usize,
    /// The newest file with the name that is neither the old index nor ours.
    file: Option<File>,
}

impl Store {
    /// Replaces the index of this digest. `false` if another program wrote an index meanwhile: then that one has its place
    /// again. Fails with [`StoreError::IndexOverwritten`] if what it wrote is gone.
    pub(super) fn replace_index(&self, text: Partial, before: &Digest) -> Result<bool, StoreError> {
        let temp = self.temp()?;
        let old = self.root.open_file(INDEX)?;
        let known = [&old, text.file()].map(|file| file.metadata().ok().map(|meta| meta.ino()));
        // If this process is killed, the next publisher finds a lost index under this name. Some files cannot be linked.
        let second_name = format!("{}{SECOND}", text.name());
        let is_linked = self.root.link_to(INDEX, &temp, &second_name).is_ok();
        let replaced = watched(&self.root, known, || text.put(&self.root, INDEX));
        let is_undisturbed = replaced.and_then(|seen| match self.index_ino()? == known[1] {
            true => self.is_undisturbed_by(seen, old, before),
            // Ours has been replaced already.
            false => Ok(false),
        });
        if is_linked {
            temp.unlink(&second_name).at("remove", temp.join(&second_name))?;
        }
        is_undisturbed
    }

    fn index_ino(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.root.stat(INDEX)?.map(|stat| stat.stx_ino))
    }

    fn is_undisturbed_by(&self, seen: Seen, old: File, before: &Digest) -> Result<bool, StoreError> {
        if let Some(index) = seen.file {
            return self.put_back(&self.read_all(index)?).map(|()| false);
        }
        let text = self.read_all(old)?;
        if Digest::of(&text.bytes) != *before {
            return self.put_back(&text).map(|()| false);
        }
        // One arrival is our own rename.
        match seen.arrivals {
            0 | 1 => Ok(true),
            _ => Err(StoreError::IndexOverwritten { path: self.index_path() }),
        }
    }

    /// Gives another program's index its place again. The next try makes it durable, before anything else.
    fn put_back(&self, index: &Foreign) -> Result<(), StoreError> {
        let text = self.partial_under_lock(INDEX)?;
        text.copy_mode(&index.stat)?;
        text.fill(&index.bytes)?;
        text.put(&self.root, INDEX)
    }

    fn read_all(&self, mut file: File) -> Result<Foreign, StoreError> {
        let path = self.index_path();
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
        let stat = stat.at("read the attributes of", &path)?;
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).at("read", path)?;
        Ok(Foreign { bytes, stat })
    }
}

/// An index of another program, and the attributes of its file.
struct Foreign {
    bytes: Vec<u8>,
    stat: Statx,
}

/// Does something while a thread watches which files get the name of the index in this directory. `known` are inode numbers
/// of files that are not another program's.
fn watched(
    root: &Dir,
    known: [Option<u64>; 2],
    act: impl FnOnce() -> Result<(), StoreError>,
) -> Result<Seen, StoreError> {
    let Ok(events) = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK) else {
        return act().map(|()| Seen::default());
    };
    let wanted = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
    if inotify::add_watch(&events, root.proc_path(), wanted).is_err() {
        return act().map(|()| Seen::default());
    }
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = Seen::default();
            while !is_done.load(Ordering::Acquire) {
                let mut poll_fd = [PollFd::new(&events, PollFlags::IN)];
                let _ = poll(&mut poll_fd, Some(&LOOK));
                look(&events, root, known, &mut seen);
            }
            look(&events, root, known, &mut seen);
            seen
        });
        let acted = act();
        is_done.store(true, Ordering::Release);
        let seen = watcher.join().expect("the watcher does not panic");
        acted.map(|()| seen)
    })
}

/// Takes in what the kernel has told.
fn look(events: impl AsFd, root: &Dir, known: [Option<u64>; 2], seen: &mut Seen) {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) if event.file_name().is_some_and(|name| name.to_bytes() == INDEX.as_bytes()) => {
                if event.events().intersects(ReadFlags::MOVED_TO | ReadFlags::CREATE) {
                    seen.arrivals += 1;
                }
                let Ok(file) = root.open_file(INDEX) else { continue };
                let ino = file.metadata().ok().map(|meta| meta.ino());
                if ino.is_some() && !known.contains(&ino) {
                    seen.file = Some(file);
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
