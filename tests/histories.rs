//! Random histories of a store, against a model that only knows which tag has which files.
//!
//! `PFS_TEST_HISTORIES=5000 cargo test --test histories` runs more of them.

mod common;

use std::{collections::BTreeMap, fs};

use common::{TestStore, assert_sound, at_once, by_tag, empty, noise, now, trees::Listing};
use pfs::{
    delete::{DeleteError, DeleteOptions, DeletePlan},
    gc::{GcError, Hold, Policy, collect},
    graph::pick,
    name::{Digest, MediaKind},
    observe::Silent,
    store::Lease,
};
use proptest::{collection::vec, prelude::*, test_runner::Config};

const TAGS: [&str; 4] = ["a", "b", "c", "d"];

/// What may happen to a store. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Act {
    /// Builds an image of some of the four files under a tag, which may exist.
    Build {
        tag: usize,
        files: u8,
    },
    /// Another tool gives what a tag stands for a second name.
    Tag {
        from: usize,
        to: usize,
    },
    /// Another tool takes a name away, whatever is mounted.
    Untag {
        tag: usize,
    },
    Delete {
        tag: usize,
        force: bool,
    },
    Mount {
        tag: usize,
    },
    /// A mount ends; by `kill -9`, its lease stays and is dead.
    Unmount {
        mount: usize,
        killed: bool,
    },
    /// A build is killed after it has staged and claimed.
    KillBuild {
        file: u64,
    },
    /// A collector is killed after it has condemned some blobs, needed or not by now.
    KillCollector {
        every: usize,
    },
    /// An upload that has not reached the index.
    Upload {
        seed: u64,
    },
    Collect {
        eager: bool,
        limit: Option<u64>,
    },
    /// Another tool is rewriting the index in place while pfs comes by.
    TornIndex {
        at: usize,
    },
    /// Another tool makes the index anew, empty, and somebody puts the old one back after a collection.
    EmptiedIndex,
    /// A needed blob is gone, or cut off, while pfs comes by.
    LostBlob {
        which: usize,
        cut: bool,
    },
    /// The clock is ten minutes off, either way.
    MovedClock {
        forward: bool,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let tag = 0..TAGS.len();
    prop_oneof![
        4 => (tag.clone(), 1..16u8).prop_map(|(tag, files)| Act::Build { tag, files }),
        2 => (tag.clone(), tag.clone()).prop_map(|(from, to)| Act::Tag { from, to }),
        2 => tag.clone().prop_map(|tag| Act::Untag { tag }),
        3 => (tag.clone(), any::<bool>()).prop_map(|(tag, force)| Act::Delete { tag, force }),
        2 => tag.prop_map(|tag| Act::Mount { tag }),
        2 => (0..4usize, any::<bool>()).prop_map(|(mount, killed)| Act::Unmount { mount, killed }),
        1 => (0..4u64).prop_map(|file| Act::KillBuild { file }),
        1 => (1..4usize).prop_map(|every| Act::KillCollector { every }),
        1 => (100..110u64).prop_map(|seed| Act::Upload { seed }),
        4 => (any::<bool>(), prop::option::of(1..60_000u64)).prop_map(|(eager, limit)| Act::Collect { eager, limit }),
        1 => (0..10_000usize).prop_map(|at| Act::TornIndex { at }),
        1 => Just(Act::EmptiedIndex),
        1 => (0..50usize, any::<bool>()).prop_map(|(which, cut)| Act::LostBlob { which, cut }),
        1 => any::<bool>().prop_map(|forward| Act::MovedClock { forward }),
    ]
}

/// An image that somebody has mounted, and what it must go on to list.
struct Mounted {
    lease: Lease,
    digest: Digest,
    kind: MediaKind,
    content: Listing,
}

/// A store and what must be true of it.
struct History {
    store: TestStore,
    tags: BTreeMap<&'static str, Listing>,
    mounts: Vec<Mounted>,
}

impl History {
    fn new() -> Self {
        Self { store: empty(), tags: BTreeMap::new(), mounts: Vec::new() }
    }

    fn run(&mut self, act: &Act) {
        match *act {
            Act::Build { tag, files } => self.build(TAGS[tag], files),
            Act::Tag { from, to } => self.tag(TAGS[from], TAGS[to]),
            Act::Untag { tag } => {
                self.store.untag_foreignly(TAGS[tag]);
                self.tags.remove(TAGS[tag]);
            }
            Act::Delete { tag, force } => self.delete(TAGS[tag], force),
            Act::Mount { tag } => self.mount(TAGS[tag]),
            Act::Unmount { mount, killed } => self.unmount(mount, killed),
            Act::KillBuild { file } => {
                let session = self.store.begin_build(&common::tag("never")).unwrap();
                session.put(&noise(file, 20_000)).unwrap();
                session.put(&noise(file + 50, 1000)).unwrap();
                // Killed: what is on disk stays, and the lease dies with its file.
                let staged = self.store.path.join(".pfs/tmp");
                let debris = self.store.path.join(".pfs/debris");
                fs::rename(&staged, &debris).unwrap();
                drop(session);
                fs::remove_dir_all(&staged).unwrap_or_default();
                fs::rename(&debris, &staged).unwrap();
            }
            Act::KillCollector { every } => self.kill_collector(every),
            Act::Upload { seed } => drop(self.store.put(&noise(seed, 500))),
            Act::Collect { eager, limit } => {
                let policy = if eager { at_once() } else { Policy { hold: Hold::Seconds(0), ..Policy::default() } };
                self.store.collect(Policy { max_freed: limit, ..policy }).unwrap();
            }
            Act::TornIndex { at } => self.tear_index(at),
            Act::EmptiedIndex => self.empty_index(),
            Act::LostBlob { which, cut } => self.lose_blob(which, cut),
            Act::MovedClock { forward } => {
                let time = if forward { now() + 600 } else { now() - 600 };
                let before = self.store.snapshot();
                assert!(matches!(collect(&self.store, at_once(), time, &Silent), Err(GcError::Clock { .. })));
                assert_eq!(self.store.snapshot(), before);
            }
        }
    }

    fn tear_index(&self, at: usize) {
        let path = self.store.path.join("index.json");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..at % whole.len()]).unwrap();
        let before = self.store.snapshot();
        assert!(collect(&self.store, at_once(), now(), &Silent).is_err(), "{at}");
        assert_eq!(self.store.snapshot(), before);
        fs::write(&path, whole).unwrap();
    }

    fn empty_index(&self) {
        let path = self.store.path.join("index.json");
        let whole = fs::read(&path).unwrap();
        let careful = Policy { hold: Hold::Auto, min_age_seconds: 0, ..Policy::default() };
        fs::write(&path, br#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        collect(&self.store, careful.clone(), now(), &Silent).unwrap();
        fs::write(&path, whole).unwrap();
        collect(&self.store, careful, now(), &Silent).unwrap();
    }

    fn lose_blob(&self, which: usize, cut: bool) {
        let needed: Vec<_> = common::needed(&self.store.path).into_iter().collect();
        if needed.is_empty() {
            return;
        }
        let path = self.store.blob(&needed[which % needed.len()]);
        let whole = fs::read(&path).unwrap();
        match cut {
            true => fs::write(&path, &whole[..whole.len() / 2]).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        // A chunk that is not whole says nothing of what others need; a document that is not stops the collection.
        let _ = collect(&self.store, at_once(), now(), &Silent);
        fs::write(&path, whole).unwrap();
    }

    fn build(&mut self, tag: &'static str, files: u8) {
        let contents: Vec<_> =
            (0..4).filter(|bit| files & 1 << bit != 0).map(|bit| (bit, noise(bit, 20_000))).collect();
        let files: Vec<_> = contents.iter().map(|(bit, bytes)| (TAGS[*bit as usize], bytes.as_slice())).collect();
        self.store.build(tag, &files);
        let listing = self.store.read_back(tag);
        let regular = listing.values().filter(|row| row["type"] == "file").map(|row| row["sha256"].as_str().unwrap());
        let expected: Vec<_> = files.iter().map(|(_, bytes)| Digest::of(bytes).to_string()).collect();
        assert!(regular.eq(expected.iter().map(String::as_str)), "it reads back as it was built");
        self.tags.insert(tag, listing);
    }

    fn tag(&mut self, from: &'static str, to: &'static str) {
        let Some(content) = self.tags.get(from).cloned() else { return };
        if from == to {
            return;
        }
        self.store.untag_foreignly(to);
        self.store.rewrite_index(|entries| {
            let named = |entry: &&serde_json::Value| entry["annotations"][common::REF_NAME] == from;
            let mut entry = entries.iter().find(named).unwrap().clone();
            entry["annotations"][common::REF_NAME] = to.into();
            entries.push(entry);
        });
        self.tags.insert(to, content);
    }

    fn delete(&mut self, tag: &'static str, force: bool) {
        let options = DeleteOptions { force, ..DeleteOptions::default() };
        let plan = DeletePlan::new(&self.store, &[by_tag(tag)], options, now());
        match plan {
            Ok(plan) => {
                plan.apply(&self.store, now(), &Silent).unwrap();
                assert!(self.tags.remove(tag).is_some(), "{tag} was there");
            }
            Err(DeleteError::Image(_)) => assert!(!self.tags.contains_key(tag), "{tag} is there"),
            Err(DeleteError::Conflict(_)) => assert!(!force && !self.mounts.is_empty()),
            Err(error) => panic!("{error}"),
        }
    }

    fn mount(&mut self, tag: &'static str) {
        let Some(content) = self.tags.get(tag).cloned() else { return };
        let picked = pick(self.store.index().unwrap().document(), &by_tag(tag)).unwrap();
        let lease = self.store.mount_lease(tag);
        self.mounts.push(Mounted { lease, digest: picked.digest, kind: picked.kind, content });
    }

    fn unmount(&mut self, mount: usize, killed: bool) {
        if mount < self.mounts.len() {
            let ended = self.mounts.remove(mount).lease;
            match killed {
                true => drop(ended),
                false => self.store.release(ended).unwrap(),
            }
        }
    }

    fn kill_collector(&mut self, every: usize) {
        let epoch = self.store.begin_epoch(&self.store.lock_exclusive().unwrap(), now()).unwrap();
        let epoch = self.store.path.join(".pfs/quarantine").join(epoch);
        for digest in self.store.blobs().iter().step_by(every) {
            fs::rename(self.store.blob(digest), epoch.join(digest.to_string())).unwrap();
        }
    }

    /// Every tag and every mount reads back, whatever has happened.
    fn check(&self) {
        for (tag, content) in &self.tags {
            assert_eq!(&self.store.read_back(tag), content, "{tag}");
        }
        for mount in &self.mounts {
            assert_eq!(self.store.read_back_digest(&mount.digest, mount.kind), mount.content, "a mount");
        }
        let mut tags = self.store.tags();
        tags.sort();
        assert!(tags.iter().eq(self.tags.keys()), "{tags:?}");
    }

    /// In the end all mounts are gone, and so is everything that no tag needs.
    fn end(mut self) {
        self.mounts.drain(..).for_each(|mount| drop(mount.lease));
        self.store.collect(at_once()).unwrap();
        self.check();
        assert_eq!(self.store.blobs(), common::needed(&self.store.path));
        for debris in [".pfs/leases", ".pfs/tmp", ".pfs/quarantine"] {
            assert_eq!(common::names_in(&self.store.path.join(debris)), [""; 0], "{debris}");
        }
        assert_sound(&self.store);
    }
}

fn histories() -> u32 {
    std::env::var("PFS_TEST_HISTORIES").ok().and_then(|number| number.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(Config { cases: histories(), failure_persistence: None, max_shrink_iters: 200, ..Config::default() })]

    #[test]
    fn whatever_happens_every_tag_and_every_mount_reads_back(acts in vec(act(), 1..16)) {
        let mut history = History::new();
        for act in &acts {
            history.run(act);
            history.check();
        }
        history.end();
    }
}
