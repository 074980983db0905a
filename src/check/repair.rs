//! Repairing: what is wrong goes out of the way, and what is missing comes back if a right copy of it lies aside.
//!
//! Nothing is invented and nothing deleted. Every step makes sure under the exclusive lock that the file is still the one that was
//! hashed before, so that a build or a mount that puts the blob right meanwhile is not disturbed, and nobody waits for the
//! hash of a long blob; being the collector keeps quarantine as it is.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use super::CheckError;
use crate::{
    format::IndexDocument,
    graph::{NodeKind, Root, WalkProblem, walk},
    name::Digest,
    observe::{Event, Observer},
    store::{Aside, IndexNote, Store, StoreError},
};

/// What was done about one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The blob.
    pub digest: Digest,
    /// What was done.
    pub action: RepairAction,
}

/// A step of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairAction {
    /// Its content was wrong, so it was moved here.
    SetAside(PathBuf),
    /// Its content is wrong, and it stays, for this reason: it may become right yet.
    LeftAlone(&'static str),
    /// A right copy was put back, from "quarantine", "pins" or "damaged".
    Healed(&'static str),
    /// An image needs it, and there is no right copy of it anywhere.
    NoCopy,
    /// `index.json` could not be read and is this text from the log again; what was there is in this file now.
    IndexRestored(PathBuf),
}

/// How to repair.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// What was changed less long ago than this is left alone: a program may be writing it.
    pub min_age: Duration,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self { min_age: Duration::from_secs(600) }
    }
}

/// Repairs a store as far as it can be. Hashes every blob; fails at once if a collector is at work.
pub fn repair(store: &Store, options: &RepairOptions, watch: &dyn Observer) -> Result<Vec<Repair>, CheckError> {
    let _collector = store.lock_collector()?;
    let mut run = Run { store, options, repairs: Vec::new(), hopeless: HashSet::new() };
    run.restore_index()?;
    run.take_back_what_is_right()?;
    run.set_wrong_aside(watch)?;
    watch.event(Event::Phase("looking for what is missing"));
    for root in Root::of_index(store.index()?.document()) {
        run.heal_root(&root)?;
    }
    Ok(run.repairs)
}

struct Run<'s> {
    store: &'s Store,
    options: &'s RepairOptions,
    repairs: Vec<Repair>,
    hopeless: HashSet<Digest>,
}

impl Run<'_> {
    fn note(&mut self, digest: Digest, action: RepairAction) {
        self.repairs.push(Repair { digest, action });
    }

    /// Puts the newest text of the log in the place of an index that cannot be read, if every blob that it needs is there.
    fn restore_index(&mut self) -> Result<(), CheckError> {
        let Err(error @ StoreError::Index { .. }) = self.store.index() else { return Ok(()) };
        let unreadable = self.store.index_digest()?;
        let parsed = |note: IndexNote| Some((IndexDocument::parse(note.bytes()).ok()?, note));
        let Some((index, note)) = self.store.index_notes()?.find_map(parsed) else { return Err(error.into()) };
        let mut missing = 0;
        for root in Root::of_index(&index) {
            match walk(self.store, vec![root]) {
                Ok(graph) => missing += graph.digests().filter(|digest| self.store.open_blob(digest).is_err()).count(),
                Err(_) => missing += 1,
            }
        }
        match missing {
            0 => {
                let place = self.store.restore_index(&note, &unreadable)?;
                self.note(note.digest(), RepairAction::IndexRestored(place));
                Ok(())
            }
            missing => Err(CheckError::IndexLost { missing }),
        }
    }

    /// Looks at what earlier repairs have set aside: a program that was writing it may have ended its work there.
    fn take_back_what_is_right(&mut self) -> Result<(), CheckError> {
        for digest in self.store.set_aside()? {
            if self.store.stat_blob(&digest).is_ok_and(|stat| stat.is_none()) {
                self.put_back(&digest)?;
            }
        }
        Ok(())
    }

    fn set_wrong_aside(&mut self, watch: &dyn Observer) -> Result<(), CheckError> {
        watch.event(Event::Phase("hashing blobs"));
        let blobs = self.store.inventory()?.blobs;
        for (done, (digest, _)) in blobs.iter().enumerate() {
            // What cannot be read at all stays where it is: a check names it.
            if let Ok(Some(wrong)) = self.store.wrong_content(digest) {
                let held = self.store.lock_exclusive()?;
                let aside = self.store.remove_wrong_content(&held, &wrong, self.options.min_age)?;
                drop(held);
                match aside {
                    Some(Aside::Moved(path)) => {
                        self.note(*digest, RepairAction::SetAside(path));
                        self.put_back(digest)?;
                    }
                    Some(Aside::Left(reason)) => self.note(*digest, RepairAction::LeftAlone(reason)),
                    None => {}
                }
            }
            watch.event(Event::Progress { done: done as u64 + 1, total: blobs.len() as u64 });
        }
        Ok(())
    }

    /// Puts back what one root needs. What the walk cannot pass is healed first, and then it walks again.
    fn heal_root(&mut self, root: &Root) -> Result<(), CheckError> {
        loop {
            let blocking = match walk(self.store, vec![root.clone()]) {
                Ok(graph) => {
                    let absent = graph.nodes().iter().filter(|node| node.kind == NodeKind::Absent);
                    let absent: HashSet<Digest> = absent.map(|node| graph.digest(node.blob)).collect();
                    for digest in graph.digests().filter(|digest| !absent.contains(digest)) {
                        self.heal(digest)?;
                    }
                    return Ok(());
                }
                Err(error) => match error.cause {
                    WalkProblem::Store(StoreError::Missing(digest) | StoreError::Damaged { digest, .. }) => digest,
                    _ => return Ok(()),
                },
            };
            if !self.heal(blocking)? {
                return Ok(());
            }
        }
    }

    /// Puts one blob back, if it is not there; `true` if that was done.
    fn heal(&mut self, digest: Digest) -> Result<bool, CheckError> {
        if self.hopeless.contains(&digest) || self.store.stat_blob(&digest).map_or(true, |stat| stat.is_some()) {
            return Ok(false);
        }
        let is_back = self.put_back(&digest)?;
        if !is_back {
            self.hopeless.insert(digest);
            self.note(digest, RepairAction::NoCopy);
        }
        Ok(is_back)
    }

    /// Puts a right copy of a blob back, if there is one.
    fn put_back(&mut self, digest: &Digest) -> Result<bool, CheckError> {
        let Some(copy) = self.store.right_copy(digest)? else { return Ok(false) };
        let place = self.store.heal(&self.store.lock_exclusive()?, &copy)?;
        place.into_iter().for_each(|place| self.note(*digest, RepairAction::Healed(place)));
        Ok(place.is_some())
    }
}
