//! How images and stores are named on the command line, and what is said to who names them otherwise.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use common::{TestStore, assert_sound, stderr, stdout};

/// pfs in a directory, with PFS_STORE set or not.
fn pfs_in(directory: &Path, store: Option<&str>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfs"));
    command.args(args).current_dir(directory).env_remove("PFS_STORE");
    store.map(|store| command.env("PFS_STORE", store));
    command.output().unwrap()
}

/// A directory with a store `st` that has an image `app`, and a tree `tree`.
fn ground() -> TestStore {
    let ground = common::empty();
    let here = here(&ground);
    fs::create_dir(here.join("tree")).unwrap();
    fs::write(here.join("tree/file"), b"content").unwrap();
    succeeds(&pfs_in(&here, None, &["build", "tree", "st:app"]));
    ground
}

fn here(ground: &TestStore) -> std::path::PathBuf {
    ground.beside("")
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output) + &stderr(output)
}

fn fails(output: &Output, code: i32, expected: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    expected.iter().for_each(|text| assert!(said.contains(text), "{text:?} is missing in: {said}"));
}

fn tags(directory: &Path, store: &str) -> String {
    let output = pfs_in(directory, None, &["ls", "-q", store]);
    succeeds(&output)
}

#[test]
fn tags_and_stores_may_have_colons() {
    let ground = ground();
    let here = here(&ground);
    fs::create_dir(here.join("a:b")).unwrap();
    for (reference, store) in [
        ("st:docker.io/library/app:1.0", "st"),
        ("st:app@1", "st"),
        ("a:b/oci:app:1", "a:b/oci"),
        ("a:b/oci:again", "a:b/oci"),
    ] {
        succeeds(&pfs_in(&here, None, &["build", "tree", reference]));
        succeeds(&pfs_in(&here, None, &["inspect", reference]));
        let tag = reference.strip_prefix(&format!("{store}:")).unwrap();
        assert!(tags(&here, store).lines().any(|line| line == tag), "{reference}: {}", tags(&here, store));
        assert_sound(&pfs::store::Store::open(&here.join(store)).unwrap());
    }
}

#[test]
fn a_reference_in_full_wins_over_pfs_store() {
    let ground = ground();
    let here = here(&ground);
    let known = Some("st");
    succeeds(&pfs_in(&here, None, &["build", "tree", "small:q"]));
    succeeds(&pfs_in(&here, known, &["build", "tree", "small:r"]));
    succeeds(&pfs_in(&here, known, &["build", "tree", "bare"]));
    fs::create_dir(here.join("x")).unwrap();
    let said = succeeds(&pfs_in(&here, known, &["build", "tree", "x/new:s"]));
    assert!(said.contains("made the store x/new"), "{said}");
    assert_eq!(tags(&here, "small"), "q\nr\n");
    assert_eq!(tags(&here, "st"), "app\nbare\n");
    assert_eq!(tags(&here, "x/new"), "s\n");
    succeeds(&pfs_in(&here, known, &["delete", "small:q"]));
    assert_eq!(tags(&here, "small"), "r\n");
}

#[test]
fn the_directory_of_a_store_is_the_store() {
    let ground = ground();
    let store = here(&ground).join("st");
    for args in [&["ls"][..], &["du"], &["gc", "-n"], &["inspect", "app"], &["check"], &["refs", "app"]] {
        succeeds(&pfs_in(&store, None, args));
    }
    fails(&pfs_in(&here(&ground), None, &["ls"]), 2, &["which store?"]);
}

#[test]
fn a_digest_as_ls_prints_it_names_an_image() {
    let ground = ground();
    let here = here(&ground);
    let listed = stdout(&pfs_in(&here, None, &["ls", "st"]));
    let short = listed.lines().nth(1).and_then(|row| row.split_whitespace().nth(1)).unwrap().to_owned();
    for (store, reference) in [
        (Some("st"), short.clone()),
        (None, format!("st@{short}")),
        (None, format!("st@sha256:{short}")),
        (None, format!("st:{short}")),
    ] {
        succeeds(&pfs_in(&here, store, &["inspect", &reference]));
        succeeds(&pfs_in(&here, store, &["delete", "-n", &reference]));
    }
    // A tag of such digits comes first.
    succeeds(&pfs_in(&here, None, &["build", "tree", &format!("st:{short}")]));
    succeeds(&pfs_in(&here, None, &["delete", "--keep-blobs", &format!("st:{short}")]));
    assert_eq!(tags(&here, "st"), "app\n");
}

#[test]
fn a_new_store_is_announced_and_has_a_parent() {
    let ground = ground();
    let here = here(&ground);
    fails(&pfs_in(&here, None, &["build", "tree", "no/where:t"]), 1, &["no does not exist", "mkdir -p no"]);
    assert!(!here.join("no").exists());
    let said = stderr(&pfs_in(&here, None, &["build", "tree", "new:t"]));
    assert!(said.contains("made the store new"), "{said}");
    let said = stderr(&pfs_in(&here, None, &["build", "tree", "new:u"]));
    assert!(!said.contains("made"), "{said}");
    assert!(stderr(&pfs_in(&here, None, &["build", "-q", "tree", "quiet:t"])).is_empty());
}

#[test]
fn arguments_that_have_changed_places_are_recognised() {
    let ground = ground();
    let here = here(&ground);
    fails(
        &pfs_in(&here, None, &["build", "st:new", "tree"]),
        2,
        &["the directory comes first", "pfs build tree st:new"],
    );
    fs::create_dir(here.join("mnt")).unwrap();
    fails(&pfs_in(&here, None, &["mount", "mnt", "st:app"]), 2, &["the image comes first", "pfs mount st:app mnt"]);
    fails(&pfs_in(&here, None, &["inspect", "st"]), 2, &["st is a store", "st:TAG", "pfs ls st"]);
    fails(&pfs_in(&here, None, &["ls", "st:app"]), 2, &["st:app is an image", "its store is st"]);
    fails(&pfs_in(&here, None, &["build", "gone", "st:new"]), 1, &["gone does not exist"]);
}

#[test]
fn a_store_is_not_packed_into_its_own_image() {
    let ground = ground();
    let here = here(&ground);
    let said = succeeds(&pfs_in(&here, None, &["build", ".", "st:self"]));
    assert!(said.contains("left out: ./st"), "{said}");
    let store = pfs::store::Store::open(&here.join("st")).unwrap();
    assert_sound(&store);
    let image = TestStore::read_back(&store_of(&here), "self");
    assert!(image.keys().any(|path| path.contains("tree/file")));
    assert!(!image.keys().any(|path| path.contains("oci-layout") && path.starts_with("\"/st/")), "{:?}", image.keys());
    fails(&pfs_in(&here, None, &["build", "st", "st:self"]), 1, &["is the store itself"]);
}

fn store_of(here: &Path) -> TestStore {
    common::at(&here.join("st"))
}
