//! What will be read next, put into the kernel's page cache before it asks (`FUSE_NOTIFY_STORE`), by a thread of its own.
//!
//! Whoever reads the files of a directory one after the other waits for one round trip a file: they get the files that
//! follow, mostly out of the chunk that was decoded for this one. Whoever reads a page here and a page there in a long file
//! waits for one round trip a page: they get the rest of the chunk, which was read, hashed and decoded for that page. The
//! kernel takes only what belongs to inodes that it knows already; what it does not take, or drops again, it asks for as ever.
//!
//! Only this thread may push: the kernel makes it wait for pages that are being read, and who answers those must not wait.

use std::{
    collections::VecDeque,
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
    inodes: Option<Range<u64>>,
    /// Places in files whose chunks have just been loaded for a page or a few.
    spots: VecDeque<Spot>,
    ended: bool,
}

/// A few bytes of a file.
#[derive(Debug, Clone)]
struct Spot {
    ino: u64,
    range: Range<u64>,
}

/// What the thread does next.
enum Due {
    Inodes(Range<u64>),
    Spot(Spot),
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
    /// Whether it asks for what has been read before.
    reads_again: bool,
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
/// Larger reads are those of somebody who goes along a file, for whom the kernel reads ahead.
const SPOT_BYTES_MAX: usize = 32 << 10;
/// What is over this has lost its chunk from memory by the time its turn comes.
const SPOTS_MAX: usize = 64;
const PAGE_BYTES: u64 = 4096;

impl Push {
    /// Starts the thread. `device` is the session's `/dev/fuse`.
    pub(super) fn start(view: Arc<View>, chunks: Arc<ChunkReader>, device: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let buffer = Vec::new();
        let mut pusher = Pusher { shared: shared.clone(), view, chunks, device, buffer };
        let work = move || {
            while let Some(due) = pusher.shared.next() {
                // Nobody waits for what is not pushed: the kernel asks.
                let _ = match due {
                    Due::Inodes(inodes) => pusher.push(inodes),
                    Due::Spot(spot) => pusher.push_around(spot),
                };
            }
        };
        let thread = thread::Builder::new().name("pfs-push".into()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hears that the kernel asks for a file that is `size` long, from `offset` on, and whether it was read before.
    pub(super) fn note(&self, ino: u64, offset: u64, size: u64, again: bool) {
        if offset > 0 || size > FILE_BYTES_MAX {
            return;
        }
        let mut state = self.shared.lock();
        if let Some(inodes) = state.run.note(ino, again) {
            state.inodes = Some(inodes);
            drop(state);
            self.shared.changed.notify_one();
        }
    }

    /// Hears that `len` bytes from `offset` on have been read.
    pub(super) fn note_answered(&self, ino: u64, offset: u64, len: usize) {
        if len > SPOT_BYTES_MAX {
            return;
        }
        let mut state = self.shared.lock();
        if state.spots.len() == SPOTS_MAX {
            state.spots.pop_front();
        }
        state.spots.push_back(Spot { ino, range: offset..offset + len as u64 });
        drop(state);
        self.shared.changed.notify_one();
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
    fn next(&self) -> Option<Due> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(spot) = state.spots.pop_front() {
                return Some(Due::Spot(spot));
            }
            if let Some(inodes) = state.inodes.take() {
                return Some(Due::Inodes(inodes));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Run {
    /// Which inodes are to be pushed, now that this one was asked for.
    fn note(&mut self, ino: u64, again: bool) -> Option<Range<u64>> {
        let reached = self.next.max(self.last + 1);
        if ino <= self.last || ino >= reached.saturating_add(GAP_MAX) {
            *self = Self { last: ino, next: ino.saturating_add(1), window: WINDOW_MIN / 2, reads_again: again };
            return None;
        }
        self.last = ino;
        self.reads_again |= again;
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
    /// Pushes the small files among these inodes, up to the first that the kernel does not know, since it has not listed the
    /// directory, or that was read before: the kernel has it.
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

    /// Pushes what the chunks at this spot have of the file, in whole pages, as far as they are in memory.
    fn push_around(&mut self, spot: Spot) -> io::Result<()> {
        let Some(map) = self.view.file_map(spot.ino) else { return Ok(()) };
        let mut at = spot.range.start;
        while at < spot.range.end
            && let Some(stretch) = self.chunks.at_hand(map, at)
        {
            at = stretch.range().end;
            let pages = whole_pages(stretch.range(), map.size());
            // Of small files nothing is left: they are read in one go.
            if !pages.is_empty() && (pages.start < spot.range.start || spot.range.end < pages.end) {
                store(&self.device, spot.ino, pages.start, stretch.bytes_of(pages))?;
            }
        }
        Ok(())
    }

    /// What is damaged is not pushed; who asks for it hears so.
    fn store(&mut self, ino: u64, size: u64) -> io::Result<()> {
        let Some(map) = self.view.file_map(ino) else { return Ok(()) };
        if self.chunks.has_lost(map) && !self.shared.lock().run.reads_again {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.buffer.resize(FILE_BYTES_MAX as usize, 0);
        let buffer = &mut self.buffer[..size as usize];
        match self.chunks.read_at(ino, map, 0, buffer) {
            Ok(len) => store(&self.device, ino, 0, &buffer[..len]),
            Err(_) => Ok(()),
        }
    }
}

/// `fuse_notify_code` of the kernel's `fuse.h`.
const NOTIFY_STORE: i32 = 4;
const HEADER_BYTES: u32 = 16 + 24;

/// The pages of a file of `size` bytes that are all in this range; the last page of a file may be short.
fn whole_pages(range: Range<u64>, size: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(PAGE_BYTES);
    let end = if range.end == size { size } else { range.end - range.end % PAGE_BYTES };
    if start < end { start..end } else { range.start..range.start }
}

/// Sends `fuse_out_header` and `fuse_notify_store_out`, as in the kernel's `fuse.h`, and bytes of a file from `offset` on, where a
/// page begins.
fn store(device: &OwnedFd, ino: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let header = [
        &(HEADER_BYTES + len).to_ne_bytes()[..],
        &NOTIFY_STORE.to_ne_bytes(),
        &0u64.to_ne_bytes(),
        &ino.to_ne_bytes(),
        &offset.to_ne_bytes(),
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
        assert_eq!(run.note(100, false), None);
        assert_eq!(run.note(101, false), Some(102..109));
        assert_eq!(run.note(103, false), None, "faster than the push, which goes on");
        assert_eq!(run.note(111, false), Some(112..127));
        let mut windows = 0;
        while windows < 300 {
            let next = run.next;
            let due = run.note(next, false).unwrap();
            assert!(due.start == next + 1 && due.end - due.start < WINDOW_MAX, "{due:?}");
            windows += due.end - due.start;
        }
    }

    #[test]
    fn only_whole_pages_and_the_end_of_a_file_are_pushed() {
        assert_eq!(whole_pages(0..9000, 20_000), 0..8192);
        assert_eq!(whole_pages(100..20_100, 50_000), 4096..16_384);
        assert_eq!(whole_pages(8192..13_192, 13_192), 8192..13_192, "the last page is short");
        assert_eq!(whole_pages(5000..5100, 20_000), 5000..5000, "none");
        assert_eq!(whole_pages(5000..5100, 5100), 5000..5000, "its last page begins in another chunk");
        assert_eq!(whole_pages(4096..8192, 20_000), 4096..8192);
    }

    #[test]
    fn who_jumps_or_goes_back_is_not_helped() {
        let mut run = Run::default();
        for ino in [500, 100, 900, 600, 599, 598] {
            assert_eq!(run.note(ino, false), None, "{ino}");
        }
        assert_eq!(run.note(u64::MAX - 1, false), None);
    }

    #[test]
    fn a_push_that_stops_goes_on_with_the_next_request() {
        let mut run = Run::default();
        run.note(100, false);
        assert_eq!(run.note(101, false), Some(102..109));
        run.stopped_at(104);
        assert_eq!(run.note(104, false), Some(105..120));
        run.stopped_at(103);
        assert_eq!(run.note(105, false), None, "what was read already does not count");
    }
}
