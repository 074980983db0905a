//! The collector: what it takes, what it leaves, and what it does when the store changes under its plan.

mod common;

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt};

use common::{TestStore, assert_sound, at_once, by_tag, empty, golden, lease_record, noise, now, pfs, stderr, stdout};
use pfs::{
    delete::{DeleteOptions, DeletePlan},
    format::Rootfs,
    gc::{Evidence, GcError, GcPlan, Hold, KeepReason, Policy, Verdict, apply, collect},
    graph::{load_image, pick},
    name::{Digest, MediaKind},
    observe::{Event, Observer, Silent},
    store::{LeaseKind, StoreError},
};

/// A store with two images that share a file of many chunks.
fn two_images() -> TestStore {
    let store = empty();
    store.build("one", &[("shared", &noise(1, 300_000)), ("then", &noise(2, 90_000))]);
    store.build("two", &[("shared", &noise(1, 300_000)), ("then", &noise(3, 90_000))]);
    store
}

/// The default patience with orphans, and none with what is condemned.
fn unheld() -> Policy {
    Policy { hold: Hold::Seconds(0), ..Policy::default() }
}

fn limited(bytes: u64) -> Policy {
    Policy { max_freed: Some(bytes), ..at_once() }
}

/// The blobs that only this image needs.
fn only_of(store: &TestStore, tag: &str) -> BTreeSet<Digest> {
    let without = empty_index_but(store, tag);
    store.blobs().difference(&common::needed_from(&store.path, without.as_bytes())).copied().collect()
}

fn empty_index_but(store: &TestStore, tag: &str) -> String {
    let index = store.index().unwrap();
    let places: Vec<_> = (0..index.document().entries().len())
        .filter(|at| index.document().entries()[*at].tag.as_ref().is_some_and(|found| found.as_str() == tag))
        .collect();
    String::from_utf8(index.document().without(&places).bytes().to_vec()).unwrap()
}

/// Moves a blob where a collector that was killed would have left it.
fn quarantine(store: &TestStore, digest: &Digest) {
    let epoch = store.path.join(".pfs/quarantine/1-1");
    fs::create_dir_all(&epoch).unwrap();
    fs::rename(store.blob(digest), epoch.join(digest.to_string())).unwrap();
}

/// Applies a plan that is out of date: nothing may leave its place, not even to come back.
fn moves_nothing(plan: GcPlan, store: &TestStore) {
    let report = apply(plan, store, now(), &Silent).unwrap();
    assert_eq!((report.freed, report.restored), (Vec::new(), Vec::new()));
}

#[test]
fn a_released_blob_goes_at_once_and_an_orphan_waits() {
    let store = two_images();
    let gone = only_of(&store, "one");
    let orphan = store.put(b"somebody's upload, not yet in the index");
    store.untag_foreignly("one");
    let report = store.collect(unheld()).unwrap();
    assert_eq!(report.freed.into_iter().collect::<BTreeSet<_>>(), gone, "published once, needed no more");
    assert!(store.blobs().contains(&orphan));
    assert_eq!(store.collect(at_once()).unwrap().freed, [orphan], "--min-age 0 does not wait");
    assert_sound(&store);
}

#[test]
fn an_orphan_is_young_until_it_has_the_age() {
    let store = two_images();
    let orphan = store.put(b"an upload");
    let verdict = |seconds| {
        let facts = pfs::gc::Facts::gather(&store, pfs::gc::Roots::Current, now(), &Silent).unwrap();
        let plan = pfs::gc::plan(facts, Policy::default(), now() + seconds);
        plan.blobs().iter().find(|blob| blob.digest == orphan).unwrap().verdict.clone()
    };
    assert!(matches!(verdict(3590), Verdict::Young(_)));
    assert_eq!(verdict(3700), Verdict::Condemn);
    assert_eq!(verdict(-5000), Verdict::Young(0), "a time in the future is no age at all");
}

/// Does something when everything that is needed is known, and the blobs have not been listed for good.
struct AfterTheWalk<F>(F);

impl<F: Fn() + Sync> Observer for AfterTheWalk<F> {
    fn event(&self, event: Event<'_>) {
        if event == Event::Phase("listing blobs") {
            (self.0)();
        }
    }
}

#[test]
fn what_is_uploaded_or_touched_during_the_walk_is_seen_as_it_is_after_it() {
    let store = two_images();
    let touched = store.put(b"an orphan");
    let upload = Digest::of(b"an upload");
    let meanwhile = AfterTheWalk(|| {
        assert_eq!(store.put(b"an upload"), upload);
        fs::write(store.blob(&touched), "is written anew").unwrap();
    });
    let facts = pfs::gc::Facts::gather(&store, pfs::gc::Roots::Current, now(), &meanwhile).unwrap();
    for digest in [touched, upload] {
        assert_eq!(facts.inventory.get(&digest).copied(), store.stat_blob(&digest).unwrap());
    }
    let plan = pfs::gc::plan(facts, Policy::default(), now());
    assert!(plan.evidence().contains(&Evidence::YoungBlobs(2)));
}

#[test]
fn an_old_modification_time_makes_no_blob_old() {
    let store = two_images();
    let orphan = store.put(b"copied with cp -a");
    let file = fs::File::options().write(true).open(store.blob(&orphan)).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(store.collect(unheld()).unwrap().freed, []);
    assert!(store.blobs().contains(&orphan));
    assert_sound(&store);
}

#[test]
fn a_limit_stops_the_collection_and_the_rest_goes_later() {
    let store = two_images();
    store.untag_foreignly("one");
    let all = store.plan(at_once()).unwrap().freed_bytes();
    let first = store.collect(limited(1)).unwrap();
    assert_eq!(first.freed.len(), 1, "the blob that reaches the limit is the last");
    let summary = store.plan(limited(1)).unwrap();
    assert!(summary.blobs().iter().any(|blob| blob.verdict == Verdict::Keep(KeepReason::LimitReached)));
    let rest = store.collect(at_once()).unwrap();
    assert_eq!(first.freed_bytes + rest.freed_bytes, all);
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn collecting_again_finds_nothing() {
    let store = two_images();
    store.untag_foreignly("one");
    assert!(!store.collect(at_once()).unwrap().freed.is_empty());
    assert_eq!(store.collect(at_once()).unwrap(), pfs::gc::GcReport::default());
    assert_sound(&store);
}

#[test]
fn quarantined_chunks_in_use_are_restored() {
    let store = two_images();
    let before = store.snapshot();
    store.blobs().iter().for_each(|digest| quarantine(&store, digest));
    let report = store.collect(at_once()).unwrap();
    assert_eq!((report.freed.len(), report.restored.len()), (0, before.len() - 4), "all but directories and texts");
    assert_eq!(store.snapshot(), before);
    assert_eq!(common::names_in(&store.path.join(".pfs/quarantine")), [""; 0], "empty epochs go");
    assert_sound(&store);
}

#[test]
fn a_quarantined_chunk_that_was_written_anew_leaves_one_of_the_two() {
    let store = two_images();
    let before = store.snapshot();
    let (rootfs, _) = common::image_of(&store, "one");
    let chunks = load_image(&store.store, &rootfs, MediaKind::Rootfs).unwrap().rootfs.chunks();
    for wrong in [None, Some(&b"half of it, by a tool that crashed"[..])] {
        for digest in chunks.iter().map(|chunk| chunk.0) {
            let bytes = fs::read(store.blob(&digest)).unwrap();
            quarantine(&store, &digest);
            fs::copy(store.path.join(format!(".pfs/quarantine/1-1/{digest}")), store.blob(&digest)).unwrap();
            fs::write(store.blob(&digest), wrong.unwrap_or(&bytes)).unwrap();
        }
        match wrong {
            None => assert!(store.collect(at_once()).unwrap().freed_bytes > 0),
            Some(_) => drop(apply(store.plan(at_once()).unwrap(), &store, now(), &Silent).unwrap()),
        }
        assert_eq!(store.snapshot(), before, "the right bytes stay");
    }
    assert_sound(&store);
}

/// A collector that was killed had condemned a blob, a build wrote it anew, and a second collector was killed too.
#[test]
fn of_two_copies_in_quarantine_one_comes_back_and_the_dry_run_counts_the_other() {
    let store = two_images();
    let before = store.snapshot();
    let (rootfs, _) = common::image_of(&store, "one");
    for epoch in ["2-0", "3-0"] {
        let epoch = store.path.join(".pfs/quarantine").join(epoch);
        fs::create_dir_all(&epoch).unwrap();
        fs::copy(store.blob(&rootfs), epoch.join(rootfs.to_string())).unwrap();
    }
    fs::remove_file(store.blob(&rootfs)).unwrap();
    assert!(store.collect(at_once()).unwrap().freed_bytes > 0);
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

#[test]
fn an_image_in_quarantine_can_still_be_read() {
    let store = two_images();
    let before = store.read_back("one");
    store.blobs().iter().for_each(|digest| quarantine(&store, digest));
    assert_eq!(store.read_back("one"), before);
    store.collect(unheld()).unwrap();
    assert_sound(&store);
}

#[test]
fn quarantined_blobs_that_nothing_needs_are_purged() {
    let store = two_images();
    let orphan = store.put(b"condemned by a run that was killed");
    quarantine(&store, &orphan);
    assert_eq!(store.collect(unheld()).unwrap().freed, [orphan]);
    assert_sound(&store);
}

#[test]
fn a_blob_between_quarantine_and_its_place_keeps_its_place() {
    let store = two_images();
    for digest in store.blobs() {
        quarantine(&store, &digest);
        fs::hard_link(store.path.join(format!(".pfs/quarantine/1-1/{digest}")), store.blob(&digest)).unwrap();
    }
    let before = store.snapshot();
    store.collect(at_once()).unwrap();
    assert_eq!(store.snapshot(), before, "a restore that was killed after its link loses nothing");
    store.untag_foreignly("one");
    store.untag_foreignly("two");
    store.blobs().iter().for_each(|digest| {
        fs::create_dir_all(store.path.join(".pfs/quarantine/1-1")).unwrap();
        fs::hard_link(store.blob(digest), store.path.join(format!(".pfs/quarantine/1-1/{digest}"))).unwrap();
    });
    store.collect(at_once()).unwrap();
    assert_eq!(store.blobs(), [].into());
    assert_sound(&store);
}

#[test]
fn foreign_files_in_quarantine_are_left_alone() {
    let store = two_images();
    let quarantine = store.path.join(".pfs/quarantine");
    fs::create_dir_all(quarantine.join("1-1/a-directory")).unwrap();
    fs::write(quarantine.join("1-1/notes"), "mine").unwrap();
    fs::write(quarantine.join("a-file"), "mine").unwrap();
    store.untag_foreignly("one");
    store.collect(at_once()).unwrap();
    assert!(quarantine.join("1-1/notes").exists() && quarantine.join("a-file").exists());
    assert!(matches!(store.open_blob(&Digest::of(b"nobody has it")), Err(StoreError::Missing(_))));
    assert_sound(&store);
}

#[test]
fn what_a_mount_needs_is_held_until_it_ends() {
    let store = two_images();
    let lease = store.mount_lease("one");
    let (before, content) = (store.blobs(), store.read_back("one"));
    let picked = pick(store.index().unwrap().document(), &by_tag("one")).unwrap();
    store.untag_foreignly("one");
    let plan = store.plan(at_once()).unwrap();
    assert_eq!(plan.summary().held.len(), 1);
    assert_eq!(store.collect(at_once()).unwrap().freed, []);
    assert_eq!(store.blobs(), before);
    assert_eq!(store.read_back_digest(&picked.digest, picked.kind), content);
    store.release(lease).unwrap();
    assert!(!store.collect(at_once()).unwrap().freed.is_empty(), "the mount has ended");
    assert_sound(&store);
}

#[test]
fn a_mount_holds_its_chunks_after_somebody_has_removed_its_manifest() {
    let store = two_images();
    let _lease = store.mount_lease("one");
    let picked = pick(store.index().unwrap().document(), &by_tag("one")).unwrap();
    let image = load_image(&store.store, &picked.digest, picked.kind).unwrap();
    store.untag_foreignly("one");
    fs::remove_file(store.blob(&picked.digest)).unwrap();
    let orphan = store.put(b"garbage");
    assert_eq!(store.collect(at_once()).unwrap().freed, [orphan]);
    let chunks: Vec<_> = Rootfs::chunks(&image.rootfs).into_iter().map(|chunk| chunk.0).collect();
    assert!(chunks.iter().all(|chunk| store.blobs().contains(chunk)));
    assert_sound(&store);
}

#[test]
fn a_mount_that_has_not_said_what_it_needs_stops_the_collection() {
    let store = two_images();
    store.untag_foreignly("one");
    let (plan, before) = (store.plan(at_once()).unwrap(), store.snapshot());
    let _lease = store.take_lease(&store.lock_shared().unwrap(), &lease_record(LeaseKind::Mount)).unwrap();
    assert!(matches!(apply(plan, &store, now(), &Silent), Err(GcError::MountPending(_))));
    assert!(matches!(store.plan(at_once()), Err(GcError::MountPending(_))));
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

/// Leaves the blobs of an image to the pins of a mount that has ended: another tool has untagged it and freed them.
fn leave_to_pins(store: &TestStore, tag: &str) -> BTreeSet<Digest> {
    let (lease, only) = (store.mount_lease(tag), only_of(store, tag));
    let manifest = common::image_of(store, tag).1;
    store.link_pins(&manifest, &only.iter().copied().collect::<Vec<_>>()).unwrap();
    store.untag_foreignly(tag);
    only.iter().for_each(|digest| fs::remove_file(store.blob(digest)).unwrap());
    store.remove_pins_of_ending(&manifest, &lease).unwrap();
    store.release(lease).unwrap();
    only
}

#[test]
fn an_index_entry_made_after_the_plan_holds_what_only_stale_pins_have() {
    let store = two_images();
    let index = fs::read(store.path.join("index.json")).unwrap();
    let content = store.read_back("one");
    let only = leave_to_pins(&store, "one");
    let plan = store.plan(at_once()).unwrap();
    assert!(plan.freed_bytes() > 90_000, "nothing needs them yet");
    fs::write(store.path.join("index.json"), index).unwrap();
    let report = apply(plan, &store, now(), &Silent).unwrap();
    assert_eq!((report.healed, report.freed_bytes), (only.len() as u64, 0));
    assert_eq!(store.read_back("one"), content);
    assert!(store.blobs().is_superset(&only));
    assert_sound(&store);
}

#[test]
fn a_stale_pin_that_may_be_the_only_right_copy_of_what_is_needed_stays() {
    let store = two_images();
    let index = fs::read(store.path.join("index.json")).unwrap();
    let content = store.read_back("one");
    let only = leave_to_pins(&store, "one");
    fs::write(store.path.join("index.json"), index).unwrap();
    store.heal_all_from_pins(|digest| only.contains(digest)).unwrap();
    let size = |digest: &&Digest| fs::metadata(store.blob(digest)).unwrap().len();
    let chunk = *only.iter().max_by_key(size).unwrap();
    fs::remove_file(store.blob(&chunk)).unwrap();
    fs::write(store.blob(&chunk), "torn").unwrap();
    assert_eq!(store.collect(at_once()).unwrap().freed_bytes, 0);
    let repaired = pfs(&["check", "--repair", "--min-age", "0", "--data", store.path.to_str().unwrap()]);
    assert!(common::stdout(&repaired).contains("pins"), "{}", common::stdout(&repaired));
    assert_eq!(store.read_back("one"), content);
    assert_sound(&store);
}

#[test]
fn what_a_person_has_pinned_comes_back_from_stale_pins() {
    let store = two_images();
    assert!(pfs(&["pin", &format!("{}:one", store.path.display())]).status.success());
    let only = leave_to_pins(&store, "one");
    assert_eq!(store.collect(at_once()).unwrap().healed, only.len() as u64);
    assert!(store.blobs().is_superset(&only));
    assert_sound(&store);
}

#[test]
fn a_lease_that_nobody_can_read_stops_the_collection() {
    let store = two_images();
    store.untag_foreignly("one");
    let (lease, before) = (store.mount_lease("two"), store.snapshot());
    fs::write(store.path.join(".pfs/leases").join(lease.id()), "torn").unwrap();
    assert!(matches!(store.plan(at_once()), Err(GcError::Store(StoreError::Lease { .. }))));
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

#[test]
fn dead_leases_protect_nothing_and_are_tidied() {
    let store = two_images();
    drop(store.mount_lease("one"));
    assert_eq!(common::names_in(&store.path.join(".pfs/leases")).len(), 1, "dropped, not released");
    let gone = only_of(&store, "one");
    store.untag_foreignly("one");
    let report = store.collect(unheld()).unwrap();
    assert_eq!((report.freed.into_iter().collect(), report.dead_leases), (gone, 1));
    assert_eq!(common::names_in(&store.path.join(".pfs/leases")), [""; 0]);
    assert_sound(&store);
}

#[test]
fn what_a_running_build_has_claimed_stays() {
    let store = two_images();
    let kept = noise(2, 90_000);
    store.untag_foreignly("one");
    let session = store.begin_build(&common::tag("three")).unwrap();
    let chunks: Vec<Vec<u8>> = store.blobs().iter().map(|digest| fs::read(store.blob(digest)).unwrap()).collect();
    let claimed: BTreeSet<_> = chunks.iter().map(|bytes| session.put(bytes).unwrap().digest).collect();
    let new = session.put(&kept).unwrap().digest;
    let report = store.collect(at_once()).unwrap();
    assert_eq!(report.freed, [], "all of it was claimed");
    assert!(claimed.is_subset(&store.blobs()) && !store.blobs().contains(&new));
    assert_eq!(store.staged().len(), 1, "what it has staged stays too");
    drop(session);
    assert_eq!(store.staged(), [""; 0]);
    store.collect(at_once()).unwrap();
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(&store);
}

#[test]
fn claims_made_after_the_plan_hold() {
    let store = two_images();
    store.untag_foreignly("one");
    let plan = store.plan(at_once()).unwrap();
    let session = store.begin_build(&common::tag("three")).unwrap();
    let before = store.blobs();
    for digest in &before {
        session.put(&fs::read(store.blob(digest)).unwrap()).unwrap();
    }
    moves_nothing(plan, &store);
    assert_eq!(store.blobs(), before);
    drop(session);
    assert_sound(&store);
}

#[test]
fn a_mount_made_after_the_plan_holds() {
    let store = two_images();
    let content = store.read_back("one");
    let index = fs::read(store.path.join("index.json")).unwrap();
    store.untag_foreignly("one");
    let plan = store.plan(at_once()).unwrap();
    let without = fs::read(store.path.join("index.json")).unwrap();
    fs::write(store.path.join("index.json"), &index).unwrap();
    let _lease = store.mount_lease("one");
    fs::write(store.path.join("index.json"), &without).unwrap();
    let before = store.blobs();
    moves_nothing(plan, &store);
    assert_eq!(store.blobs(), before);
    fs::write(store.path.join("index.json"), &index).unwrap();
    assert_eq!(store.read_back("one"), content);
    assert_sound(&store);
}

#[test]
fn a_lease_that_changes_what_it_names_after_the_plan_holds_that() {
    let store = two_images();
    let index = fs::read(store.path.join("index.json")).unwrap();
    let lease = store.mount_lease("two");
    let picked = pick(store.index().unwrap().document(), &by_tag("one")).unwrap();
    let image = load_image(&store.store, &picked.digest, picked.kind).unwrap();
    store.untag_foreignly("one");
    let plan = store.plan(at_once()).unwrap();
    let mut record = lease_record(LeaseKind::Mount);
    (record.manifest, record.rootfs) = (Some(image.manifest.0), Some(image.rootfs_id.0));
    lease.update(&store.lock_shared().unwrap(), &record).unwrap();
    let before = store.blobs();
    moves_nothing(plan, &store);
    assert_eq!(store.blobs(), before);
    fs::write(store.path.join("index.json"), index).unwrap();
    assert_sound(&store);
}

#[test]
fn an_index_entry_made_after_the_plan_holds() {
    let store = two_images();
    let index = fs::read(store.path.join("index.json")).unwrap();
    store.untag_foreignly("one");
    let (plan, before) = (store.plan(at_once()).unwrap(), store.blobs());
    fs::write(store.path.join("index.json"), index).unwrap();
    moves_nothing(plan, &store);
    assert_eq!(store.blobs(), before);
    assert_sound(&store);
}

#[test]
fn an_index_that_is_torn_after_the_plan_frees_nothing() {
    let store = two_images();
    let index = fs::read(store.path.join("index.json")).unwrap();
    store.untag_foreignly("one");
    let (plan, before) = (store.plan(at_once()).unwrap(), store.blobs());
    fs::write(store.path.join("index.json"), &index[..index.len() / 2]).unwrap();
    assert!(matches!(apply(plan, &store, now(), &Silent), Err(GcError::Store(StoreError::Index { .. }))));
    assert_eq!(store.blobs(), before);
    fs::write(store.path.join("index.json"), index).unwrap();
    assert_sound(&store);
}

#[test]
fn a_blob_written_anew_after_the_plan_stays() {
    let store = two_images();
    let orphan = store.put(b"garbage, then somebody's upload");
    let plan = store.plan(at_once()).unwrap();
    fs::remove_file(store.blob(&orphan)).unwrap();
    store.put(b"garbage, then somebody's upload");
    moves_nothing(plan, &store);
    assert!(store.blobs().contains(&orphan), "it is another file than the one that was planned");
    assert_sound(&store);
}

#[test]
fn the_second_collector_says_so_and_leaves() {
    let store = two_images();
    store.untag_foreignly("one");
    let before = store.snapshot();
    let _collector = store.lock_collector().unwrap();
    let second = pfs(&["gc", "--min-age", "0", store.path.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(11), "{}", stderr(&second));
    assert!(stderr(&second).contains("is locked by another process"), "{}", stderr(&second));
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

#[test]
fn clocks_that_disagree_stop_the_collection() {
    let store = two_images();
    store.untag_foreignly("one");
    let before = store.snapshot();
    for skew in [-301 - 60, 301 + 60] {
        let plan = store.plan(at_once()).unwrap();
        assert!(matches!(apply(plan, &store, now() + skew, &Silent), Err(GcError::Clock { .. })), "{skew}");
        assert_eq!(store.snapshot(), before);
    }
    apply(store.plan(at_once()).unwrap(), &store, now() + 200, &Silent).unwrap();
    assert_sound(&store);
}

#[test]
fn hard_linked_blobs_count_what_the_filesystem_gives_back() {
    let store = two_images();
    store.untag_foreignly("one");
    let all = store.plan(at_once()).unwrap().freed_bytes();
    let elsewhere = store.beside("cache");
    let plan = store.plan(at_once()).unwrap();
    let linked = plan.blobs().iter().find(|blob| blob.verdict == Verdict::Condemn).unwrap().digest;
    let size = fs::metadata(store.blob(&linked)).unwrap().len();
    fs::hard_link(store.blob(&linked), &elsewhere).unwrap();
    let planned = store.plan(at_once()).unwrap();
    assert_eq!(planned.freed_bytes(), all - size);
    assert_eq!(apply(planned, &store, now(), &Silent).unwrap().freed_bytes, all - size);
    assert_eq!(fs::metadata(&elsewhere).unwrap().nlink(), 1, "its other name keeps it");
    assert_sound(&store);
}

#[test]
fn staging_of_dead_builds_is_removed_and_counted() {
    let store = two_images();
    let dead = store.path.join(".pfs/tmp/noboot-1-1");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join(Digest::of(b"x").to_string()), b"half a chunk").unwrap();
    fs::write(store.path.join(".pfs/tmp/index-1-abc"), b"{}").unwrap();
    assert_eq!(store.plan(Policy::default()).unwrap().freed_bytes(), 14);
    assert_eq!(store.collect(unheld()).unwrap().freed_bytes, 14);
    assert_eq!(store.staged(), [""; 0]);
    assert_sound(&store);
}

#[test]
fn a_dry_run_writes_nothing_at_all() {
    for store in [golden("puzzlefs-0.2.0"), two_images()] {
        store.untag_foreignly("base");
        store.untag_foreignly("one");
        let everything = || {
            let files = walkdir::WalkDir::new(&store.path).sort_by_file_name().into_iter().map(Result::unwrap);
            let facts = files.map(|file| (file.path().to_owned(), file.metadata().unwrap()));
            facts
                .map(|(path, facts)| {
                    (path, facts.ino(), facts.size(), facts.mtime_nsec(), facts.ctime_nsec(), facts.nlink())
                })
                .collect::<Vec<_>>()
        };
        let before = everything();
        let path = store.path.to_str().unwrap();
        let gc = pfs(&["gc", "-n", "--min-age", "0", "--json", path]);
        assert_eq!(gc.status.code(), Some(0), "{}", stderr(&gc));
        for command in ["ls", "check"] {
            assert_eq!(pfs(&[command, path]).status.code(), Some(0));
        }
        let tag = store.tags()[0].clone();
        let delete = pfs(&["delete", "-n", &format!("{path}:{tag}")]);
        assert_eq!(delete.status.code(), Some(0), "{}", stderr(&delete));
        assert_eq!(everything(), before);
    }
}

#[test]
fn the_program_frees_what_its_dry_run_prints() {
    let store = golden("puzzlefs-0.2.0");
    store.untag_foreignly("base");
    let path = store.path.to_str().unwrap();
    let dry = pfs(&["gc", "-n", "-q", "--min-age", "0", path]);
    let before = store.blob_bytes();
    let run = pfs(&["gc", "-q", "--min-age", "0", path]);
    assert_eq!(stdout(&dry), stdout(&run));
    assert_eq!(stdout(&run).trim().parse::<u64>().unwrap(), before - store.blob_bytes());
    assert_eq!(pfs(&["gc", "-n", "--exit-code", path]).status.code(), Some(0), "nothing is left to free");
    assert_sound(&store);
}

#[test]
fn delete_frees_nothing_that_is_not_the_deleted_images() {
    let store = two_images();
    let orphan = store.put(b"garbage of somebody else");
    let plan = DeletePlan::new(&store, &[by_tag("one")], DeleteOptions::default(), now()).unwrap();
    plan.apply(&store, now(), &Silent).unwrap();
    assert!(store.blobs().contains(&orphan));
    assert_sound(&store);
}

/// A claim binds pfs, and no other tool.
#[test]
fn a_build_publishes_nothing_that_another_tool_has_freed_meanwhile() {
    let store = two_images();
    let session = store.begin_build(&common::tag("three")).unwrap();
    let reused = store.put(&noise(41, 5_000));
    session.put(&noise(41, 5_000)).unwrap();
    session.put(&noise(42, 5_000)).unwrap();
    fs::remove_file(store.blob(&reused)).unwrap();
    let before = store.snapshot();
    let ended = session.publish(b"{\"layers\":[]}", &common::tag("three"), |_, _| "{}".into());
    assert!(matches!(ended, Err(StoreError::FreedMeanwhile(digest)) if digest == reused), "{ended:?}");
    assert_eq!(store.snapshot(), before);
    assert_sound(&store);
}

/// Two runs in one second, and a blob that both condemn.
#[test]
fn a_blob_that_is_condemned_twice_in_a_second_is_so_twice() {
    let store = empty();
    let held = Policy { hold: Hold::Seconds(3600), ..at_once() };
    for _ in 0..2 {
        store.put(&noise(50, 100));
        assert_eq!(store.collect(held.clone()).unwrap().held.len(), 1);
    }
    assert_eq!(store.quarantined().unwrap().len(), 2);
    store.collect(at_once()).unwrap();
    assert_eq!(store.quarantined().unwrap(), []);
    assert_sound(&store);
}

/// A later run without a wish of its own does not shorten what an earlier one has said.
#[test]
fn a_held_blob_waits_until_its_own_deadline() {
    let store = two_images();
    store.untag_foreignly("one");
    let held = store.collect(Policy { hold: Hold::Seconds(3600), ..at_once() }).unwrap();
    assert!(!held.held.is_empty() && held.freed.is_empty());
    for later in [Policy { hold: Hold::Auto, ..at_once() }, Policy { hold: Hold::Seconds(1), ..at_once() }] {
        let report = store.collect(later).unwrap();
        assert_eq!(report.freed, [], "an hour is an hour");
    }
    assert_eq!(store.quarantined().unwrap().len(), held.held.len());
    let now = store.collect(at_once()).unwrap();
    assert_eq!(now.freed.len(), held.held.len(), "but a person may say that it goes now");
    assert_sound(&store);
}

/// An image is uploaded again after it was deleted: its blobs have been named by an index, but these files have not.
#[test]
fn a_blob_uploaded_again_is_young() {
    let store = two_images();
    let gone = only_of(&store, "one");
    store.untag_foreignly("one");
    store.log_index(&store.index().unwrap()).unwrap();
    for digest in &gone {
        let again = store.beside("upload");
        fs::copy(store.blob(digest), &again).unwrap();
        fs::rename(&again, store.blob(digest)).unwrap();
    }
    let report = store.collect(unheld()).unwrap();
    assert_eq!(report.freed, []);
    assert!(gone.is_subset(&store.blobs()));
    assert_sound(&store);
}

/// Begins to stand in the store as soon as blobs are moved to quarantine, as another tool that came after the plan.
struct LateWriter<'s>(&'s TestStore, std::sync::Mutex<Option<std::process::Child>>);

impl Observer for LateWriter<'_> {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::Phase("moving to quarantine")) {
            let mut writer = std::process::Command::new("sleep");
            let writer = writer.arg("60").current_dir(&self.0.path).spawn().unwrap();
            let exe = format!("/proc/{}/exe", writer.id());
            while !fs::read_link(&exe).is_ok_and(|exe| !exe.to_string_lossy().contains("gc-")) {
                std::thread::yield_now();
            }
            *self.1.lock().unwrap() = Some(writer);
        }
    }
}

#[test]
fn a_writer_that_comes_after_the_plan_holds() {
    let store = two_images();
    store.untag_foreignly("one");
    store.log_index(&store.index().unwrap()).unwrap();
    let plan = store.plan(Policy { hold: Hold::Auto, ..at_once() }).unwrap();
    assert_eq!(plan.hold_seconds(), 0, "{:?}", plan.evidence());
    let watch = LateWriter(&store, std::sync::Mutex::default());
    let report = apply(plan, &store, now(), &watch);
    let mut writer = watch.1.lock().unwrap().take().unwrap();
    writer.kill().unwrap();
    writer.wait().unwrap();
    let report = report.unwrap();
    assert_eq!(report.freed, [], "it may have seen a blob before it was moved");
    assert!(!report.held.is_empty());
    assert!(report.evidence.iter().any(|found| matches!(found, Evidence::Process { .. })));
    assert_sound(&store);
}

/// What a killed edit of pfs has swapped out is another program's index, if it is not a text of ours.
#[test]
fn an_index_left_aside_is_a_root_and_comes_back() {
    let store = two_images();
    let without = fs::read(store.path.join("index.json")).unwrap();
    store.log_index(&store.index().unwrap()).unwrap();
    store.build("theirs", &[("file", &noise(9, 50_000))]);
    let theirs = fs::read(store.path.join("index.json")).unwrap();
    fs::write(store.path.join("index.json"), without).unwrap();
    fs::remove_dir_all(store.path.join(".pfs/index-log")).unwrap();
    let aside = store.path.join(format!(".pfs/tmp/.index.json-{}.1.0.partial", Digest::of(b"what pfs had staged")));
    fs::write(&aside, theirs).unwrap();
    assert_eq!(store.plan(at_once()).unwrap().summary().go, 0, "a root already in the dry run");
    assert_eq!(collect(&store, at_once(), now(), &Silent).unwrap().freed, []);
    assert!(store.tags().contains(&"theirs".into()) && !aside.exists());
    store.read_back("theirs");
    assert_sound(&store);
}

/// The clock of a filesystem advances in steps; waits for the next one.
fn await_tick(store: &TestStore) {
    let probe = store.beside("probe");
    let change = || {
        fs::write(&probe, b"").unwrap();
        let meta = fs::metadata(&probe).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    let first = change();
    while change() == first {
        std::thread::yield_now();
    }
}

/// `mv` and `cp -al` keep the times of a file but for its change time. What comes back like that is an upload.
#[test]
fn blobs_moved_back_after_their_deletion_are_young() {
    for by_link in [false, true] {
        let store = empty();
        store.build("app", &[("file", b"what goes and comes back")]);
        let app = store.blobs();
        store.build("later", &[("file", b"something else")]);
        let aside = store.beside("aside");
        fs::create_dir(&aside).unwrap();
        app.iter().for_each(|digest| drop(fs::hard_link(store.blob(digest), aside.join(digest.to_string()))));
        store.untag_foreignly("app");
        store.log_index(&store.index().unwrap()).unwrap();
        app.iter().for_each(|digest| fs::remove_file(store.blob(digest)).unwrap());
        await_tick(&store);
        for digest in &app {
            let (from, to) = (aside.join(digest.to_string()), store.blob(digest));
            if by_link { fs::hard_link(from, to).unwrap() } else { fs::rename(from, to).unwrap() }
        }
        let report = store.collect(Policy { hold: Hold::Seconds(0), ..Policy::default() }).unwrap();
        assert!(report.freed.is_empty() && app.is_subset(&store.blobs()), "by link: {by_link}");
        assert_sound(&store);
    }
}

/// A mount links blobs, which moves their change times, and is no upload.
#[test]
fn what_was_mounted_when_it_lost_its_tag_goes_at_once_afterwards() {
    let store = empty();
    store.build("app", &[("file", b"mounted")]);
    let app = store.blobs();
    store.untag_foreignly("app");
    store.log_index(&store.index().unwrap()).unwrap();
    await_tick(&store);
    for digest in &app {
        let link = store.beside("link");
        fs::hard_link(store.blob(digest), &link).unwrap();
        fs::remove_file(link).unwrap();
    }
    store.collect(Policy { hold: Hold::Seconds(0), ..Policy::default() }).unwrap();
    assert!(store.blobs().is_empty(), "they were needed once, and nobody has moved them here since");
}
