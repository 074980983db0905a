//! Hashing many blobs on all processors: each thread takes the next blob that nobody has taken.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    name::Digest,
    observe::{Event, Observer},
    store::{Store, StoreError},
};

/// What hashing has told.
#[derive(Default)]
pub(super) struct Hashed {
    /// How many blobs there were.
    pub(super) blobs: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Those that are not right, by rising digest.
    pub(super) problems: Vec<(Digest, Problem)>,
}

/// What is not right with a blob.
pub(super) enum Problem {
    /// Its bytes have another digest.
    Content(Digest),
    /// It cannot be read, and why.
    Unreadable(String),
}

const BUFFER_BYTES: usize = 256 << 10;
/// More would only wait for the disk together.
const THREADS_MAX: usize = 16;

/// Hashes blobs, given with their sizes, about in this order, and does `meanwhile` on this thread first. A blob that is nowhere
/// does not count.
pub(super) fn hash_all<T>(
    store: &Store,
    blobs: &[(Digest, u64)],
    watch: &dyn Observer,
    meanwhile: impl FnOnce() -> T,
) -> (Hashed, T) {
    let (next, hashed) = (AtomicUsize::new(0), Mutex::new(Hashed::default()));
    let work = || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some((digest, size)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = store.hash_blob_through(digest, &mut buffer);
            let mut hashed = hashed.lock().unwrap_or_else(PoisonError::into_inner);
            hashed.note(*digest, *size, outcome);
            watch.event(Event::Progress { done: hashed.blobs, total: blobs.len() as u64 });
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let done = thread::scope(|scope| {
        (1..threads.min(blobs.len())).for_each(|_| drop(scope.spawn(work)));
        let done = meanwhile();
        work();
        done
    });
    let mut hashed = hashed.into_inner().unwrap_or_else(PoisonError::into_inner);
    hashed.problems.sort_unstable_by_key(|(digest, _)| *digest);
    (hashed, done)
}

impl Hashed {
    pub(super) fn append(&mut self, more: Self) {
        self.blobs += more.blobs;
        self.bytes += more.bytes;
        self.problems.extend(more.problems);
    }

    fn note(&mut self, digest: Digest, size: u64, outcome: Result<Option<Digest>, StoreError>) {
        let problem = match outcome {
            Err(StoreError::Missing(_)) => return,
            Ok(actual) => actual.map(Problem::Content),
            Err(error) => Some(Problem::Unreadable(error.to_string())),
        };
        self.problems.extend(problem.map(|problem| (digest, problem)));
        self.blobs += 1;
        self.bytes += size;
    }
}
