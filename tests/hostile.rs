//! Stores that somebody has made to hang, to mislead or to block whoever works in them.

mod common;

use std::{fs, os::unix::fs::symlink, process::Command, time::Instant};

use common::{TestStore, assert_sound, empty, image_of, noise, pfs, stderr, stdout};

fn store() -> TestStore {
    let store = empty();
    store.build("app", &[("file", &noise(1, 300_000))]);
    store
}

fn fifo(path: &std::path::Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn what_is_no_file_hangs_no_command() {
    let store = store();
    let path = store.path.to_str().unwrap();
    let layout = store.path.join("oci-layout");
    let begun = Instant::now();
    let ways: [&dyn Fn(); 3] = [&|| fifo(&layout), &|| symlink("/dev/zero", &layout).unwrap(), &|| {
        fs::write(&layout, vec![b' '; 1 << 20]).unwrap();
    }];
    for make in ways {
        fs::remove_file(&layout).unwrap();
        make();
        for command in ["ls", "gc", "check"] {
            assert_eq!(pfs(&[command, path]).status.code(), Some(10), "{command}");
        }
    }
    fs::remove_file(&layout).unwrap();
    fs::remove_file(store.index_path()).unwrap();
    fifo(&store.index_path());
    let tree = tempfile::tempdir().unwrap();
    let built = pfs(&["build", tree.path().to_str().unwrap(), &format!("{path}:app")]);
    assert_eq!(built.status.code(), Some(10), "{}", stderr(&built));
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn a_noted_layout_that_is_gone_blocks_nothing_and_one_that_is_broken_is_named_with_its_note() {
    let store = store();
    let place = tempfile::tempdir().unwrap();
    let note = store.path.join(".pfs/layouts/0123456789ab");
    fs::create_dir_all(note.parent().unwrap()).unwrap();
    fs::write(place.path().join("file"), "").unwrap();
    symlink("loop", place.path().join("loop")).unwrap();
    for gone in ["none", "file/store", "loop/store"] {
        fs::write(&note, place.path().join(gone).to_str().unwrap()).unwrap();
        let output = pfs(&["gc", store.path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{gone}: {}", stderr(&output));
    }
    let other = place.path().join("other");
    fs::create_dir_all(other.join("blobs")).unwrap();
    symlink(store.path.join("blobs/sha256"), other.join("blobs/sha256")).unwrap();
    fs::write(&note, other.to_str().unwrap()).unwrap();
    let output = pfs(&["gc", store.path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    assert!(stderr(&output).contains(".pfs/layouts/0123456789ab"), "{}", stderr(&output));
    assert_sound(&store);
}

#[test]
fn a_pin_that_cannot_be_read_is_named_and_can_be_taken_back() {
    let store = store();
    let reference = format!("{}:app", store.path.display());
    assert_eq!(pfs(&["pin", &reference]).status.code(), Some(0));
    let pin = store.path.join(".pfs/keep").join(image_of(&store, "app").1.to_string());
    fs::write(&pin, "torn").unwrap();
    let output = pfs(&["gc", store.path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(14));
    assert!(stderr(&output).contains("pfs unpin") && !stderr(&output).contains("lease"), "{}", stderr(&output));
    let output = pfs(&["unpin", &reference]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert_eq!(pfs(&["gc", store.path.to_str().unwrap()]).status.code(), Some(0));
}

#[test]
fn what_others_have_planted_is_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let store = store();
    let path = store.path.to_str().unwrap();
    let mode = |name: &str| fs::metadata(store.path.join(".pfs").join(name)).unwrap().permissions().mode() & 0o777;
    let chmod = |name: &str, mode| {
        fs::set_permissions(store.path.join(".pfs").join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    assert_eq!(pfs(&["gc", path]).status.code(), Some(0));
    chmod("lock", 0o644);
    chmod("", 0o755);
    assert_eq!(pfs(&["gc", path]).status.code(), Some(0));
    assert_eq!(mode("lock"), 0o600, "who may not write the store does not hold its lock");
    chmod("", 0o775);
    assert_eq!(pfs(&["gc", path]).status.code(), Some(0));
    assert_eq!(mode("lock"), 0o660, "a group that may write the store takes its lock");
    let blob = *store.blobs().iter().next().unwrap();
    let planted = store.path.join(".pfs/pins").join(image_of(&store, "app").1.to_string());
    fs::create_dir_all(&planted).unwrap();
    fs::write(planted.join(blob.to_string()), "other bytes").unwrap();
    fs::remove_file(store.blob(&blob)).unwrap();
    assert!(!store.heal_from_pins(&blob).unwrap());
    assert!(!store.blob(&blob).exists(), "wrong bytes are not linked");
}
