//! Compresses, hashes and stores chunks on several threads, and tells what became of each in the order of the stream.
//!
//! At most a few chunks a thread are in memory, however fast they are read. A thread whose chunk fails reports that and
//! goes on taking chunks, so that the reader, which stops at the first failure, never waits for a queue that nobody empties.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use super::{BuildError, ChunkSink};
use crate::{
    codec::{Encoder, Encoding, Hashed},
    name::ChunkId,
    store::Put,
};

/// What a chunk of the stream became.
pub(super) struct StoredChunk {
    pub(super) id: ChunkId,
    pub(super) decoded_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) compressed: bool,
    pub(super) verity: [u8; 32],
    pub(super) is_new: bool,
}

/// How chunks are stored.
pub(super) struct Pool<'a> {
    pub(super) sink: &'a dyn ChunkSink,
    pub(super) encoding: Encoding,
    pub(super) threads: NonZeroUsize,
}

struct Job {
    at: usize,
    decoded: Vec<u8>,
}

type Outcome = (usize, Result<StoredChunk, BuildError>);

/// What has become of the chunks so far; they are done in any order.
#[derive(Default)]
struct Finished(Vec<Option<StoredChunk>>);

const QUEUED_PER_THREAD: usize = 4;

impl Pool<'_> {
    /// Stores every chunk that `produce` gives to its argument.
    pub(super) fn run(
        &self,
        produce: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> Result<(), BuildError>) -> Result<(), BuildError>,
    ) -> Result<Vec<StoredChunk>, BuildError> {
        thread::scope(|scope| {
            let (jobs, queue) = mpsc::sync_channel(self.threads.get() * QUEUED_PER_THREAD);
            let (report, outcomes) = mpsc::channel();
            let queue = Arc::new(Mutex::new(queue));
            // One more, since at most one of them waits for the disk to write what is staged.
            for _ in 0..=self.threads.get() {
                let (queue, report) = (queue.clone(), report.clone());
                let encoder = Encoder::new(self.encoding).map_err(BuildError::Compress)?;
                scope.spawn(move || self.work(encoder, &queue, &report));
            }
            drop((queue, report));
            let mut finished = Finished::default();
            let mut at = 0;
            produce(&mut |decoded| {
                jobs.send(Job { at, decoded }).expect("the threads take jobs until the sender is gone");
                at += 1;
                outcomes.try_iter().try_for_each(|outcome| finished.note(outcome))
            })?;
            drop(jobs);
            outcomes.iter().try_for_each(|outcome| finished.note(outcome))?;
            Ok(finished.all())
        })
    }

    fn work(&self, mut encoder: Encoder, queue: &Mutex<Receiver<Job>>, report: &Sender<Outcome>) {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(job) = next() {
            // Nobody listens once another chunk has failed.
            let _ = report.send((job.at, self.store(&mut encoder, &job.decoded)));
        }
    }

    fn store(&self, encoder: &mut Encoder, decoded: &[u8]) -> Result<StoredChunk, BuildError> {
        let encoded = encoder.encode(decoded).map_err(BuildError::Compress)?;
        let (blob, verity) = Hashed::with_verity(&encoded.bytes);
        let stored = self.sink.put(blob)?;
        Ok(StoredChunk {
            id: ChunkId(stored.digest),
            decoded_bytes: decoded.len() as u64,
            stored_bytes: stored.size,
            compressed: encoded.compressed,
            verity,
            is_new: stored.put != Put::Reused,
        })
    }
}

impl Finished {
    fn note(&mut self, (at, chunk): Outcome) -> Result<(), BuildError> {
        if self.0.len() <= at {
            self.0.resize_with(at + 1, || None);
        }
        self.0[at] = Some(chunk?);
        Ok(())
    }

    fn all(self) -> Vec<StoredChunk> {
        self.0.into_iter().map(|chunk| chunk.expect("every job is reported before the threads end")).collect()
    }
}
