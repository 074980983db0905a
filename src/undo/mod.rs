//! Undo: bringing an entry back that the index has lost, while everything that it needs is still there.
//!
//! The index log has the entry's text, which goes back byte for byte. The race: a collector may take away what the image
//! needs while it is being brought back. So the last look and the restoring happen under the shared lock, under which no
//! blob leaves, and the blobs are claimed by a lease until the index names them; blobs come first and the index last.

use std::collections::{HashMap, HashSet};

use crate::{
    format::{DescriptorDigest, IndexDocument},
    graph::{NodeKind, Root, WalkError, walk},
    name::{Digest, Selector, Tag},
    store::{QuarantinedBlob, Store, StoreError},
};

/// An entry that an index once had and the present one has not.
#[derive(Debug)]
pub struct LostEntry {
    /// Its tag, if it had one.
    pub tag: Option<Tag>,
    /// What it points at.
    pub digest: Digest,
    /// How many texts of the index ago it was there: entries with the same number went together.
    pub generation: usize,
    /// What its tag stands for now, if it stands for something else.
    pub taken_by: Option<DescriptorDigest>,
    /// Whether everything that it needs is still there.
    pub remains: Remains,
    text: String,
    root: Root,
}

/// What is left of a lost image.
#[derive(Debug)]
pub enum Remains {
    /// All of it. So many blobs come from quarantine or from the pins of a mount.
    Complete(usize),
    /// Not all of it: these blobs are missing.
    Missing(Vec<Digest>),
    /// It can no longer be told what it needs.
    Unreadable(WalkError),
}

/// Why nothing was brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UndoError {
    /// The log has no such entry that the index has not.
    #[error("there is no deleted {0} in the index log")]
    NotFound(Selector),
    /// The log has nothing that could be brought back.
    #[error("there is nothing to bring back")]
    Nothing,
    /// The tag stands for something else by now.
    #[error("cannot bring {tag} back: the tag stands for another image by now")]
    Taken {
        /// The tag.
        tag: Tag,
    },
    /// Blobs that it needs are gone.
    #[error("cannot bring {name} back: {} of its blobs are gone, {} for one", missing.len(), missing[0])]
    Incomplete {
        /// The tag, or the digest of an entry without one.
        name: String,
        /// The blobs.
        missing: Vec<Digest>,
    },
    /// It can no longer be told what it needs.
    #[error("cannot bring {name} back: {cause}")]
    Unreadable {
        /// The tag, or the digest of an entry without one.
        name: String,
        /// What could not be read.
        #[source]
        cause: Box<WalkError>,
    },
    /// The store could not be read or changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was brought back.
#[derive(Debug)]
pub struct Undone {
    /// The tag, if it had one.
    pub tag: Option<Tag>,
    /// What it points at.
    pub digest: Digest,
    /// How many of its blobs were restored from quarantine or from pins.
    pub restored: u64,
}

impl LostEntry {
    /// The tag, or the digest of an entry without one.
    pub fn name(&self) -> String {
        self.tag.as_ref().map_or_else(|| self.digest.to_oci(), ToString::to_string)
    }

    fn unreadable(&self, cause: WalkError) -> UndoError {
        UndoError::Unreadable { name: self.name(), cause: Box::new(cause) }
    }

    /// Whether it can be brought back without moving a tag.
    pub fn is_ready(&self) -> bool {
        self.taken_by.is_none() && matches!(self.remains, Remains::Complete(_))
    }
}

/// The entries that could be brought back, the last lost first. Writes nothing.
pub fn lost_entries(store: &Store) -> Result<Vec<LostEntry>, StoreError> {
    let index = store.index()?;
    let shelf = Shelf::of(store)?;
    let mut seen: HashSet<(Option<Tag>, Digest)> = present(index.document());
    let mut lost = Vec::new();
    for (generation, known) in store.index_history()?.iter().enumerate() {
        let roots = Root::of_index(known);
        for (place, (entry, root)) in known.entries().iter().zip(roots).enumerate() {
            let DescriptorDigest::Sha256(digest) = entry.descriptor.digest else { continue };
            if seen.insert((entry.tag.clone(), digest)) {
                lost.push(LostEntry {
                    tag: entry.tag.clone(),
                    digest,
                    generation,
                    taken_by: entry.tag.as_ref().and_then(|tag| stands_for(index.document(), tag)),
                    remains: shelf.remains(store, &root),
                    text: known.entry_text(place).into(),
                    root,
                });
            }
        }
    }
    Ok(lost)
}

fn present(index: &IndexDocument) -> HashSet<(Option<Tag>, Digest)> {
    let entries = index.entries().iter().filter_map(|entry| match entry.descriptor.digest {
        DescriptorDigest::Sha256(digest) => Some((entry.tag.clone(), digest)),
        DescriptorDigest::Other(_) => None,
    });
    entries.collect()
}

fn stands_for(index: &IndexDocument, tag: &Tag) -> Option<DescriptorDigest> {
    let entry = index.entries().iter().find(|entry| entry.tag.as_ref() == Some(tag))?;
    Some(entry.descriptor.digest.clone())
}

/// Where blobs lie.
struct Shelf {
    stored: HashSet<Digest>,
    quarantined: HashMap<Digest, QuarantinedBlob>,
}

impl Shelf {
    fn of(store: &Store) -> Result<Self, StoreError> {
        let stored = store.inventory()?.blobs.into_iter().map(|(digest, _)| digest).collect();
        let quarantined = store.quarantined()?.into_iter().map(|blob| (blob.digest, blob)).collect();
        Ok(Self { stored, quarantined })
    }

    fn remains(&self, store: &Store, root: &Root) -> Remains {
        match demanded(store, root) {
            Err(error) => Remains::Unreadable(error),
            Ok(demanded) => {
                let aside: Vec<Digest> = demanded.into_iter().filter(|digest| !self.stored.contains(digest)).collect();
                let gone =
                    |digest: &&Digest| !self.quarantined.contains_key(*digest) && store.open_blob(digest).is_err();
                let missing: Vec<Digest> = aside.iter().filter(gone).copied().collect();
                if missing.is_empty() { Remains::Complete(aside.len()) } else { Remains::Missing(missing) }
            }
        }
    }
}

/// Everything that a root needs, but for children of indexes that are not there, as OCI allows.
fn demanded(store: &Store, root: &Root) -> Result<Vec<Digest>, WalkError> {
    let graph = walk(store, vec![root.clone()])?;
    let absent: HashSet<u32> =
        graph.nodes().iter().filter(|node| node.kind == NodeKind::Absent).map(|node| node.blob).collect();
    let present = |digest: &Digest| graph.find(digest).is_none_or(|blob| !absent.contains(&blob));
    Ok(graph.digests().filter(present).collect())
}

/// Brings one entry back. `force` lets its tag move back from the image that it stands for now.
pub fn bring_back(store: &Store, lost: &LostEntry, force: bool) -> Result<Undone, UndoError> {
    let held = store.lock_shared()?;
    let shelf = Shelf::of(store)?;
    match shelf.remains(store, &lost.root) {
        Remains::Complete(_) => {}
        Remains::Missing(missing) => return Err(UndoError::Incomplete { name: lost.name(), missing }),
        Remains::Unreadable(cause) => return Err(lost.unreadable(cause)),
    }
    let demanded = demanded(store, &lost.root);
    let demanded = demanded.map_err(|cause| lost.unreadable(cause))?;
    let lease = store.claim_blobs(&held, &lost.name(), &demanded)?;
    let restored = shelf.restore(store, &demanded)?;
    // Publishers wait in turn, which must not be done with the lock; from here on the claims keep the blobs.
    drop(held);
    let added = add(store, lost, force);
    store.release(lease)?;
    added?;
    Ok(Undone { tag: lost.tag.clone(), digest: lost.digest, restored })
}

impl Shelf {
    /// Puts what lies aside back where it was; gives how many that were. What is in both places may have been half written
    /// meanwhile, so its bytes decide.
    fn restore(&self, store: &Store, digests: &[Digest]) -> Result<u64, StoreError> {
        let mut restored = 0;
        for digest in digests {
            let is_stored = self.stored.contains(digest);
            match self.quarantined.get(digest) {
                Some(blob) => drop(store.restore(blob)?),
                None if is_stored || store.heal_from_pins(digest)? => {}
                None => return Err(StoreError::Missing(*digest)),
            }
            restored += u64::from(!is_stored);
        }
        Ok(restored)
    }
}

fn add(store: &Store, lost: &LostEntry, force: bool) -> Result<(), UndoError> {
    store.add_entry(&lost.text, |index| {
        let entries = index.entries().iter().enumerate();
        let same: Vec<usize> =
            entries.filter(|(_, entry)| lost.tag.is_some() && entry.tag == lost.tag).map(|(place, _)| place).collect();
        match (&lost.tag, same.is_empty() || force) {
            (Some(tag), false) => Err(UndoError::Taken { tag: tag.clone() }),
            _ => Ok(same),
        }
    })
}
