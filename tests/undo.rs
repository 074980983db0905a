//! `pfs undo`: what was deleted comes back while its chunks are there, and never halfway.

mod common;

use std::fs;

use common::{TestStore, assert_sound, empty, image_of, noise, pfs, stderr, stdout};
use serde_json::Value;

fn images(tags: &[&str]) -> TestStore {
    let store = empty();
    for (seed, tag) in (1..).zip(tags) {
        store.build(tag, &[("shared", &noise(99, 300_000)), ("then", &noise(seed, 50_000))]);
    }
    store
}

fn reference(store: &TestStore, tag: &str) -> String {
    format!("{}:{tag}", store.path.display())
}

fn run(args: &[&str], code: i32) -> (String, String) {
    let output = pfs(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}{}", stdout(&output), stderr(&output));
    (stdout(&output), stderr(&output))
}

fn path(store: &TestStore) -> &str {
    store.path.to_str().unwrap()
}

fn index(store: &TestStore) -> String {
    fs::read_to_string(store.path.join("index.json")).unwrap()
}

#[test]
fn an_untagged_image_comes_back_byte_for_byte() {
    let store = images(&["one", "two"]);
    store.rewrite_index(|entries| entries[1]["x-of-another-tool"] = serde_json::json!({"kept": [1, 2]}));
    let (before, content) = (index(&store), store.read_back("two"));
    run(&["delete", "--keep-blobs", &reference(&store, "two")], 0);
    assert_ne!(index(&store), before);
    let (out, _) = run(&["undo", path(&store)], 0);
    assert!(out.starts_with("brought back two ("), "{out}");
    assert_eq!((index(&store), store.read_back("two")), (before, content));
    run(&["undo", path(&store)], 12);
    assert_sound(&store);
}

#[test]
fn an_image_comes_back_from_quarantine() {
    let store = images(&["one", "two"]);
    let (content, blobs) = (store.read_back("one"), store.blobs());
    run(&["delete", "--keep-blobs", &reference(&store, "one")], 0);
    run(&["gc", "--hold", "1d", path(&store)], 0);
    assert_ne!(store.blobs(), blobs);
    let (out, _) = run(&["undo", "--list", path(&store)], 0);
    assert!(out.contains("one") && out.contains("in quarantine"), "{out}");
    let (out, _) = run(&["undo", &reference(&store, "one")], 0);
    assert!(out.contains("from quarantine"), "{out}");
    assert_eq!((store.read_back("one"), store.blobs(), store.quarantined().unwrap()), (content, blobs, vec![]));
    assert_sound(&store);
}

#[test]
fn an_image_comes_back_from_the_pins_of_a_mount() {
    let store = images(&["one", "two"]);
    let manifest = image_of(&store, "one").1;
    let (_lease, blobs) = (store.mount_lease("one"), store.blobs());
    store.link_pins(&manifest, &blobs.iter().copied().collect::<Vec<_>>()).unwrap();
    run(&["delete", "--force", "--keep-blobs", &reference(&store, "one")], 0);
    let needed = common::needed(&store.path);
    blobs.difference(&needed).for_each(|blob| fs::remove_file(store.blob(blob)).unwrap());
    run(&["undo", &reference(&store, "one")], 0);
    assert_eq!(store.blobs(), blobs);
    assert_sound(&store);
}

#[test]
fn what_is_gone_is_not_brought_back_halfway() {
    let store = images(&["one", "two"]);
    run(&["delete", &reference(&store, "one")], 0);
    let (before, blobs) = (index(&store), store.blobs());
    run(&["undo", &reference(&store, "one")], 15);
    run(&["undo", path(&store)], 12);
    run(&["undo", &reference(&store, "never")], 12);
    assert_eq!((index(&store), store.blobs()), (before, blobs));
    let (out, _) = run(&["undo", "--list", "--json", path(&store)], 0);
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (document["lost"][0]["tag"].as_str(), document["lost"][0]["complete"].as_bool()),
        (Some("one"), Some(false))
    );
    assert_sound(&store);
}

#[test]
fn one_missing_chunk_is_named_and_nothing_is_restored() {
    let store = images(&["one", "two"]);
    let chunk = pfs::explain::refs(&store, &common::by_tag("one"), &pfs::image::WantedPlatform::here()).unwrap().chunks;
    let chunk = chunk.iter().find(|chunk| chunk.images == 1).unwrap().digest;
    run(&["delete", "--keep-blobs", &reference(&store, "one")], 0);
    run(&["gc", "--hold", "1d", path(&store)], 0);
    let quarantined = store.quarantined().unwrap();
    let gone = quarantined.iter().find(|blob| blob.digest == chunk).unwrap();
    fs::remove_file(store.path.join(".pfs/quarantine").join(&gone.epoch).join(chunk.to_string())).unwrap();
    let (before, blobs) = (index(&store), store.blobs());
    let (_, err) = run(&["undo", &reference(&store, "one")], 15);
    assert!(err.contains(&chunk.to_string()), "{err}");
    assert_eq!((index(&store), store.blobs()), (before, blobs));
    assert_sound(&store);
}

#[test]
fn a_tag_that_stands_for_another_image_moves_back_only_by_force() {
    let store = images(&["one"]);
    let (old, content) = (image_of(&store, "one").1, store.read_back("one"));
    store.build("one", &[("new", &noise(30, 50_000))]);
    let new = image_of(&store, "one").1;
    run(&["undo", path(&store)], 12);
    run(&["undo", &reference(&store, "one")], 14);
    assert_eq!(image_of(&store, "one").1, new);
    run(&["undo", "--force", &reference(&store, "one")], 0);
    assert_eq!((image_of(&store, "one").1, store.read_back("one")), (old, content));
    run(&["undo", "--force", &reference(&store, "one")], 0);
    assert_eq!(image_of(&store, "one").1, new, "and forth");
    assert_sound(&store);
}

#[test]
fn what_went_together_comes_back_together() {
    let store = images(&["one", "two", "three"]);
    run(&["delete", "--keep-blobs", &reference(&store, "one")], 0);
    run(&["delete", "--keep-blobs", &reference(&store, "two"), &reference(&store, "three")], 0);
    run(&["undo", path(&store)], 0);
    assert_eq!(store.tags(), ["two", "three"]);
    run(&["undo", path(&store)], 0);
    assert_eq!(store.tags(), ["two", "three", "one"]);
    assert_sound(&store);
}

/// A later deletion of the same content does not shorten what was said of an earlier one; only `gc --now` does.
#[test]
fn a_deletion_leaves_the_quarantine_of_another_alone() {
    let store = images(&["one", "two"]);
    let entry: Value = serde_json::from_str(&index(&store)).unwrap();
    let blobs = store.blobs();
    let copies: Vec<_> = blobs.iter().map(|digest| fs::read(store.blob(digest)).unwrap()).collect();
    run(&["delete", "--hold", "7d", &reference(&store, "one")], 0);
    // Another program uploads the same content again.
    for bytes in &copies {
        store.put(bytes);
    }
    let mut again = entry["manifests"][0].clone();
    again["annotations"][common::REF_NAME] = "again".into();
    store.rewrite_index(|entries| entries.push(again));
    let quarantined = store.quarantined().unwrap().len();
    run(&["delete", "--hold", "0", &reference(&store, "again")], 0);
    assert!(quarantined > 0 && store.quarantined().unwrap().len() == quarantined);
    run(&["undo", &reference(&store, "one")], 0);
    assert_sound(&store);
}

/// Somebody's crash leaves half a chunk under its name, while quarantine has all of it.
#[test]
fn what_is_half_written_gives_way_to_what_is_in_quarantine() {
    let store = images(&["one", "two"]);
    run(&["delete", "--hold", "7d", &reference(&store, "one")], 0);
    let quarantined = store.quarantined().unwrap();
    let chunk = quarantined.iter().max_by_key(|blob| blob.stat.size).unwrap().digest;
    fs::write(store.blob(&chunk), b"half").unwrap();
    run(&["undo", &reference(&store, "one")], 0);
    assert_sound(&store);
    store.read_back("one");
}
