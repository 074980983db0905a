//! Makes a store of many images for measuring.
//!
//! `make-synthetic-store DIR [IMAGES [CHUNKS [BLOBS]]]`: by default 2,000 images of 5,000 chunks each, 300,000 blobs in
//! all.

#[path = "fixtures/synthetic.rs"]
mod synthetic;

use std::{path::Path, process::ExitCode};

use synthetic::{Failure, Shape};

fn main() -> ExitCode {
    match make() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("make-synthetic-store: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn make() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let store = arguments.next().ok_or("which directory?")?;
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let shape = Shape { images: number(2000)?, chunks: number(5000)?, blobs: number(300_000)? };
    shape.write(Path::new(&store))
}
