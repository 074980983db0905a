//! Deleting images: decide what may go, take its names out of the index, and let `gc` say what falls free.
//!
//! Order: the index first, blobs after. A delete that is interrupted leaves an image that is gone by name and whose blobs the
//! next collection frees.

mod conflict;
mod parents;
mod request;

use std::collections::{BTreeMap, HashMap, HashSet};

use conflict::Holders;

pub use conflict::{Conflict, MountedAt};
pub use request::{DeleteError, DeleteOptions, Target};

use crate::{
    format::{IndexDocument, IndexEntry},
    gc::{self, Evidence, Facts, GcError, GcPlan, GcReport, Policy, Roots, Scope},
    graph::{ImageError, ImageGraph, Root, RootOrigin, walk},
    image::{self, WantedPlatform},
    name::{Digest, Selector},
    observe::Observer,
    store::{LeaseState, Pin, Store, StoreError},
};

/// A deletion that has been decided and not yet begun.
#[derive(Debug)]
pub struct DeletePlan {
    targets: Vec<Target>,
    edited: IndexDocument,
    scope: HashSet<Digest>,
    unpinned: Vec<Digest>,
    graph: Option<ImageGraph>,
    options: DeleteOptions,
    /// When the index was read that this was decided on.
    read_nanoseconds: i64,
}

/// What a deletion did, or would do.
#[derive(Debug)]
pub struct DeleteReport {
    /// The names that went, with what they stood for.
    pub untagged: Vec<Target>,
    /// What was freed.
    pub freed: GcReport,
    /// The bytes that stay, by what still needs them.
    pub kept: Vec<KeptBytes>,
    /// Why what was condemned waits in quarantine, if it does.
    pub evidence: Vec<Evidence>,
    /// How many processes could not be looked into.
    pub unreadable: u64,
    /// Why a mount may exist that cannot be seen, so that nothing was freed.
    pub hidden: Option<String>,
}

/// Bytes of a deleted image that stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBytes {
    /// What needs them, as in "tag app:v2".
    pub by: String,
    /// How many bytes.
    pub bytes: u64,
}

impl DeletePlan {
    /// Decides. Writes nothing; fails with the first conflict that nobody has overridden. Pins whose time was over at
    /// `now_seconds` are none.
    pub fn new(
        store: &Store,
        selectors: &[Selector],
        options: DeleteOptions,
        now_seconds: i64,
    ) -> Result<Self, DeleteError> {
        if !options.keep_blobs {
            gc::check_collectable(store)?;
        }
        let index = store.index()?;
        let mut targets = request::resolve(index.document(), selectors, &options)
            .map_err(|error| inside_an_index(store, index.document(), error))?;
        let places = places_of(&targets);
        let edited = index.document().without(&places);
        let leases = store.leases()?;
        let pins: Vec<Pin> = store.pins()?.into_iter().filter(|pin| !pin.is_over(now_seconds)).collect();
        let mut complete = false;
        let graph = match walk(store, Root::of_index(index.document())) {
            Ok(graph) => {
                complete = true;
                Some(graph)
            }
            // Only names go, so what else cannot be read does not matter.
            Err(_) if options.keep_blobs => graph_of_targets(store, index.document(), &places),
            Err(cause) => {
                walk(store, Root::of_index(&edited)).map_err(|_| GcError::Incomplete(cause))?;
                graph_of_targets(store, index.document(), &places)
            }
        };
        let stays = conflict::digests_without(index.document(), &places);
        let holders = Holders { stays: &stays, graph: graph.as_ref(), leases: &leases, pins: &pins };
        let unpinned = conflict::check(&targets, &holders, &options)?;
        if let (Some(graph), true, false) = (&graph, complete, options.no_prune) {
            let held = held(&leases, &pins);
            targets.extend(parents::parents(store, index.document(), &stays, graph, &targets, &held));
        }
        let edited = index.document().without(&places_of(&targets));
        let scope = match &graph {
            Some(graph) if complete => needed_in(graph, &places_of(&targets)),
            _ => needed_by(store, index.document(), &targets),
        };
        Ok(Self { targets, edited, scope, unpinned, graph, options, read_nanoseconds: index.read_nanoseconds() })
    }

    /// Decides on what was chosen earlier, by digest: what a name stands for by now, if it is something else, stays.
    /// `None` if all of it has moved. Gives the names that have moved, too.
    pub fn of_decisions(
        store: &Store,
        decisions: &[(Selector, Digest)],
        options: DeleteOptions,
        now_seconds: i64,
    ) -> Result<(Option<Self>, Vec<Selector>), DeleteError> {
        let index = store.index()?;
        let picks = request::Picks::of(index.document());
        let is_same = |(selector, digest): &&(Selector, Digest)| picks.is_only(selector, digest);
        let (same, moved): (Vec<_>, Vec<_>) = decisions.iter().partition(is_same);
        let moved = moved.into_iter().map(|(selector, _)| selector.clone()).collect();
        if same.is_empty() {
            return Ok((None, moved));
        }
        let selectors: Vec<Selector> = same.iter().map(|(selector, _)| selector.clone()).collect();
        let plan = Self::new(store, &selectors, options, now_seconds)?;
        let decided: HashMap<&Selector, &Digest> = same.iter().map(|(selector, digest)| (selector, digest)).collect();
        let is_decided = |target: &Target| match (decided.get(&target.selector), &target.selector) {
            (Some(digest), Selector::Tag(_)) => **digest == target.digest,
            (Some(digest), Selector::Digest(_)) => **digest == target.digest && target.tags.is_empty(),
            // A base that goes along was found in the index that was read last.
            (None, _) => true,
        };
        match plan.targets.iter().all(is_decided) {
            true => Ok((Some(plan), moved)),
            false => Err(DeleteError::Changed),
        }
    }

    /// What is to be untagged.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What freeing would do after the untag, as a plan of the collector that must only be looked at.
    pub fn preview(
        &self,
        store: &Store,
        now_seconds: i64,
        watch: &dyn Observer,
    ) -> Result<(GcPlan, Vec<KeptBytes>), GcError> {
        let roots = Roots::Supposed { index: &self.edited, unpinned: &self.unpinned };
        let facts = self.facts(store, roots, now_seconds, watch)?;
        let kept = kept(&facts.marks.graph, &self.scope, &facts);
        Ok((gc::plan(facts, self.policy(), now_seconds), kept))
    }

    /// Untags, then frees what nothing else needs.
    pub fn apply(self, store: &Store, now_seconds: i64, watch: &dyn Observer) -> Result<DeleteReport, DeleteError> {
        self.untag(store, now_seconds)?;
        for digest in &self.unpinned {
            store.unpin(digest)?;
        }
        let mut report = DeleteReport {
            untagged: Vec::new(),
            freed: GcReport::default(),
            kept: Vec::new(),
            evidence: Vec::new(),
            unreadable: 0,
            hidden: None,
        };
        if !self.options.keep_blobs {
            self.free(store, now_seconds, watch, &mut report).map_err(DeleteError::UntaggedOnly)?;
        }
        report.untagged = self.targets;
        Ok(report)
    }

    /// Takes the names away, if everything is still as it was decided on, leases included: mounting waits for the lock. What
    /// was found before the lock is taken holds under it if index, leases and pins are the same.
    fn untag(&self, store: &Store, now_seconds: i64) -> Result<(), DeleteError> {
        let mut checked: Option<Checked> = None;
        store.remove_entries(|index| {
            let leases = store.leases()?;
            let pins: Vec<Pin> = store.pins()?.into_iter().filter(|pin| !pin.is_over(now_seconds)).collect();
            let same = |checked: &&Checked| {
                checked.index == index.digest() && checked.leases == leases && checked.pins == pins
            };
            if let Some(checked) = checked.as_ref().filter(same) {
                return Ok(checked.places.clone());
            }
            let targets = self.same_targets(index.document())?;
            let places = places_of(&targets);
            let stays = conflict::digests_without(index.document(), &places);
            let holders = Holders { stays: &stays, graph: self.graph.as_ref(), leases: &leases, pins: &pins };
            conflict::check(&targets, &holders, &self.options)?;
            checked = Some(Checked { index: index.digest(), leases, pins, places: places.clone() });
            Ok(places)
        })
    }

    /// The targets in an index that may have changed since, if they are still the same.
    fn same_targets(&self, index: &IndexDocument) -> Result<Vec<Target>, DeleteError> {
        let selectors: Vec<Selector> = self.targets.iter().map(|target| target.selector.clone()).collect();
        let now = request::resolve(index, &selectors, &self.options)?;
        let shape = |targets: &[Target]| -> Vec<_> {
            targets.iter().map(|target| (target.digest, target.places.len(), target.tags.clone())).collect()
        };
        if shape(&now) == shape(&self.targets) { Ok(now) } else { Err(DeleteError::Changed) }
    }

    fn free(
        &self,
        store: &Store,
        now_seconds: i64,
        watch: &dyn Observer,
        report: &mut DeleteReport,
    ) -> Result<(), GcError> {
        let facts = self.facts(store, Roots::Current, now_seconds, watch)?;
        report.kept = kept(&facts.marks.graph, &self.scope, &facts);
        let plan = gc::plan(facts, self.policy(), now_seconds);
        report.evidence = plan.evidence().to_vec();
        report.unreadable = plan.marks().processes.unreadable;
        report.hidden.clone_from(&plan.marks().processes.hidden);
        report.freed = gc::apply(plan, store, now_seconds, watch)?;
        if report.evidence.is_empty() {
            report.evidence.clone_from(&report.freed.evidence);
        }
        Ok(())
    }

    fn policy(&self) -> Policy {
        Policy { hold: self.options.hold, ..Policy::default() }
    }

    /// What a plan needs that frees what was deleted. That was published once, so nobody is still uploading it.
    fn facts(&self, store: &Store, roots: Roots<'_>, now_seconds: i64, watch: &dyn Observer) -> Result<Facts, GcError> {
        let scope = Scope::Only(self.scope.clone());
        let mut facts = Facts::gather_of(store, roots, scope, now_seconds, watch)?;
        facts.release(&self.scope, self.read_nanoseconds);
        Ok(facts)
    }
}

/// What was looked at when the conflicts were checked, and the places of the entries that may go then.
struct Checked {
    index: Digest,
    leases: Vec<LeaseState>,
    pins: Vec<Pin>,
    places: Vec<usize>,
}

fn places_of(targets: &[Target]) -> Vec<usize> {
    targets.iter().flat_map(|target| target.places.iter().copied()).collect()
}

/// The images that are mounted or pinned.
fn held(leases: &[LeaseState], pins: &[Pin]) -> HashSet<Digest> {
    let live = leases.iter().filter(|lease| lease.live).filter_map(|lease| lease.record.as_ref());
    live.filter_map(|record| record.manifest).chain(pins.iter().map(|pin| pin.digest)).collect()
}

/// An image inside an index has no name of its own that could go.
fn inside_an_index(store: &Store, index: &IndexDocument, error: DeleteError) -> DeleteError {
    let DeleteError::Image(ImageError::NotFound { selector: selector @ Selector::Digest(_), .. }) = &error else {
        return error;
    };
    match image::find(store, index, selector, &WantedPlatform::here()) {
        Ok(found) if found.is_inside => {
            let entries = found.places.iter().map(|place| &index.entries()[*place]);
            let name = |entry: &IndexEntry| {
                entry.tag.as_ref().map_or_else(|| "an index without a tag".into(), ToString::to_string)
            };
            DeleteError::Inside { selector: selector.clone(), indexes: entries.map(name).collect() }
        }
        _ => error,
    }
}

/// The graph of what is to go, so that a mounted child of it is seen where something else cannot be read.
fn graph_of_targets(store: &Store, index: &IndexDocument, places: &[usize]) -> Option<ImageGraph> {
    let roots = Root::of_index(index);
    walk(store, places.iter().map(|place| roots[*place].clone()).collect()).ok()
}

/// Everything that the entries at these places need, in the graph of the whole index.
fn needed_in(graph: &ImageGraph, places: &[usize]) -> HashSet<Digest> {
    let nodes: Vec<usize> = places.iter().map(|place| graph.roots()[*place].1).collect();
    graph.closure(&nodes).0.into_iter().map(|blob| graph.digest(blob)).collect()
}

/// Everything that the targets need, as far as it can be read: an image whose rootfs is damaged can be deleted too, and what
/// is then not found here falls to a later collection.
fn needed_by(store: &Store, index: &IndexDocument, targets: &[Target]) -> HashSet<Digest> {
    let roots = Root::of_index(index);
    let mut needed = HashSet::new();
    for target in targets {
        needed.insert(target.digest);
        for place in &target.places {
            if let Ok(graph) = walk(store, vec![roots[*place].clone()]) {
                needed.extend(graph.digests());
            }
        }
    }
    needed
}

/// Which of the blobs in `scope` stay, and what needs them. A blob that several roots need is counted for the first.
fn kept(graph: &ImageGraph, scope: &HashSet<Digest>, facts: &Facts) -> Vec<KeptBytes> {
    let mut rows: BTreeMap<(RootOrder, String), u64> = BTreeMap::new();
    let mut is_wanted = vec![false; graph.len()];
    scope.iter().filter_map(|digest| graph.find(digest)).for_each(|blob| is_wanted[blob as usize] = true);
    for (root, node) in graph.roots() {
        for blob in graph.closure(&[*node]).0 {
            if std::mem::replace(&mut is_wanted[blob as usize], false) {
                let size = facts.inventory.get(&graph.digest(blob)).map_or(0, |stat| stat.size);
                *rows.entry((RootOrder::of(&root.origin), root.origin.to_string())).or_default() += size;
            }
        }
    }
    rows.into_iter().map(|((_, by), bytes)| KeptBytes { by, bytes }).filter(|row| row.bytes > 0).collect()
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RootOrder {
    Entry,
    Other,
}

impl RootOrder {
    fn of(origin: &RootOrigin) -> Self {
        match origin {
            RootOrigin::Entry(..) | RootOrigin::Elsewhere(..) => Self::Entry,
            RootOrigin::Lease(_) | RootOrigin::Pin(_) | RootOrigin::Process(..) => Self::Other,
        }
    }
}

impl From<StoreError> for DeleteError {
    fn from(error: StoreError) -> Self {
        Self::Gc(GcError::Store(error))
    }
}
