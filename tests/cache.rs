//! The reference cache: whatever becomes of it, no answer changes.

mod common;

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use common::{TestStore, assert_sound, at_once, empty, golden, image_of, noise, now, pfs, stdout};
use pfs::{
    delete::{DeleteOptions, DeletePlan},
    gc::{self, Facts, GcError, Roots, Verdict},
    name::Digest,
    observe::Silent,
    store::Store,
};

fn cache(store: &TestStore) -> PathBuf {
    store.path.join(".pfs/cache/references")
}

/// Collects until a store that is opened anew knows these documents. A document that was written a moment ago is not
/// remembered, so this goes round a few times.
fn collect_until_remembered(store: &TestStore, documents: &[Digest]) {
    for _ in 0..10_000 {
        let fresh = Store::open(&store.path).unwrap();
        if documents.iter().all(|document| fresh.recall(document).is_some()) {
            return;
        }
        gc::collect(&fresh, gc::Policy::default(), now(), &Silent).unwrap();
    }
    panic!("the documents are never remembered");
}

/// Two images, one of them untagged, and what a collector that has just been started says of every blob.
fn shrunk() -> (TestStore, Vec<Digest>) {
    let store = empty();
    store.build("one", &[("shared", &noise(1, 300_000)), ("own", &noise(2, 90_000))]);
    store.build("two", &[("shared", &noise(1, 300_000)), ("own", &noise(3, 90_000))]);
    let (rootfs, manifest) = image_of(&store, "two");
    collect_until_remembered(&store, &[rootfs, manifest]);
    store.untag_foreignly("one");
    (store, vec![rootfs, manifest])
}

fn answers(path: &Path) -> Result<Vec<(Digest, Verdict)>, GcError> {
    let store = Store::open(path).unwrap();
    let plan = gc::plan(Facts::gather(&store, Roots::Current, now(), &Silent)?, at_once(), now());
    Ok(plan.blobs().iter().map(|blob| (blob.digest, blob.verdict.clone())).collect())
}

#[test]
fn a_cache_that_is_gone_cut_or_wrong_anywhere_changes_no_answer() {
    let (store, _) = shrunk();
    let whole = fs::read(cache(&store)).unwrap();
    let expected = answers(&store.path).unwrap();
    assert!(expected.iter().any(|(_, verdict)| *verdict == Verdict::Condemn));
    let answers_with = |bytes: &[u8]| {
        fs::write(cache(&store), bytes).unwrap();
        answers(&store.path).unwrap()
    };
    for at in 0..whole.len() {
        let mut wrong = whole.clone();
        wrong[at] ^= 0x41;
        assert_eq!(answers_with(&wrong), expected, "byte {at} of {}", whole.len());
    }
    for len in (0..whole.len()).step_by(37) {
        assert_eq!(answers_with(&whole[..len]), expected, "cut to {len} bytes");
    }
    fs::remove_dir_all(store.path.join(".pfs/cache")).unwrap();
    assert_eq!(answers(&store.path).unwrap(), expected, "without a cache");
}

#[test]
fn a_useless_cache_is_written_anew() {
    let (store, documents) = shrunk();
    for useless in [&b""[..], b"pfsrefs\x01 of another version", &[0xff; 5000]] {
        fs::write(cache(&store), useless).unwrap();
        collect_until_remembered(&store, &documents);
        assert_sound(&store);
    }
    fs::remove_file(cache(&store)).unwrap();
    fs::create_dir(cache(&store)).unwrap();
    gc::collect(&store, at_once(), now(), &Silent).expect("what cannot be cached is no reason to stop");
    assert_sound(&store);
}

type Damage = fn(&Path);

/// Ways to damage a document, with all the care that can be taken to hide it.
const DAMAGES: [(&str, Damage); 5] = [
    ("unlinked", |path| fs::remove_file(path).unwrap()),
    ("cut", |path| fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap()),
    ("emptied", |path| fs::write(path, b"").unwrap()),
    ("one byte changed, and the time set back", |path| {
        let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.seek(SeekFrom::Start(40)).unwrap();
        file.write_all(b"\x7f").unwrap();
        file.set_modified(modified).unwrap();
    }),
    ("replaced by another of its length", |path| {
        let aside = path.with_extension("aside");
        fs::write(&aside, vec![b' '; fs::metadata(path).unwrap().len() as usize]).unwrap();
        fs::File::options().write(true).open(&aside).unwrap().set_modified(UNIX_EPOCH).unwrap();
        fs::rename(aside, path).unwrap();
    }),
];

#[test]
fn a_damaged_document_is_noticed_in_spite_of_the_cache() {
    for (name, damage) in DAMAGES {
        for document in 0..2 {
            let (store, documents) = shrunk();
            damage(&store.blob(&documents[document]));
            assert!(matches!(answers(&store.path), Err(GcError::Incomplete(_))), "{name}, with the cache");
            let before = store.blobs();
            assert!(gc::collect(&store, at_once(), now(), &Silent).is_err(), "{name}: a store that was open meanwhile");
            assert_eq!(store.blobs(), before, "{name}: nothing is freed");
            fs::remove_dir_all(store.path.join(".pfs/cache")).unwrap();
            assert!(matches!(answers(&store.path), Err(GcError::Incomplete(_))), "{name}, without the cache");
        }
    }
}

#[test]
fn metadata_blobs_of_version_2_are_watched_too() {
    let store = golden("puzzlefs-0.1.0");
    let (rootfs, _) = image_of(&store, "next-delta");
    collect_until_remembered(&store, &[rootfs]);
    let image = pfs::graph::load_image(&store.store, &rootfs, pfs::name::MediaKind::Rootfs).unwrap();
    for metadata in image.rootfs.metadata_blobs() {
        let fresh = || Store::open(&store.path).unwrap();
        assert!(fresh().recall(&rootfs).is_some());
        let aside = store.beside("aside");
        fs::rename(store.blob(metadata), &aside).unwrap();
        assert!(fresh().recall(&rootfs).is_none(), "a layer is missing");
        assert!(matches!(answers(&store.path), Err(GcError::Incomplete(_))));
        fs::rename(&aside, store.blob(metadata)).unwrap();
        collect_until_remembered(&store, &[rootfs]);
    }
}

#[test]
fn who_only_looks_writes_no_cache() {
    let store = empty();
    store.build("one", &[("file", &noise(1, 90_000))]);
    let path = store.path.to_str().unwrap();
    let reference = format!("{path}:one");
    for arguments in [&["gc", "-n", path][..], &["ls", path], &["refs", &reference], &["delete", "-n", &reference]] {
        assert!(pfs(arguments).status.success(), "{arguments:?}");
        assert!(!store.path.join(".pfs/cache").exists(), "{arguments:?}");
    }
}

#[test]
fn documents_that_are_gone_are_forgotten() {
    let store = empty();
    store.build("one", &[("own", &noise(2, 90_000))]);
    store.build("two", &[("own", &noise(3, 90_000))]);
    let [(rootfs_one, one), (rootfs_two, two)] = ["one", "two"].map(|tag| image_of(&store, tag));
    collect_until_remembered(&store, &[one, two, rootfs_one, rootfs_two]);
    let holds = |digest: &Digest| {
        let bytes = fs::read(cache(&store)).unwrap();
        bytes.windows(32).any(|window| window == digest.as_bytes())
    };
    assert!(holds(&one) && holds(&rootfs_one));
    let fresh = Store::open(&store.path).unwrap();
    let plan = DeletePlan::new(&fresh, &[common::by_tag("one")], DeleteOptions::default(), now()).unwrap();
    plan.apply(&fresh, now(), &Silent).unwrap();
    gc::collect(&Store::open(&store.path).unwrap(), at_once(), now(), &Silent).unwrap();
    assert!(!holds(&one) && !holds(&rootfs_one), "neither the documents");
    assert!(holds(&two) && holds(&rootfs_two));
    assert_sound(&store);
}

#[test]
fn listings_are_the_same_with_and_without_a_cache() {
    let (store, _) = shrunk();
    let path = store.path.to_str().unwrap();
    let reference = format!("{path}:two");
    let all =
        || [&["ls", "--json", path][..], &["refs", "--json", &reference]].map(|arguments| stdout(&pfs(arguments)));
    let with = all();
    fs::remove_dir_all(store.path.join(".pfs/cache")).unwrap();
    assert_eq!(all(), with);
}
