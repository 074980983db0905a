//! `pfs why`: what keeps a blob.

use std::collections::HashMap;

use super::{ExplainError, entries::readable};
use crate::{
    gc::{self, Facts, GcError, Policy, Roots, Verdict},
    graph::{ImageGraph, NodeKind, Root, RootOrigin, load_image, pick},
    name::{Digest, MediaKind, Selector},
    observe::Observer,
    store::{LeaseRecord, Pin, Store},
    tree::View,
};

/// What keeps one blob.
#[derive(Debug)]
pub struct Why {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes; `None` if it is not in the blob directory.
    pub size: Option<u64>,
    /// Every root that needs it, with the way from there.
    pub keepers: Vec<Keeper>,
    /// What the next collection would do with it. `None` if it lies neither in the blob directory nor in quarantine.
    pub verdict: Option<Verdict>,
    /// Why that is not known, if so: nothing is freed then.
    pub unknown: Option<GcError>,
}

/// A root that needs a blob.
#[derive(Debug)]
pub struct Keeper {
    /// The root.
    pub origin: RootOrigin,
    /// The lease, if the root is one.
    pub lease: Option<LeaseRecord>,
    /// The pin, if the root is one.
    pub pin: Option<Pin>,
    /// The documents on the way, as in "manifest 5c7d...", ending with what names the blob.
    pub way: Vec<String>,
    /// Where the image has its bytes.
    pub files: Files,
}

/// The files of an image that a blob has bytes of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The first few, as paths in the image.
    pub some: Vec<String>,
    /// How many there are.
    pub count: u64,
    /// The image names it, but no path needs it: it belongs to what a layer above hides, or to the verity table.
    pub hidden: bool,
}

const FILES_MAX: usize = 5;

/// Tells what keeps a blob: the one whose digest begins so, or the manifest of a tagged image.
pub fn why(store: &Store, selector: &Selector, now_seconds: i64, watch: &dyn Observer) -> Result<Why, ExplainError> {
    match Facts::gather(store, Roots::Current, now_seconds, watch) {
        Ok(facts) => {
            let plan = gc::plan(facts, Policy::default(), now_seconds);
            let graph = &plan.marks().graph;
            let digest = find(store, graph, selector)?;
            let planned = plan.blobs().iter().find(|blob| blob.digest == digest);
            let verdict = planned.map(|blob| blob.verdict.clone());
            Ok(Why { verdict, ..of_blob(store, graph, digest)? })
        }
        Err(GcError::Store(error)) => Err(error.into()),
        Err(unknown) => {
            let (graph, _) = readable(store, &Root::of_index(store.index()?.document()));
            let digest = find(store, &graph, selector)?;
            Ok(Why { unknown: Some(unknown), ..of_blob(store, &graph, digest)? })
        }
    }
}

/// The blob that is meant, among those that are there and those that are only needed.
fn find(store: &Store, graph: &ImageGraph, selector: &Selector) -> Result<Digest, ExplainError> {
    let Selector::Digest(prefix) = selector else {
        return Ok(pick(store.index()?.document(), selector)?.digest);
    };
    let mut digests: Vec<Digest> = store.inventory()?.blobs.into_iter().map(|(digest, _)| digest).collect();
    digests.extend(store.quarantined()?.into_iter().map(|blob| blob.digest));
    digests.extend(graph.digests());
    digests.retain(|digest| digest.to_string().starts_with(prefix));
    digests.sort_unstable();
    digests.dedup();
    match digests[..] {
        [digest] => Ok(digest),
        [] => Err(ExplainError::NoBlob(prefix.clone())),
        _ => Err(ExplainError::SeveralBlobs { prefix: prefix.clone(), found: digests }),
    }
}

fn of_blob(store: &Store, graph: &ImageGraph, digest: Digest) -> Result<Why, ExplainError> {
    let size = store.stat_blob(&digest)?.map(|stat| stat.size);
    Ok(Why { digest, size, keepers: keepers(store, graph, &digest)?, verdict: None, unknown: None })
}

fn keepers(store: &Store, graph: &ImageGraph, digest: &Digest) -> Result<Vec<Keeper>, ExplainError> {
    let Some(blob) = graph.find(digest) else { return Ok(Vec::new()) };
    let (leases, pins) = (store.leases()?, store.pins()?);
    let mut files_of = HashMap::new();
    let mut keepers = Vec::new();
    for (root, node) in graph.roots() {
        let Some(way) = way_to(graph, *node, blob) else { continue };
        let last = way[way.len() - 1];
        let lease = leases.iter().find(|lease| root.origin == RootOrigin::Lease(lease.id.clone()));
        let is_pin = matches!(root.origin, RootOrigin::Pin(_));
        let pin = pins.iter().find(|pin| is_pin && root.digest == crate::format::DescriptorDigest::Sha256(pin.digest));
        keepers.push(Keeper {
            origin: root.origin.clone(),
            lease: lease.and_then(|lease| lease.record.clone()),
            pin: pin.cloned(),
            way: words(graph, &way, digest),
            files: files_of.entry(last).or_insert_with(|| files(store, graph, last, digest)).clone(),
        });
    }
    Ok(keepers)
}

/// The nodes from a root to one that needs the blob itself, by the shortest way.
fn way_to(graph: &ImageGraph, root: usize, blob: u32) -> Option<Vec<usize>> {
    let mut from: HashMap<usize, usize> = HashMap::from([(root, root)]);
    let mut open = std::collections::VecDeque::from([root]);
    while let Some(node) = open.pop_front() {
        if graph.nodes()[node].needs.binary_search(&blob).is_ok() {
            let mut way = vec![node];
            while let Some(before) = from.get(&way[0]).filter(|before| **before != way[0]) {
                way.insert(0, *before);
            }
            return Some(way);
        }
        for child in &graph.nodes()[node].children {
            if !from.contains_key(child) {
                from.insert(*child, node);
                open.push_back(*child);
            }
        }
    }
    None
}

/// The documents of a way in words, with the rootfs between a manifest and its chunks, without the blob itself.
fn words(graph: &ImageGraph, way: &[usize], digest: &Digest) -> Vec<String> {
    let mut words = Vec::new();
    for node in way.iter().map(|node| &graph.nodes()[*node]) {
        let own = graph.digest(node.blob);
        let noun = match node.kind {
            NodeKind::Index => "index",
            NodeKind::Manifest(_) => "manifest",
            NodeKind::Rootfs => "rootfs",
            NodeKind::Opaque | NodeKind::Absent => "blob",
        };
        words.push((own, format!("{noun} {}", own.short())));
    }
    if let Some(NodeKind::Manifest(Some(rootfs))) = way.last().map(|node| graph.nodes()[*node].kind) {
        let rootfs = graph.digest(rootfs);
        let is_manifest = words.last().is_some_and(|(own, _)| own == digest);
        words.extend((!is_manifest).then(|| (rootfs, format!("rootfs {}", rootfs.short()))));
    }
    words.into_iter().filter(|(own, _)| own != digest).map(|(_, word)| word).collect()
}

/// The paths of an image whose files have bytes of the blob.
fn files(store: &Store, graph: &ImageGraph, node: usize, digest: &Digest) -> Files {
    let own = graph.digest(graph.nodes()[node].blob);
    let (kind, rootfs) = match graph.nodes()[node].kind {
        NodeKind::Rootfs => (MediaKind::Rootfs, own),
        NodeKind::Manifest(Some(rootfs)) => (MediaKind::Manifest, graph.digest(rootfs)),
        _ => return Files::default(),
    };
    let image = load_image(store, &own, kind).ok().filter(|_| *digest != own && *digest != rootfs);
    let Some(image) = image else { return Files::default() };
    let is_chunk = image.rootfs.chunks().iter().any(|chunk| chunk.0 == *digest);
    let Some(view) = View::new(image.rootfs).ok().filter(|_| is_chunk) else { return Files::default() };
    let mut files = Files::default();
    for step in view.walk() {
        let mut pieces = view.file_map(step.node.ino).into_iter().flat_map(|map| map.pieces());
        if pieces.any(|piece| piece.blob.chunk.0 == *digest) {
            files.count += 1;
            if files.some.len() < FILES_MAX {
                files.some.push(String::from_utf8_lossy(&step.path).into_owned());
            }
        }
    }
    files.hidden = files.count == 0;
    files
}
