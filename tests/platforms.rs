//! Images inside an index: those that are built for several platforms, and those with an attestation beside them.

mod common;

use std::fs;

use common::{TestStore, assert_sound, pfs, stderr, stdout};
use pfs::{
    image::{ImageError, WantedPlatform, find},
    name::{Digest, OCI_INDEX, OCI_MANIFEST, Selector},
};
use serde_json::{Value, json};

/// A store with an index `multi` of an image for this machine and one for s390x, or riscv64 on s390x; and its children.
struct Ground {
    store: TestStore,
    here: Digest,
    there: Digest,
    elsewhere: &'static str,
}

fn entry(store: &TestStore, media_type: &str, digest: &Digest, platform: Option<&str>) -> Value {
    let size = fs::metadata(store.blob(digest)).unwrap().len();
    let mut entry = json!({"mediaType": media_type, "digest": digest.to_oci(), "size": size});
    if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
        entry["platform"] = json!({"os": os, "architecture": architecture});
    }
    entry
}

fn index_of(store: &TestStore, tag: Option<&str>, children: Vec<Value>) -> Digest {
    let text = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).to_string();
    let digest = store.put(text.as_bytes());
    if let Some(tag) = tag {
        let mut added = entry(store, OCI_INDEX, &digest, None);
        added["annotations"] = json!({common::REF_NAME: tag});
        store.rewrite_index(|entries| entries.push(added));
    }
    digest
}

fn ground() -> Ground {
    let store = common::empty();
    let here = store.build("here", &[("file", b"for this machine"), ("shared", &common::noise(1, 50_000))]);
    let there = store.build("there", &[("file", b"for another one"), ("shared", &common::noise(1, 50_000))]);
    let elsewhere = if WantedPlatform::here().to_string() == "linux/s390x" { "linux/riscv64" } else { "linux/s390x" };
    store.rewrite_index(Vec::clear);
    let attestation =
        store.put(json!({"layers": [], "config": null, "manifests": null, "blobs": []}).to_string().as_bytes());
    let children = vec![
        entry(&store, OCI_MANIFEST, &there, Some(elsewhere)),
        entry(&store, OCI_MANIFEST, &attestation, Some("unknown/unknown")),
        entry(&store, OCI_MANIFEST, &here, Some(&WantedPlatform::here().to_string())),
    ];
    index_of(&store, Some("multi"), children);
    Ground { store, here, there, elsewhere }
}

impl Ground {
    fn path(&self) -> &str {
        self.store.path.to_str().unwrap()
    }

    fn run(&self, args: &[&str], code: i32) -> String {
        let args: Vec<String> = args.iter().map(|argument| argument.replace("STORE", self.path())).collect();
        let output = pfs(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        stdout(&output) + &stderr(&output)
    }
}

#[test]
fn of_an_index_the_image_for_this_machine_is_taken() {
    let ground = ground();
    let found = |selector: &Selector, platform: &WantedPlatform| {
        find(&ground.store.store, ground.store.index().unwrap().document(), selector, platform)
    };
    let (multi, here) = (common::by_tag("multi"), WantedPlatform::here());
    assert_eq!(found(&multi, &here).unwrap().digest, ground.here);
    assert_eq!(found(&multi, &ground.elsewhere.parse().unwrap()).unwrap().digest, ground.there);
    let missing = found(&multi, &"linux/mips".parse().unwrap()).unwrap_err();
    assert!(matches!(missing, ImageError::NoPlatform { ref found, .. } if found.len() == 2), "{missing}");
    for child in [ground.here, ground.there] {
        let inside = found(&Selector::Digest(child.short()), &here).unwrap();
        assert_eq!((inside.digest, inside.is_inside, &inside.places[..]), (child, true, &[0][..]));
    }
    let nowhere = found(&Selector::Digest("0123456789".into()), &here).unwrap_err();
    assert!(matches!(nowhere, ImageError::NotFound { .. }));
}

#[test]
fn an_index_of_one_image_is_that_image_whatever_indexes_are_around_it() {
    let ground = ground();
    let store = &ground.store;
    let one = index_of(store, None, vec![entry(store, OCI_MANIFEST, &ground.there, None)]);
    index_of(store, Some("nested"), vec![entry(store, OCI_INDEX, &one, None)]);
    let index = store.index().unwrap();
    let found = find(&store.store, index.document(), &common::by_tag("nested"), &WantedPlatform::here()).unwrap();
    assert_eq!((found.digest, found.is_inside), (ground.there, true));
    // In two indexes, and one image.
    let by_digest = Selector::Digest(ground.there.to_string());
    let found = find(&store.store, index.document(), &by_digest, &WantedPlatform::here()).unwrap();
    assert_eq!((found.digest, &found.places[..]), (ground.there, &[0, 1][..]));
}

#[test]
fn every_command_that_shows_an_image_takes_one_inside_an_index() {
    let ground = ground();
    let (here, there) = (format!("STORE@{}", ground.here.short()), format!("STORE@{}", ground.there.short()));
    for args in [&["inspect", "STORE:multi"][..], &["inspect", &here], &["refs", &here]] {
        assert!(!ground.run(args, 0).contains(&ground.there.to_oci()));
    }
    assert!(ground.run(&["inspect", "STORE:multi"], 0).contains(&ground.here.to_oci()));
    let other = ground.run(&["inspect", "--platform", ground.elsewhere, "STORE:multi"], 0);
    assert!(other.contains(&ground.there.to_oci()), "{other}");
    let none = ground.run(&["inspect", "--platform", "linux/mips", "STORE:multi"], 12);
    assert!(none.contains("has no image for linux/mips") && none.contains("--platform OS/ARCH"), "{none}");
    let inside = ground.run(&["delete", &there], 13);
    assert!(inside.contains("is inside the index multi"), "{inside}");
    assert_sound(&ground.store);
}

#[test]
fn a_mounted_image_of_an_index_is_kept() {
    let ground = ground();
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "this needs root and /dev/fuse");
        eprintln!("SKIPPED: this needs root and /dev/fuse");
        return;
    }
    let mountpoint = ground.store.beside("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let mnt = mountpoint.to_str().unwrap();
    for (args, expected) in [
        (vec!["mount", "--platform", ground.elsewhere, "STORE:multi", mnt], "for another one"),
        (vec!["mount", &format!("STORE@{}", ground.there.short()), mnt], "for another one"),
        (vec!["mount", "STORE:multi", mnt], "for this machine"),
    ] {
        ground.run(&args, 0);
        assert_eq!(fs::read_to_string(mountpoint.join("file")).unwrap(), expected, "{args:?}");
        if expected == "for another one" {
            ground.run(&["umount", mnt], 0);
        }
    }
    ground.run(&["delete", "STORE:multi"], 13);
    ground.run(&["delete", "--force", "STORE:multi"], 0);
    ground.run(&["gc", "--now", "--min-age", "0", "STORE"], 0);
    assert_eq!(fs::read_to_string(mountpoint.join("file")).unwrap(), "for this machine");
    assert!(ground.store.blobs().contains(&ground.here) && !ground.store.blobs().contains(&ground.there));
    ground.run(&["umount", mnt], 0);
    ground.run(&["gc", "--now", "--min-age", "0", "STORE"], 0);
    assert!(ground.store.blobs().is_empty());
}

#[test]
fn a_sound_image_is_shown_beside_a_damaged_one() {
    let store = common::empty();
    store.build("sound", &[("a", &common::noise(1, 600_000)), ("z", b"sound")]);
    store.build("other", &[("a", &common::noise(1, 600_000)), ("z", b"other")]);
    store.build("broken", &[("file", b"broken")]);
    let rootfs = store.blob(&common::image_of(&store, "broken").0);
    fs::write(rootfs, b"no rootfs").unwrap();
    let path = store.path.to_str().unwrap();
    for command in ["inspect", "refs"] {
        let output = pfs(&[command, &format!("{path}:sound")]);
        assert!(output.status.success(), "{command}: {}", stderr(&output));
        assert!(stdout(&output).contains("1 image that cannot be read"), "{}", stdout(&output));
    }
    let refs = stdout(&pfs(&["refs", &format!("{path}:sound")]));
    assert!(refs.lines().any(|line| line.starts_with("other ")), "{refs}");
    assert_eq!(pfs(&["inspect", &format!("{path}:broken")]).status.code(), Some(15));
}
