//! `pfs du`: who holds the bytes of a layout directory.
//!
//! The rows by class part the directory: every file falls into one of them, so that their sum is what `du -sb` says.

use std::collections::HashMap;

use super::{
    ExplainError,
    entries::{RowState, entry_nodes, readable, state},
};
use crate::{
    format::DescriptorDigest,
    gc::{self, Facts, GcError, GcPlan, KeepReason, Policy, Roots, Verdict},
    graph::{ImageGraph, RefCounts, Root, RootOrigin, WalkError},
    name::{Digest, Tag},
    observe::Observer,
    store::{Inventory, Place, Store},
};

/// Who holds the bytes.
#[derive(Debug)]
pub struct DiskUse {
    /// One for each entry of the index.
    pub entries: Vec<EntryUse>,
    /// One for each class, in the order of the classes, empty ones too.
    pub rows: Vec<ClassUse>,
    /// The sum of the rows: what `du -sb` says of the directory.
    pub total_bytes: u64,
    /// Blobs that an entry needs and that are not there.
    pub missing_blobs: u64,
    /// Why what nothing needs is not known, if so: nothing is garbage then.
    pub unknown: Option<GcError>,
}

/// What one entry of the index needs.
#[derive(Debug)]
pub struct EntryUse {
    /// Its tag, if it has one.
    pub tag: Option<Tag>,
    /// What it points at.
    pub digest: DescriptorDigest,
    /// What it needs.
    pub state: RowState,
}

/// The bytes of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassUse {
    /// The class.
    pub class: Class,
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a file in a layout directory is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One entry of the index needs it: deleting that entry frees it.
    Unique,
    /// Several entries need it.
    Shared,
    /// No entry needs it, but a mount, a pin, a build, a process or another layout does.
    Held,
    /// Nothing needs it, and it is too young to tell whether it is somebody's upload.
    Young,
    /// Nothing needs it: the next collection takes it.
    Garbage,
    /// It waits in quarantine.
    Quarantine,
    /// Whether anything needs it is not known, since not everything can be read.
    Unknown,
    /// A repair has set it aside because its content is wrong.
    Damaged,
    /// It is neither a part of the layout nor ours.
    Stranger,
    /// The index and the layout file.
    Layout,
    /// Leases, logs, locks.
    State,
    /// Directories.
    Directory,
}

impl Class {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::Unique,
        Self::Shared,
        Self::Held,
        Self::Young,
        Self::Garbage,
        Self::Quarantine,
        Self::Unknown,
        Self::Damaged,
        Self::Stranger,
        Self::Layout,
        Self::State,
        Self::Directory,
    ];
}

/// Adds up a layout directory. Goes on where images cannot be read: what only they might need is of an unknown class.
pub fn disk_use(store: &Store, now_seconds: i64, watch: &dyn Observer) -> Result<DiskUse, ExplainError> {
    match Facts::gather(store, Roots::Current, now_seconds, watch) {
        Ok(facts) => {
            let inventory = facts.inventory.clone();
            let plan = gc::plan(facts, Policy::default(), now_seconds);
            let graph = &plan.marks().graph;
            let roots = graph.roots().iter().map(|(root, _)| (root.clone(), None));
            let roots = roots.filter(|(root, _)| matches!(root.origin, RootOrigin::Entry(..))).collect();
            Known { graph, inventory: &inventory, plan: Some(&plan) }.add_up(store, roots, None)
        }
        Err(GcError::Store(error)) => Err(error.into()),
        Err(unknown) => {
            let roots = Root::of_index(store.index()?.document());
            let inventory = store.inventory()?;
            let (graph, broken) = readable(store, &roots);
            let roots = roots.into_iter().zip(broken).collect();
            Known { graph: &graph, inventory: &inventory, plan: None }.add_up(store, roots, Some(unknown))
        }
    }
}

struct Known<'a> {
    graph: &'a ImageGraph,
    inventory: &'a Inventory,
    plan: Option<&'a GcPlan>,
}

impl Known<'_> {
    fn add_up(
        &self,
        store: &Store,
        roots: Vec<(Root, Option<WalkError>)>,
        unknown: Option<GcError>,
    ) -> Result<DiskUse, ExplainError> {
        let nodes = entry_nodes(self.graph);
        let everywhere = self.graph.roots().iter().filter(|(root, _)| root.origin.is_entry());
        let everywhere: Vec<usize> = everywhere.map(|(_, node)| *node).collect();
        let counts = self.graph.counts_from(&everywhere);
        let own = self.graph.counts_from(&nodes);
        let rows = self.classes(store, &counts, &own)?;
        let absent = |blob: &u32| self.inventory.get(&self.graph.digest(*blob)).is_none();
        Ok(DiskUse {
            missing_blobs: self.graph.closure(&nodes).0.iter().filter(|blob| absent(blob)).count() as u64,
            entries: self.entries(roots, &nodes, &counts),
            total_bytes: rows.iter().map(|row| row.bytes).sum(),
            rows,
            unknown,
        })
    }

    fn entries(&self, roots: Vec<(Root, Option<WalkError>)>, nodes: &[usize], counts: &RefCounts) -> Vec<EntryUse> {
        let mut nodes = nodes.iter();
        let entry = |(root, broken): (Root, Option<WalkError>)| EntryUse {
            tag: match root.origin {
                RootOrigin::Entry(_, tag) => tag,
                _ => None,
            },
            digest: root.digest,
            state: match broken {
                Some(error) => RowState::Broken(error),
                None => {
                    let node = nodes.next().expect("every entry that can be read has a node");
                    state(self.graph, *node, counts, self.inventory)
                }
            },
        };
        roots.into_iter().map(entry).collect()
    }

    fn classes(&self, store: &Store, counts: &RefCounts, own: &RefCounts) -> Result<Vec<ClassUse>, ExplainError> {
        let blobs = self.blob_classes(counts, own);
        let usage = store.usage()?;
        let mut rows = Class::ALL.map(|class| ClassUse { class, files: 0, bytes: 0 });
        let mut add = |class: Class, files: u64, bytes: u64| {
            let row = rows.iter_mut().find(|row| row.class == class).expect("there is a row for every class");
            row.files += files;
            row.bytes += bytes;
        };
        add(Class::Directory, usage.directories, usage.directories_bytes);
        usage.files.iter().for_each(|file| add(self.class_of(&file.place, &blobs), 1, file.size));
        Ok(rows.to_vec())
    }

    fn class_of(&self, place: &Place, blobs: &HashMap<Digest, Class>) -> Class {
        match place {
            // A blob that came just now.
            Place::Blob(digest) => blobs.get(digest).copied().unwrap_or(Class::Young),
            Place::Quarantine(_) => Class::Quarantine,
            Place::Pin(..) | Place::Staging(_) => self.owned(place),
            Place::Damaged => Class::Damaged,
            Place::State => Class::State,
            Place::Layout => Class::Layout,
            Place::Foreign => Class::Stranger,
        }
    }

    fn owned(&self, place: &Place) -> Class {
        match self.plan {
            Some(plan) if left_behind(plan, place) => Class::Garbage,
            Some(_) => Class::Held,
            None => Class::Unknown,
        }
    }

    fn blob_classes(&self, counts: &RefCounts, own: &RefCounts) -> HashMap<Digest, Class> {
        let by_entries = |digest: &Digest| match self.graph.find(digest).map(|blob| (own.of(blob), counts.of(blob))) {
            None => Class::Unknown,
            Some((0, _)) => Class::Held,
            Some((_, 1)) => Class::Unique,
            Some(_) => Class::Shared,
        };
        let Some(plan) = self.plan else {
            return self.inventory.blobs.iter().map(|(digest, _)| (*digest, by_entries(digest))).collect();
        };
        let class = |verdict: &Verdict, digest: &Digest| match verdict {
            Verdict::Keep(KeepReason::Needed) => Some(by_entries(digest)),
            Verdict::Keep(KeepReason::LimitReached | KeepReason::Hidden) | Verdict::Condemn => Some(Class::Garbage),
            Verdict::Held(_) => Some(Class::Held),
            Verdict::Young(_) => Some(Class::Young),
            Verdict::Restore | Verdict::Wait(_) | Verdict::Purge => None,
        };
        plan.blobs().iter().filter_map(|blob| Some((blob.digest, class(&blob.verdict, &blob.digest)?))).collect()
    }
}

/// Whether a staged file or a pin is of somebody who has ended, and of no use to anybody else. A pin may be all that is left of
/// a blob that a tag needs.
fn left_behind(plan: &GcPlan, place: &Place) -> bool {
    match place {
        Place::Pin(manifest, blob) => plan.stale_pins().contains(manifest) && !plan.marks().needs(blob),
        Place::Staging(name) => plan.stale().iter().any(|stale| stale.name == *name),
        _ => false,
    }
}
