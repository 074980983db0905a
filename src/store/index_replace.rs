//! How a new index takes the place of the old one where the filesystem cannot exchange two names: exfat, and many
//! filesystems in user space or on a network.
//!
//! A rename destroys what it replaces, so what another program publishes in the moment before it would be lost, unseen. So
//! the old index stays open, and has a second name, to see what was written into it in place. And a thread is told by the
//! kernel of each index that gets the name, and holds it open, so that its bytes are still there when it has been replaced.
//! What was found goes back, and the edit begins again.
//!
//! What remains: the kernel tells only of what is done through this machine's view of the directory. And an index that was
//! replaced within microseconds of its arrival may be gone before the thread has opened it; then the edit fails, and says so.

use std::{
    fs::{File, Permissions},
    io::{Read, Seek, Write},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, ReadFlags, WatchFlags},
    io::Errno,
};

use super::{Store, StoreError, disk::Dir, error::At, index::INDEX, partial::Partial};
use crate::name::Digest;

/// How often the watcher looks whether it is still needed.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// What the name of the partial file gets for the second name of the old index.
const SECOND: &str = ".before";
/// Room for the events that are read at once.
const EVENT_BYTES: usize = 4096;

/// What other programs did to the name of the index while it was watched.
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
        // For those who come after us if we are killed; they know it by its name. Not every file can be linked.
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
            return self.put_back(&read_all(index, &self.index_path())?).map(|()| false);
        }
        let text = read_all(old, &self.index_path())?;
        if Digest::of(&text.bytes) != *before {
            return self.put_back(&text).map(|()| false);
        }
        // One is ours.
        match seen.arrivals {
            0 | 1 => Ok(true),
            _ => Err(StoreError::IndexOverwritten { path: self.index_path() }),
        }
    }

    /// Gives another program's index its place again. The next try makes it durable, before anything else.
    fn put_back(&self, index: &Text) -> Result<(), StoreError> {
        let temp = self.temp()?;
        let (name, mut file) = temp.create_partial(INDEX)?;
        let written = file.write_all(&index.bytes).and_then(|()| file.set_permissions(index.permissions.clone()));
        written.at("write", temp.join(&name))?;
        temp.rename_over(&name, &self.root, INDEX).at("replace", self.index_path())
    }
}

/// An index of another program.
struct Text {
    bytes: Vec<u8>,
    permissions: Permissions,
}

fn read_all(mut file: File, path: &Path) -> Result<Text, StoreError> {
    let permissions = file.metadata().at("read the attributes of", path)?.permissions();
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).at("read", path)?;
    Ok(Text { bytes, permissions })
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
