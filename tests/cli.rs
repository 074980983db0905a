//! The program as people and scripts meet it: examples that run, exit codes, JSON, and errors with hints.

mod common;

use std::{fs, path::Path, process::Command};

use common::{TestStore, assert_sound, empty, noise, pfs, stderr, stdout};
use serde_json::Value;

fn store() -> TestStore {
    let store = empty();
    for (seed, tag) in (1..).zip(["app", "old", "older"]) {
        store.build(tag, &[("file", &noise(seed, 40_000))]);
    }
    store
}

/// The names of all commands, from the help itself.
fn commands() -> Vec<String> {
    let help = stdout(&pfs(&["--help"]));
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap().to_owned();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|name| name != "help").collect()
}

fn examples(help: &str) -> Vec<String> {
    let examples = help.split("Examples:\n").nth(1).unwrap_or_default();
    examples.lines().map_while(|line| line.trim().strip_prefix("pfs ")).map(str::to_owned).collect()
}

/// Whether an example needs a mount, which `mount.rs` tests.
fn needs_a_mount(example: &str) -> bool {
    ["mount ", "umount "].iter().any(|command| example.starts_with(command))
}

/// What an example takes for granted: a deleted tag, a pin, a blob.
fn prepare(store: &TestStore, example: &str) {
    let app = format!("{}:app", store.path.display());
    match example.split(' ').next() {
        Some("undo") => {
            assert!(pfs(&["delete", "--keep-blobs", &app]).status.success())
        }
        Some("unpin") => assert!(pfs(&["pin", &app]).status.success()),
        _ => {}
    }
}

#[test]
fn every_help_ends_with_examples_and_every_example_runs() {
    let helps = commands().into_iter().map(|name| stdout(&pfs(&[&name, "--help"])));
    let helps: Vec<String> = helps.chain([stdout(&pfs(&["--help"]))]).collect();
    for help in &helps {
        let all = examples(help);
        assert!(!all.is_empty(), "{help}");
        for example in all.iter().filter(|example| !needs_a_mount(example)) {
            let store = store();
            let rootfs = store.beside("rootfs");
            fs::create_dir(&rootfs).unwrap();
            fs::write(rootfs.join("file"), "new").unwrap();
            let some_blob = common::image_of(&store, "app").1.short();
            prepare(&store, example);
            let line =
                example.replace("/srv/oci", store.path.to_str().unwrap()).replace("./rootfs", rootfs.to_str().unwrap());
            // A person would be asked.
            let asks = example.starts_with("prune") && !["-n", "--yes"].iter().any(|flag| example.contains(flag));
            let line = if asks { line + " --yes" } else { line };
            let line = line.replace("0123456789ab", &some_blob).replace("| less", "| cat");
            let line = format!("{} {line}", env!("CARGO_BIN_EXE_pfs"));
            let output =
                Command::new("sh").args(["-c", &line]).env_remove("PFS_STORE").current_dir(store.beside("")).output();
            let output = output.unwrap();
            let expected = match () {
                () if example.contains("--exit-code") => [0, 4],
                // So much cannot be freed of a store so small.
                () if example.contains("--free") => [0, 3],
                () => [0, 0],
            };
            let code = output.status.code().unwrap();
            assert!(expected.contains(&code), "pfs {example}: {code}: {}{}", stdout(&output), stderr(&output));
            assert_sound(&store);
        }
    }
}

/// Commands that only look, and their documents.
const QUESTIONS: [(&[&str], &str); 6] = [
    (&["ls", "--json", "STORE"], "pfs.ls/1"),
    (&["inspect", "--json", "STORE:app"], "pfs.inspect/1"),
    (&["refs", "--json", "STORE:app"], "pfs.refs/1"),
    (&["check", "--json", "STORE"], "pfs.check/1"),
    (&["gc", "-n", "--json", "STORE"], "pfs.gc/1"),
    (&["delete", "-n", "--json", "STORE:app"], "pfs.delete/1"),
];

fn placed(args: &[&str], store: &Path) -> Vec<String> {
    args.iter().map(|argument| argument.replace("STORE", store.to_str().unwrap())).collect()
}

fn run(args: &[String]) -> std::process::Output {
    pfs(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn json_documents_name_their_schema_and_stand_alone() {
    let store = store();
    for (args, schema) in QUESTIONS {
        let output = run(&placed(args, &store.path));
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{args:?}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["schema"], schema, "{args:?}");
    }
}

#[test]
fn acts_print_json_too() {
    let store = store();
    let rootfs = store.beside("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let path = store.path.to_str().unwrap();
    let acts: [&[&str]; 3] = [
        &["build", "--json", rootfs.to_str().unwrap(), &format!("{path}:new")],
        &["delete", "--json", &format!("{path}:app")],
        &["gc", "--json", path],
    ];
    for args in acts {
        let output = pfs(args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["schema"], format!("pfs.{}/1", args[0]));
    }
    assert_sound(&store);
}

#[test]
fn errors_in_json_mode_are_json_on_stderr() {
    let store = store();
    let nowhere = store.beside("nowhere");
    for (args, _) in QUESTIONS {
        let output = run(&placed(args, &nowhere));
        assert_eq!((output.status.code(), stdout(&output)), (Some(10), String::new()), "{args:?}");
        let error: Value =
            serde_json::from_str(&stderr(&output)).unwrap_or_else(|_| panic!("{args:?}: {}", stderr(&output)));
        assert_eq!((&error["error"]["code"], &error["error"]["exit"]), (&"not-a-store".into(), &10.into()), "{args:?}");
        assert!(error["error"]["message"].as_str().unwrap().contains("is not a store"));
    }
}

#[test]
fn errors_go_to_stderr_with_a_hint_and_nothing_to_stdout() {
    let store = store();
    let path = store.path.to_str().unwrap();
    let absent = format!("{path}:aapp");
    let cases: [(&[&str], i32); 7] = [
        (&["inspect", &absent], 12),
        (&["refs", &absent], 12),
        (&["delete", &absent], 12),
        (&["check", &absent], 12),
        (&["ls", "/nowhere"], 10),
        (&["gc", "/nowhere"], 10),
        (&["inspect", "/nowhere:app"], 10),
    ];
    for (args, code) in cases {
        let output = pfs(args);
        assert_eq!((output.status.code(), stdout(&output)), (Some(code), String::new()), "{args:?}");
        let error = stderr(&output);
        assert!(error.starts_with("error: ") && error.contains("\nhint: "), "{args:?}: {error}");
        let quiet = stderr(&pfs(&[&["-q"], args].concat()));
        assert!(quiet.starts_with("error: ") && !quiet.contains("hint: "), "{args:?}: {quiet}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let store = store();
    let path = store.path.to_str().unwrap();
    let cases: [&[&str]; 8] = [
        &[],
        &["nonsense"],
        &["ls"],
        &["gc"],
        &["inspect", "app"],
        &["build", "/etc", &format!("{path}@sha256:abcdef")],
        &["delete", &format!("{path}:app"), "/elsewhere:app"],
        &["gc", "--min-age", "soon", path],
    ];
    for args in cases {
        let output = pfs(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    assert_sound(&store);
}

#[test]
fn a_store_may_be_given_apart() {
    let store = store();
    let path = store.path.to_str().unwrap();
    assert_eq!(pfs(&["-s", path, "inspect", "app"]).status.code(), Some(0));
    assert_eq!(pfs(&["inspect", "-s", path, "app"]).status.code(), Some(0));
    let output = Command::new(env!("CARGO_BIN_EXE_pfs")).args(["ls", "-q"]).env("PFS_STORE", path).output().unwrap();
    assert_eq!(stdout(&output), "app\nold\nolder\n");
}

#[test]
fn colour_is_for_those_who_want_it() {
    let error = |args: &[&str]| stderr(&pfs(&[args, &["ls", "/nowhere"]].concat()));
    assert!(!error(&[]).contains('\x1b'), "not a terminal");
    assert!(error(&["--color", "always"]).contains('\x1b'));
    assert!(!error(&["--color", "never"]).contains('\x1b'));
}

#[test]
fn damage_is_a_finding() {
    let store = store();
    assert_eq!(pfs(&["check", "--data", store.path.to_str().unwrap()]).status.code(), Some(0));
    let (rootfs, _) = common::image_of(&store, "app");
    fs::write(store.blob(&rootfs), "damage").unwrap();
    let output = pfs(&["check", store.path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stdout(&output).contains("damage: tag app -> "), "{}", stdout(&output));
    let gc = pfs(&["gc", store.path.to_str().unwrap()]);
    assert_eq!(gc.status.code(), Some(14), "{}", stderr(&gc));
    assert!(stderr(&gc).contains("nothing was freed") && stderr(&gc).contains("tag app"), "{}", stderr(&gc));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let store = store();
    let line = format!("{} ls {} | true", env!("CARGO_BIN_EXE_pfs"), store.path.display());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(stderr(&output), "");
}
