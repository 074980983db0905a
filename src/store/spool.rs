//! A file that is written in pieces which come in any order, most of them right behind one of the last few.
//!
//! A message is written by several hands at a time: one fills rows of a list, another what the rows lead to. Each gets a run
//! of bytes that grows, so that the system is not called for each piece.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::format::MessageSink;

pub(super) struct Spool<'f> {
    file: &'f File,
    /// The least recently used first.
    runs: Vec<Run>,
    failed: io::Result<()>,
}

/// Bytes that stand behind each other from byte `at` of the file on.
struct Run {
    at: u64,
    bytes: Vec<u8>,
}

const RUNS_MAX: usize = 8;
const RUN_BYTES_MAX: usize = 64 << 10;

impl Run {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

impl<'f> Spool<'f> {
    /// Writes into a file that has its full length.
    pub(super) fn new(file: &'f File) -> Self {
        Self { file, runs: Vec::new(), failed: Ok(()) }
    }

    /// Writes what is left; fails if any write has failed.
    pub(super) fn finish(mut self) -> io::Result<()> {
        while let Some(run) = self.runs.pop() {
            self.write(&run);
        }
        self.failed
    }

    fn write(&mut self, run: &Run) {
        if self.failed.is_ok() {
            self.failed = self.file.write_all_at(&run.bytes, run.at);
        }
    }

    /// Takes the run that ends at byte `at`, or begins one.
    fn take_run(&mut self, at: u64) -> Run {
        match self.runs.iter().rposition(|run| run.end() == at) {
            Some(found) => self.runs.remove(found),
            None => Run { at, bytes: Vec::with_capacity(RUN_BYTES_MAX) },
        }
    }
}

impl MessageSink for Spool<'_> {
    fn write_at(&mut self, at: u64, bytes: &[u8]) {
        let mut run = self.take_run(at);
        run.bytes.extend_from_slice(bytes);
        if let Some(next) = self.runs.iter().position(|next| next.at == run.end()) {
            run.bytes.append(&mut self.runs.remove(next).bytes);
        }
        if run.bytes.len() >= RUN_BYTES_MAX {
            self.write(&run);
            run.at = run.end();
            run.bytes.clear();
        }
        self.runs.push(run);
        if self.runs.len() > RUNS_MAX {
            let oldest = self.runs.remove(0);
            self.write(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_in_any_order_are_the_file(
            pieces in prop::collection::vec((1usize..40_000, any::<u8>()), 0..60).prop_flat_map(|pieces| {
                let mut at = 0;
                let placed: Vec<_> = pieces.into_iter().map(|(len, byte)| {
                    at += len;
                    ((at - len) as u64, vec![byte; len])
                }).collect();
                (Just(placed.clone()), Just(placed).prop_shuffle())
            }),
        ) {
            let (ordered, shuffled) = pieces;
            let file = tempfile::tempfile().unwrap();
            let mut spool = Spool::new(&file);
            shuffled.iter().for_each(|(at, bytes)| spool.write_at(*at, bytes));
            spool.finish().unwrap();
            let wanted: Vec<u8> = ordered.into_iter().flat_map(|(_, bytes)| bytes).collect();
            let mut found = vec![0; wanted.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == wanted && file.metadata().unwrap().len() == wanted.len() as u64);
        }
    }
}
