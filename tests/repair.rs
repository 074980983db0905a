//! `pfs check --repair`: wrong goes aside, missing comes back, nothing is invented and nothing deleted.

mod common;

use std::fs;

use common::{TestStore, assert_sound, empty, image_of, noise, pfs, stderr, stdout};
use pfs::name::Digest;
use serde_json::Value;

fn images() -> TestStore {
    let store = empty();
    for (seed, tag) in (1..).zip(["one", "two"]) {
        store.build(tag, &[("shared", &noise(99, 300_000)), ("then", &noise(seed, 50_000))]);
    }
    store
}

/// Repairs, and gives what was done as pairs of action and digest.
fn repair(store: &TestStore, code: i32) -> Vec<(String, String)> {
    let output = pfs(&["check", "--repair", "--min-age", "0", "--json", store.path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(&output), stderr(&output));
    let document: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    document["repairs"].as_array().unwrap().iter().map(|one| (text(&one["action"]), text(&one["digest"]))).collect()
}

fn chunk_of(store: &TestStore, tag: &str) -> Digest {
    let chunks = pfs::explain::refs(store, &common::by_tag(tag), &pfs::image::WantedPlatform::here()).unwrap().chunks;
    chunks.iter().find(|chunk| chunk.images == 1).unwrap().digest
}

/// A second copy of a blob, in quarantine.
fn copy_to_quarantine(store: &TestStore, digest: &Digest, bytes: &[u8]) {
    let epoch = store.path.join(".pfs/quarantine/5-1");
    fs::create_dir_all(&epoch).unwrap();
    fs::write(epoch.join(digest.to_string()), bytes).unwrap();
}

fn pin_by_mount(store: &TestStore, tag: &str) -> pfs::store::Lease {
    let lease = store.mount_lease(tag);
    let blobs: Vec<_> = store.blobs().into_iter().collect();
    store.link_pins(&image_of(store, tag).1, &blobs).unwrap();
    lease
}

#[test]
fn a_sound_store_is_left_alone() {
    let store = images();
    let before = store.snapshot();
    assert_eq!(repair(&store, 0), []);
    assert_eq!(store.snapshot(), before);
}

#[test]
fn what_is_missing_comes_back_from_the_pins_of_a_mount() {
    let store = images();
    let _lease = pin_by_mount(&store, "one");
    let (content, blobs) = (store.read_back("one"), store.blobs());
    for blob in &blobs {
        fs::remove_file(store.blob(blob)).unwrap();
    }
    let done = repair(&store, 0);
    assert_eq!(done.len(), blobs.len(), "documents too: {done:?}");
    assert!(done.iter().all(|(action, _)| action == "put-back"));
    assert_eq!((store.blobs(), store.read_back("one")), (blobs, content));
    assert_sound(&store);
}

#[test]
fn a_wrong_blob_gives_way_to_a_right_copy() {
    let store = images();
    let content = store.read_back("one");
    let digests = [chunk_of(&store, "one"), image_of(&store, "one").1, image_of(&store, "two").0];
    for digest in &digests {
        copy_to_quarantine(&store, digest, &fs::read(store.blob(digest)).unwrap());
        fs::write(store.blob(digest), "wrong").unwrap();
    }
    let done = repair(&store, 0);
    assert_eq!(done.len(), 2 * digests.len(), "{done:?}");
    for digest in &digests {
        let of = |action: &str| done.contains(&(action.into(), digest.to_oci()));
        assert!(of("set-aside") && of("put-back"), "{done:?}");
        let aside = store.path.join(".pfs/damaged").join(format!("{digest}-0"));
        assert_eq!(fs::read(aside).unwrap(), b"wrong", "nothing is deleted");
    }
    assert_eq!((store.read_back("one"), store.quarantined().unwrap()), (content, vec![]));
    assert_sound(&store);
}

#[test]
fn a_wrong_copy_is_no_cure() {
    let store = images();
    let chunk = chunk_of(&store, "one");
    copy_to_quarantine(&store, &chunk, b"wrong as well");
    fs::remove_file(store.blob(&chunk)).unwrap();
    assert_eq!(repair(&store, 4), [("no-copy".into(), chunk.to_oci())]);
    assert!(!store.blob(&chunk).exists());
    assert_eq!(store.quarantined().unwrap().len(), 1);
}

#[test]
fn without_a_copy_the_wrong_blob_is_set_aside_and_the_damage_is_told() {
    let store = images();
    let chunk = chunk_of(&store, "one");
    fs::write(store.blob(&chunk), "wrong").unwrap();
    let done = repair(&store, 4);
    assert_eq!(done, [("set-aside".into(), chunk.to_oci()), ("no-copy".into(), chunk.to_oci())]);
    let output = pfs(&["check", store.path.to_str().unwrap()]);
    assert!(stdout(&output).contains("it is missing"), "{}", stdout(&output));
    // Building the image again brings the chunk back.
    store.build("one", &[("shared", &noise(99, 300_000)), ("then", &noise(1, 50_000))]);
    assert_eq!(repair(&store, 0), []);
    assert_sound(&store);
}

#[test]
fn one_wrong_blob_after_the_other_is_set_aside() {
    let store = images();
    let chunk = chunk_of(&store, "one");
    let right = fs::read(store.blob(&chunk)).unwrap();
    for copy in 0..3 {
        fs::write(store.blob(&chunk), format!("wrong {copy}")).unwrap();
        copy_to_quarantine(&store, &chunk, &right);
        assert_eq!(repair(&store, 0).len(), 2);
    }
    assert_eq!(common::names_in(&store.path.join(".pfs/damaged")).len(), 3);
    assert_sound(&store);
}

#[test]
fn one_image_cannot_be_repaired_alone_and_a_collector_goes_first() {
    let store = images();
    let image = format!("{}:one", store.path.display());
    assert_eq!(pfs(&["check", "--repair", &image]).status.code(), Some(2));
    let collector = store.lock_collector().unwrap();
    assert_eq!(pfs(&["check", "--repair", store.path.to_str().unwrap()]).status.code(), Some(11));
    drop(collector);
    assert_eq!(repair(&store, 0), []);
}

#[test]
fn what_may_become_right_yet_stays_and_what_has_become_right_comes_back() {
    let store = images();
    let chunk = chunk_of(&store, "one");
    let right = fs::read(store.blob(&chunk)).unwrap();
    fs::write(store.blob(&chunk), "half").unwrap();
    let young = pfs(&["check", "--repair", store.path.to_str().unwrap()]);
    assert!(stdout(&young).contains("left alone"), "{}", stdout(&young));
    // Another process has it open for writing.
    let opened = fs::OpenOptions::new().append(true).open(store.blob(&chunk)).unwrap();
    let mut writer = std::process::Command::new("sleep").arg("60").stdout(opened).spawn().unwrap();
    assert_eq!(repair(&store, 4), [("left-alone".into(), chunk.to_oci())]);
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(repair(&store, 4)[0].0, "set-aside");
    let aside = store.path.join(".pfs/damaged").join(format!("{chunk}-0"));
    fs::write(&aside, right).unwrap();
    assert_eq!(repair(&store, 0), [("put-back".into(), chunk.to_oci())]);
    assert!(!aside.exists());
    assert_sound(&store);
}

/// A power cut behind a tool that never synced its index leaves an empty file.
#[test]
fn an_empty_index_comes_back_from_the_log() {
    for torn in [&b""[..], b"{\"schemaVersion\":2,\"manif", &[0; 4096]] {
        let store = images();
        let whole = fs::read(store.path.join("index.json")).unwrap();
        fs::write(store.path.join("index.json"), torn).unwrap();
        let done = repair(&store, 0);
        assert_eq!(done.len(), 1, "{done:?}");
        assert_eq!(done[0].0, "index-restored");
        assert_eq!(fs::read(store.path.join("index.json")).unwrap(), whole);
        assert_sound(&store);
    }
}

/// Where the log's text needs what is gone, the index stays as it is.
#[test]
fn an_index_whose_blobs_are_gone_is_not_restored() {
    let store = images();
    fs::remove_file(store.blob(&chunk_of(&store, "one"))).unwrap();
    fs::write(store.path.join("index.json"), "").unwrap();
    let output = pfs(&["check", "--repair", "--min-age", "0", store.path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(15), "{}{}", stdout(&output), stderr(&output));
    assert!(stderr(&output).contains("1 blobs are gone"), "{}", stderr(&output));
    assert_eq!(fs::read(store.path.join("index.json")).unwrap(), b"");
}
