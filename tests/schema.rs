//! The compiled schema is that of the schema, wherever the tool that compiles it is installed.

use std::{fs, process::Command};

#[test]
fn the_compiled_request_is_that_of_the_schema() {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/schema");
    let compiled = Command::new("capnp").args(["compile", "-o-", "metadata.capnp"]).current_dir(schema).output();
    let Ok(compiled) = compiled else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "missing: capnp");
        eprintln!("SKIPPED, missing: capnp");
        return;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let committed = fs::read(format!("{schema}/metadata.capnp.bin")).unwrap();
    assert_eq!(code(&compiled.stdout), code(&committed), "run scripts/regenerate-schema");
}

/// What the request makes, as text. The request itself also has the version of the tool in it.
fn code(request: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = capnpc::codegen::CodeGenerationCommand::new();
    command.output_directory(dir.path()).run(request).unwrap();
    let text = fs::read_to_string(dir.path().join("metadata_capnp.rs")).unwrap();
    text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n")
}
