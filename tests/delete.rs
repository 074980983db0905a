//! `pfs delete`: the rows of the conflict table, and what happens when somebody else writes the index meanwhile.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use common::{TestStore, assert_sound, by_tag, empty, noise, now, pfs, stderr, stdout};
use pfs::{
    delete::{Conflict, DeleteError, DeleteOptions, DeletePlan},
    format::DescriptorDigest,
    name::Digest,
    observe::Silent,
    store::Store,
};
use serde_json::{Value, json};

fn images(tags: &[&str]) -> TestStore {
    let store = empty();
    for (seed, tag) in (1..).zip(tags) {
        store.build(tag, &[("shared", &noise(99, 300_000)), ("then", &noise(seed, 50_000))]);
    }
    store
}

/// Gives an image another tag, as another tool would.
fn also_tag(store: &TestStore, old: &str, new: &str) {
    store.rewrite_index(|entries| {
        let mut entry = entries.iter().find(|entry| entry["annotations"][common::REF_NAME] == old).unwrap().clone();
        entry["annotations"][common::REF_NAME] = new.into();
        entries.push(entry);
    });
}

fn reference(store: &TestStore, tag: &str) -> String {
    format!("{}:{tag}", store.path.display())
}

/// What the entry at this place points at.
fn digest_at(store: &TestStore, place: usize) -> Digest {
    match store.index().unwrap().document().entries()[place].descriptor.digest {
        DescriptorDigest::Sha256(digest) => digest,
        DescriptorDigest::Other(ref other) => panic!("{other}"),
    }
}

fn by_digest(store: &TestStore, digest: &Digest) -> String {
    format!("{}@sha256:{}", store.path.display(), digest.short())
}

/// Runs `pfs delete`, and demands this exit code.
fn delete(args: &[&str], code: i32) -> (String, String) {
    let output = pfs(&[&["delete"], args].concat());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}{}", stdout(&output), stderr(&output));
    (stdout(&output), stderr(&output))
}

/// The same, and nothing may have changed.
fn refused(store: &TestStore, args: &[&str], code: i32) -> String {
    let before = store.snapshot();
    let (out, err) = delete(args, code);
    assert_eq!(store.snapshot(), before, "{err}");
    assert!(out.is_empty() && err.starts_with("error: ") && err.contains("\nhint: "), "{err}");
    assert_sound(store);
    err
}

#[test]
fn one_of_several_names_goes_and_nothing_else() {
    let store = images(&["one", "two"]);
    also_tag(&store, "one", "latest");
    let (before, content) = (store.blobs(), store.read_back("one"));
    let (out, _) = delete(&[&reference(&store, "latest")], 0);
    assert!(out.contains("untagged latest") && out.contains("freed 0 B in 0 blobs"), "{out}");
    assert_eq!((store.tags(), store.blobs()), (vec!["one".into(), "two".into()], before));
    assert_eq!(store.read_back("one"), content);
    assert_sound(&store);
}

#[test]
fn one_of_several_names_of_a_mounted_image_goes_too() {
    let store = images(&["one"]);
    also_tag(&store, "one", "latest");
    let (_lease, before) = (store.mount_lease("one"), store.blobs());
    delete(&[&reference(&store, "one")], 0);
    assert_eq!((store.tags(), store.blobs()), (vec!["latest".into()], before));
    assert_sound(&store);
}

#[test]
fn the_last_tag_goes_with_what_only_it_needed() {
    let store = images(&["one", "two"]);
    let content = store.read_back("two");
    let (out, _) = delete(&[&reference(&store, "one")], 0);
    assert!(out.contains("untagged one") && out.contains("kept ") && out.contains("needed by tag two"), "{out}");
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_eq!(store.read_back("two"), content);
    delete(&[&reference(&store, "two")], 0);
    assert_eq!(store.blobs(), [].into());
    assert_sound(&store);
}

#[test]
fn several_images_go_in_one_edit() {
    let store = images(&["one", "two", "three"]);
    delete(&[&reference(&store, "one"), &reference(&store, "three")], 0);
    assert_eq!((store.tags(), store.blobs()), (vec!["two".into()], common::needed(&store.path)));
    assert_sound(&store);
}

#[test]
fn if_one_of_several_is_refused_none_goes() {
    let store = images(&["one", "two"]);
    let _lease = store.mount_lease("two");
    refused(&store, &[&reference(&store, "one"), &reference(&store, "two")], 13);
    refused(&store, &[&reference(&store, "one"), &reference(&store, "absent")], 12);
}

#[test]
fn the_last_tag_of_a_mounted_image_is_refused() {
    let store = images(&["one", "two"]);
    let _lease = store.mount_lease("one");
    let error = refused(&store, &[&reference(&store, "one")], 13);
    let pid = std::process::id();
    assert!(error.contains(&format!("cannot delete one: it is mounted at /srv/app (pid {pid}, since ")), "{error}");
    assert!(error.contains("hint: pfs umount /srv/app"), "{error}");
}

#[test]
fn forcing_a_mounted_image_untags_it_and_leaves_its_content_until_the_unmount() {
    let store = images(&["one", "two"]);
    let (lease, before) = (store.mount_lease("one"), store.blobs());
    let (out, _) = delete(&["--force", &reference(&store, "one")], 0);
    assert!(out.contains("needed by lease "), "{out}");
    assert_eq!((store.tags(), store.blobs()), (vec!["two".into()], before.clone()));
    assert_eq!(pfs(&["gc", "--min-age", "0", store.path.to_str().unwrap()]).status.code(), Some(0));
    assert_eq!(store.blobs(), before, "held");
    store.release(lease).unwrap();
    assert_eq!(pfs(&["gc", store.path.to_str().unwrap()]).status.code(), Some(0));
    assert_eq!(store.blobs(), common::needed(&store.path), "freed at once: it was published once");
    assert_sound(&store);
}

#[test]
fn both_names_of_a_mounted_image_at_once_are_refused() {
    let store = images(&["one"]);
    also_tag(&store, "one", "latest");
    let _lease = store.mount_lease("one");
    refused(&store, &[&reference(&store, "one"), &reference(&store, "latest")], 13);
}

#[test]
fn a_digest_with_several_tags_is_refused_unless_forced() {
    let store = images(&["one", "two"]);
    also_tag(&store, "one", "latest");
    let digest = digest_at(&store, 0);
    let error = refused(&store, &[&by_digest(&store, &digest)], 13);
    assert!(error.contains("it has several tags: one, latest"), "{error}");
    let (out, _) = delete(&["--force", &by_digest(&store, &digest)], 0);
    assert!(out.contains("untagged one, latest"), "{out}");
    assert_eq!((store.tags(), store.blobs()), (vec!["two".into()], common::needed(&store.path)));
    assert_sound(&store);
}

#[test]
fn a_digest_with_one_tag_goes() {
    let store = images(&["one", "two"]);
    let digest = store.build("one", &[("own", &noise(1, 50_000))]);
    delete(&[&by_digest(&store, &digest)], 0);
    assert_eq!(store.tags(), ["two"]);
    assert_sound(&store);
}

#[test]
fn a_tag_and_the_digest_behind_it_are_one_image_with_all_its_names() {
    let store = images(&["one", "two"]);
    also_tag(&store, "one", "latest");
    let digest = digest_at(&store, 0);
    for order in
        [[reference(&store, "one"), by_digest(&store, &digest)], [by_digest(&store, &digest), reference(&store, "one")]]
    {
        refused(&store, &[&order[0], &order[1]], 13);
    }
    delete(&["--force", &reference(&store, "one"), &by_digest(&store, &digest)], 0);
    assert_eq!((store.tags(), store.blobs()), (vec!["two".into()], common::needed(&store.path)));
    assert_sound(&store);
}

#[test]
fn a_mounted_digest_cannot_be_forced() {
    let store = images(&["one"]);
    let digest = store.build("one", &[("own", &noise(7, 50_000))]);
    let _lease = store.mount_lease("one");
    for force in [&["--force"][..], &[]] {
        let error = refused(&store, &[force, &[&by_digest(&store, &digest)]].concat(), 13);
        assert!(error.contains("a digest that is mounted cannot be deleted"), "{error}");
    }
}

/// Replaces the tags by one index of several images.
fn nest(store: &TestStore, tag: &str) -> Digest {
    let index: Value = serde_json::from_slice(&fs::read(store.path.join("index.json")).unwrap()).unwrap();
    let document = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index["manifests"]});
    let digest = store.put(document.to_string().as_bytes());
    store.rewrite_index(|entries| {
        *entries = vec![json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest.to_oci(),
            "size": document.to_string().len(), "annotations": {common::REF_NAME: tag}})];
    });
    digest
}

#[test]
fn a_multi_platform_index_goes_as_a_whole_tree() {
    let store = images(&["one", "two"]);
    nest(&store, "multi");
    assert_sound(&store);
    delete(&[&reference(&store, "multi")], 0);
    assert_eq!(store.blobs(), [].into());
    assert_sound(&store);
}

#[test]
fn what_a_tag_shares_with_a_deleted_index_stays() {
    let store = images(&["one", "two"]);
    let content = store.read_back("one");
    let entries = fs::read(store.path.join("index.json")).unwrap();
    let entries: Value = serde_json::from_slice(&entries).unwrap();
    nest(&store, "multi");
    store.rewrite_index(|all| all.push(entries["manifests"][0].clone()));
    delete(&[&reference(&store, "multi")], 0);
    assert_eq!((store.tags(), store.read_back("one")), (vec!["one".into()], content));
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn a_mounted_child_of_an_index_counts_as_mounted() {
    let store = images(&["one", "two"]);
    let _lease = store.mount_lease("two");
    nest(&store, "multi");
    refused(&store, &[&reference(&store, "multi")], 13);
}

#[test]
fn a_mounted_child_counts_though_another_image_cannot_be_read() {
    let store = images(&["one", "two"]);
    let _lease = store.mount_lease("two");
    nest(&store, "multi");
    store.build("broken", &[("x", b"x")]);
    fs::write(store.blob(&digest_at(&store, 1)), "no manifest").unwrap();
    let before = store.snapshot();
    delete(&["--keep-blobs", &reference(&store, "multi")], 13);
    assert_eq!(store.snapshot(), before);
}

#[test]
fn a_tag_on_two_manifests_is_refused_unless_all_go() {
    let store = images(&["one", "two"]);
    also_tag(&store, "two", "one");
    let error = refused(&store, &[&reference(&store, "one")], 14);
    assert!((0..2).all(|place| error.contains(&digest_at(&store, place).to_oci())), "{error}");
    delete(&["--all", &reference(&store, "one")], 0);
    assert_eq!(store.tags(), ["two"]);
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn a_digest_prefix_of_several_manifests_is_refused() {
    let store = images(&["one", "two"]);
    let error = refused(&store, &[&format!("{}@sha256:000000", store.path.display())], 12);
    assert!(error.contains("there is no sha256:000000"), "{error}");
    let short = pfs(&["delete", &format!("{}@sha256:00", store.path.display())]);
    assert_eq!(short.status.code(), Some(2), "{}", stderr(&short));
}

#[test]
fn a_tag_that_is_not_there_is_not_found_and_the_nearest_are_named() {
    let store = images(&["app-1.2", "app-1.3", "database"]);
    let error = refused(&store, &[&reference(&store, "app-1.4")], 12);
    assert!(error.contains("there is no app-1.4 in this store"), "{error}");
    assert!(error.contains("did you mean app-1.2, or app-1.3?"), "{error}");
}

#[test]
fn what_is_no_store_is_left_alone() {
    let place = common::place();
    fs::write(place.path().join("file"), "mine").unwrap();
    for path in [place.path().to_path_buf(), place.path().join("file"), place.path().join("absent")] {
        let (_, error) = delete(&[&format!("{}:app", path.display())], 10);
        assert!(error.starts_with("error: ") && error.contains("is not a store"), "{error}");
    }
    assert_eq!(common::names_in(place.path()), ["file"]);
}

#[test]
fn keeping_blobs_only_untags() {
    let store = images(&["one", "two"]);
    let before = store.blobs();
    delete(&["--keep-blobs", &reference(&store, "one")], 0);
    assert_eq!((store.tags(), store.blobs()), (vec!["two".into()], before));
    assert_eq!(pfs(&["gc", store.path.to_str().unwrap()]).status.code(), Some(0));
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn a_damaged_image_can_be_deleted_and_another_one_cannot_meanwhile() {
    let store = images(&["one", "two"]);
    let manifest = digest_at(&store, 0);
    fs::write(store.blob(&manifest), "{}").unwrap();
    let before = store.snapshot();
    let (_, error) = delete(&[&reference(&store, "two")], 14);
    assert!(error.contains("tag one") && error.contains("is damaged"), "{error}");
    assert_eq!(store.snapshot(), before);
    delete(&[&reference(&store, "one")], 0);
    assert_eq!(store.tags(), ["two"]);
    assert_sound(&store);
}

#[test]
fn a_damaged_image_that_only_a_mount_needs_is_let_go_of_by_umount() {
    let store = images(&["one", "two"]);
    let (manifest, lease) = (digest_at(&store, 0), store.mount_lease("one"));
    delete(&["--force", "--keep-blobs", &reference(&store, "one")], 0);
    fs::write(store.blob(&manifest), "{}").unwrap();
    let before = store.snapshot();
    let refused = pfs(&["gc", store.path.to_str().unwrap()]);
    let said = common::stderr(&refused);
    assert!(refused.status.code() == Some(14) && said.contains("lease") && said.contains("pfs umount DIR"), "{said}");
    assert_eq!(store.snapshot(), before);
    store.release(lease).unwrap();
    assert_eq!(pfs(&["gc", store.path.to_str().unwrap()]).status.code(), Some(0));
    assert_sound(&store);
}

fn plan(store: &TestStore, tag: &str) -> DeletePlan {
    DeletePlan::new(store, &[by_tag(tag)], DeleteOptions::default(), now()).unwrap()
}

#[test]
fn what_others_added_to_the_index_after_the_plan_stays() {
    let store = images(&["one", "two"]);
    let plan = plan(&store, "one");
    also_tag(&store, "two", "three");
    plan.apply(&store, now(), &Silent).unwrap();
    assert_eq!(store.tags(), ["two", "three"]);
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn an_image_that_others_tagged_after_the_plan_stays() {
    let store = images(&["one", "two"]);
    let (plan, before, content) = (plan(&store, "one"), store.blobs(), store.read_back("one"));
    also_tag(&store, "one", "rescued");
    plan.apply(&store, now(), &Silent).unwrap();
    assert_eq!((store.tags(), store.blobs()), (vec!["two".into(), "rescued".into()], before));
    assert_eq!(store.read_back("rescued"), content);
    assert_sound(&store);
}

#[test]
fn a_tag_that_others_moved_after_the_plan_is_not_deleted() {
    let store = images(&["one", "two"]);
    let plan = plan(&store, "one");
    store.build("one", &[("new", &noise(50, 50_000))]);
    let before = store.snapshot();
    assert!(matches!(plan.apply(&store, now(), &Silent), Err(DeleteError::Changed)));
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

#[test]
fn a_tag_that_others_removed_after_the_plan_is_not_found() {
    let store = images(&["one", "two"]);
    let plan = plan(&store, "one");
    store.untag_foreignly("one");
    let before = store.snapshot();
    assert!(matches!(plan.apply(&store, now(), &Silent), Err(DeleteError::Image(_))));
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

#[test]
fn an_image_mounted_after_the_plan_keeps_its_content() {
    let store = images(&["one", "two"]);
    let plan = plan(&store, "one");
    let (_lease, before) = (store.mount_lease("one"), store.blobs());
    match plan.apply(&store, now(), &Silent) {
        Ok(report) => assert_eq!(report.freed.freed, []),
        Err(error) => assert!(matches!(error, DeleteError::Conflict(Conflict::Mounted { .. })), "{error}"),
    }
    assert_eq!(store.blobs(), before);
    assert_sound(&store);
}

#[test]
fn an_index_torn_after_the_plan_is_left_as_it_is() {
    let store = images(&["one", "two"]);
    let plan = plan(&store, "one");
    let index = fs::read(store.path.join("index.json")).unwrap();
    fs::write(store.path.join("index.json"), &index[..index.len() - 3]).unwrap();
    let before = store.snapshot();
    assert!(plan.apply(&store, now(), &Silent).is_err());
    assert_eq!(store.snapshot(), before);
    fs::write(store.path.join("index.json"), index).unwrap();
    assert_sound(&store);
}

/// Set for a run of this program that only holds a lease on the image `one` of the store that it names.
const HOLD: &str = "PFS_TEST_HOLD_LEASE";

#[test]
fn holder_of_a_lease() {
    let Ok(path) = std::env::var(HOLD) else { return };
    let store = Store::open(path.as_ref()).unwrap();
    let (rootfs, manifest) = common::image_of(&store, "one");
    let mut record = common::lease_record(pfs::store::LeaseKind::Mount);
    (record.manifest, record.rootfs, record.mountpoint) = (Some(manifest), Some(rootfs), Some("/srv/app".into()));
    let _lease = store.take_lease(&store.lock_shared().unwrap(), &record).unwrap();
    println!("held");
    std::io::stdin().lines().for_each(drop);
}

#[test]
fn a_killed_mount_protects_nothing_and_its_lease_is_tidied() {
    let store = images(&["one", "two"]);
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "holder_of_a_lease", "--nocapture"]).env(HOLD, &store.path);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    lines.map(Result::unwrap).find(|line| line.contains("held")).expect("it takes its lease");
    let error = refused(&store, &[&reference(&store, "one")], 13);
    assert!(error.contains(&format!("pid {}", holder.id())), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    delete(&[&reference(&store, "one")], 0);
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_eq!(common::names_in(&store.path.join(".pfs/leases")), [""; 0]);
    assert_sound(&store);
}

/// A delete looks closely at what the image needed only, but an upload elsewhere in the store may rely on that.
#[test]
fn what_is_freed_waits_where_blobs_of_no_image_may_be_an_upload() {
    let store = images(&["one", "two"]);
    let orphan = store.put(b"somebody's upload");
    let (said, _) = delete(&["-n", &reference(&store, "one")], 0);
    assert!(said.contains("1 young blobs"), "{said}");
    let (said, _) = delete(&[&reference(&store, "one")], 0);
    assert!(said.contains("1 young blobs"), "{said}");
    assert!(!store.quarantined().unwrap().is_empty());
    assert!(store.blobs().contains(&orphan));
    assert_sound(&store);
}

/// What is held comes back; what is not is said to be final.
#[test]
fn a_held_delete_can_be_undone_and_another_says_it_is_final() {
    let store = common::empty();
    for tag in ["one", "two"] {
        store.build(tag, &[("file", &common::noise(tag.len() as u64 + u64::from(tag.as_bytes()[0]), 50_000))]);
    }
    let image = |tag: &str| format!("{}:{tag}", store.path.display());
    let held = common::pfs(&["delete", "--hold", "7d", &image("one")]);
    assert!(common::stdout(&held).contains("in quarantine for 7 d"), "{}", common::stdout(&held));
    let collected = common::pfs(&["gc", "--min-age", "0", store.path.to_str().unwrap()]);
    assert!(collected.status.success(), "{}", common::stderr(&collected));
    let undone = common::pfs(&["undo", &image("one")]);
    assert!(undone.status.success(), "{}", common::stderr(&undone));
    store.read_back("one");
    let last = common::pfs(&["delete", &image("two")]);
    assert!(common::stdout(&last).contains("this is final"), "{}", common::stdout(&last));
    let naked = common::pfs(&["delete", "--hold", "7", &image("one")]);
    assert_eq!(naked.status.code(), Some(2));
    assert!(common::stderr(&naked).contains("7 needs a unit"), "{}", common::stderr(&naked));
    common::assert_sound(&store);
}

/// An entry that no collection can pass has a way out.
#[test]
fn an_entry_of_another_digest_algorithm_can_be_untagged() {
    let store = common::empty();
    store.build("good", &[("file", &common::noise(5, 20_000))]);
    store.rewrite_index(|entries| {
        let mut other = entries[0].clone();
        other["digest"] = format!("sha512:{}", "ab".repeat(64)).into();
        other["annotations"][common::REF_NAME] = "other".into();
        entries.push(other);
    });
    let path = store.path.to_str().unwrap();
    assert_eq!(common::pfs(&["gc", path]).status.code(), Some(14));
    let untagged = common::pfs(&["delete", "--keep-blobs", &format!("{path}:other")]);
    assert!(untagged.status.success(), "{}", common::stderr(&untagged));
    assert!(common::stdout(&untagged).contains("sha512:abab"), "{}", common::stdout(&untagged));
    assert_eq!(store.tags(), ["good"]);
    assert!(common::pfs(&["gc", path]).status.success());
    common::assert_sound(&store);
}
