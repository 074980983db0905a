//! Bad input gets a clear error, and nothing is lost.
//!
//! Torn, flipped and hostile stores, each given to the collector at its most eager: no age, no limit.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{REF_NAME, TestStore, assert_sound, at_once, by_tag, empty, golden, noise, now, pfs, stderr, trees};
use pfs::{
    check::{CheckOptions, Severity, check},
    delete::{DeleteOptions, DeletePlan},
    explain,
    format::{BlobRef, DescriptorDigest, DirEntry, InodeDraft, KindDraft, LayerBuilder, Rootfs},
    gc::{GcError, collect},
    graph::{ImageError, ImageGraph, Root, WalkError, load_image, walk},
    name::{CHUNK, ChunkId, Digest, MediaKind, OCI_INDEX, OCI_MANIFEST, ROOTFS},
    observe::Silent,
    store::{Store, StoreError},
    tree::View,
};
use serde_json::{Value, json};

fn two_images() -> TestStore {
    let store = empty();
    store.build("one", &[("file", &noise(1, 60_000))]);
    store.build("two", &[("file", &noise(2, 60_000))]);
    store
}

fn digest_at(store: &TestStore, place: usize) -> Digest {
    match store.index().unwrap().document().entries()[place].descriptor.digest {
        DescriptorDigest::Sha256(digest) => digest,
        DescriptorDigest::Other(ref other) => panic!("{other}"),
    }
}

/// Collects at once, and nothing in the store may change.
fn frees_nothing(store: &TestStore, what: &str) -> Option<GcError> {
    let before = store.snapshot();
    let ended = collect(store, at_once(), now(), &Silent);
    let after = store.snapshot();
    let lost: Vec<_> = before.iter().filter(|(path, what)| after.get(*path) != Some(*what)).take(3).collect();
    assert!(lost.is_empty() && after.len() == before.len(), "{what}: {lost:?}");
    ended.err()
}

/// The same, and it must say why.
fn refuses(store: &TestStore, what: &str) -> GcError {
    frees_nothing(store, what).unwrap_or_else(|| panic!("{what}: nothing was said"))
}

/// The walk that every collection and every deletion stands on.
fn graph_of(store: &TestStore) -> Result<ImageGraph, WalkError> {
    walk(&store.store, Root::of_index(store.index().unwrap().document()))
}

fn is_unknown(store: &TestStore) -> bool {
    graph_of(store).is_err()
}

/// The same for the deletion of an image.
fn refuses_delete(store: &TestStore, tag: &str, what: &str) {
    let before = store.snapshot();
    let plan = DeletePlan::new(store, &[by_tag(tag)], DeleteOptions::default(), now());
    assert!(plan.and_then(|plan| plan.apply(store, now(), &Silent)).is_err(), "{what}");
    assert_eq!(store.snapshot(), before, "{what}");
}

/// Calls `act` for every case on its own copy of a store, on many threads: reading a torn index takes a while.
fn on_copies<T: Sync>(cases: &[T], make: impl Fn() -> TestStore + Sync, act: impl Fn(&TestStore, &T) + Sync) {
    let (next, salt) = (AtomicUsize::new(0), common::salt());
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                common::work_for(salt);
                let store = make();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    act(&store, case);
                }
            });
        }
    });
}

/// A text with one bit of one byte flipped.
fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << (at % 7);
    bytes
}

/// An image of manifest version 2, whose index entry alone says what its blobs are.
fn version_2() -> TestStore {
    let store = golden("puzzlefs-0.1.0");
    for (tag, _) in &trees::TAGS[1..] {
        store.untag_foreignly(tag);
    }
    let needed = common::needed(&store.path);
    let unneeded: Vec<_> = store.blobs().difference(&needed).copied().collect();
    unneeded.iter().for_each(|digest| fs::remove_file(store.blob(digest)).unwrap());
    store
}

fn index_of(store: &TestStore) -> Vec<u8> {
    fs::read(store.path.join("index.json")).unwrap()
}

fn write_index(store: &TestStore, text: &[u8]) {
    fs::write(store.path.join("index.json"), text).unwrap();
}

#[test]
fn no_prefix_of_an_index_frees_anything() {
    for make in [two_images, version_2] {
        let text = index_of(&make());
        let cases: Vec<usize> = (0..text.trim_ascii_end().len()).collect();
        on_copies(&cases, make, |store, end| {
            write_index(store, &text[..*end]);
            assert!(matches!(refuses(store, &format!("{end} bytes")), GcError::Store(StoreError::Index { .. })));
            if end % 50 == 0 {
                refuses_delete(store, "two", &format!("{end} bytes"));
            }
        });
    }
}

#[test]
fn no_flipped_bit_in_an_index_frees_anything() {
    for make in [two_images, version_2] {
        let text = index_of(&make());
        let cases: Vec<usize> = (0..text.len()).collect();
        on_copies(&cases, make, |store, at| {
            let wrong = flipped(&text, *at);
            write_index(store, &wrong);
            frees_nothing(store, &format!("byte {at}: {}", String::from_utf8_lossy(&wrong)));
        });
    }
}

#[test]
fn no_damage_to_a_manifest_frees_anything() {
    let store = two_images();
    let path = store.blob(&digest_at(&store, 0));
    let text = fs::read(&path).unwrap();
    let cut = (0..text.len()).map(|end| text[..end].to_vec());
    let wrong = (0..text.len()).map(|at| flipped(&text, at));
    for (nth, bytes) in cut.chain(wrong).enumerate() {
        fs::write(&path, bytes).unwrap();
        assert!(is_unknown(&store), "damage {nth}");
        if nth % 50 == 0 {
            assert!(matches!(refuses(&store, &format!("damage {nth}")), GcError::Incomplete(_)));
            refuses_delete(&store, "two", &format!("damage {nth}"));
        }
    }
    fs::write(&path, text).unwrap();
    assert_sound(&store);
}

#[test]
fn no_damage_to_a_rootfs_or_its_metadata_frees_anything() {
    for store in [two_images(), golden("puzzlefs-0.2.0"), version_2()] {
        let tag = store.tags()[0].clone();
        let (rootfs, _) = common::image_of(&store, &tag);
        let metadata = load_image(&store.store, &rootfs, MediaKind::Rootfs).unwrap().rootfs.metadata_blobs().to_vec();
        for path in [&[rootfs], &metadata[..]].concat().iter().map(|digest| store.blob(digest)) {
            let text = fs::read(&path).unwrap();
            for at in (0..text.len()).step_by(text.len() / 20 + 1) {
                for bytes in [text[..at].to_vec(), flipped(&text, at)] {
                    fs::write(&path, bytes).unwrap();
                    assert!(matches!(refuses(&store, &format!("byte {at}")), GcError::Incomplete(_)));
                }
            }
            fs::remove_file(&path).unwrap();
            refuses(&store, "missing");
            fs::write(&path, text).unwrap();
        }
        assert_sound(&store);
    }
}

/// Adds an image of these bytes to the index, as another tool would.
fn add_image(store: &TestStore, tag: &str, layers: &[(&str, Digest)]) -> Digest {
    let layers: Vec<_> =
        layers.iter().map(|(kind, digest)| json!({"mediaType": kind, "digest": digest.to_oci(), "size": 1})).collect();
    let config = store.put(b"{}");
    let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_oci(), "size": 2});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let digest = store.put(manifest.as_bytes());
    add_entry(store, tag, OCI_MANIFEST, &digest.to_oci());
    digest
}

fn add_entry(store: &TestStore, tag: &str, kind: &str, digest: &str) {
    let entry = json!({"mediaType": kind, "digest": digest, "size": 1, "annotations": {REF_NAME: tag}});
    store.rewrite_index(|entries| entries.push(entry));
}

#[test]
fn a_well_hashed_manifest_that_is_cut_frees_nothing() {
    let store = two_images();
    let text = fs::read(store.blob(&digest_at(&store, 0))).unwrap();
    let index = index_of(&store);
    for end in 0..text.len() {
        let digest = store.put(&text[..end]);
        write_index(&store, &index);
        store.rewrite_index(|entries| entries[0]["digest"] = digest.to_oci().into());
        assert!(is_unknown(&store), "{end} bytes");
        if end % 50 == 0 {
            assert!(matches!(refuses(&store, &format!("{end} bytes")), GcError::Incomplete(_)));
        }
        fs::remove_file(store.blob(&digest)).unwrap();
    }
    write_index(&store, &index);
    assert_sound(&store);
}

#[test]
fn a_well_hashed_rootfs_with_flipped_bits_frees_nothing() {
    let store = empty();
    let chunk = store.put(&noise(5, 20_000));
    let text = rootfs(&[("file", &[(chunk, false, 20_000)]), ("more", &[(chunk, false, 100)])]);
    for at in 0..text.len() {
        let digest = store.put(&flipped(&text, at));
        write_index(&store, br#"{"schemaVersion":2,"manifests":[]}"#);
        let manifest = add_image(&store, "flipped", &[(ROOTFS, digest), (CHUNK, chunk)]);
        let known = graph_of(&store);
        assert!(known.is_err() || known.unwrap().needs(&chunk), "byte {at}");
        if at % 50 == 0 {
            frees_nothing(&store, &format!("byte {at}"));
        }
        let _ = explain::listing(&store, now());
        let _ = check(&store, &CheckOptions::default(), &Silent);
        [digest, manifest].iter().for_each(|digest| fs::remove_file(store.blob(digest)).unwrap());
    }
}

/// A chunk, whether it is compressed, and how many bytes of it.
type Stretch = (Digest, bool, u64);

/// A rootfs with these files in its root directory, each of these chunks: digest, compressed, length.
fn rootfs(files: &[(&str, &[Stretch])]) -> Vec<u8> {
    let mut layer = LayerBuilder::new(0);
    let entries = files.iter().enumerate();
    let mut entries = entries.map(|(at, (name, _))| Ok(DirEntry { name: name.as_bytes(), ino: at as u64 + 2 }));
    layer.push(draft(1, &mut std::iter::empty()), KindDraft::Dir { entries: &mut entries, look_below: false }).unwrap();
    for (ino, (_, chunks)) in (2..).zip(files) {
        let mut pieces = chunks.iter().map(|(digest, compressed, len)| {
            Ok((BlobRef { chunk: ChunkId(*digest), offset: 0, compressed: *compressed }, *len))
        });
        layer.push(draft(ino, &mut std::iter::empty()), KindDraft::File(&mut pieces)).unwrap();
    }
    Rootfs::new(vec![layer.finish().unwrap()], Vec::new()).encode().unwrap()
}

type Xattrs<'a> = dyn ExactSizeIterator<Item = Result<pfs::format::XattrDraft<'a>, pfs::format::FormatError>> + 'a;

fn draft<'a>(ino: u64, xattrs: &'a mut Xattrs<'a>) -> InodeDraft<'a> {
    InodeDraft { ino, uid: 0, gid: 0, permissions: 0o755, xattrs }
}

/// Uploads get their hour, and nothing is held after that.
fn patient() -> pfs::gc::Policy {
    pfs::gc::Policy { min_age_seconds: 3600, ..at_once() }
}

#[test]
fn an_index_without_entries_frees_what_was_released_and_keeps_uploads() {
    for text in [r#"{"schemaVersion":2,"manifests":null}"#, r#"{"schemaVersion":2,"manifests":[]}"#] {
        let store = two_images();
        let orphan = store.put(b"an upload");
        write_index(&store, text.as_bytes());
        collect(&store, patient(), now(), &Silent).unwrap();
        assert_eq!(store.blobs(), [orphan].into());
        assert_eq!(index_of(&store), text.as_bytes());
        store.build("three", &[("file", b"x")]);
        assert_eq!(store.tags(), ["three"]);
        assert_sound(&store);
    }
}

#[test]
fn an_emptied_index_keeps_what_was_never_seen_in_it() {
    let store = golden("puzzlefs-0.2.0");
    write_index(&store, br#"{"schemaVersion":2,"manifests":[]}"#);
    let before = store.blobs();
    collect(&store, patient(), now(), &Silent).unwrap();
    assert_eq!(store.blobs(), before, "no index that pfs saw named them, and they are young");
    assert_sound(&store);
}

const PATHS: [&str; 5] = ["sha256:../../../etc/passwd", "sha256:..", "../x", "sha256:/etc/passwd", "sha256:"];

#[test]
fn a_digest_that_is_a_path_in_an_index_is_refused() {
    for path in PATHS {
        let store = two_images();
        add_entry(&store, "evil", OCI_MANIFEST, path);
        assert!(matches!(refuses(&store, path), GcError::Store(StoreError::Index { .. })));
        refuses_delete(&store, "one", path);
        let output = pfs(&["ls", store.path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(15), "{}", stderr(&output));
        assert!(stderr(&output).contains("entry 2 of index.json"), "{}", stderr(&output));
    }
}

#[test]
fn a_digest_that_is_a_path_in_a_manifest_is_refused() {
    for path in PATHS {
        let store = two_images();
        let manifest = json!({"schemaVersion": 2, "layers": [{"mediaType": CHUNK, "digest": path, "size": 1}]});
        let digest = store.put(manifest.to_string().as_bytes());
        add_entry(&store, "evil", OCI_MANIFEST, &digest.to_oci());
        assert!(matches!(refuses(&store, path), GcError::Incomplete(_)));
        refuses_delete(&store, "one", path);
    }
}

#[test]
fn a_digest_of_another_algorithm_stops_the_collection_and_is_named() {
    let store = two_images();
    add_entry(&store, "other", OCI_MANIFEST, &format!("sha512:{}", "ab".repeat(64)));
    let error = refuses(&store, "sha512").to_string();
    assert!(error.contains("tag other: sha512:abab"), "{error}");
}

/// Makes something under a path.
type Impostor = fn(&Path);

/// What may stand under the name of a blob without being one.
fn impostors() -> [(&'static str, Impostor); 4] {
    [
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a symbolic link", |path| symlink("/etc/passwd", path).unwrap()),
        ("a dangling link", |path| symlink("nowhere", path).unwrap()),
        ("a fifo", |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
    ]
}

#[test]
fn what_stands_in_the_place_of_a_document_stops_the_collection() {
    for (what, make) in impostors() {
        for part in ["manifest", "rootfs"] {
            let store = two_images();
            let (rootfs, manifest) = common::image_of(&store, "one");
            let path = store.blob(if part == "manifest" { &manifest } else { &rootfs });
            fs::remove_file(&path).unwrap();
            make(&path);
            assert!(matches!(refuses(&store, what), GcError::Incomplete(_)), "{what} as {part}");
            refuses_delete(&store, "two", what);
            let report = check(&store, &CheckOptions::default(), &Silent).unwrap();
            assert!(!report.is_sound(), "{what} as {part}");
        }
    }
}

#[test]
fn what_is_no_blob_among_the_blobs_is_left_alone_and_reported() {
    for (what, make) in impostors() {
        let store = two_images();
        let unneeded = Digest::of(what.as_bytes());
        make(&store.blob(&unneeded));
        fs::write(store.path.join("blobs/sha256/upload.tmp"), "half").unwrap();
        fs::write(store.path.join(format!("blobs/sha256/{unneeded}123")), "half").unwrap();
        assert_eq!(frees_nothing(&store, what).map(|error| error.to_string()), None);
        let report = check(&store, &CheckOptions::default(), &Silent).unwrap();
        let notices = report.findings.iter().filter(|finding| finding.severity == Severity::Notice).count();
        assert_eq!(notices, 3, "{:?}", report.findings);
        let output = pfs(&["gc", "--min-age", "0", store.path.to_str().unwrap()]);
        assert!(common::stdout(&output).contains("left alone: "), "{}", common::stdout(&output));
        assert_sound(&store);
    }
}

#[test]
fn a_name_that_is_not_text_is_reported_too() {
    use std::os::unix::ffi::OsStrExt;
    let store = two_images();
    fs::write(store.path.join("blobs/sha256").join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "half").unwrap();
    assert_eq!(store.inventory().unwrap().strangers.len(), 1);
    assert!(frees_nothing(&store, "not text").is_none());
    assert_sound(&store);
}

#[test]
fn a_missing_or_short_chunk_is_damage_and_stops_nothing() {
    for cut in [None, Some(10)] {
        let store = two_images();
        let (rootfs, _) = common::image_of(&store, "one");
        let chunk = load_image(&store.store, &rootfs, MediaKind::Rootfs).unwrap().rootfs.chunks()[0].0;
        let path = store.blob(&chunk);
        match cut {
            Some(len) => fs::write(&path, &fs::read(&path).unwrap()[..len]).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let report = check(&store, &CheckOptions::default(), &Silent).unwrap();
        let damage: Vec<_> = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).collect();
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(damage[0].subject.contains("/file"), "{damage:?}");
        assert!(frees_nothing(&store, "a chunk says nothing about others").is_none());
        let content = store.read_back("two");
        DeletePlan::new(&store, &[by_tag("one")], DeleteOptions::default(), now())
            .unwrap()
            .apply(&store, now(), &Silent)
            .unwrap();
        assert_eq!(store.read_back("two"), content);
        assert_sound(&store);
    }
}

#[test]
fn a_directory_that_is_its_own_parent_is_refused_and_its_chunks_stay() {
    let store = two_images();
    let chunk = store.put(&noise(7, 20_000));
    let mut layer = LayerBuilder::new(0);
    let mut root =
        [("loop", 2), ("file", 3)].into_iter().map(|(name, ino)| Ok(DirEntry { name: name.as_bytes(), ino }));
    layer.push(draft(1, &mut std::iter::empty()), KindDraft::Dir { entries: &mut root, look_below: false }).unwrap();
    let mut own = std::iter::once(Ok(DirEntry { name: b"self", ino: 2 }));
    layer.push(draft(2, &mut std::iter::empty()), KindDraft::Dir { entries: &mut own, look_below: false }).unwrap();
    let mut pieces = [Ok((BlobRef { chunk: ChunkId(chunk), offset: 0, compressed: false }, 20_000))].into_iter();
    layer.push(draft(3, &mut std::iter::empty()), KindDraft::File(&mut pieces)).unwrap();
    let bytes = Rootfs::new(vec![layer.finish().unwrap()], Vec::new()).encode().unwrap();
    add_image(&store, "loop", &[(ROOTFS, store.put(&bytes))]);
    assert!(frees_nothing(&store, "what it needs is known").is_none());
    let loaded = load_image(&store.store, &digest_at(&store, 2), MediaKind::Manifest).unwrap();
    assert!(View::new(loaded.rootfs).is_err());
    assert!(!check(&store, &CheckOptions::default(), &Silent).unwrap().is_sound());
}

/// Large ones are decoded while they are hashed, small ones before. Of a manifest the rest is hashed where its rootfs is among the
/// first bytes, and all of it is read where something long stands before that.
#[test]
fn a_document_under_a_wrong_digest_is_refused_whatever_it_says() {
    let wrong = |store: &TestStore, digest: &Digest, kind, bytes: &[u8]| {
        fs::write(store.blob(digest), bytes).unwrap();
        match load_image(&store.store, digest, kind) {
            Err(ImageError::Store(StoreError::Damaged { digest: found, .. })) => assert_eq!(found, *digest),
            other => panic!("{} bytes: {other:?}", bytes.len()),
        }
    };
    for (many, long) in [(1, "behind"), (2000, "ahead"), (2000, "then")] {
        let store = empty();
        let chunk = store.put(b"chunk");
        let of = |len| rootfs(&[("file", &vec![(chunk, false, len); many])]);
        let manifest = |rootfs: Digest| {
            let layer = json!({"mediaType": ROOTFS, "digest": rootfs.to_oci(), "size": 1});
            // Written by rising key.
            json!({"layers": [layer], long: "x".repeat(many * 100)}).to_string().into_bytes()
        };
        let (good, other) = (store.put(&of(5)), store.put(&of(4)));
        let named = store.put(&manifest(good));
        assert_eq!(load_image(&store.store, &named, MediaKind::Manifest).unwrap().rootfs_id.0, good);
        let at_the_end = manifest(good).len() - 3;
        wrong(&store, &named, MediaKind::Manifest, &flipped(&manifest(good), at_the_end));
        wrong(&store, &named, MediaKind::Manifest, &manifest(good)[..at_the_end]);
        wrong(&store, &named, MediaKind::Manifest, &manifest(other));
        wrong(&store, &named, MediaKind::Manifest, &vec![b'['; many * 100]);
        wrong(&store, &good, MediaKind::Rootfs, &of(4));
        wrong(&store, &good, MediaKind::Rootfs, &of(5)[8..]);
    }
}

#[test]
fn lengths_that_overflow_are_refused() {
    const LENGTH: u64 = 0x0123_4567_89AB_CDEF;
    let store = two_images();
    let chunk = store.put(&noise(8, 20_000));
    let good = rootfs(&[("file", &[(chunk, false, LENGTH), (chunk, false, LENGTH)])]);
    let places: Vec<_> = (0..good.len() - 8).filter(|at| good[*at..at + 8] == LENGTH.to_le_bytes()).collect();
    assert_eq!(places.len(), 2);
    for huge in [u64::MAX, u64::MAX / 2, 1 << 63] {
        let mut bytes = good.clone();
        places.iter().for_each(|at| bytes[*at..at + 8].copy_from_slice(&huge.to_le_bytes()));
        let index = index_of(&store);
        add_image(&store, "huge", &[(ROOTFS, store.put(&bytes)), (CHUNK, chunk)]);
        let error = refuses(&store, "overflow").to_string();
        assert!(error.contains("tag huge") && error.contains("overflow"), "{error}");
        write_index(&store, &index);
    }
}

#[test]
fn a_zstd_footer_that_claims_gigabytes_is_an_error_of_that_read() {
    let store = empty();
    let frame = zstd::encode_all(&b"small"[..], 3).unwrap();
    let mut chunk = frame.clone();
    chunk.extend(0x184D_2A5E_u32.to_le_bytes());
    chunk.extend(17_u32.to_le_bytes());
    chunk.extend(u32::try_from(frame.len()).unwrap().to_le_bytes());
    chunk.extend((2_u32 << 30).to_le_bytes());
    chunk.extend(1_u32.to_le_bytes());
    chunk.push(0);
    chunk.extend(0x8F92_EAB1_u32.to_le_bytes());
    let digest = store.put(&chunk);
    let rootfs = store.put(&rootfs(&[("file", &[(digest, true, 1 << 31)])]));
    add_image(&store, "bomb", &[(ROOTFS, rootfs), (CHUNK, digest)]);
    assert!(frees_nothing(&store, "bomb").is_none());
    let view = View::new(load_image(&store.store, &rootfs, MediaKind::Rootfs).unwrap().rootfs).unwrap();
    let reader = common::chunk_reader(&store.path);
    let read = reader.read_at(2, view.file_map(2).unwrap(), 0, &mut [0; 100]);
    assert!(read.is_err(), "{read:?}");
}

#[test]
fn shared_blob_directories_are_not_collected() {
    let store = two_images();
    let cache = store.beside("cache");
    fs::rename(store.path.join("blobs/sha256"), &cache).unwrap();
    symlink(&cache, store.path.join("blobs/sha256")).unwrap();
    store.untag_foreignly("one");
    let before = fs::read_dir(&cache).unwrap().count();
    let path = store.path.to_str().unwrap();
    let commands: [&[&str]; 3] =
        [&["gc", "--min-age", "0", path], &["gc", "-n", path], &["delete", &format!("{path}:two")]];
    for command in commands {
        let output = pfs(command);
        assert_eq!(output.status.code(), Some(14), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("not every layout that uses it is known"), "{}", stderr(&output));
    }
    assert_eq!(fs::read_dir(&cache).unwrap().count(), before);
    assert_eq!(store.tags(), ["two"]);
}

#[test]
fn what_is_not_a_store_is_said_and_left_alone() {
    let no_layout = |path: &Path| fs::remove_file(path.join("oci-layout")).unwrap();
    let no_index = |path: &Path| fs::remove_file(path.join("index.json")).unwrap();
    let future = |path: &Path| fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    let torn = |path: &Path| fs::write(path.join("oci-layout"), r#"{"imageLay"#).unwrap();
    for spoil in [no_layout, no_index, future, torn] {
        let store = two_images();
        spoil(&store.path);
        let before = store.snapshot();
        let path = store.path.to_str().unwrap();
        for command in [vec!["gc", path], vec!["ls", path], vec!["check", path], vec!["delete", &format!("{path}:one")]]
        {
            let output = pfs(&command);
            assert_eq!(output.status.code(), Some(10), "{command:?}: {}", stderr(&output));
        }
        assert_eq!(store.snapshot(), before);
    }
}

#[test]
fn what_others_wrote_into_an_index_survives_an_edit_byte_for_byte() {
    let store = two_images();
    let (one, two) = (digest_at(&store, 0).to_oci(), digest_at(&store, 1).to_oci());
    let tar = store.put(b"a layer");
    let other = store.put(json!({"config": {"digest": tar.to_oci()}, "x": 1}).to_string().as_bytes()).to_oci();
    let text = |first: &str| {
        format!(
            "{{ \"vendor\" : {{\"a\":[1,2 , 3]}},\n  \"manifests\": [\n    {first}{{\"size\": 3, \"digest\":\"{two}\", \"mediaType\":\
             \"{OCI_MANIFEST}\",\"urls\":[ ] ,\"annotations\":{{\"z\":\"\\u00e9\",\"{REF_NAME}\":\"two\"}}}},\n\n    \
             {{\"mediaType\":\"x/y\",\"digest\":\"{other}\",\"extra\":null}} ], \"schemaVersion\":2 }}\n\n"
        )
    };
    let first = format!(
        "{{\"digest\":\"{one}\",\"mediaType\":\"{OCI_MANIFEST}\",\"annotations\":{{\"{REF_NAME}\":\"one\"}}}},\n    "
    );
    write_index(&store, text(&first).as_bytes());
    let output = pfs(&["delete", &format!("{}:one", store.path.display())]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8(index_of(&store)).unwrap(), text(""));
    assert!(store.blobs().contains(&tar), "a type that nobody knows is searched for references");
    assert_sound(&store);
}

#[test]
fn images_of_other_tools_stay_whole_and_go_whole() {
    let store = two_images();
    let before = store.blobs();
    let kinds = [
        ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        (OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("application/vnd.oci.artifact.manifest.v1+json", "application/x-sbom"),
        ("application/vnd.nobody.knows.this", "application/vnd.nobody.knows.that"),
    ];
    for (nth, (kind, layer)) in (10..).zip(kinds) {
        let (config, tar) = (store.put(format!("{{\"os\":\"{nth}\"}}").as_bytes()), store.put(&noise(nth, 5000)));
        let list = if layer.ends_with("sbom") { "blobs" } else { "layers" };
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": config.to_oci(), "size": 1}, list: [{"mediaType": layer, "digest": tar.to_oci()}, {"mediaType": layer, "digest": tar.to_oci()}]});
        let digest = store.put(manifest.to_string().as_bytes());
        add_entry(&store, &format!("tag-{nth}"), kind, &digest.to_oci());
    }
    assert_eq!(frees_nothing(&store, "all of it is needed").map(|error| error.to_string()), None);
    for nth in 10..14 {
        let output = pfs(&["delete", &format!("{}:tag-{nth}", store.path.display())]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_sound(&store);
    }
    assert_eq!(store.blobs(), before);
}

#[test]
fn nested_indexes_keep_their_children_and_may_be_sparse() {
    let store = two_images();
    let child = |place| json!({"mediaType": OCI_MANIFEST, "digest": digest_at(&store, place).to_oci(), "size": 1});
    let absent = json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(b"not copied").to_oci(), "size": 1});
    let inner = store.put(json!({"schemaVersion": 2, "manifests": [child(1), absent]}).to_string().as_bytes());
    let inner = json!({"mediaType": OCI_INDEX, "digest": inner.to_oci(), "size": 1});
    let outer = store.put(json!({"schemaVersion": 2, "manifests": [child(0), inner]}).to_string().as_bytes());
    store.rewrite_index(|entries| entries.clear());
    add_entry(&store, "all", OCI_INDEX, &outer.to_oci());
    assert!(frees_nothing(&store, "sparse").is_none());
    assert_sound(&store);
    fs::write(store.blob(&digest_of(&inner)), "torn").unwrap();
    refuses(&store, "a child that is there must be readable");
}

fn digest_of(descriptor: &Value) -> Digest {
    Digest::from_oci(descriptor["digest"].as_str().unwrap()).unwrap()
}

#[test]
fn the_subject_of_a_signature_is_needed() {
    let store = two_images();
    let subject = json!({"mediaType": OCI_MANIFEST, "digest": digest_at(&store, 0).to_oci(), "size": 1});
    let layer = store.put(b"a signature");
    let layers = json!([{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.to_oci()}]);
    let signature = store.put(json!({"schemaVersion": 2, "layers": layers, "subject": subject}).to_string().as_bytes());
    add_entry(&store, "signature", OCI_MANIFEST, &signature.to_oci());
    store.untag_foreignly("one");
    assert!(frees_nothing(&store, "subject").is_none());
    assert_sound(&store);
}

#[test]
fn a_digest_that_a_manifest_repeats_counts_once() {
    let store = empty();
    let chunk = store.put(&noise(3, 1000));
    let rootfs = store.put(&rootfs(&[("a", &[(chunk, false, 1000)]), ("b", &[(chunk, false, 1000)])]));
    add_image(&store, "repeats", &[(ROOTFS, rootfs), (CHUNK, chunk), (CHUNK, chunk), (CHUNK, chunk)]);
    let refs = explain::refs(&store, &by_tag("repeats"), &pfs::image::WantedPlatform::here()).unwrap().chunks;
    assert_eq!(refs.iter().map(|chunk| chunk.images).collect::<Vec<_>>(), [1]);
    let listing = explain::listing(&store, now()).unwrap();
    assert!(
        matches!(listing.rows[0].state, explain::RowState::Known { size, unique, .. } if size == unique && size == listing.stored_bytes)
    );
    assert_sound(&store);
}

#[test]
fn a_rootfs_of_a_kind_to_come_stops_the_collection() {
    let store = two_images();
    let hidden = store.put(&noise(9, 1000));
    let future = store.put(&[&b"a format of which only the name is known "[..], hidden.as_bytes()].concat());
    add_image(&store, "future", &[("application/vnd.puzzlefs.image.rootfs.v2", future)]);
    let error = refuses(&store, "what a rootfs of another version needs is not known").to_string();
    assert!(error.contains("tag future"), "{error}");
    assert!(store.blobs().contains(&hidden));
}

/// A small filesystem of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, said out loud, where one may not mount.
    fn new(place: &Path, bytes: u64) -> Option<Self> {
        let path = place.join("disk");
        fs::create_dir_all(&path).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "pfs-test"]).arg(&path).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(path));
        }
        assert!(std::env::var_os("CI").is_none(), "this test must be able to mount a tmpfs");
        eprintln!("skipped: this test mounts a tmpfs, which needs root");
        None
    }

    fn remount(&self, option: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_up_during_a_build_leaves_the_store_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let (mut failed, mut built) = (0, 0);
    for kilobytes in (260..720).step_by(20) {
        let Some(disk) = SmallDisk::new(place.path(), 4 << 20) else { return };
        let path = disk.0.join("store");
        let store = common::at(&path);
        store.build("one", &[("file", &noise(1, 60_000))]);
        disk.remount(&format!("size={}k", kilobytes));
        let (before, content) = (store.snapshot(), store.read_back("one"));
        match store.try_build("two", &[("file", &noise(2, 200_000))]) {
            Ok(_) => built += 1,
            Err(error) => {
                failed += 1;
                assert!(error.to_string().contains("cannot "), "{error}");
                assert_eq!(store.snapshot(), before, "{kilobytes} KiB: {error}");
                assert_eq!(store.staged(), [""; 0], "{kilobytes} KiB: {error}");
            }
        }
        assert_eq!(store.read_back("one"), content);
        assert_sound(&store);
    }
    assert!(failed > 2 && built > 2, "{failed} failed, {built} built");
}

#[test]
fn a_store_that_cannot_be_written_is_read_and_not_changed() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(place.path(), 4 << 20) else { return };
    let path = disk.0.join("store");
    let store = common::at(&path);
    store.build("one", &[("file", &noise(1, 60_000))]);
    store.build("two", &[("file", &noise(2, 60_000))]);
    store.untag_foreignly("one");
    disk.remount("ro");
    let (before, path) = (store.snapshot(), path.to_str().unwrap());
    for command in [
        vec!["ls", path],
        vec!["check", "--data", path],
        vec!["gc", "-n", path],
        vec!["delete", "-n", &format!("{path}:two")],
    ] {
        assert_eq!(pfs(&command).status.code(), Some(0), "{command:?}");
    }
    for command in [
        vec!["gc", path],
        vec!["delete", &format!("{path}:two")],
        vec!["build", "/etc/default", &format!("{path}:three")],
    ] {
        let output = pfs(&command);
        assert!(matches!(output.status.code(), Some(1 | 14)), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("ead-only file system"), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("\nhint: "), "{command:?}: {}", stderr(&output));
    }
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

#[test]
fn a_failed_publication_leaves_no_half_named_blob() {
    let store = two_images();
    let truncated = Digest::of(&noise(30, 10_000));
    fs::write(store.blob(&truncated), b"a crash of another tool").unwrap();
    store.build("three", &[("file", &noise(30, 10_000))]);
    let whole: BTreeSet<_> =
        store.blobs().iter().map(|digest| Digest::of(&fs::read(store.blob(digest)).unwrap())).collect();
    assert!(whole.is_subset(&store.blobs()));
    assert_sound(&store);
    assert!(Store::open(&store.path).is_ok());
}
