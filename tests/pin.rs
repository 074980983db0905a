//! Pins: what is pinned stays, whoever takes its tag away. And base images that go along with what was built on them.

mod common;

use common::{TestStore, assert_sound, by_tag, empty, golden, image_of, noise, now, pfs, stderr, stdout};
use pfs::{
    delete::{DeleteOptions, DeletePlan},
    observe::Silent,
};
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

/// Runs pfs, and demands this exit code.
fn run(args: &[&str], code: i32) -> (String, String) {
    let output = pfs(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}{}", stdout(&output), stderr(&output));
    (stdout(&output), stderr(&output))
}

fn pins(store: &TestStore) -> Value {
    let (out, _) = run(&["pins", "--json", store.path.to_str().unwrap()], 0);
    serde_json::from_str::<Value>(&out).unwrap()["pins"].take()
}

#[test]
fn a_pinned_image_is_refused_to_delete_and_says_why() {
    let store = images(&["one", "two"]);
    run(&["pin", "--until", "30d", "--reason", "the release", &reference(&store, "one")], 0);
    let before = store.snapshot();
    let (out, err) = run(&["delete", &reference(&store, "one")], 13);
    assert!(out.is_empty() && err.contains("it is pinned") && err.contains("the release"), "{err}");
    assert!(err.contains("hint: pfs unpin"), "{err}");
    assert_eq!(store.snapshot(), before);
    assert_eq!(
        (pins(&store)[0]["tag"].as_str(), pins(&store)[0]["reason"].as_str()),
        (Some("one"), Some("the release"))
    );
    run(&["unpin", &reference(&store, "one")], 0);
    run(&["delete", &reference(&store, "one")], 0);
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn forcing_takes_the_pin_back_and_the_dry_run_says_so_to_the_byte() {
    let store = images(&["one", "two"]);
    run(&["pin", &reference(&store, "one")], 0);
    let options = DeleteOptions { force: true, ..DeleteOptions::default() };
    let plan = DeletePlan::new(&store, &[by_tag("one")], options, now()).unwrap();
    let promised = plan.preview(&store, now(), &Silent).unwrap().0.freed_bytes();
    assert!(promised > 50_000);
    let report = plan.apply(&store, now(), &Silent).unwrap();
    assert_eq!((report.freed.freed_bytes, pins(&store).as_array().unwrap().len()), (promised, 0));
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn one_of_two_names_of_a_pinned_image_goes() {
    let store = images(&["one"]);
    store.rewrite_index(|entries| {
        let mut other = entries[0].clone();
        other["annotations"][common::REF_NAME] = "latest".into();
        entries.push(other);
    });
    run(&["pin", &reference(&store, "one")], 0);
    run(&["delete", &reference(&store, "one")], 0);
    assert_eq!((store.tags(), pins(&store).as_array().unwrap().len()), (vec!["latest".into()], 1));
    assert_sound(&store);
}

#[test]
fn a_pin_keeps_what_another_tool_untags_until_it_is_taken_back() {
    let store = images(&["one", "two"]);
    run(&["pin", &reference(&store, "one")], 0);
    let (digest, before) = (image_of(&store, "one").1, store.blobs());
    store.untag_foreignly("one");
    run(&["gc", "--now", "--min-age", "0", store.path.to_str().unwrap()], 0);
    assert_eq!(store.blobs(), before);
    let by_digest = format!("{}@sha256:{}", store.path.display(), digest.short());
    run(&["unpin", &by_digest], 0);
    run(&["unpin", &by_digest], 12);
    run(&["gc", "--now", "--min-age", "0", store.path.to_str().unwrap()], 0);
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn a_pin_whose_time_is_over_is_none() {
    let store = images(&["one", "two"]);
    run(&["pin", "--until", "10d", &reference(&store, "one")], 0);
    let options = DeleteOptions::default();
    assert!(DeletePlan::new(&store, &[by_tag("one")], options, now()).is_err());
    assert!(DeletePlan::new(&store, &[by_tag("one")], options, now() + 11 * 86_400).is_ok());
}

#[test]
fn what_cannot_be_read_or_found_is_not_pinned() {
    let store = images(&["one"]);
    run(&["pin", &reference(&store, "absent")], 12);
    run(&["pin", "--until", "2001-01-01", &reference(&store, "one")], 2);
    std::fs::remove_file(store.blob(&image_of(&store, "one").1)).unwrap();
    run(&["pin", &reference(&store, "one")], 15);
    assert_eq!(pins(&store).as_array().unwrap().len(), 0);
}

/// Takes the name of an image away, as a rebuild by another tool does.
fn unname(store: &TestStore, tag: &str) {
    store.rewrite_index(|entries| {
        let entry = entries.iter_mut().find(|entry| entry["annotations"][common::REF_NAME] == tag).unwrap();
        entry.as_object_mut().unwrap().remove("annotations");
    });
}

fn entries(store: &TestStore) -> usize {
    store.index().unwrap().document().entries().len()
}

#[test]
fn a_nameless_base_goes_with_the_last_image_that_was_built_on_it() {
    for name in common::trees::STORES {
        let store = golden(name);
        unname(&store, "base");
        run(&["delete", &reference(&store, "next-delta")], 0);
        assert_eq!(store.tags(), ["base-zstd", "next-delta-zstd"], "{name}");
        assert_eq!(entries(&store), 2, "{name}: the base is gone, the zstd images have other layers");
        assert_sound(&store);
    }
}

#[test]
fn a_base_stays_where_it_has_a_name_a_pin_a_mount_or_another_image_on_it() {
    let name = common::trees::STORES[1];
    let store = golden(name);
    run(&["delete", &reference(&store, "next-delta")], 0);
    assert_eq!(entries(&store), 3, "it has a name");

    let store = golden(name);
    unname(&store, "base");
    run(&["delete", "--no-prune", &reference(&store, "next-delta")], 0);
    assert_eq!(entries(&store), 3, "--no-prune");

    let store = golden(name);
    run(&["pin", &reference(&store, "base")], 0);
    unname(&store, "base");
    run(&["delete", &reference(&store, "next-delta")], 0);
    assert_eq!(entries(&store), 3, "pinned");

    let store = golden(name);
    let _lease = store.mount_lease("base");
    unname(&store, "base");
    run(&["delete", &reference(&store, "next-delta")], 0);
    assert_eq!(entries(&store), 3, "mounted");
    assert_sound(&store);
}

#[test]
fn a_base_stays_while_another_image_is_built_on_it() {
    let store = golden(common::trees::STORES[1]);
    unname(&store, "base");
    // Another manifest of the same layers: an image of its own, built on the same base.
    let manifest = image_of(&store, "next-delta").1;
    let mut text: Value = serde_json::from_slice(&std::fs::read(store.blob(&manifest)).unwrap()).unwrap();
    text["annotations"] = serde_json::json!({"copy": "of next-delta"});
    let copy = store.put(text.to_string().as_bytes());
    store.rewrite_index(|entries| {
        let original = entries.iter().find(|entry| entry["annotations"][common::REF_NAME] == "next-delta");
        let mut entry = original.unwrap().clone();
        entry["digest"] = copy.to_oci().into();
        entry["size"] = text.to_string().len().into();
        entry["annotations"][common::REF_NAME] = "copy".into();
        entries.push(entry);
    });
    run(&["delete", &reference(&store, "next-delta")], 0);
    assert_eq!(entries(&store), 4, "the base serves the copy");
    run(&["delete", &reference(&store, "copy")], 0);
    assert_eq!(entries(&store), 2);
    assert_sound(&store);
}
