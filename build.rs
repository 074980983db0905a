//! Generates the Cap'n Proto readers and builders from the committed code generator request.
//!
//! The request is what `capnp compile -o-` printed for `schema/metadata.capnp`, so building needs no `capnp` tool.

use std::{env, fs::File, io::BufReader};

const REQUEST: &str = "schema/metadata.capnp.bin";

fn main() {
    println!("cargo::rerun-if-changed={REQUEST}");
    println!("cargo::rerun-if-changed=build.rs");
    let out_dir = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let request = File::open(REQUEST).expect("the committed code generator request is in the source tree");
    capnpc::codegen::CodeGenerationCommand::new()
        .output_directory(out_dir)
        .default_parent_module(vec!["format".into(), "wire".into()])
        .run(BufReader::new(request))
        .expect("the committed request is one that this capnpc understands");
}
