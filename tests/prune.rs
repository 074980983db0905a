//! `pfs prune`: what a policy lets go, and what it frees, to the byte.

mod common;

use std::{collections::BTreeSet, fs, time::Duration, time::SystemTime};

use common::{TestStore, assert_sound, empty, noise, now, pfs, stderr, stdout};
use pfs::{
    delete::{DeleteOptions, DeletePlan},
    observe::Silent,
    prune::{GoReason, KeepReason, PrunePlan, PrunePolicy, PruneVerdict, plan},
};
use serde_json::Value;

fn store_of(images: &[(&str, &[(u64, usize)])]) -> TestStore {
    let store = empty();
    for (tag, parts) in images {
        let files: Vec<(String, Vec<u8>)> =
            parts.iter().map(|(seed, len)| (format!("{seed}"), noise(*seed, *len))).collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        store.build(tag, &files);
    }
    store
}

fn run(store: &TestStore, args: &[&str], code: i32) -> String {
    let output = pfs(&[&["prune"], args, &[store.path.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output) + &stderr(&output)
}

fn decide(store: &TestStore, policy: &PrunePolicy) -> PrunePlan {
    plan(store, policy, now(), &Silent).unwrap()
}

fn going(decided: &PrunePlan) -> Vec<String> {
    let rows = decided.rows.iter().filter(|row| matches!(row.verdict, PruneVerdict::Go(_)));
    rows.map(|row| row.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string)).collect()
}

fn freeing(bytes: u64) -> PrunePolicy {
    PrunePolicy { free_bytes: Some(bytes), ..PrunePolicy::default() }
}

/// Prunes, and demands that the plan, the dry run and the disk agree on what it frees.
fn prune(store: &TestStore, policy: &PrunePolicy, args: &[&str], code: i32) -> Vec<String> {
    let decided = decide(store, policy);
    let before = (store.blob_bytes(), store.snapshot());
    let dry: Value = serde_json::from_str(&run(store, &[args, &["-n", "--json"]].concat(), code)).unwrap();
    assert_eq!((store.blob_bytes(), store.snapshot()), before, "the dry run writes nothing");
    let done: Value = serde_json::from_str(&run(store, &[args, &["--yes", "--json"]].concat(), code)).unwrap();
    let freed = before.0 - store.blob_bytes();
    assert_eq!((done["freed_bytes"].as_u64(), dry["freed_bytes"].as_u64()), (Some(freed), Some(freed)));
    assert_eq!(decided.freed_bytes, freed, "the gains are exact");
    assert_eq!(decided.rows.iter().map(|row| row.frees).sum::<u64>(), freed, "and add up");
    assert_eq!(store.blobs(), common::needed(&store.path));
    assert_sound(store);
    going(&decided)
}

#[test]
fn without_a_rule_only_what_dangles_goes() {
    let store = store_of(&[("one", &[(1, 50_000)]), ("two", &[(2, 50_000)])]);
    store.rewrite_index(|entries| drop(entries[0].as_object_mut().unwrap().remove("annotations")));
    // Long ago, so that nothing speaks for another writer at work.
    age_index(&store);
    assert_eq!(prune(&store, &PrunePolicy::default(), &[], 0), ["<none>"]);
    assert_eq!(store.tags(), ["two"]);
    assert_eq!(prune(&store, &PrunePolicy::default(), &[], 0), [""; 0]);
}

/// Another program's index is taken for fresh by its times, which only pfs's own edit can overcome here.
fn age_index(store: &TestStore) {
    store.log_index(&store.index().unwrap()).unwrap();
}

#[test]
fn the_newest_stay() {
    let store = store_of(&[("a", &[(1, 50_000)]), ("b", &[(2, 50_000)]), ("c", &[(3, 50_000)])]);
    let last = PrunePolicy { keep_last: Some(1), ..PrunePolicy::default() };
    assert_eq!(prune(&store, &last, &["--keep-last", "1"], 0), ["a", "b"]);
    assert_eq!(store.tags(), ["c"]);
}

#[test]
fn young_and_matching_tags_stay() {
    let store = store_of(&[("app-1", &[(1, 50_000)]), ("lib-1", &[(2, 50_000)])]);
    assert!(run(&store, &["--yes", "--keep-within", "1d"], 0).contains("freed 0 B"));
    assert_eq!(store.tags().len(), 2);
    let alone = run(&store, &["--yes", "--keep-tag", "app-*"], 0);
    assert!(alone.contains("freed 0 B") && alone.contains("note: --keep-tag alone lets no tag go"), "{alone}");
    assert_eq!(store.tags().len(), 2);
    assert!(!run(&store, &["-n", "--free", "1", "--keep-tag", "app-*"], 0).contains("note: --keep-tag"));
    let tags = PrunePolicy { keep_last: Some(0), keep_tags: vec!["app-*".parse().unwrap()], ..PrunePolicy::default() };
    assert_eq!(prune(&store, &tags, &["--keep-last", "0", "--keep-tag", "app-*"], 0), ["lib-1"]);
}

#[test]
fn mounted_and_pinned_tags_stay_and_say_why() {
    let store = store_of(&[("one", &[(1, 50_000)]), ("two", &[(2, 50_000)]), ("three", &[(3, 50_000)])]);
    let _lease = store.mount_lease("one");
    assert_eq!(pfs(&["pin", &format!("{}:two", store.path.display())]).status.code(), Some(0));
    let text = run(&store, &["-n", "--explain", "--keep-last", "0"], 0);
    let row = |tag: &str| text.lines().find(|line| line.starts_with(tag)).unwrap();
    assert!(row("one").ends_with("mounted") && row("two").ends_with("pinned"), "{text}");
    assert!(row("three").ends_with("no rule keeps it"), "{text}");
    let none = PrunePolicy { keep_last: Some(0), ..PrunePolicy::default() };
    assert_eq!(prune_held(&store, &none), ["three"]);
    assert_eq!(store.tags(), ["one", "two"]);
    assert!(decide(&store, &freeing(1 << 40)).rows.iter().all(|row| matches!(row.verdict, PruneVerdict::Keep(_))));
}

fn prune_held(store: &TestStore, policy: &PrunePolicy) -> Vec<String> {
    let going = going(&decide(store, policy));
    run(store, &["--yes", "--keep-last", "0"], 0);
    assert_sound(store);
    going
}

#[test]
fn nobody_is_asked_where_there_is_no_terminal() {
    let store = store_of(&[("one", &[(1, 50_000)])]);
    let before = store.snapshot();
    assert!(run(&store, &["--keep-last", "0"], 2).contains("--yes"));
    assert_eq!(store.snapshot(), before);
}

#[test]
fn space_is_made_by_what_frees_most_under_sharing() {
    // "twin-1" and "twin-2" share a lot, so that each alone frees little; "own" frees a little more.
    let store = store_of(&[
        ("twin-1", &[(1, 4_000_000), (2, 10_000)]),
        ("twin-2", &[(1, 4_000_000), (3, 10_000)]),
        ("own", &[(4, 800_000)]),
    ]);
    let decided = decide(&store, &freeing(700_000));
    assert_eq!(going(&decided), ["own"], "one tag is enough");
    assert_eq!(decided.rows[0].verdict, PruneVerdict::Keep(KeepReason::Enough));
    let decided = decide(&store, &freeing(3_000_000));
    assert_eq!(going(&decided), ["twin-1", "twin-2"], "the one that turned out needless is taken back");
    assert_eq!(decided.rows[1].verdict, PruneVerdict::Go(GoReason::Frees));
    assert_eq!(prune(&store, &freeing(3_000_000), &["--free", "3000000"], 0), ["twin-1", "twin-2"]);
    assert_eq!(store.tags(), ["own"]);
}

#[test]
fn two_names_of_one_image_go_together_or_not_at_all() {
    let store = store_of(&[("one", &[(1, 100_000)]), ("other", &[(2, 50_000)])]);
    store.rewrite_index(|entries| {
        let mut again = entries[0].clone();
        again["annotations"][common::REF_NAME] = "one-again".into();
        entries.push(again);
    });
    age_index(&store);
    assert_eq!(going(&decide(&store, &freeing(60_000))), ["one", "one-again"]);
    let keep = PrunePolicy { keep_tags: vec!["*-again".parse().unwrap()], ..freeing(60_000) };
    let decided = decide(&store, &keep);
    assert!(!decided.is_enough);
    assert_eq!(going(&decided), ["other"]);
    assert_eq!(decided.rows[0].verdict, PruneVerdict::Keep(KeepReason::FreesNothing));
    assert_eq!(prune(&store, &keep, &["--free", "60000", "--keep-tag", "*-again"], 3), ["other"]);
}

#[test]
fn what_a_mount_holds_is_no_gain() {
    let store = store_of(&[("one", &[(1, 2_000_000), (2, 50_000)]), ("two", &[(1, 2_000_000), (3, 40_000)])]);
    let lease = store.mount_lease("one");
    let decided = decide(&store, &freeing(1_500_000));
    assert!(!decided.is_enough && decided.freed_bytes < 1_000_000, "the shared chunks stay with the mount");
    assert_eq!(going(&decided), ["two"]);
    store.release(lease).unwrap();
    assert!(decide(&store, &freeing(1_500_000)).is_enough);
}

#[test]
fn the_greedy_choice_is_exact_for_every_size() {
    let store = store_of(&[
        ("a", &[(1, 90_000), (2, 30_000)]),
        ("b", &[(1, 90_000), (3, 50_000)]),
        ("c", &[(2, 30_000), (3, 50_000), (4, 20_000)]),
        ("d", &[(5, 70_000)]),
    ]);
    let all = store.blob_bytes();
    for wanted in (1..=all).step_by(7919).chain([all]) {
        let decided = decide(&store, &freeing(wanted));
        assert!(decided.is_enough && decided.freed_bytes >= wanted, "{wanted}");
        assert_eq!(decided.rows.iter().map(|row| row.frees).sum::<u64>(), decided.freed_bytes, "{wanted}");
        assert_eq!(decided.freed_bytes, freed_without(&store, &going(&decided)), "{wanted}");
        for spared in going(&decided) {
            let fewer: Vec<_> = going(&decided).into_iter().filter(|tag| *tag != spared).collect();
            assert!(freed_without(&store, &fewer) < wanted, "{wanted}: {spared} need not go");
        }
    }
    assert!(!decide(&store, &freeing(all + 1)).is_enough);
}

/// What falls free when these tags go, by another reckoning: what the oracle needs before and after.
fn freed_without(store: &TestStore, tags: &[String]) -> u64 {
    let index: Value = serde_json::from_slice(&fs::read(store.path.join("index.json")).unwrap()).unwrap();
    let kept = index["manifests"].as_array().unwrap().iter();
    let kept: Vec<_> =
        kept.filter(|entry| !tags.iter().any(|tag| entry["annotations"][common::REF_NAME] == **tag)).collect();
    let after = common::needed_from(&store.path, serde_json::to_string(&kept).unwrap().as_bytes());
    let gone: BTreeSet<_> = common::needed(&store.path).difference(&after).copied().collect();
    gone.iter().map(|blob| fs::metadata(store.blob(blob)).unwrap().len()).sum()
}

#[test]
fn of_equals_the_oldest_goes() {
    let store = store_of(&[("new", &[(1, 50_000)]), ("old", &[(2, 50_000)])]);
    let mut policy = freeing(1);
    policy.keep_last = Some(1);
    assert_eq!(going(&decide(&store, &policy)), ["new"], "the later entry of one age counts as newer");
    let manifest = common::image_of(&store, "new").1;
    let future = SystemTime::now() + Duration::from_secs(1000);
    fs::File::options().write(true).open(store.blob(&manifest)).unwrap().set_modified(future).unwrap();
    assert_eq!(
        going(&decide(&store, &policy)),
        ["new"],
        "its age is when the tag was set, whatever touches the manifest"
    );
}

/// A nightly build of an unchanged tree sets a tag today on a manifest of last week.
#[test]
fn a_tag_set_again_on_an_old_manifest_is_new() {
    let store = store_of(&[("monday", &[(1, 50_000)])]);
    let digest = common::image_of(&store, "monday").1;
    let long_ago = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    fs::File::options().write(true).open(store.blob(&digest)).unwrap().set_modified(long_ago).unwrap();
    store.log_index(&store.index().unwrap()).unwrap();
    store.rewrite_index(|entries| {
        let mut again = entries[0].clone();
        again["annotations"][common::REF_NAME] = "tuesday".into();
        entries.push(again);
    });
    let within = PrunePolicy { keep_within_seconds: Some(3600), ..PrunePolicy::default() };
    assert!(!going(&decide(&store, &within)).contains(&"tuesday".to_string()));
}

/// A note that a mount or a deletion makes of another program's edit says when that edit was, not when it was noted.
#[test]
fn a_tag_of_another_program_is_as_old_as_the_index_that_brought_it() {
    let store = store_of(&[("old", &[(1, 50_000)])]);
    store.rewrite_index(|entries| {
        let mut again = entries[0].clone();
        again["annotations"][common::REF_NAME] = "foreign".into();
        entries.push(again);
    });
    let three_days_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
    let index = fs::File::options().write(true).open(store.path.join("index.json")).unwrap();
    index.set_modified(three_days_ago).unwrap();
    for days in [2, 4] {
        let within = PrunePolicy { keep_within_seconds: Some(days * 24 * 3600), ..PrunePolicy::default() };
        let stays = !going(&decide(&store, &within)).contains(&"foreign".to_string());
        assert_eq!(stays, days == 4, "{days} days, not yet noted");
    }
    store.log_index(&store.index().unwrap()).unwrap();
    store.build("new", &[("0", &common::noise(5, 60_000))]);
    for days in [2, 4] {
        let within = PrunePolicy { keep_within_seconds: Some(days * 24 * 3600), ..PrunePolicy::default() };
        let stays = !going(&decide(&store, &within)).contains(&"foreign".to_string());
        assert_eq!(stays, days == 4, "{days} days, noted");
    }
}

/// What was decided about is what goes: a tag that a build has moved meanwhile stays.
#[test]
fn a_tag_that_was_moved_since_the_decision_stays() {
    let store = store_of(&[("app", &[(1, 50_000)]), ("other", &[(2, 50_000)])]);
    let policy = PrunePolicy { keep_last: Some(0), ..PrunePolicy::default() };
    let decisions = decide(&store, &policy).decisions();
    assert_eq!(decisions.len(), 2);
    store.build("app", &[("0", &common::noise(77, 60_000))]);
    let (plan, moved) = DeletePlan::of_decisions(&store, &decisions, DeleteOptions::default(), common::now()).unwrap();
    assert_eq!(moved, [common::by_tag("app")]);
    plan.unwrap().apply(&store, common::now(), &Silent).unwrap();
    assert_eq!(store.tags(), ["app"]);
    store.read_back("app");
    common::assert_sound(&store);
}

#[test]
fn where_an_image_cannot_be_read_nothing_goes() {
    let store = store_of(&[("one", &[(1, 50_000)]), ("two", &[(2, 50_000)])]);
    fs::write(store.blob(&common::image_of(&store, "one").1), "{}").unwrap();
    let before = store.snapshot();
    run(&store, &["--yes", "--keep-last", "0"], 14);
    assert_eq!(store.snapshot(), before);
}
