//! Base images without a name that only a deleted delta image was built on: they go along.
//!
//! A delta image has the layers of its base under its own, so the base is told by its layers being the tail of the
//! deleted image's. What another image that stays was built on too stays with it.

use std::collections::HashSet;

use super::Target;
use crate::{
    format::{DescriptorDigest, IndexDocument, Rootfs},
    graph::{ImageGraph, NodeKind, dangling, load_image},
    name::{Digest, MediaKind, Selector},
    store::Store,
};

/// The bases that go along with `targets`. An image that cannot be read is no base, and none of its bases are known.
pub(super) fn parents(
    store: &Store,
    index: &IndexDocument,
    stays: &HashSet<Digest>,
    graph: &ImageGraph,
    targets: &[Target],
    held: &HashSet<Digest>,
) -> Vec<Target> {
    let going: HashSet<Digest> =
        targets.iter().map(|target| target.digest).filter(|digest| !stays.contains(digest)).collect();
    let nameless = nameless(index, dangling(index, graph, held), &going);
    if nameless.is_empty() {
        return Vec::new();
    }
    let deleted: Vec<Rootfs> = going.iter().filter_map(|digest| rootfs(store, graph, digest)).collect();
    let bases: Vec<(Digest, Rootfs)> =
        nameless.iter().filter_map(|digest| Some((*digest, rootfs(store, graph, digest)?))).collect();
    let bases: Vec<_> =
        bases.into_iter().filter(|(_, base)| deleted.iter().any(|image| is_base_of(base, image))).collect();
    let leaving: HashSet<Digest> = bases.iter().map(|(digest, _)| *digest).chain(going).collect();
    let images = graph.nodes().iter().map(|node| graph.digest(node.blob)).filter(|digest| !leaving.contains(digest));
    let staying: Vec<Rootfs> = images.filter_map(|digest| rootfs(store, graph, &digest)).collect();
    let free = bases.iter().filter(|(_, base)| !staying.iter().any(|image| is_base_of(base, image)));
    free.map(|(digest, _)| target(index, digest)).collect()
}

fn nameless(index: &IndexDocument, places: Vec<usize>, going: &HashSet<Digest>) -> HashSet<Digest> {
    let digests = places.into_iter().filter_map(|place| match index.entries()[place].descriptor.digest {
        DescriptorDigest::Sha256(digest) => Some(digest),
        DescriptorDigest::Other(_) => None,
    });
    digests.filter(|digest| !going.contains(digest)).collect()
}

/// The metadata of a puzzlefs image; `None` for every other document.
fn rootfs(store: &Store, graph: &ImageGraph, digest: &Digest) -> Option<Rootfs> {
    let kind = match graph.nodes()[graph.node_of(digest)?].kind {
        NodeKind::Rootfs => MediaKind::Rootfs,
        NodeKind::Manifest(Some(_)) => MediaKind::Manifest,
        _ => return None,
    };
    Some(load_image(store, digest, kind).ok()?.rootfs)
}

fn is_base_of(base: &Rootfs, image: &Rootfs) -> bool {
    let (base, image) = (base.layers(), image.layers());
    !base.is_empty() && base.len() < image.len() && image.ends_with(base)
}

fn target(index: &IndexDocument, digest: &Digest) -> Target {
    let own = |place: &usize| index.entries()[*place].descriptor.digest == DescriptorDigest::Sha256(*digest);
    let places = (0..index.entries().len()).filter(own).collect();
    Target {
        selector: Selector::Digest(digest.to_string()),
        digest: *digest,
        foreign_digest: None,
        places,
        tags: Vec::new(),
    }
}
