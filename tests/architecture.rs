//! Reads `src/**` and fails when a sentence of "Layers" in the map of the house stops being true.

use std::{collections::BTreeSet, fs, path::Path};

/// The rooms by layer, the lowest first. A room may import rooms of lower layers; `observe` is open to all.
const LAYERS: [&[&str]; 7] = [
    &["name"],
    &["format", "codec"],
    &["store"],
    &["graph", "tree"],
    &["image", "gc", "fuse"],
    &["delete", "prune", "mount", "build", "extract", "check", "explain", "remote", "pin", "undo"],
    &["cli"],
];

/// Rooms whose values are made of bytes and arguments only.
const PURE: [&str; 4] = ["name", "format", "codec", "graph"];
/// What opens a file, reads a clock or looks at the environment.
const IMPURE: [&str; 12] = [
    "std::fs",
    "fs::read",
    "fs::write",
    "File::open",
    "std::env",
    "env::var",
    "env::args",
    "SystemTime",
    "Instant",
    "Timestamp::now",
    "Zoned::now",
    "std::process",
];
/// Methods of `store` through which a blob leaves.
const REMOVING: [&str; 3] = [".condemn(", ".purge(", ".remove_wrong_content("];
/// Words for what was left unfinished.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "XXX", "todo!", "unimplemented!"];

/// A file of the sources, as `room/file.rs`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// The room that the file is in: its directory, or its own name at the top.
    fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The lines of code, without comments and what is only compiled for tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().enumerate();
        lines.map(|(at, line)| (at + 1, without_comment(line))).filter(|(_, line)| !line.trim().is_empty())
    }

    /// One complaint for each line that `is_wrong`.
    fn complain<'s>(&'s self, why: &'s str, is_wrong: impl Fn(&str) -> bool + 's) -> impl Iterator<Item = String> + 's {
        let wrong = self.code().filter(move |(_, line)| is_wrong(line));
        wrong.map(move |(at, line)| format!("src/{}:{at}: {why}: {}", self.path, line.trim()))
    }
}

fn without_comment(line: &str) -> &str {
    match line.find("//") {
        // Two slashes in a text, as in a URL, begin no comment.
        Some(at) if line[..at].matches('"').count().is_multiple_of(2) => &line[..at],
        _ => line,
    }
}

fn layer_of(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

/// Whether a word stands in a line as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

/// The rooms that a file imports, with what it imports them for left away: `crate::room` wherever it stands, the
/// rooms in `use crate::{...}`, and from the binary `pfs::room`.
fn imports(source: &Source) -> BTreeSet<String> {
    let code: String = source.code().map(|(_, line)| line.to_owned() + "\n").collect();
    let prefix = if source.room() == "cli" || source.room() == "main" { "pfs::" } else { "crate::" };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        found.extend(heads(&code[at + prefix.len()..]));
    }
    found
}

/// The first names of what follows `crate::`: one, or one for each branch of a group in braces.
fn heads(rest: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut heads, mut branch) = (1, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => heads.push(std::mem::take(&mut branch)),
            _ => branch.push(c),
        }
        if depth == 0 {
            break;
        }
    }
    heads.push(branch);
    heads.iter().map(|branch| name(branch.trim())).filter(|head| !head.is_empty()).collect()
}

fn doors_open_downwards(source: &Source) -> Vec<String> {
    let room = source.room();
    if matches!(room, "lib" | "main") {
        return Vec::new();
    }
    let complaint = |why: String| format!("src/{}: {why}", source.path);
    if room == "observe" {
        return imports(source).iter().map(|to| complaint(format!("observe imports {to}"))).collect();
    }
    let Some(own) = layer_of(room) else { return vec![complaint(format!("no layer has the room {room}"))] };
    let others = imports(source).into_iter().filter(|to| to != room && to != "observe");
    others
        .filter(|to| layer_of(to).is_none_or(|layer| layer >= own))
        .map(|to| complaint(format!("{room} must not import {to}")))
        .collect()
}

fn pure_rooms_have_no_io(source: &Source) -> Vec<String> {
    if !PURE.contains(&source.room()) {
        return Vec::new();
    }
    source
        .complain("opens no file, reads no clock and no environment", |line| {
            IMPURE.iter().any(|word| has_word(line, word))
        })
        .collect()
}

fn generated_types_stay_in_wire(source: &Source) -> Vec<String> {
    if source.path == "format/wire.rs" {
        return Vec::new();
    }
    source
        .complain("only format::wire names Cap'n Proto", |line| has_word(line, "capnp") || line.contains("_capnp"))
        .collect()
}

fn fuser_stays_in_fuse(source: &Source) -> Vec<String> {
    if source.room() == "fuse" {
        return Vec::new();
    }
    source.complain("only fuse names fuser", |line| has_word(line, "fuser")).collect()
}

fn only_cli_speaks(source: &Source) -> Vec<String> {
    if matches!(source.room(), "cli" | "main") {
        return Vec::new();
    }
    const SPEECH: [&str; 8] =
        ["clap", "println!", "eprintln!", "print!", "eprint!", "dbg!", "ExitCode", "process::exit"];
    source
        .complain("only cli prints or picks exit codes", |line| SPEECH.iter().any(|word| has_word(line, word)))
        .collect()
}

fn only_store_opens_stores(source: &Source) -> Vec<String> {
    if !matches!(source.room(), "gc" | "delete" | "prune" | "check" | "explain" | "tree") {
        return Vec::new();
    }
    const OPENING: [&str; 5] = ["std::fs", "fs::", "File::open", "OpenOptions", "remove_file"];
    source
        .complain("only store touches a store's disk", |line| OPENING.iter().any(|word| has_word(line, word)))
        .collect()
}

fn blobs_leave_only_through_gc(source: &Source) -> Vec<String> {
    if matches!(source.room(), "gc" | "check" | "store") {
        return Vec::new();
    }
    source.complain("only gc and check remove blobs", |line| REMOVING.iter().any(|call| line.contains(call))).collect()
}

fn only_remote_opens_sockets(source: &Source) -> Vec<String> {
    if source.room() == "remote" {
        return Vec::new();
    }
    const SOCKETS: [&str; 5] = ["std::net", "TcpStream", "UdpSocket", "UnixStream", "ureq"];
    source.complain("only remote opens sockets", |line| SOCKETS.iter().any(|word| has_word(line, word))).collect()
}

fn nothing_is_unsafe(source: &Source) -> Vec<String> {
    source.complain("unsafe", |line| has_word(line, "unsafe")).collect()
}

/// Comments count here.
fn nothing_is_unfinished(source: &Source) -> Vec<String> {
    let lines = source.text.lines().enumerate();
    let wrong = lines.filter(|(_, line)| UNFINISHED.iter().any(|word| line.contains(word)));
    wrong.map(|(at, line)| format!("src/{}:{}: unfinished: {}", source.path, at + 1, line.trim())).collect()
}

type Rule = fn(&Source) -> Vec<String>;

/// Every rule with a file that breaks it.
const RULES: [(&str, Rule, &str, &str); 17] = [
    ("doors open downwards", doors_open_downwards, "store/x.rs", "use crate::graph::walk;\n"),
    ("rooms of one layer are strangers", doors_open_downwards, "format/x.rs", "use crate::{name::Tag, codec};\n"),
    ("a path in the code is an import", doors_open_downwards, "gc/x.rs", "fn f() { crate::delete::f() }\n"),
    ("an act does not call an act", doors_open_downwards, "delete/x.rs", "use crate::{\n    check::{check},\n};\n"),
    ("nobody imports cli", doors_open_downwards, "build/x.rs", "use crate::cli::output;\n"),
    ("observe imports nothing", doors_open_downwards, "observe.rs", "use crate::store::Store;\n"),
    ("every room has a layer", doors_open_downwards, "cellar/mod.rs", "\n"),
    ("pure rooms open no file", pure_rooms_have_no_io, "format/x.rs", "use std::fs;\n"),
    ("pure rooms read no clock", pure_rooms_have_no_io, "graph/x.rs", "let now = jiff::Timestamp::now();\n"),
    ("generated types stay in wire", generated_types_stay_in_wire, "tree/x.rs", "use crate::metadata_capnp::rootfs;\n"),
    ("fuser stays in fuse", fuser_stays_in_fuse, "mount/x.rs", "use fuser::Session;\n"),
    ("only cli speaks", only_cli_speaks, "gc/x.rs", "fn f() { println!(\"freed\"); }\n"),
    ("only store opens stores", only_store_opens_stores, "delete/x.rs", "std::fs::remove_file(path)?;\n"),
    ("blobs leave only through gc", blobs_leave_only_through_gc, "delete/x.rs", "store.purge(&guard, &blob)?;\n"),
    ("only remote opens sockets", only_remote_opens_sockets, "build/x.rs", "use std::net::TcpStream;\n"),
    ("nothing is unsafe", nothing_is_unsafe, "store/x.rs", "unsafe { zeroed() }\n"),
    ("nothing is unfinished", nothing_is_unfinished, "store/x.rs", "// TO\u{44}O: later\n"),
];

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().map(Result::unwrap);
    let rust = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "rs"));
    rust.map(|file| {
        let path = file.path().strip_prefix(&root).unwrap().to_str().unwrap();
        Source::new(path, &fs::read_to_string(file.path()).unwrap())
    })
    .collect()
}

#[test]
fn the_house_is_as_the_map_has_it() {
    let sources = sources();
    assert!(sources.len() > 50, "the sources are found");
    let complaints: Vec<_> = RULES
        .iter()
        .flat_map(|(_, rule, ..)| sources.iter().flat_map(rule))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_rule_notices_who_breaks_it() {
    for (name, rule, path, text) in RULES {
        assert_eq!(rule(&Source::new(path, text)).len(), 1, "{name}: {text}");
    }
}

#[test]
fn rules_let_pass_what_is_allowed() {
    let fine = [
        ("delete/x.rs", "use crate::{\n    gc::{self, Facts},\n    name::Digest,\n    observe::Observer,\n};\n"),
        ("cli/x.rs", "use pfs::delete::DeletePlan;\nfn f() { println!(\"https://x\"); }\n"),
        ("format/wire.rs", "use capnp::message;\n"),
        ("gc/x.rs", "self.store.purge(&guard, blob)?;\n"),
        (
            "graph/x.rs",
            "// reads no std::fs\nuse crate::store::Store;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n",
        ),
    ];
    for (path, text) in fine {
        let complaints: Vec<_> = RULES.iter().flat_map(|(_, rule, ..)| rule(&Source::new(path, text))).collect();
        assert_eq!(complaints, [""; 0], "{path}");
    }
}
