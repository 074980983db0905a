//! Where the walk gets its bytes from.

use std::{
    cell::RefCell,
    iter,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use super::references::{Blobs, Form, Reference, References, Shape};
use crate::{
    codec,
    format::{
        BlobRef, FormatError, Limits, ManifestDocument, MentionScanner, Rootfs, chunks_named_plainly, message_length,
    },
    name::{Digest, MediaKind},
    store::{FileStamp, Store, StoreError},
};

/// Whatever can read blobs: a store, or a map in memory for tests.
pub trait BlobSource {
    /// The whole blob, its digest checked; [`StoreError::Missing`] if it is not there, an error if it has over `limit` bytes.
    fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError>;

    /// The same, for `make` to make something of; `make` may get bytes whose digest is wrong, and then fails with the digest,
    /// whatever it has made.
    fn read_into<T>(&self, digest: &Digest, limit: u64, make: impl FnOnce(&[u8]) -> T) -> Result<T, StoreError> {
        self.read(digest, limit).map(|bytes| make(&bytes))
    }

    /// The same, but `make` gets no more than the first bytes, and gives `None` if these are too few for it. Then nothing is
    /// said of the digest either.
    fn read_start_into<T>(
        &self,
        digest: &Digest,
        limit: u64,
        make: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        self.read(digest, limit).map(|bytes| make(&bytes))
    }

    /// What [`BlobSource::read`] gives, but `None` if the blob does not begin like a JSON object or list, or has over `limit`
    /// bytes.
    fn read_json(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// Whether the blob is as long as a Cap'n Proto message that begins like it would be. A source that would have to read
    /// all of it to tell may say yes.
    fn looks_like_message(&self, _digest: &Digest) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// The blobs of this source that are mentioned in a blob of unknown meaning: by name, or in what looks like a Cap'n
    /// Proto message by the bytes of their digests. The default reads the blob as a whole, and knows of no names.
    fn mentions(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        let mut scanner = MentionScanner::default();
        scanner.feed(&self.read(digest, DOCUMENT_BYTES_MAX)?);
        Ok(scanner.finish())
    }

    /// What a document refers to. The default reads it; a source that remembers may answer from memory, since a document
    /// never changes under its digest, provided that it knows the file to be as it was.
    fn references(&self, digest: &Digest, form: Form) -> Result<References, DocumentProblem> {
        read_references(self, digest, form)
    }

    /// The digests that numbers of this source's [`Blobs::Numbered`] stand for.
    fn digests(&self, _numbers: &[u32]) -> Vec<Digest> {
        Vec::new()
    }

    /// Has `walk` ask for these documents, in this order, and for what they link to. What it is given waits until the document
    /// at a place can be had without waiting for the disk; a source that reads nothing ahead never waits.
    fn ahead<T>(&self, _documents: &[(Digest, MediaKind)], walk: impl FnOnce(&mut dyn FnMut(usize)) -> T) -> T {
        walk(&mut |_| {})
    }
}

/// Why it is not known what a document refers to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentProblem {
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be decoded.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It refers to a document by a digest that stores of this program do not have.
    #[error("{0} is not a sha256 digest")]
    Algorithm(String),
}

impl From<RootfsProblem> for DocumentProblem {
    fn from(problem: RootfsProblem) -> Self {
        match problem {
            RootfsProblem::Store(error) => Self::Store(error),
            RootfsProblem::Format(error) => Self::Format(error),
        }
    }
}

/// A manifest lists every chunk with about 160 bytes: this is for images of 100 GB.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 256 << 20;

fn read_references<S: BlobSource + ?Sized>(
    source: &S,
    digest: &Digest,
    form: Form,
) -> Result<References, DocumentProblem> {
    match form {
        Form::Document => {
            let document = ManifestDocument::parse(&source.read(digest, DOCUMENT_BYTES_MAX)?)?;
            References::of_document(&document).map_err(|other| DocumentProblem::Algorithm(other.0))
        }
        Form::Rootfs => {
            let blobs =
                source.read_into(digest, Limits::default().message_bytes, |bytes| named_blobs(source, bytes))??;
            Ok(References { shape: Shape::Rootfs, links: Vec::new(), blobs: Blobs::Named(blobs) })
        }
    }
}

/// Every blob that a rootfs names.
fn named_blobs<S: BlobSource + ?Sized>(source: &S, bytes: &[u8]) -> Result<Vec<Digest>, RootfsProblem> {
    if let Some(chunks) = chunks_named_plainly(bytes, &Limits::default()) {
        return Ok(chunks.into_iter().map(Digest::from).collect());
    }
    let (rootfs, _) = decode_rootfs(source, bytes)?;
    Ok(rootfs.chunks_named().map(Digest::from).chain(rootfs.metadata_blobs().iter().copied()).collect())
}

/// Why a rootfs could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootfsProblem {
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be decoded.
    #[error(transparent)]
    Format(#[from] crate::format::FormatError),
}

/// Reads and decodes a rootfs, with its metadata blobs where it has some, for `make` to make something of it. The second
/// value is its size in bytes.
///
/// The decoder checks whatever it is given, and is fuzzed, so it may begin before the digest is known to be right; what is
/// made of a wrong one is thrown away.
pub(super) fn read_rootfs_into<S: BlobSource + ?Sized, T>(
    source: &S,
    digest: &Digest,
    make: impl FnOnce(Rootfs) -> T,
) -> Result<(T, u64), RootfsProblem> {
    source.read_into(digest, Limits::default().message_bytes, |bytes| {
        let (rootfs, len) = decode_rootfs(source, bytes)?;
        Ok((make(rootfs), len))
    })?
}

fn decode_rootfs<S: BlobSource + ?Sized>(source: &S, bytes: &[u8]) -> Result<(Rootfs, u64), RootfsProblem> {
    let limits = Limits::default();
    let mut missing = None;
    let mut fetch = |blob: &BlobRef| {
        let stored = source.read(&blob.chunk.0, limits.message_bytes).map_err(|error| {
            let text = error.to_string();
            missing = Some(error);
            text
        })?;
        match blob.compressed {
            false => Ok(stored),
            true => codec::decode_all(&stored, limits.message_bytes).map_err(|cause| cause.to_string()),
        }
    };
    match Rootfs::decode(bytes, &limits, &mut fetch) {
        Ok(rootfs) => Ok((rootfs, bytes.len() as u64)),
        Err(problem) => Err(missing.map_or_else(|| problem.into(), RootfsProblem::Store)),
    }
}

impl BlobSource for Store {
    fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.read_blob(digest, limit)
    }

    fn read_into<T>(&self, digest: &Digest, limit: u64, make: impl FnOnce(&[u8]) -> T) -> Result<T, StoreError> {
        self.read_blob_into(digest, limit, make)
    }

    fn read_start_into<T>(
        &self,
        digest: &Digest,
        limit: u64,
        make: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        self.read_blob_start_into(digest, limit, make)
    }

    fn read_json(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.begins_like_json(digest)? && self.blob_start(digest)?.1 <= limit {
            true => self.read_blob(digest, limit).map(Some),
            false => Ok(None),
        }
    }

    fn mentions(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.blobs_mentioned_in(digest)
    }

    fn looks_like_message(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (start, len) = self.blob_start(digest)?;
        Ok(message_length(&start) == Some(len))
    }

    fn references(&self, digest: &Digest, form: Form) -> Result<References, DocumentProblem> {
        match self.recall(digest).and_then(|known| References::of_remembered(known, form)) {
            Some(known) => Ok(known),
            None => Witnessed::new(self).learn(digest, form),
        }
    }

    fn digests(&self, numbers: &[u32]) -> Vec<Digest> {
        self.remembered_digests(numbers)
    }

    /// Reads on several threads what is not remembered, while `walk` goes on with what has been read. What cannot be read is
    /// left for the walk to find.
    fn ahead<T>(&self, documents: &[(Digest, MediaKind)], walk: impl FnOnce(&mut dyn FnMut(usize)) -> T) -> T {
        if documents.len() < EXPECTED_MIN {
            return walk(&mut |_| {});
        }
        let next = &AtomicUsize::new(0);
        let (tell, told) = mpsc::channel();
        let readers = (READERS_PER_PROCESSOR * thread::available_parallelism().map_or(1, usize::from)).min(READERS_MAX);
        thread::scope(move |threads| {
            for tell in iter::repeat_n(tell, readers) {
                // Where there is no thread to be had, the walk reads what nobody else has read.
                let _ = thread::Builder::new().spawn_scoped(threads, move || learn_rest(self, documents, next, &tell));
            }
            let mut is_learned = vec![false; documents.len()];
            walk(&mut |place| await_learned(place, &mut is_learned, &told))
        })
    }
}

/// For fewer documents, threads cost more than they give.
const EXPECTED_MIN: usize = 8;
/// While some wait for the disk, the others hash and decode.
const READERS_PER_PROCESSOR: usize = 8;
/// Each has a document of perhaps many megabytes in hand.
const READERS_MAX: usize = 16;

/// Learns the documents that no other thread has taken, and tells the place of each, until there are no more, or nobody listens
/// because the walk has ended early.
fn learn_rest(store: &Store, documents: &[(Digest, MediaKind)], next: &AtomicUsize, tell: &Sender<usize>) {
    while let Some((place, (digest, kind))) = take(next, documents) {
        learn_image(store, digest, *kind);
        if tell.send(place).is_err() {
            return;
        }
    }
}

fn take<'l, T>(next: &AtomicUsize, list: &'l [T]) -> Option<(usize, &'l T)> {
    let place = next.fetch_add(1, Ordering::Relaxed);
    Some((place, list.get(place)?))
}

/// Returns when the document at a place is learned, or when nobody will learn any more.
fn await_learned(place: usize, is_learned: &mut [bool], told: &Receiver<usize>) {
    while !is_learned[place]
        && let Ok(learned) = told.recv()
    {
        is_learned[learned] = true;
    }
}

fn learn_image(store: &Store, digest: &Digest, kind: MediaKind) {
    let form = match kind {
        MediaKind::Rootfs => Form::Rootfs,
        MediaKind::Manifest | MediaKind::Index => Form::Document,
        _ => return,
    };
    for rootfs in learn(store, digest, form).iter().filter(|link| link.kind == MediaKind::Rootfs) {
        learn(store, &rootfs.digest, Form::Rootfs);
    }
}

/// Has the store know a document, and gives its links.
fn learn(store: &Store, digest: &Digest, form: Form) -> Vec<Reference> {
    match store.recall_links(digest) {
        Some(links) => links.into_iter().filter_map(|(code, digest)| Reference::of_code(code, digest)).collect(),
        None => store.references(digest, form).map_or_else(|_| Vec::new(), |references| references.links),
    }
}

/// A store, and which state of which files has been read through it.
struct Witnessed<'s> {
    store: &'s Store,
    files: RefCell<Vec<(Digest, Option<FileStamp>)>>,
}

impl<'s> Witnessed<'s> {
    fn new(store: &'s Store) -> Self {
        Self { store, files: RefCell::default() }
    }

    /// Reads what a document refers to, and has the store remember it.
    fn learn(self, digest: &Digest, form: Form) -> Result<References, DocumentProblem> {
        let references = read_references(&self, digest, form)?;
        let files = self.files.into_inner();
        let stamped: Option<Vec<_>> = files.into_iter().map(|(digest, stamp)| Some((digest, stamp?))).collect();
        if let (Some(files), Blobs::Named(blobs)) = (stamped, &references.blobs) {
            let (shape, links) = references.codes();
            self.store.remember(digest, &files, shape, &links, blobs);
        }
        Ok(references)
    }
}

impl BlobSource for Witnessed<'_> {
    fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (bytes, stamp) = self.store.read_blob_stamped(digest, limit)?;
        self.files.borrow_mut().push((*digest, stamp));
        Ok(bytes)
    }

    fn read_json(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.read_json(digest, limit)
    }

    fn mentions(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.store.mentions(digest)
    }
}

/// A store that is read from its disk whatever is remembered of it: for those who look for damage.
pub struct Afresh<'s>(pub &'s Store);

impl BlobSource for Afresh<'_> {
    fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.0.read(digest, limit)
    }

    fn read_json(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.read_json(digest, limit)
    }

    fn mentions(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.0.mentions(digest)
    }

    fn looks_like_message(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.0.looks_like_message(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_documents_that_cannot_be_read_goes_on_and_who_does_not_wait_may_leave() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let missing: Vec<_> = (0..100u8).map(|at| (Digest::of(&[at]), MediaKind::Manifest)).collect();
        let waited = store.ahead(&missing, |wait| (0..missing.len()).rev().map(wait).count());
        assert_eq!((waited, store.ahead(&missing, |_| 7)), (missing.len(), 7));
    }
}
