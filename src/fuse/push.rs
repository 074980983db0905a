//! Small files that will be read next, put into the kernel's page cache before it asks.
//!
//! Whoever reads the files of a directory one after the other waits for one round trip a file. So a thread of its own hands
//! over the files that follow (`FUSE_NOTIFY_STORE`), mostly out of the chunk that was decoded for this one, and the reader
//! meets the daemon once in many files. The kernel takes only what belongs to inodes that it knows already; what it does not
//! take, or drops again, it asks for as ever.

use std::{
    io::{self, IoSlice},
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use crate::tree::{ChunkReader, View};

/// The thread. It ends with it.
pub(super) struct Push {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    run: Run,
    /// The inodes whose turn it is.
    due: Option<Range<u64>>,
    ended: bool,
}

/// A reader that goes along the inode numbers.
#[derive(Debug, Default)]
struct Run {
    /// The inode that was asked for last.
    last: u64,
    /// The first inode after those that were pushed.
    next: u64,
    /// How many inodes are pushed at a time.
    window: u64,
}

/// What is pushed, and where to.
struct Pusher {
    shared: Arc<Shared>,
    view: Arc<View>,
    chunks: Arc<ChunkReader>,
    device: OwnedFd,
    buffer: Vec<u8>,
}

/// What the kernel asks for at a time. It reads ahead itself in longer files.
const FILE_BYTES_MAX: u64 = 128 << 10;
/// Directories, symbolic links and long files have numbers too, between those of small files.
const GAP_MAX: u64 = 16;
const WINDOW_MIN: u64 = 8;
const WINDOW_MAX: u64 = 256;
/// The most bytes of small files that are pushed unasked at a time.
const PUSHED_BYTES_MAX: u64 = 4 << 20;

impl Push {
    /// Starts the thread. `device` is the session's `/dev/fuse`.
    pub(super) fn start(view: Arc<View>, chunks: Arc<ChunkReader>, device: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let buffer = vec![0; FILE_BYTES_MAX as usize];
        let mut pusher = Pusher { shared: shared.clone(), view, chunks, device, buffer };
        let work = move || {
            while let Some(due) = pusher.shared.next() {
                // Nobody waits for what is not pushed: the kernel asks.
                let _ = pusher.push(due);
            }
        };
        let thread = thread::Builder::new().name("pfs-push".into()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hears that the kernel asks for a file that is `size` long, from `offset` on.
    pub(super) fn note(&self, ino: u64, offset: u64, size: u64) {
        if offset > 0 || size > FILE_BYTES_MAX {
            return;
        }
        let mut state = self.shared.lock();
        if let Some(due) = state.run.note(ino) {
            state.due = Some(due);
            drop(state);
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        // One that panicked has said so on standard error already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` at the end.
    fn next(&self) -> Option<Range<u64>> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(due) = state.due.take() {
                return Some(due);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Run {
    /// Which inodes are to be pushed, now that this one was asked for.
    fn note(&mut self, ino: u64) -> Option<Range<u64>> {
        let reached = self.next.max(self.last + 1);
        if ino <= self.last || ino >= reached.saturating_add(GAP_MAX) {
            *self = Self { last: ino, next: ino.saturating_add(1), window: WINDOW_MIN / 2 };
            return None;
        }
        self.last = ino;
        if ino.saturating_add(self.window / 2) < self.next {
            return None;
        }
        self.window = (self.window * 2).min(WINDOW_MAX);
        let first = self.next.max(ino.saturating_add(1));
        self.next = first.max(ino.saturating_add(self.window));
        Some(first..self.next)
    }
}

impl Run {
    /// The push went no further; the next request is to start another.
    fn stopped_at(&mut self, ino: u64) {
        if self.last < ino && ino < self.next {
            self.next = ino;
        }
    }
}

impl Pusher {
    /// Pushes the small files among these inodes, up to the first that the kernel does not know: it has not listed the
    /// directory.
    fn push(&mut self, inodes: Range<u64>) -> io::Result<()> {
        let mut left = PUSHED_BYTES_MAX;
        for ino in inodes {
            let size = self.view.file_map(ino).map_or(0, |map| map.size());
            if size == 0 || size > FILE_BYTES_MAX || self.shared.lock().run.last >= ino {
                continue;
            }
            let stored = if size > left { Err(io::ErrorKind::QuotaExceeded.into()) } else { self.store(ino, size) };
            if let Err(cause) = stored {
                self.shared.lock().run.stopped_at(ino);
                return Err(cause);
            }
            left -= size;
        }
        Ok(())
    }

    /// What is damaged is not pushed; who asks for it hears so.
    fn store(&mut self, ino: u64, size: u64) -> io::Result<()> {
        let Some(map) = self.view.file_map(ino) else { return Ok(()) };
        let buffer = &mut self.buffer[..size as usize];
        match self.chunks.read_at(ino, map, 0, buffer) {
            Ok(len) => store(&self.device, ino, &buffer[..len]),
            Err(_) => Ok(()),
        }
    }
}

/// `fuse_notify_code` of the kernel's `fuse.h`.
const NOTIFY_STORE: i32 = 4;
const HEADER_BYTES: u32 = 16 + 24;

/// Sends `fuse_out_header` and `fuse_notify_store_out`, as in the kernel's `fuse.h`, and the bytes of a whole file.
fn store(device: &OwnedFd, ino: u64, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let header = [
        &(HEADER_BYTES + len).to_ne_bytes()[..],
        &NOTIFY_STORE.to_ne_bytes(),
        &0u64.to_ne_bytes(),
        &ino.to_ne_bytes(),
        &0u64.to_ne_bytes(),
        &len.to_ne_bytes(),
        &0u32.to_ne_bytes(),
    ]
    .concat();
    rustix::io::writev(device, &[IoSlice::new(&header), IoSlice::new(bytes)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_is_no_run_and_a_run_is_pushed_in_growing_windows() {
        let mut run = Run::default();
        assert_eq!(run.note(100), None);
        assert_eq!(run.note(101), Some(102..109));
        assert_eq!(run.note(103), None, "faster than the push, which goes on");
        assert_eq!(run.note(111), Some(112..127));
        let mut windows = 0;
        while windows < 300 {
            let next = run.next;
            let due = run.note(next).unwrap();
            assert!(due.start == next + 1 && due.end - due.start < WINDOW_MAX, "{due:?}");
            windows += due.end - due.start;
        }
    }

    #[test]
    fn who_jumps_or_goes_back_is_not_helped() {
        let mut run = Run::default();
        for ino in [500, 100, 900, 600, 599, 598] {
            assert_eq!(run.note(ino), None, "{ino}");
        }
        assert_eq!(run.note(u64::MAX - 1), None);
    }

    #[test]
    fn a_push_that_stops_goes_on_with_the_next_request() {
        let mut run = Run::default();
        run.note(100);
        assert_eq!(run.note(101), Some(102..109));
        run.stopped_at(104);
        assert_eq!(run.note(104), Some(105..120));
        run.stopped_at(103);
        assert_eq!(run.note(105), None, "what was read already does not count");
    }
}
