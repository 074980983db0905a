//! `pfs inspect`: one image in numbers.

use std::collections::HashSet;

use super::{ExplainError, entries::readable};
use crate::{
    format::{Kind, ManifestVersion},
    graph::{LoadedImage, Root, RootOrigin, load_image},
    image::{self, WantedPlatform},
    name::{Digest, ManifestId, RootfsId, Selector, Tag},
    store::Store,
    tree::{FileKind, View},
};

/// What is known of one image.
pub struct Inspection {
    /// Its manifest; the rootfs again, where it has none.
    pub manifest: ManifestId,
    /// Its rootfs blob.
    pub rootfs: RootfsId,
    /// The size of the rootfs blob in bytes.
    pub rootfs_bytes: u64,
    /// The wire version.
    pub version: ManifestVersion,
    /// All its tags.
    pub tags: Vec<Tag>,
    /// Its layers, topmost first.
    pub layers: Vec<LayerSummary>,
    /// Regular files in the merged tree, counted by inode.
    pub files: u64,
    /// Directories in the merged tree.
    pub directories: u64,
    /// All inodes of the merged tree.
    pub inodes: u64,
    /// The sum of the sizes of the regular files, in bytes.
    pub content_bytes: u64,
    /// The bytes of all blobs that it needs and that are there.
    pub stored_bytes: u64,
    /// Of these, the bytes that no other entry of the index needs.
    pub unique_bytes: u64,
    /// Entries of the index that cannot be read: what they share is not known.
    pub unreadable: u64,
    /// Whether the image is inside an index, so that its tags are those of the index.
    pub is_inside: bool,
    /// The chunks that some path needs: how many, and their stored bytes.
    pub visible_chunks: (u64, u64),
    /// The chunks that only a shadowed inode or the verity table names.
    pub hidden_chunks: (u64, u64),
    /// Visible chunks that are not in the store: damage.
    pub missing_visible: Vec<Digest>,
    /// Hidden chunks that are not in the store: no harm, every copy of a delta image by other tools makes some.
    pub missing_hidden: Vec<Digest>,
    /// The tree, for listing it.
    pub view: View,
}

/// One layer in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSummary {
    /// Inodes, whiteouts aside.
    pub inodes: u64,
    /// Whiteouts.
    pub whiteouts: u64,
    /// Distinct chunks that its files are made of.
    pub chunks: u64,
}

/// Looks at one image. What is shared with images that cannot be read counts as its own.
pub fn inspect(store: &Store, selector: &Selector, platform: &WantedPlatform) -> Result<Inspection, ExplainError> {
    let index = store.index()?;
    let picked = image::find(store, index.document(), selector, platform)?;
    let image = load_image(store, &picked.digest, picked.kind)?;
    let (graph, broken) = readable(store, &Root::of_index(index.document()));
    let inventory = store.inventory()?;
    let is_other = |root: &Root| !matches!(root.origin, RootOrigin::Entry(place, _) if picked.places.contains(&place));
    let others: Vec<usize> = graph.roots().iter().filter(|(root, _)| is_other(root)).map(|(_, node)| *node).collect();
    let own: Vec<usize> = graph.node_of(&picked.digest).into_iter().collect();
    let others: HashSet<u32> = graph.closure(&others).0.into_iter().collect();
    let (mut stored_bytes, mut unique_bytes) = (0, 0);
    for blob in graph.closure(&own).0 {
        let size = inventory.get(&graph.digest(blob)).map_or(0, |stat| stat.size);
        stored_bytes += size;
        unique_bytes += if others.contains(&blob) { 0 } else { size };
    }
    let entries = picked.places.iter().filter_map(|place| index.document().entries()[*place].tag.clone());
    let mut inspection = of_image(image, entries.collect())?;
    (inspection.stored_bytes, inspection.unique_bytes) = (stored_bytes, unique_bytes);
    inspection.unreadable = broken.iter().flatten().count() as u64;
    inspection.is_inside = picked.is_inside;
    inspection.count_chunks(|digest| inventory.get(digest).map(|stat| stat.size));
    Ok(inspection)
}

fn of_image(image: LoadedImage, tags: Vec<Tag>) -> Result<Inspection, ExplainError> {
    let version = image.rootfs.version();
    let layers = image.rootfs.layers().iter().map(layer_summary).collect();
    let view = View::new(image.rootfs)?;
    let mut seen = HashSet::new();
    let (mut files, mut directories) = (0, 0);
    for step in view.walk() {
        match step.node.kind {
            FileKind::Directory => directories += 1,
            FileKind::Regular if step.node.nlink == 1 || seen.insert(step.node.ino) => files += 1,
            _ => {}
        }
    }
    Ok(Inspection {
        manifest: image.manifest,
        rootfs: image.rootfs_id,
        rootfs_bytes: image.rootfs_bytes,
        version,
        tags,
        layers,
        files,
        directories,
        inodes: view.inodes(),
        content_bytes: view.total_bytes(),
        stored_bytes: 0,
        unique_bytes: 0,
        unreadable: 0,
        is_inside: false,
        visible_chunks: (0, 0),
        hidden_chunks: (0, 0),
        missing_visible: Vec::new(),
        missing_hidden: Vec::new(),
        view,
    })
}

fn layer_summary(layer: &crate::format::Layer) -> LayerSummary {
    let whiteouts = layer.inodes().filter(|inode| matches!(inode.kind(), Kind::Whiteout)).count() as u64;
    let inodes = layer.inodes().count() as u64 - whiteouts;
    LayerSummary { inodes, whiteouts, chunks: layer.chunks().len() as u64 }
}

impl Inspection {
    fn count_chunks(&mut self, size_of: impl Fn(&Digest) -> Option<u64>) {
        let visible = self.view.visible_chunks();
        for chunk in self.view.rootfs().chunks() {
            let seen = visible.binary_search(&chunk).is_ok();
            let (count, missing) = match seen {
                true => (&mut self.visible_chunks, &mut self.missing_visible),
                false => (&mut self.hidden_chunks, &mut self.missing_hidden),
            };
            count.0 += 1;
            match size_of(&chunk.0) {
                Some(size) => count.1 += size,
                None => missing.push(chunk.0),
            }
        }
    }
}
