//! Real stores of three puzzlefs versions: whatever is deleted, the other images stay whole to the last byte.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use common::{TestStore, assert_sound, at_once, by_tag, golden, now, trees};
use pfs::{
    delete::{DeleteOptions, DeletePlan, DeleteReport},
    explain::refs,
    format::{Limits, ManifestVersion, chunks_named_plainly},
    graph::{load_image, pick},
    image::WantedPlatform,
    name::{Digest, MediaKind},
    observe::Silent,
};

/// Orders to delete the tags in: each tag comes first once and last once.
const ORDERS: [[usize; 4]; 5] = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [2, 0, 3, 1]];

fn listing_of(tag: &str) -> &'static str {
    trees::TAGS.iter().find(|(name, _)| *name == tag).unwrap().1
}

fn assert_reads_back(store: &TestStore, tag: &str, what: &str) {
    trees::assert_same(&store.read_back(tag), &trees::expected(listing_of(tag)), &format!("{what}: {tag}"));
}

/// Deletes one tag, and demands that the dry run has said exactly what happened.
fn delete(store: &TestStore, tag: &str) -> DeleteReport {
    let plan = DeletePlan::new(store, &[by_tag(tag)], DeleteOptions::default(), now()).unwrap();
    let (preview, kept) = plan.preview(store, now(), &Silent).unwrap();
    let (promised, blobs, before) = (preview.freed_bytes(), preview.summary().go, store.blob_bytes());
    let report = plan.apply(store, now(), &Silent).unwrap();
    assert_eq!(report.freed.freed_bytes, promised, "{tag}: the dry run prints the bytes that the run frees");
    assert_eq!(report.freed.freed.len() as u64, blobs, "{tag}");
    assert_eq!(before - store.blob_bytes(), promised, "{tag}: the bytes are gone from the disk");
    assert_eq!(report.kept, kept, "{tag}: the dry run names who keeps the rest");
    report
}

#[test]
fn golden_stores_are_sound_and_read_back() {
    for name in trees::STORES {
        let store = golden(name);
        assert_sound(&store);
        trees::TAGS.iter().for_each(|(tag, _)| assert_reads_back(&store, tag, name));
    }
}

#[test]
fn chunks_are_found_plainly_where_the_rootfs_is_of_version_3() {
    for name in trees::STORES {
        let store = golden(name);
        for (tag, _) in trees::TAGS {
            let (digest, _) = common::image_of(&store, tag);
            let limits = Limits::default();
            let found = chunks_named_plainly(&fs::read(store.blob(&digest)).unwrap(), &limits);
            let rootfs = load_image(&*store, &digest, MediaKind::Rootfs).unwrap().rootfs;
            let found = found.map(|chunks| chunks.into_iter().collect::<BTreeSet<_>>());
            let expected = (rootfs.version() == ManifestVersion::V3).then(|| rootfs.chunks().into_iter().collect());
            assert_eq!(found, expected, "{name}: {tag}");
        }
    }
}

#[test]
fn a_golden_store_has_nothing_to_collect() {
    for name in trees::STORES {
        let store = golden(name);
        assert_eq!(store.blobs(), common::needed(&store.path), "{name}: the oracle needs all of it");
        assert_eq!(store.collect(at_once()).unwrap().freed, [], "{name}");
        assert_sound(&store);
    }
}

#[test]
fn every_image_outlives_the_deletion_of_the_others_in_any_order() {
    for name in trees::STORES {
        for order in ORDERS {
            let store = golden(name);
            for (nth, place) in order.iter().enumerate() {
                let tag = trees::TAGS[*place].0;
                delete(&store, tag);
                for left in &order[nth + 1..] {
                    assert_reads_back(&store, trees::TAGS[*left].0, &format!("{name} {order:?} without {tag}"));
                }
                assert_eq!(store.blobs(), common::needed(&store.path), "{name} {order:?}: exactly the needed is left");
                assert_sound(&store);
            }
            assert_eq!(store.blobs(), [].into(), "{name} {order:?}: the last delete leaves no blobs");
        }
    }
}

#[test]
fn what_a_foreign_tool_untags_is_collected_and_the_rest_reads_back() {
    for name in trees::STORES {
        for (gone, _) in trees::TAGS {
            let store = golden(name);
            store.untag_foreignly(gone);
            store.collect(at_once()).unwrap();
            assert_eq!(store.blobs(), common::needed(&store.path), "{name} without {gone}");
            trees::TAGS
                .iter()
                .filter(|(tag, _)| *tag != gone)
                .for_each(|(tag, _)| assert_reads_back(&store, tag, name));
            assert_sound(&store);
        }
    }
}

/// How many distinct images need each blob, by the oracle that knows no format.
fn naive_counts(store: &TestStore) -> BTreeMap<Digest, u32> {
    let index = store.index().unwrap();
    let mut images: Vec<String> = index
        .document()
        .entries()
        .iter()
        .map(|entry| match &entry.descriptor.digest {
            pfs::format::DescriptorDigest::Sha256(digest) => digest.to_string(),
            pfs::format::DescriptorDigest::Other(other) => panic!("{other}"),
        })
        .collect();
    images.sort();
    images.dedup();
    let mut counts = BTreeMap::new();
    for image in images {
        for digest in common::needed_from(&store.path, image.as_bytes()) {
            *counts.entry(digest).or_default() += 1;
        }
    }
    counts
}

#[test]
fn reference_counts_are_those_that_one_counts_by_hand() {
    for name in trees::STORES {
        let store = golden(name);
        let naive = naive_counts(&store);
        for (tag, _) in trees::TAGS {
            for chunk in refs(&store, &by_tag(tag), &WantedPlatform::here()).unwrap().chunks {
                assert_eq!(chunk.images, naive[&chunk.digest], "{name}:{tag} {}", chunk.digest);
                assert_eq!(chunk.size, Some(fs::metadata(store.blob(&chunk.digest)).unwrap().len()), "{name}:{tag}");
            }
        }
    }
}

#[test]
fn deleting_frees_exactly_the_blobs_that_one_image_needs() {
    for name in trees::STORES {
        for (tag, _) in trees::TAGS {
            let store = golden(name);
            let counts = naive_counts(&store);
            let picked = pick(store.index().unwrap().document(), &by_tag(tag)).unwrap();
            let own = common::needed_from(&store.path, picked.digest.to_string().as_bytes());
            let mut freed = delete(&store, tag).freed.freed;
            freed.sort();
            let expected: Vec<_> = own.into_iter().filter(|digest| counts[digest] == 1).collect();
            assert_eq!(freed, expected, "{name}:{tag}");
            assert_sound(&store);
        }
    }
}

#[test]
fn every_golden_file_is_tested() {
    let stores = trees::STORES.map(|store| format!("{store}.tar.zst"));
    let listings = trees::TAGS.map(|(_, listing)| format!("{listing}.jsonl"));
    let tools = ["README.md", "list-tree.py", "make-tree.py"].map(String::from);
    let known: Vec<_> = stores.into_iter().chain(listings).chain(tools).collect();
    for name in common::names_in(&trees::golden("")) {
        assert!(known.contains(&name), "tests/golden/{name} is not covered by any test");
    }
}
