//! What stands in documents that pfs does not know, or that are written otherwise than it writes them: kept, or refused.

mod common;

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{TestStore, assert_sound, at_once};
use pfs::name::{Digest, OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};

const UNKNOWN: &str = "application/vnd.example.thing";

/// A store with an image `app`, and one whose tag is gone; its blobs are given.
fn ground() -> (TestStore, Digest, BTreeSet<Digest>) {
    let store = common::empty();
    store.build("app", &[("a", b"what stays")]);
    let all = store.blobs();
    let gone = store.build("gone", &[("b", b"what only a mention keeps")]);
    let only_its: BTreeSet<Digest> = store.blobs().difference(&all).copied().collect();
    store.untag_foreignly("gone");
    (store, gone, only_its)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_oci(), "size": bytes.len()})
}

/// Adds an entry whose blob has these bytes.
fn add(store: &TestStore, media_type: &str, bytes: &[u8]) {
    store.put(bytes);
    store.rewrite_index(|entries| entries.push(descriptor(media_type, bytes)));
}

#[test]
fn a_digest_in_an_unknown_document_keeps_its_blob_however_it_is_written() {
    let writings: [fn(&Digest) -> String; 9] = [
        |digest| format!("{digest}\0{digest}\0"),
        |digest| format!("blobs\\sha256\\{digest}"),
        |digest| format!("{digest}\0\0\0\0000644\0"),
        |digest| format!("{{\"see\":\"{}\"}}", digest.to_oci()),
        |digest| format!("\u{feff} \n{{\"subject\":{{\"digest\":{{\"sha256\":\"{digest}\"}}}}}}"),
        |digest| format!("{{\"see\":\"sha256:{}\"}}", digest.to_string().to_uppercase()),
        |digest| format!("{{\"a\":1}}\n{{\"b\":\"{digest}\"}}\n"),
        |digest| {
            format!(
                "{{\"see\":\"sha256\\u003a\\u{:04x}{}\"}}",
                digest.to_string().as_bytes()[0],
                &digest.to_string()[1..]
            )
        },
        |digest| format!("not JSON at all: ({digest})"),
    ];
    for writing in writings {
        let (store, gone, _) = ground();
        let text = writing(&gone);
        add(&store, UNKNOWN, text.as_bytes());
        store.collect(at_once()).unwrap();
        assert!(store.blobs().contains(&gone), "{text}");
        assert_sound(&store);
    }
}

#[test]
fn what_a_manifest_that_stands_in_a_descriptor_needs_is_kept() {
    let (store, gone, needed) = ground();
    let manifest = std::fs::read(store.blob(&gone)).unwrap();
    let mut child = descriptor(OCI_MANIFEST, &manifest);
    child["data"] = STANDARD.encode(&manifest).into();
    let nested = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}).to_string();
    // Once more removed: the index that has it stands in another index.
    let mut inner = descriptor(OCI_INDEX, nested.as_bytes());
    inner["data"] = STANDARD.encode(&nested).into();
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]}).to_string();
    std::fs::remove_file(store.blob(&gone)).unwrap();
    add(&store, OCI_INDEX, outer.as_bytes());
    store.collect(at_once()).unwrap();
    let expected: BTreeSet<Digest> = needed.into_iter().filter(|digest| *digest != gone).collect();
    assert!(!expected.is_empty() && expected.is_subset(&store.blobs()), "{:?}", expected.difference(&store.blobs()));
}

#[test]
fn what_a_rootfs_that_stands_in_a_descriptor_names_is_kept() {
    let (store, _, needed) = ground();
    let rootfs = needed.iter().find(|digest| std::fs::read(store.blob(digest)).unwrap().len() % 8 == 0).unwrap();
    let bytes = std::fs::read(store.blob(rootfs)).unwrap();
    let mut layer = descriptor(UNKNOWN, &bytes);
    layer["data"] = STANDARD.encode(&bytes).into();
    let manifest = json!({"schemaVersion": 2, "config": descriptor(UNKNOWN, b"{}"), "layers": [layer]}).to_string();
    store.put(b"{}");
    let named: Vec<Digest> = common::needed_from(&store.path, &bytes).into_iter().collect();
    assert!(!named.is_empty(), "the chunk is named by this rootfs");
    std::fs::remove_file(store.blob(rootfs)).unwrap();
    add(&store, OCI_MANIFEST, manifest.as_bytes());
    store.collect(at_once()).unwrap();
    assert!(named.iter().all(|digest| store.blobs().contains(digest)));
}

#[test]
fn what_is_embedded_and_no_base64_is_searched_as_it_stands() {
    let (store, gone, _) = ground();
    let config = json!({"mediaType": UNKNOWN, "digest": Digest::of(b"{}").to_oci(), "size": 2, "data": gone.to_oci()});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    add(&store, OCI_MANIFEST, manifest.as_bytes());
    store.collect(at_once()).unwrap();
    assert!(store.blobs().contains(&gone));
}

#[test]
fn a_key_that_some_programs_take_for_another_stops_the_collection() {
    let digest = Digest::of(b"{}").to_oci();
    let manifests = [
        format!(r#"{{"layers":[],"config":{{"digest":"{digest}"}},"Layers":[{{"digest":"{digest}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{digest}","Digest":"{digest}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{digest}","DATA":"e30="}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{digest}","Annotations":{{}}}}]}}"#),
        format!(r#"{{"layer\u017f":[],"config":{{"digest":"{digest}"}}}}"#),
    ];
    for manifest in &manifests {
        let (store, ..) = ground();
        store.put(b"{}");
        add(&store, OCI_MANIFEST, manifest.as_bytes());
        let blobs = store.blobs();
        let problem = store.collect(at_once()).unwrap_err().to_string();
        assert!(problem.contains("only in case"), "{manifest}: {problem}");
        assert_eq!(store.blobs(), blobs);
    }
    let (store, ..) = ground();
    let path = store.path.join("index.json");
    let index = std::fs::read_to_string(&path).unwrap();
    for edited in [
        index.replacen('{', r#"{"Manifests":[],"#, 1),
        index.replacen(r#""digest":"#, &format!(r#""Digest":"{digest}","digest":"#), 1),
    ] {
        assert_ne!(edited, index);
        std::fs::write(&path, edited).unwrap();
        let blobs = store.blobs();
        let problem = store.collect(at_once()).unwrap_err().to_string();
        assert!(problem.contains("index.json"), "{problem}");
        assert_eq!(store.blobs(), blobs);
    }
}

#[test]
fn a_layer_of_unknown_type_that_is_not_here_stops_the_collection_unless_it_is_said_to_be_elsewhere() {
    for (key, value) in [("urls", json!(["https://example.com/layer"])), ("data", json!("bGF5ZXI="))] {
        let (store, ..) = ground();
        store.put(b"{}");
        let layer = descriptor(UNKNOWN, b"layer");
        let manifest = |layer: &Value| json!({"config": descriptor(UNKNOWN, b"{}"), "layers": [layer]}).to_string();
        let mut elsewhere = layer.clone();
        elsewhere[key] = value;
        add(&store, OCI_MANIFEST, manifest(&elsewhere).as_bytes());
        store.collect(at_once()).unwrap();
        add(&store, OCI_MANIFEST, manifest(&layer).as_bytes());
        store.collect(at_once()).unwrap_err();
    }
}
