//! The images under one entry of the index.

use std::collections::HashMap;

use super::{Finding, Severity};
use crate::{
    format::Piece,
    graph::{ImageGraph, Node, NodeKind, load_image},
    name::{ChunkId, Digest, MediaKind},
    store::{Inventory, Store},
    tree::View,
};

/// Checks every document that the graph has.
pub(super) fn check_nodes(
    store: &Store,
    graph: &ImageGraph,
    inventory: &Inventory,
    root: &str,
    findings: &mut Vec<Finding>,
) {
    for node in graph.nodes() {
        let digest = graph.digest(node.blob);
        let kind = match node.kind {
            NodeKind::Rootfs => Some(MediaKind::Rootfs),
            NodeKind::Manifest(Some(_)) => Some(MediaKind::Manifest),
            NodeKind::Manifest(None) | NodeKind::Index | NodeKind::Opaque | NodeKind::Absent => None,
        };
        let way = format!("{root} -> {}", digest.short());
        let mut report = Report { store, inventory, way, findings };
        match kind {
            Some(kind) => report.puzzlefs(&digest, kind, graph, node),
            None if node.kind == NodeKind::Absent => report.notice("it is not in the store, as an index allows"),
            None => report.blobs(graph, node),
        }
    }
}

struct Report<'a> {
    store: &'a Store,
    inventory: &'a Inventory,
    way: String,
    findings: &'a mut Vec<Finding>,
}

/// How many paths are named for one damaged chunk.
const PATHS_MAX: usize = 3;

impl Report<'_> {
    fn add(&mut self, severity: Severity, subject: String, problem: impl Into<String>) {
        self.findings.push(Finding { severity, subject, problem: problem.into() });
    }

    fn notice(&mut self, problem: &str) {
        self.add(Severity::Notice, self.way.clone(), problem);
    }

    /// An image whose blobs all count: of another kind than puzzlefs, or an index.
    fn blobs(&mut self, graph: &ImageGraph, node: &Node) {
        for blob in &node.needs {
            let digest = graph.digest(*blob);
            if self.inventory.get(&digest).is_none() && self.found_aside(&digest).is_none() {
                self.add(Severity::Damage, format!("{} -> blob {digest}", self.way), "it is missing");
            }
        }
    }

    /// A puzzlefs image: what some path needs must be there, what none needs may be missing.
    fn puzzlefs(&mut self, digest: &Digest, kind: MediaKind, graph: &ImageGraph, node: &Node) {
        let view = match load_image(self.store, digest, kind) {
            Ok(image) => View::new(image.rootfs).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let view = match view {
            Ok(view) => view,
            Err(problem) => return self.add(Severity::Damage, self.way.clone(), problem),
        };
        let mut damaged: HashMap<ChunkId, &'static str> = HashMap::new();
        for blob in &node.needs {
            let digest = graph.digest(*blob);
            if self.inventory.get(&digest).is_some() {
                continue;
            }
            match self.found_aside(&digest) {
                Some(problem) => self.add(Severity::Notice, format!("{} -> blob {digest}", self.way), problem),
                None => drop(damaged.insert(ChunkId(digest), "is missing")),
            }
        }
        let visible = view.visible_chunks();
        for (chunk, problem) in damaged.iter().filter(|(chunk, _)| visible.binary_search(chunk).is_err()) {
            let problem = format!("{problem}, and no file needs it");
            self.add(Severity::Notice, format!("{} -> blob {}", self.way, chunk.0), problem);
        }
        self.find_short(&view, &mut damaged);
        self.name_paths(&view, &damaged);
    }

    fn found_aside(&self, digest: &Digest) -> Option<&'static str> {
        self.store.open_blob(digest).is_ok().then_some("it lies in quarantine or among pins; the next gc puts it back")
    }

    /// Plain chunks that end before the bytes that files want of them.
    fn find_short(&self, view: &View, damaged: &mut HashMap<ChunkId, &'static str>) {
        each_piece(view, |_, piece| {
            let stored = self.inventory.get(&piece.blob.chunk.0).map(|stat| stat.size);
            let wanted = piece.blob.offset + piece.len;
            if !piece.blob.compressed && stored.is_some_and(|stored| stored < wanted) {
                damaged.insert(piece.blob.chunk, "is too short");
            }
        });
    }

    /// One finding for each damaged chunk that a path needs, with some of these paths.
    fn name_paths(&mut self, view: &View, damaged: &HashMap<ChunkId, &'static str>) {
        let mut paths: HashMap<ChunkId, (usize, Vec<String>)> = HashMap::new();
        if damaged.is_empty() {
            return;
        }
        each_piece(view, |path, piece| {
            if damaged.contains_key(&piece.blob.chunk) {
                let (count, some) = paths.entry(piece.blob.chunk).or_default();
                let path = String::from_utf8_lossy(path).into_owned();
                if some.last() != Some(&path) {
                    *count += 1;
                    if some.len() < PATHS_MAX {
                        some.push(path);
                    }
                }
            }
        });
        let mut rows: Vec<_> = paths.into_iter().collect();
        rows.sort();
        for (chunk, (count, some)) in rows {
            let others = if count > some.len() { format!(" and {} more", count - some.len()) } else { String::new() };
            let subject = format!("{} -> {}{others} -> chunk {}", self.way, some.join(", "), chunk.0);
            self.add(Severity::Damage, subject, format!("it {}", damaged[&chunk]));
        }
    }
}

fn each_piece(view: &View, mut act: impl FnMut(&[u8], Piece)) {
    for step in view.walk() {
        let Some(map) = view.file_map(step.node.ino) else { continue };
        map.pieces().for_each(|piece| act(&step.path, piece));
    }
}
