//! The commands that explain: `du`, `why`, `ls`.

mod common;

use std::{fs, os::unix::fs::symlink, process::Command};

use common::{TestStore, assert_sound, empty, golden, noise, now, pfs, stderr, stdout, trees};
use pfs::{
    explain::{Class, DiskUse, disk_use},
    gc::{Facts, Policy, Roots, plan},
    observe::Silent,
    store::Store,
};
use serde_json::Value;

fn json_of(args: &[&str]) -> Value {
    let output = pfs(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// What the real `du -sb` says. From coreutils 9.2 on it leaves the sizes of directories out.
fn du_sb(store: &TestStore) -> u64 {
    let run = |path: &std::path::Path| {
        let output = Command::new("du").arg("-sb").arg(path).output().unwrap();
        stdout(&output).split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    fs::create_dir(store.beside("nothing")).unwrap();
    let counts_directories = run(&store.beside("nothing")) > 0;
    fs::remove_dir(store.beside("nothing")).unwrap();
    let directories = bytes_of(&used(store), Class::Directory);
    run(&store.path) + if counts_directories { 0 } else { directories }
}

fn used(store: &TestStore) -> DiskUse {
    disk_use(store, now(), &Silent).unwrap()
}

fn bytes_of(used: &DiskUse, class: Class) -> u64 {
    used.rows.iter().find(|row| row.class == class).unwrap().bytes
}

/// The rows add up to what `du -sb` says; gives them for a closer look.
fn assert_adds_up(store: &TestStore, what: &str) -> DiskUse {
    let used = used(store);
    assert_eq!(used.rows.iter().map(|row| row.bytes).sum::<u64>(), used.total_bytes, "{what}");
    assert_eq!(used.total_bytes, du_sb(store), "{what}: {:#?}", used.rows);
    used
}

fn three_images() -> TestStore {
    let store = empty();
    for (seed, tag) in (1..).zip(["one", "two", "three"]) {
        store.build(tag, &[("shared", &noise(99, 900_000)), ("own", &noise(seed, 50_000))]);
    }
    store
}

/// Puts debris of every kind into a store, as crashes, mounts and other programs leave it.
fn litter(store: &TestStore) {
    let state = store.path.join(".pfs");
    for (place, name) in [("tmp/dead-1-1", "part"), ("tmp", "index-1-x"), ("damaged", "old"), ("quarantine/5-1", "x")] {
        fs::create_dir_all(state.join(place)).unwrap();
        fs::write(state.join(place).join(name), noise(7, 1000)).unwrap();
    }
    fs::write(store.path.join(".umoci-tmp"), noise(8, 3000)).unwrap();
    fs::create_dir(store.path.join("blobs/sha256/directory")).unwrap();
    fs::write(store.path.join("blobs/sha256/directory/inside"), "inside").unwrap();
    symlink("/etc/passwd", store.path.join("blobs/sha256/link")).unwrap();
    fs::write(store.path.join("blobs/sha256/no-digest"), noise(9, 500)).unwrap();
    let young = store.put(&noise(10, 20_000));
    fs::hard_link(store.blob(&young), store.path.join("second-name")).unwrap();
    fs::hard_link(store.blob(&young), store.path.join(".pfs/tmp/third-name")).unwrap();
}

#[test]
fn an_empty_store_adds_up() {
    let used = assert_adds_up(&empty(), "empty");
    assert_eq!((used.entries.len(), bytes_of(&used, Class::Unique)), (0, 0));
}

#[test]
fn golden_stores_add_up() {
    for name in trees::STORES {
        let used = assert_adds_up(&golden(name), name);
        assert_eq!(used.entries.len(), trees::TAGS.len(), "{name}");
    }
}

#[test]
fn what_one_image_needs_is_told_from_what_several_share() {
    let store = three_images();
    let used = assert_adds_up(&store, "three images");
    let (shared, unique) = (bytes_of(&used, Class::Shared), bytes_of(&used, Class::Unique));
    assert!((1..=900_000).contains(&shared), "a chunk may reach from one file into the next: {shared}");
    assert_eq!(shared + unique, store.blob_bytes());
    let document = json_of(&["du", "--json", store.path.to_str().unwrap()]);
    let of_tags: u64 =
        document["images"].as_array().unwrap().iter().map(|image| image["unique_bytes"].as_u64().unwrap()).sum();
    assert_eq!((document["rows"]["unique"]["bytes"].as_u64(), of_tags), (Some(unique), unique));
    assert_eq!(document["total_bytes"].as_u64(), Some(du_sb(&store)));
}

#[test]
fn a_littered_store_adds_up_in_every_state() {
    let store = three_images();
    litter(&store);
    let used = assert_adds_up(&store, "littered");
    assert_eq!(bytes_of(&used, Class::Young), 20_000);
    assert_eq!(bytes_of(&used, Class::Damaged), 1000);
    assert_eq!(bytes_of(&used, Class::Garbage), 2000, "what ended programs have staged");
    store.untag_foreignly("one");
    let garbage = bytes_of(&assert_adds_up(&store, "untagged"), Class::Garbage);
    assert!(garbage > 50_000, "{garbage}");
    let run = pfs(&["gc", "--hold", "1d", store.path.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let used = assert_adds_up(&store, "in quarantine");
    assert_eq!(bytes_of(&used, Class::Garbage), 0);
    assert!(bytes_of(&used, Class::Quarantine) > 50_000);
    assert_sound(&store);
}

#[test]
fn garbage_is_what_the_next_collection_frees() {
    let store = three_images();
    store.untag_foreignly("two");
    let facts = Facts::gather(&store, Roots::Current, now(), &Silent).unwrap();
    let policy = Policy { hold: pfs::gc::Hold::Seconds(0), ..Policy::default() };
    let freed = plan(facts, policy, now()).freed_bytes();
    assert_eq!(bytes_of(&used(&store), Class::Garbage), freed);
    assert_sound(&store);
}

#[test]
fn what_a_mount_holds_alone_is_told() {
    let store = three_images();
    let (_rootfs, manifest) = common::image_of(&store, "one");
    let lease = store.mount_lease("one");
    let blobs: Vec<_> = store.blobs().into_iter().collect();
    store.link_pins(&manifest, &blobs).unwrap();
    store.untag_foreignly("one");
    assert!(bytes_of(&assert_adds_up(&store, "mounted"), Class::Held) > 50_000);
    for blob in common::needed_from(&store.path, manifest.to_string().as_bytes()) {
        fs::remove_file(store.blob(&blob)).unwrap();
    }
    let used = assert_adds_up(&store, "only pinned");
    assert!(used.missing_blobs > 0 && bytes_of(&used, Class::Held) > 150_000, "{used:#?}");
    store.release(lease).unwrap();
    let used = assert_adds_up(&store, "ended");
    assert!(bytes_of(&used, Class::Garbage) > 50_000);
    assert!(bytes_of(&used, Class::Held) > 50_000, "the other tags still need some: {used:#?}");
    assert_eq!(bytes_of(&used, Class::Garbage), store.plan(common::at_once()).unwrap().freed_bytes());
}

#[test]
fn where_an_image_cannot_be_read_nothing_is_called_garbage() {
    let store = three_images();
    let (_, manifest) = common::image_of(&store, "one");
    fs::write(store.blob(&manifest), "{}").unwrap();
    let used = assert_adds_up(&store, "broken");
    assert!(used.unknown.is_some() && bytes_of(&used, Class::Unknown) > 50_000);
    assert_eq!(bytes_of(&used, Class::Garbage), 0);
    let output = pfs(&["du", store.path.to_str().unwrap()]);
    assert!(stdout(&output).contains("damaged") && stderr(&output).contains("note: "), "{output:?}");
}

#[test]
fn explaining_writes_nothing() {
    let store = three_images();
    litter(&store);
    let everything = || walkdir::WalkDir::new(&store.path).into_iter().filter(Result::is_ok).count();
    let before = (everything(), store.snapshot());
    used(&store);
    assert_eq!((everything(), store.snapshot()), before);
    assert!(Store::open(&store.path).is_ok());
}

fn names(store: &TestStore, args: &[&str]) -> Vec<String> {
    let output = pfs(&[&["-q", "ls"], args, &[store.path.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn listings_are_sorted_and_filtered() {
    let store = three_images();
    store.build("big", &[("own", &noise(20, 3_000_000))]);
    assert_eq!(names(&store, &["--sort", "name"]), ["big", "one", "three", "two"]);
    assert_eq!(names(&store, &["--sort", "size"])[0], "big");
    assert_eq!(names(&store, &["--sort", "unique"])[0], "big");
    assert_eq!(names(&store, &["--sort", "age"]).len(), 4);
    assert_eq!(names(&store, &["--filter", "tag=t*"]), ["two", "three"]);
    let _lease = store.mount_lease("one");
    assert_eq!(names(&store, &["--filter", "mounted=yes"]), ["one"]);
    assert_eq!(pfs(&["pin", &format!("{}:two", store.path.display())]).status.code(), Some(0));
    assert_eq!(names(&store, &["--filter", "pinned=yes", "--filter", "kind=puzzlefs"]), ["two"]);
    assert_eq!(names(&store, &["--filter", "pinned=no", "--filter", "mounted=no"]), ["three", "big"]);
    assert_eq!(pfs(&["ls", "--filter", "size=3", store.path.to_str().unwrap()]).status.code(), Some(2));
}

/// Takes the names of these images away.
fn unname(store: &TestStore, tags: &[&str]) {
    store.rewrite_index(|entries| {
        for entry in
            entries.iter_mut().filter(|entry| tags.iter().any(|tag| entry["annotations"][common::REF_NAME] == *tag))
        {
            entry.as_object_mut().unwrap().remove("annotations");
        }
    });
}

#[test]
fn dangling_is_what_has_no_name_and_nobody_uses() {
    let store = three_images();
    let (_, one) = common::image_of(&store, "one");
    let (_, two) = common::image_of(&store, "two");
    unname(&store, &["one", "two"]);
    assert_eq!(names(&store, &["--dangling"]), [one.to_oci(), two.to_oci()]);
    let by_digest = format!("{}@sha256:{one}", store.path.display());
    assert_eq!(pfs(&["pin", &by_digest]).status.code(), Some(0));
    assert_eq!(names(&store, &["--dangling"]), [two.to_oci()], "a pinned one is not");
    assert_eq!(pfs(&["unpin", &by_digest]).status.code(), Some(0));

    // An index that has a name, with one of them inside.
    let descriptor = |digest: &pfs::name::Digest| {
        let size = fs::metadata(store.blob(digest)).unwrap().len();
        serde_json::json!({"mediaType": pfs::name::OCI_MANIFEST, "digest": digest.to_oci(), "size": size})
    };
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor(&one)]}).to_string();
    let index = store.put(index.as_bytes());
    // A signature of the image `three`, which has a name.
    let (_, three) = common::image_of(&store, "three");
    let config = store.put(b"{}");
    let signature = serde_json::json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.empty.v1+json",
        "digest": config.to_oci(), "size": 2}, "layers": [], "subject": descriptor(&three)});
    let signature = store.put(signature.to_string().as_bytes());
    store.rewrite_index(|entries| {
        let mut entry = descriptor(&index);
        entry["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
        entry["annotations"] = serde_json::json!({common::REF_NAME: "multi"});
        entries.push(entry);
        entries.push(descriptor(&signature));
    });
    assert_eq!(names(&store, &["--dangling"]), [two.to_oci()], "one is in a tagged index, the signature has a subject");
    store.untag_foreignly("three");
    assert_eq!(names(&store, &["--dangling"]), [two.to_oci(), signature.to_oci()]);
    assert_sound(&store);
}

#[test]
fn where_a_named_image_cannot_be_read_nothing_is_called_dangling() {
    let store = three_images();
    unname(&store, &["one"]);
    let (_, two) = common::image_of(&store, "two");
    fs::write(store.blob(&two), "{}").unwrap();
    assert_eq!(names(&store, &["--dangling"]), [""; 0]);
    assert_eq!(names(&store, &["--filter", "kind=damaged"]), ["two"]);
}

fn why(store: &TestStore, subject: &str) -> String {
    let output = pfs(&["-s", store.path.to_str().unwrap(), "why", subject]);
    assert_eq!(output.status.code(), Some(0), "{subject}: {}", stderr(&output));
    stdout(&output)
}

/// A chunk that only this image needs, and one that all three need. Two may share one that the third cuts elsewhere.
fn chunks_of(store: &TestStore, tag: &str) -> (pfs::name::Digest, pfs::name::Digest) {
    let chunks = pfs::explain::refs(store, &common::by_tag(tag), &pfs::image::WantedPlatform::here()).unwrap().chunks;
    let needed_by = |images| chunks.iter().find(|chunk| chunk.images == images).unwrap().digest;
    (needed_by(1), needed_by(3))
}

#[test]
fn why_names_the_way_from_the_tag_to_the_file() {
    let store = three_images();
    let (rootfs, manifest) = common::image_of(&store, "one");
    let (own, shared) = chunks_of(&store, "one");
    let text = why(&store, &own.short());
    let way = format!("kept by tag one -> manifest {} -> rootfs {}\n", manifest.short(), rootfs.short());
    assert!(text.contains(&way) && text.contains("\n  /") && !text.contains("tag two"), "{text}");
    assert!(text.ends_with("kept: an image needs it\n"), "{text}");
    let text = why(&store, &shared.to_oci());
    assert!(["one", "two", "three"].iter().all(|tag| text.contains(&format!("kept by tag {tag} -> "))), "{text}");
    assert_eq!(why(&store, "one"), why(&store, &manifest.to_string()), "of an image, the manifest");
    assert!(why(&store, &rootfs.short()).contains(&format!("tag one -> manifest {}\n", manifest.short())));
    let document = json_of(&["why", "--json", &format!("{}@{}", store.path.display(), own.to_oci())]);
    assert_eq!((document["state"].as_str(), document["keepers"][0]["tag"].as_str()), (Some("needed"), Some("one")));
}

#[test]
fn why_names_mounts_pins_age_and_quarantine() {
    let store = three_images();
    let own = chunks_of(&store, "one").0;
    let lease = store.mount_lease("one");
    assert_eq!(pfs(&["pin", "--reason", "audit", &format!("{}:one", store.path.display())]).status.code(), Some(0));
    store.untag_foreignly("one");
    let text = why(&store, &own.short());
    let mount = format!("kept by the mount at /srv/app (pid {})", std::process::id());
    assert!(text.contains(&mount) && text.contains("kept by pin one (audit)"), "{text}");
    assert!(text.ends_with("in use\n"), "{text}");
    store.release(lease).unwrap();
    assert_eq!(pfs(&["unpin", &format!("{}:one", store.path.display())]).status.code(), Some(0));
    assert!(why(&store, &own.short()).ends_with("kept by nothing: the next gc frees it\n"));
    assert_eq!(pfs(&["gc", "--hold", "1d", store.path.to_str().unwrap()]).status.code(), Some(0));
    assert!(why(&store, &own.short()).contains("it lies in quarantine"));
    let young = store.put(&noise(40, 100));
    assert!(why(&store, &young.short()).contains("may be an upload"));
    assert_sound(&store);
}

#[test]
fn why_of_what_nobody_knows_is_not_found() {
    let store = three_images();
    for subject in ["0000000000", "sha256:0000000000", "absent"] {
        let output = pfs(&["-s", store.path.to_str().unwrap(), "why", subject]);
        assert_eq!(output.status.code(), Some(12), "{subject}: {}", stderr(&output));
    }
    let missing = chunks_of(&store, "one").0;
    fs::remove_file(store.blob(&missing)).unwrap();
    let text = why(&store, &missing.short());
    assert!(text.contains("kept by tag one") && text.ends_with("it is not in the store\n"), "{text}");
}
