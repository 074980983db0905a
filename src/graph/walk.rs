//! The walk from roots to everything they need.
//!
//! Media types say which reader comes first, the content says what is followed: a document in the place of a manifest
//! is followed through every list it has. What is of an unknown type and begins like JSON is searched for digests.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use hashbrown::{HashMap, HashSet};

use super::{
    BlobSource,
    references::{Blobs, Form, Reference, References, Role, Shape},
    source::{DOCUMENT_BYTES_MAX, DocumentProblem},
};
use crate::{
    format::{DescriptorDigest, FormatError, IndexDocument, ManifestDocument},
    name::{Digest, MediaKind, Tag},
    store::StoreError,
};

/// Where the walk begins, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Why it is a root.
    pub origin: RootOrigin,
    /// What it points at.
    pub digest: DescriptorDigest,
    /// What it is said to be.
    pub kind: MediaKind,
}

/// Why something is a root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RootOrigin {
    /// An entry of the index, by its place, and its tag if it has one.
    Entry(usize, Option<Tag>),
    /// An entry of the index of another layout that uses the same blobs, by its path; and its tag if it has one.
    Elsewhere(PathBuf, Option<Tag>),
    /// A live lease, by its name.
    Lease(String),
    /// A pin that a person has made, by the tag or digest that was pinned.
    Pin(String),
    /// A process that maps a blob or has it open, by number and name.
    Process(u32, String),
}

impl fmt::Display for RootOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(_, Some(tag)) => write!(f, "tag {tag}"),
            Self::Entry(place, None) => write!(f, "index entry {place}, which has no tag"),
            Self::Elsewhere(layout, Some(tag)) => write!(f, "tag {tag} of {}", layout.display()),
            Self::Elsewhere(layout, None) => write!(f, "an entry without a tag of {}", layout.display()),
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Pin(name) => write!(f, "pin {name}"),
            Self::Process(pid, name) => write!(f, "process {pid} ({name})"),
        }
    }
}

impl Root {
    /// The roots that the entries of an index are, tagged or not.
    pub fn of_index(index: &IndexDocument) -> Vec<Self> {
        let entries = index.entries().iter().enumerate();
        entries
            .map(|(place, entry)| Self {
                origin: RootOrigin::Entry(place, entry.tag.clone()),
                digest: entry.descriptor.digest.clone(),
                kind: entry.descriptor.kind(),
            })
            .collect()
    }
}

impl Root {
    /// The roots that the entries of another layout's index are.
    pub fn of_other_index(layout: &Path, index: &IndexDocument) -> Vec<Self> {
        let elsewhere = |root: Self| match root.origin {
            RootOrigin::Entry(_, tag) => Self { origin: RootOrigin::Elsewhere(layout.into(), tag), ..root },
            _ => root,
        };
        Self::of_index(index).into_iter().map(elsewhere).collect()
    }

    fn sha256(&self) -> Option<&Digest> {
        match &self.digest {
            DescriptorDigest::Sha256(digest) => Some(digest),
            DescriptorDigest::Other(_) => None,
        }
    }
}

impl RootOrigin {
    /// Whether it is an entry of an index, here or elsewhere.
    pub fn is_entry(&self) -> bool {
        matches!(self, Self::Entry(..) | Self::Elsewhere(..))
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// An index of manifests.
    Index,
    /// An image with a manifest. `Some` is the rootfs of a puzzlefs image, as a blob number.
    Manifest(Option<u32>),
    /// An image of manifest version 2, which is its rootfs.
    Rootfs,
    /// A document of a type that is not known.
    Opaque,
    /// A child that is not in the store, as OCI allows.
    Absent,
}

/// A document and what it needs itself.
#[derive(Debug)]
pub struct Node {
    /// Its own blob, as a blob number.
    pub blob: u32,
    /// What it is.
    pub kind: NodeKind,
    /// The blobs that it needs, itself included, as sorted blob numbers.
    pub needs: Vec<u32>,
    /// The nodes that it refers to.
    pub children: Vec<usize>,
    /// Those of them that it is about.
    pub subjects: Vec<usize>,
}

/// Everything that a set of roots needs. Exists only if every root was walked to its leaves.
#[derive(Debug, Default)]
pub struct ImageGraph {
    digests: Vec<Digest>,
    numbers: HashMap<Digest, u32>,
    nodes: Vec<Node>,
    node_of: HashMap<u32, usize>,
    roots: Vec<(Root, usize)>,
}

/// What the walk could not read, and how it had come there.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.join(" -> "))]
pub struct WalkError {
    /// From the root on, as in "tag app:v1", "manifest 5c7d...", "rootfs a845...".
    pub path: Vec<String>,
    /// The root; none where it is not known which it is.
    pub origin: Option<Box<RootOrigin>>,
    /// What is wrong there.
    pub cause: WalkProblem,
}

/// What is wrong with a blob that the walk came to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkProblem {
    /// It cannot be read.
    #[error(transparent)]
    Store(StoreError),
    /// It can be read and is not what it should be.
    #[error(transparent)]
    Format(FormatError),
    /// It is named by a digest that stores of this program do not have.
    #[error("{0} is not a sha256 digest, so what it needs cannot be known")]
    Algorithm(String),
    /// It could be read before and cannot now.
    #[error("the store changes while it is read: {0}")]
    Changing(String),
    /// Documents refer to documents deeper than anybody would build them.
    #[error("documents refer to each other more than {DEPTH_MAX} levels deep")]
    Depth,
}

impl WalkError {
    pub(crate) fn changing(problem: String) -> Self {
        Self { path: Vec::new(), origin: None, cause: WalkProblem::Changing(problem) }
    }
}

impl From<DocumentProblem> for WalkProblem {
    fn from(problem: DocumentProblem) -> Self {
        match problem {
            DocumentProblem::Store(error) => Self::Store(error),
            DocumentProblem::Format(error) => Self::Format(error),
            DocumentProblem::Algorithm(text) => Self::Algorithm(text),
        }
    }
}

const DEPTH_MAX: usize = 32;
const UNTRANSLATED: u32 = u32::MAX;
const NOBODY: u32 = u32::MAX;

/// Walks from the roots to everything they need, or says what it could not read.
pub fn walk<S: BlobSource + ?Sized>(source: &S, roots: Vec<Root>) -> Result<ImageGraph, WalkError> {
    walk_with(source, roots, || Ok(Vec::new()))
}

/// The same with the roots that `find_more` finds; the documents of the first ones may be read meanwhile. What is known of a
/// document from before then holds only as long as its files are as they were, which the walk looks at when it comes there.
pub fn walk_with<S: BlobSource + ?Sized, E: From<WalkError>>(
    source: &S,
    roots: Vec<Root>,
    find_more: impl FnOnce() -> Result<Vec<Root>, E>,
) -> Result<ImageGraph, E> {
    let documents = expected(&roots);
    let mut places: HashMap<Digest, usize> = documents.iter().map(|(digest, _)| *digest).zip(0..).collect();
    source.ahead(&documents, |wait| {
        let more = find_more()?;
        let mut walker = Walker::new(source);
        for root in roots.into_iter().chain(more) {
            root.sha256().and_then(|digest| places.remove(digest)).into_iter().for_each(&mut *wait);
            walker.enter(root)?;
        }
        Ok(walker.graph)
    })
}

/// The documents that the roots are, once each.
fn expected(roots: &[Root]) -> Vec<(Digest, MediaKind)> {
    let mut seen = HashSet::new();
    let documents = roots.iter().filter_map(|root| Some((*root.sha256()?, root.kind)));
    documents.filter(|document| seen.insert(*document)).collect()
}

struct Walker<'s, S: ?Sized> {
    source: &'s S,
    graph: ImageGraph,
    /// For numbers of the source, those of the graph.
    translated: Vec<u32>,
    /// For numbers of the graph, the document that was last found to need them: a manifest and its rootfs name the same
    /// chunks, and it is cheaper not to note them twice than to sort them out afterwards.
    needed_by: Vec<u32>,
    path: Vec<String>,
    origin: Option<Box<RootOrigin>>,
    /// Documents that have a subject, by blob number, with the subject: these are walked one after the other, since a chain
    /// of them may be longer than any nesting.
    subjects: Vec<(u32, Reference)>,
}

/// Whether something may be missing from the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Demanded,
    Optional,
}

impl Presence {
    /// A lease names its rootfs beside its manifest, so that a mount whose manifest somebody has removed is still fully known.
    fn of(root: &Root) -> Self {
        match (&root.origin, root.kind) {
            (RootOrigin::Lease(_), MediaKind::Manifest) => Self::Optional,
            _ => Self::Demanded,
        }
    }
}

impl<'s, S: BlobSource + ?Sized> Walker<'s, S> {
    fn new(source: &'s S) -> Self {
        let (graph, path, origin) = (ImageGraph::default(), Vec::new(), None);
        let subjects = Vec::new();
        Self { source, graph, translated: Vec::new(), needed_by: Vec::new(), path, origin, subjects }
    }

    fn enter(&mut self, root: Root) -> Result<(), WalkError> {
        self.path.push(root.origin.to_string());
        self.origin = Some(Box::new(root.origin.clone()));
        let node = self.root(&root)?;
        while let Some((blob, subject)) = self.subjects.pop() {
            self.path.push(format!("subject of {}", self.graph.digest(blob).short()));
            let about = self.node(&subject.digest, subject.kind, Presence::Optional)?;
            self.path.pop();
            if let Some(&document) = self.graph.node_of.get(&blob) {
                self.graph.nodes[document].children.push(about);
                self.graph.nodes[document].subjects.push(about);
            }
        }
        self.path.pop();
        self.graph.roots.push((root, node));
        Ok(())
    }

    fn fail(&self, cause: impl Into<WalkProblem>) -> WalkError {
        WalkError { path: self.path.clone(), origin: self.origin.clone(), cause: cause.into() }
    }

    fn root(&mut self, root: &Root) -> Result<usize, WalkError> {
        match &root.digest {
            DescriptorDigest::Sha256(digest) => self.node(digest, root.kind, Presence::of(root)),
            DescriptorDigest::Other(text) => Err(self.fail(WalkProblem::Algorithm(text.clone()))),
        }
    }

    /// The node of a document, made if this is the first way to it. A way that demands it fails where one that did not has
    /// found it absent.
    fn node(&mut self, digest: &Digest, kind: MediaKind, presence: Presence) -> Result<usize, WalkError> {
        let blob = self.graph.number(digest);
        self.path.push(format!("{} {}", noun(kind), digest.short()));
        if self.path.len() > DEPTH_MAX {
            return Err(self.fail(WalkProblem::Depth));
        }
        let node = match self.graph.node_of.get(&blob) {
            Some(&node) if presence == Presence::Demanded && self.graph.nodes[node].kind == NodeKind::Absent => {
                return Err(self.fail(WalkProblem::Store(StoreError::Missing(*digest))));
            }
            Some(&node) => node,
            None => self.new_node(blob, digest, kind, presence)?,
        };
        self.path.pop();
        Ok(node)
    }

    fn new_node(
        &mut self,
        blob: u32,
        digest: &Digest,
        kind: MediaKind,
        presence: Presence,
    ) -> Result<usize, WalkError> {
        let mut node =
            Node { blob, kind: NodeKind::Absent, needs: vec![blob], children: Vec::new(), subjects: Vec::new() };
        let filled = match kind {
            MediaKind::Rootfs => {
                node.kind = NodeKind::Rootfs;
                self.rootfs(digest, &mut node)
            }
            MediaKind::Index | MediaKind::Manifest => self.document(digest, &mut node),
            MediaKind::Unknown | MediaKind::Inodes | MediaKind::Chunk | MediaKind::Leaf => {
                self.opaque(digest, &mut node)
            }
        };
        match filled {
            Err(WalkError { cause: WalkProblem::Store(StoreError::Missing(missing)), .. })
                if presence == Presence::Optional && missing == *digest =>
            {
                node = Node {
                    blob,
                    kind: NodeKind::Absent,
                    needs: vec![blob],
                    children: Vec::new(),
                    subjects: Vec::new(),
                };
            }
            filled => filled?,
        }
        // They come in a few rising runs, which this sort merges and an unstable one would not.
        node.needs.sort();
        node.needs.dedup();
        node.needs.shrink_to_fit();
        Ok(self.graph.add(node))
    }

    fn document(&mut self, digest: &Digest, node: &mut Node) -> Result<(), WalkError> {
        let references = self.source.references(digest, Form::Document).map_err(|cause| self.fail(cause))?;
        self.follow(&references, node)
    }

    fn follow(&mut self, references: &References, node: &mut Node) -> Result<(), WalkError> {
        node.kind = match references.shape {
            Shape::Index => NodeKind::Index,
            Shape::Manifest => NodeKind::Manifest(references.rootfs().map(|rootfs| self.graph.number(&rootfs))),
            Shape::Rootfs => NodeKind::Rootfs,
        };
        self.need(&references.blobs, node)?;
        for link in &references.links {
            match (link.role, link.kind) {
                (Role::Child, _) => self.child(link, node, Presence::Optional)?,
                (Role::Subject, _) => self.subjects.push((node.blob, *link)),
                (_, MediaKind::Rootfs) => {
                    node.needs.push(self.graph.number(&link.digest));
                    self.path.push(format!("rootfs {}", link.digest.short()));
                    self.rootfs(&link.digest, node)?;
                    self.path.pop();
                }
                _ => {
                    node.needs.push(self.graph.number(&link.digest));
                    self.child(link, node, Presence::Demanded)?;
                }
            }
        }
        Ok(())
    }

    fn child(&mut self, link: &Reference, node: &mut Node, presence: Presence) -> Result<(), WalkError> {
        let child = self.node(&link.digest, link.kind, presence)?;
        node.children.push(child);
        Ok(())
    }

    fn rootfs(&mut self, digest: &Digest, node: &mut Node) -> Result<(), WalkError> {
        let references = self.source.references(digest, Form::Rootfs).map_err(|cause| self.fail(cause))?;
        self.need(&references.blobs, node)
    }

    fn need(&mut self, blobs: &Blobs, node: &mut Node) -> Result<(), WalkError> {
        match blobs {
            Blobs::Named(digests) => node.needs.extend(digests.iter().map(|digest| self.graph.number(digest))),
            Blobs::Numbered(numbers) => {
                self.translate(numbers)?;
                for number in numbers {
                    let blob = self.translated[*number as usize];
                    if std::mem::replace(&mut self.needed_by[blob as usize], node.blob) != node.blob {
                        node.needs.push(blob);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sees to it that the graph has numbers of its own for these numbers of the source.
    fn translate(&mut self, numbers: &[u32]) -> Result<(), WalkError> {
        let len = numbers.iter().max().map_or(0, |last| *last as usize + 1);
        if self.translated.len() < len {
            self.translated.resize(len, UNTRANSLATED);
        }
        let is_new = |number: &&u32| self.translated[**number as usize] == UNTRANSLATED;
        let new: Vec<u32> = numbers.iter().filter(is_new).copied().collect();
        let digests = if new.is_empty() { Vec::new() } else { self.source.digests(&new) };
        if digests.len() < new.len() {
            let problem = "the source has forgotten what its numbers stand for".into();
            return Err(self.fail(WalkProblem::Changing(problem)));
        }
        for (number, digest) in new.iter().zip(&digests) {
            self.translated[*number as usize] = self.graph.number(digest);
        }
        self.needed_by.resize(self.graph.len(), NOBODY);
        Ok(())
    }

    /// In version 2 the media type of the index entry alone says that a blob is a rootfs, and media types lie.
    fn perhaps_rootfs(&mut self, digest: &Digest, node: &mut Node) -> Result<(), WalkError> {
        if !self.source.looks_like_message(digest).map_err(|cause| self.fail(WalkProblem::Store(cause)))? {
            return Ok(());
        }
        match self.source.references(digest, Form::Rootfs) {
            Err(DocumentProblem::Format(_)) => Ok(()),
            Err(problem) => Err(self.fail(problem)),
            Ok(references) => self.follow(&references, node),
        }
    }

    /// A blob of unknown meaning: kept, with all blobs that it mentions. What it mentions and is not there is not missing.
    fn opaque(&mut self, digest: &Digest, node: &mut Node) -> Result<(), WalkError> {
        node.kind = NodeKind::Opaque;
        let text = self.source.read_json(digest, DOCUMENT_BYTES_MAX);
        match text.map_err(|cause| self.fail(WalkProblem::Store(cause)))? {
            None => self.perhaps_rootfs(digest, node)?,
            Some(text) => {
                if let Ok(document) = ManifestDocument::parse(&text) {
                    let references = References::of_document(&document);
                    let references = references.map_err(|other| self.fail(WalkProblem::Algorithm(other.0)))?;
                    self.follow(&references, node)?;
                }
            }
        }
        // A rootfs that can be decoded mentions nothing but what has been found.
        if node.kind == NodeKind::Rootfs {
            return Ok(());
        }
        for found in self.source.mentions(digest).map_err(|cause| self.fail(WalkProblem::Store(cause)))? {
            if found != *digest {
                let child = self.node(&found, MediaKind::Unknown, Presence::Optional)?;
                node.children.push(child);
            }
        }
        Ok(())
    }
}

fn noun(kind: MediaKind) -> &'static str {
    match kind {
        MediaKind::Index => "index",
        MediaKind::Manifest => "manifest",
        MediaKind::Rootfs => "rootfs",
        MediaKind::Inodes | MediaKind::Chunk | MediaKind::Leaf | MediaKind::Unknown => "blob",
    }
}

impl ImageGraph {
    /// The digest of a blob number.
    pub fn digest(&self, blob: u32) -> Digest {
        self.digests[blob as usize]
    }

    /// The number of a digest, if a root needs it.
    pub fn find(&self, digest: &Digest) -> Option<u32> {
        self.numbers.get(digest).copied()
    }

    /// Whether some root needs this blob.
    pub fn needs(&self, digest: &Digest) -> bool {
        self.numbers.contains_key(digest)
    }

    /// How many distinct blobs the roots need; blob numbers are below this.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether the roots need nothing.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Every blob that the roots need, in no order.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.digests.iter().copied()
    }

    /// The roots, each with its node.
    pub fn roots(&self) -> &[(Root, usize)] {
        &self.roots
    }

    /// All documents.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a document.
    pub fn node_of(&self, digest: &Digest) -> Option<usize> {
        self.node_of.get(&self.find(digest)?).copied()
    }

    fn number(&mut self, digest: &Digest) -> u32 {
        *self.numbers.entry(*digest).or_insert_with(|| {
            self.digests.push(*digest);
            u32::try_from(self.digests.len() - 1).expect("a store has fewer than 2^32 blobs")
        })
    }

    fn add(&mut self, node: Node) -> usize {
        self.node_of.insert(node.blob, self.nodes.len());
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}
