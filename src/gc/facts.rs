//! What the collector knows when it plans.

use std::{
    collections::{HashMap, HashSet},
    panic::resume_unwind,
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use crate::{
    format::{DescriptorDigest, IndexDocument, references_in_text},
    graph::{BlobSource, DocumentProblem, Form, ImageGraph, Root, RootOrigin, WalkError, walk, walk_with},
    name::{Digest, MediaKind},
    observe::{Event, Observer},
    store::{
        BlobStat, ForeignTraces, IndexSnapshot, Inventory, LeaseKind, LeaseRecord, LeaseState, Pin, ProcessEvidence,
        QuarantinedBlob, StalePins, StaleStaging, Store, StoreError,
    },
};

/// Which blobs a plan is about.
#[derive(Debug, Clone)]
pub enum Scope {
    /// All of them.
    Store,
    /// Only these: what a deleted image needed.
    Only(HashSet<Digest>),
}

impl Scope {
    /// Whether it has this blob.
    pub fn has(&self, digest: &Digest) -> bool {
        match self {
            Self::Store => true,
            Self::Only(digests) => digests.contains(digest),
        }
    }
}

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GcError {
    /// Something that a root needs cannot be read, so what else it needs is unknown.
    #[error("nothing was freed, because not everything that is needed is known: {0}")]
    Incomplete(#[from] WalkError),
    /// The blob directory is reached through a symbolic link or a bind mount: other layouts may use it, and nobody has said
    /// which.
    #[error("{} is shared, and not every layout that uses it is known{}; nothing was freed", blobs.display(), known_layouts(known))]
    SharedBlobs {
        /// Where the blobs really are.
        blobs: PathBuf,
        /// The layouts that are known to use it.
        known: Vec<PathBuf>,
    },
    /// Another program manages the directory and collects it itself.
    #[error("{} is managed by {by}, which collects it itself; nothing was freed", store.display())]
    Managed {
        /// The layout.
        store: PathBuf,
        /// Who.
        by: &'static str,
    },
    /// A mount has its lease and has not yet said what it needs.
    #[error("a mount is being set up (lease {0}); nothing was freed")]
    MountPending(String),
    /// What may be a mount of the store cannot be seen, so what it needs is unknown.
    #[error("{0}; nothing was freed")]
    CannotSee(String),
    /// The filesystem's clock and this machine's disagree, so ages mean nothing.
    #[error("the filesystem's clock and the system's disagree by {seconds} s; nothing was freed")]
    Clock {
        /// By how much.
        seconds: u64,
    },
    /// The store kept changing, so no plan was ever up to date.
    #[error("the store changes faster than it can be read; nothing more was freed")]
    Restless,
    /// The store could not be read or changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn known_layouts(known: &[PathBuf]) -> String {
    let names: Vec<_> = known.iter().map(|path| path.display().to_string()).collect();
    if names.is_empty() { String::new() } else { format!(" (known: {})", names.join(", ")) }
}

/// Fails where blobs must not be collected, whatever is needed: with another program's, and with those of layouts that are
/// not known.
pub fn check_collectable(store: &Store) -> Result<(), GcError> {
    if let Some(by) = store.manager() {
        return Err(GcError::Managed { store: store.path().into(), by });
    }
    let Some(blobs) = store.shared_blobs() else { return Ok(()) };
    if store.sharing_is_known()? {
        return Ok(());
    }
    let mut known = vec![store.path().to_path_buf()];
    known.extend(store.other_layouts()?.iter().map(|other| other.path().to_path_buf()));
    Err(GcError::SharedBlobs { blobs: blobs.into(), known })
}

/// Everything that a plan is made from.
#[derive(Debug)]
pub struct Facts {
    /// What is needed, and as of when.
    pub marks: Marks,
    /// What lies in the blob directory. Of what is outside the scope, only what nothing needs.
    pub inventory: Inventory,
    /// What lies in quarantine.
    pub quarantined: Vec<QuarantinedBlob>,
    /// What dead builds have left in the staging directory.
    pub stale: Vec<StaleStaging>,
    /// What ended mounts have left among the pins.
    pub stale_pins: StalePins,
    /// Traces of other writers in the layout.
    pub traces: ForeignTraces,
    /// Which blobs the facts are about.
    pub scope: Scope,
    /// Blobs that an index we have seen did need.
    pub released: HashMap<Digest, Released>,
    /// When a name in the blob directory last changed, in nanoseconds since 1970.
    pub blobs_changed_nanoseconds: i64,
}

/// Until when indexes needed a blob, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// When the last index that needed it was seen. A file that was written later is another upload.
    pub needed_nanoseconds: i64,
    /// When the first index after that was seen. A file that was moved here later is another upload.
    pub gone_nanoseconds: i64,
}

impl Facts {
    /// Whether a blob was published once, and its file has neither been written nor moved here since.
    ///
    /// A file that is moved here keeps its times but for the change time. Links of mounts move that, too, and not the times of
    /// the directory, so only both together speak of another upload.
    pub(super) fn is_released(&self, digest: &Digest, stat: &BlobStat) -> bool {
        self.released.get(digest).is_some_and(|released| {
            let moved = stat.changed_nanoseconds.min(self.blobs_changed_nanoseconds);
            stat.written_nanoseconds <= released.needed_nanoseconds && moved <= released.gone_nanoseconds
        })
    }

    /// Notes that an index which was read at this time, in nanoseconds since 1970, needed these blobs.
    pub fn release(&mut self, digests: &HashSet<Digest>, read_nanoseconds: i64) {
        let now = Released { needed_nanoseconds: read_nanoseconds, gone_nanoseconds: read_nanoseconds };
        for digest in digests {
            let released = self.released.entry(*digest).or_insert(now);
            if released.needed_nanoseconds < read_nanoseconds {
                *released = now;
            }
        }
    }
}

/// What is needed, with the stamp of what that was derived from.
#[derive(Debug)]
pub struct Marks {
    /// From every root to its leaves.
    pub graph: ImageGraph,
    /// What running builds have claimed.
    pub claims: HashSet<Digest>,
    /// What processes without a lease do with the store.
    pub processes: ProcessEvidence,
    stamp: Stamp,
}

/// The state of the roots: when it is another, the marks are out of date.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    index: Digest,
    leases: Vec<(String, Option<LeaseRecord>, usize)>,
    pins: Vec<Digest>,
    others: Vec<(PathBuf, Digest)>,
}

/// The indexes of the other layouts that use the same blobs.
fn other_indexes(store: &Store) -> Result<Vec<(PathBuf, IndexSnapshot)>, GcError> {
    let others = store.other_layouts()?.into_iter();
    let others: Result<Vec<_>, GcError> =
        others.map(|other| Ok((other.path().to_path_buf(), other.index()?))).collect();
    let mut others = others?;
    others.extend(store.indexes_naming_our_blobs()?);
    Ok(others)
}

/// The index to take the roots from.
#[derive(Debug, Clone, Copy)]
pub enum Roots<'i> {
    /// The one on disk.
    Current,
    /// An edited one that is not on disk: for plans that are only looked at.
    Supposed {
        /// The index.
        index: &'i IndexDocument,
        /// The pins that would have been taken back.
        unpinned: &'i [Digest],
    },
}

impl Facts {
    /// Gathers the facts of the whole store. Writes nothing. Fails if anything that a root needs cannot be read.
    pub fn gather(store: &Store, roots: Roots<'_>, now_seconds: i64, watch: &dyn Observer) -> Result<Self, GcError> {
        Self::gather_of(store, roots, Scope::Store, now_seconds, watch)
    }

    /// The same, for a plan that is about these blobs only.
    pub fn gather_of(
        store: &Store,
        roots: Roots<'_>,
        scope: Scope,
        now_seconds: i64,
        watch: &dyn Observer,
    ) -> Result<Self, GcError> {
        check_collectable(store)?;
        watch.event(Event::Phase("reading what every image needs"));
        let (marks, earlier) = thread::scope(|threads| {
            let list = || store.inventory_of(|digest| scope.has(digest));
            // Without the thread everything is looked at after the walk.
            let listing = thread::Builder::new().spawn_scoped(threads, list).ok();
            let marks = Marks::gather(store, roots, now_seconds);
            let join = |listing: ScopedJoinHandle<'_, _>| listing.join().unwrap_or_else(|panic| resume_unwind(panic));
            (marks, listing.map_or_else(|| Ok(Inventory::default()), join))
        });
        let marks = marks?;
        watch.event(Event::Phase("listing blobs"));
        // Of what is needed only its size is of interest. What nothing needs is judged by facts from after the walk; it may be
        // an upload, wherever it belongs.
        let is_wanted = |digest: &Digest| scope.has(digest) || !marks.needs(digest);
        let inventory = store.inventory_since(earlier?, is_wanted, |digest| marks.needs(digest))?;
        let quarantined = store.quarantined()?;
        let stale = store.stale_staging()?;
        let stale_pins = store.stale_pins()?;
        let traces = traces(store)?;
        let released = released(store, &marks)?;
        // After the list: what comes later is not in it.
        let blobs_changed_nanoseconds = store.blobs_changed_nanoseconds()?;
        Ok(Self {
            marks,
            inventory,
            quarantined,
            stale,
            stale_pins,
            traces,
            scope,
            released,
            blobs_changed_nanoseconds,
        })
    }
}

/// How often, and after which pause, a mount that is being set up is looked at again.
const MOUNT_LOOKS: u32 = 100;
const MOUNT_PAUSE: Duration = Duration::from_millis(20);

impl Marks {
    /// Walks from the entries of the index, the live leases, the pins, and what other processes have mapped or open. Waits up
    /// to two seconds for a mount that is being set up to say what it needs.
    pub fn gather(store: &Store, roots: Roots<'_>, now_seconds: i64) -> Result<Self, GcError> {
        for _ in 0..MOUNT_LOOKS {
            match Self::gather_once(store, roots, now_seconds) {
                Err(GcError::MountPending(_)) => thread::sleep(MOUNT_PAUSE),
                gathered => return gathered,
            }
        }
        Self::gather_once(store, roots, now_seconds)
    }

    fn gather_once(store: &Store, roots: Roots<'_>, now_seconds: i64) -> Result<Self, GcError> {
        let index = store.index()?;
        let leases = store.leases()?;
        let pins = store.pins()?;
        let others = other_indexes(store)?;
        let stamp = Stamp::of(&index.digest(), &others, &leases, &pins);
        let (document, unpinned): (_, &[Digest]) = match roots {
            Roots::Current => (index.document(), &[]),
            Roots::Supposed { index, unpinned } => (index, unpinned),
        };
        let mut graph_roots = Root::of_index(document);
        for (layout, index) in &others {
            graph_roots.extend(Root::of_other_index(layout, index.document()));
        }
        // Indexes of other programs that a killed edit of pfs has left aside.
        for lost in store.lost_indexes()? {
            graph_roots.extend(Root::of_other_index(lost.name().as_ref(), &lost.document));
        }
        for lease in leases.iter().filter(|lease| lease.live) {
            graph_roots.extend(lease_roots(lease)?);
        }
        let stands = |pin: &&Pin| !pin.is_over(now_seconds) && !unpinned.contains(&pin.digest);
        graph_roots.extend(pins.iter().filter(stands).map(|pin| Root {
            origin: RootOrigin::Pin(pin.tag.clone().unwrap_or_else(|| pin.digest.short())),
            digest: DescriptorDigest::Sha256(pin.digest),
            kind: MediaKind::of(&pin.media_type),
        }));
        let (owners, layouts) = (owners(&leases), layouts_of(store, &others));
        let mut processes = ProcessEvidence::default();
        let graph = walk_with(store, graph_roots, || {
            processes = store.process_evidence(&layouts, &owners);
            process_roots(store, &processes).map_err(GcError::Store)
        })?;
        if let Some(what) = &processes.blind {
            return Err(GcError::CannotSee(what.clone()));
        }
        let claims = leases.iter().filter(|lease| lease.live).flat_map(|lease| lease.claims.iter().copied()).collect();
        Ok(Self { graph, claims, processes, stamp })
    }

    /// Whether index, leases and pins are still those that these marks were derived from.
    pub fn are_current(&self, store: &Store) -> Result<bool, GcError> {
        if store.index_digest()? != self.stamp.index {
            return Ok(false);
        }
        let others = other_indexes(store)?;
        Ok(Stamp::of(&self.stamp.index, &others, &store.leases()?, &store.pins()?) == self.stamp)
    }

    /// Makes the indexes durable that these marks were derived from, or newer ones, which then are found to be others. What
    /// goes for good before that could be needed again after a failure of the machine that brings an older index back.
    pub fn settle(&self, store: &Store) -> Result<(), GcError> {
        store.settle_index()?;
        for other in store.other_layouts()? {
            other.settle_index()?;
        }
        Ok(())
    }

    /// For each blob number of the graph, whether an entry of an index needs it.
    pub fn needed_by_entries(&self) -> Vec<bool> {
        let roots = self.graph.roots().iter();
        let entries: Vec<usize> = roots.filter(|(root, _)| root.origin.is_entry()).map(|(_, node)| *node).collect();
        self.graph.reach(&entries)
    }

    /// What processes do with the store now, as [`Self::processes`] was found.
    pub fn look_at_processes(&self, store: &Store) -> Result<ProcessEvidence, GcError> {
        let leases = store.leases()?;
        Ok(store.process_evidence(&layouts_of(store, &other_indexes(store)?), &owners(&leases)))
    }

    /// Whether none of these processes has taken up a blob of the store that was not known to be needed.
    pub fn needs_what_is_used(&self, now: &ProcessEvidence) -> bool {
        now.processes.iter().flat_map(|process| &process.blobs).all(|blob| self.needs(blob))
    }

    /// Whether a root or a claim needs this blob.
    pub fn needs(&self, digest: &Digest) -> bool {
        self.graph.needs(digest) || self.claims.contains(digest)
    }
}

/// This layout, and the others that use the same blobs.
fn layouts_of(store: &Store, others: &[(PathBuf, IndexSnapshot)]) -> Vec<PathBuf> {
    let mut layouts = vec![store.path().to_path_buf()];
    layouts.extend(others.iter().map(|(layout, _)| layout.clone()));
    layouts
}

/// The processes here that hold leases.
fn owners(leases: &[LeaseState]) -> Vec<u32> {
    live_records(leases).filter(|record| record.is_process_here()).map(|record| record.pid).collect()
}

/// Traces of other writers in all layouts that use the blobs of this one.
pub(super) fn traces(store: &Store) -> Result<ForeignTraces, StoreError> {
    let mut traces = store.foreign_traces()?;
    for other in store.other_layouts()? {
        traces.extend(other.foreign_traces()?);
    }
    Ok(traces)
}

impl Stamp {
    fn of(index: &Digest, others: &[(PathBuf, IndexSnapshot)], leases: &[LeaseState], pins: &[Pin]) -> Self {
        let others = others.iter().map(|(layout, index)| (layout.clone(), index.digest())).collect();
        let pins = pins.iter().map(|pin| pin.digest).collect();
        let live = leases.iter().filter(|lease| lease.live);
        let leases = live.map(|lease| (lease.id.clone(), lease.record.clone(), lease.claims.len()));
        Self { index: *index, others, leases: leases.collect(), pins }
    }
}

fn live_records(leases: &[LeaseState]) -> impl Iterator<Item = &LeaseRecord> {
    leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref())
}

/// The blobs that processes without a lease map or have open. What looks like a rootfs makes its image live; what cannot
/// be read may be one.
fn process_roots(store: &Store, evidence: &ProcessEvidence) -> Result<Vec<Root>, StoreError> {
    let mut roots = Vec::new();
    for process in &evidence.processes {
        for digest in &process.blobs {
            let Some(kind) = kind_of_used(store, digest)? else { continue };
            let origin = RootOrigin::Process(process.pid, process.name.clone());
            roots.push(Root { origin, digest: DescriptorDigest::Sha256(*digest), kind });
        }
    }
    Ok(roots)
}

/// `None` if the blob is not of this store.
fn kind_of_used(store: &Store, digest: &Digest) -> Result<Option<MediaKind>, StoreError> {
    match store.begins_like_json(digest) {
        Err(error @ StoreError::Io { .. }) if !error.is_not_found() => return Err(error),
        Err(_) => return Ok(None),
        Ok(true) => return Ok(Some(MediaKind::Unknown)),
        Ok(false) => {}
    }
    match store.references(digest, Form::Rootfs) {
        Ok(_) => Ok(Some(MediaKind::Rootfs)),
        Err(DocumentProblem::Store(error @ StoreError::Io { .. })) => Err(error),
        Err(_) => Ok(Some(MediaKind::Leaf)),
    }
}

/// A mount needs its manifest and its rootfs. The lease names both, so that the chunks are known even after somebody has
/// removed the manifest under the mount.
fn lease_roots(lease: &LeaseState) -> Result<Vec<Root>, GcError> {
    let Some(record) = lease.record.as_ref().filter(|record| record.kind == LeaseKind::Mount) else {
        return Ok(Vec::new());
    };
    let (Some(manifest), Some(rootfs)) = (record.manifest, record.rootfs) else {
        return Err(GcError::MountPending(lease.id.clone()));
    };
    let root = |digest, kind| Root {
        origin: RootOrigin::Lease(lease.id.clone()),
        digest: DescriptorDigest::Sha256(digest),
        kind,
    };
    let mut roots = vec![root(rootfs, MediaKind::Rootfs)];
    if manifest != rootfs {
        roots.push(root(manifest, MediaKind::Manifest));
    }
    Ok(roots)
}

/// What the logged indexes needed, as far as it can still be read, and until when. An entry that cannot be read any more releases nothing: its blobs are then collected
/// by age.
fn released(store: &Store, marks: &Marks) -> Result<HashMap<Digest, Released>, GcError> {
    let mut released = HashMap::new();
    let mut seen = HashSet::new();
    // After the newest note comes the present index, which is being looked at now.
    let mut gone_nanoseconds = i64::MAX;
    // The newest comes first, so the first time that is found for a blob is the latest.
    for note in store.index_notes()? {
        let until = Released { needed_nanoseconds: note.written_nanoseconds(), gone_nanoseconds };
        gone_nanoseconds = note.written_nanoseconds();
        // Nearly all entries of nearly all notes are those of the present index, so most need no parsing.
        if references_in_text(note.bytes()).iter().all(|digest| marks.graph.needs(digest) || seen.contains(digest)) {
            continue;
        }
        let Ok(index) = IndexDocument::parse(note.bytes()) else { continue };
        for root in Root::of_index(&index) {
            let DescriptorDigest::Sha256(digest) = root.digest else { continue };
            if marks.graph.needs(&digest) || !seen.insert(digest) {
                continue;
            }
            if let Ok(graph) = walk(store, vec![root]) {
                for digest in graph.digests() {
                    released.entry(digest).or_insert(until);
                }
            }
        }
    }
    Ok(released)
}
