//! Does one act a number of times, for counting instructions: two runs of different numbers differ by what the acts take.
//!
//! ```text
//! one-act                 the names of the acts that can be counted
//! one-act NAME TIMES
//! ```

mod fixtures;

use std::{error::Error, process::ExitCode};

use fixtures::{ACTS, Act};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("one-act: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        ACTS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let times: u64 = arguments.next().ok_or("how often?")?.parse()?;
    let (_, prepare) = ACTS.iter().find(|(known, _)| *known == name).ok_or("there is no such act")?;
    match prepare() {
        Act::Again(mut act) => (0..times).for_each(|_| act()),
        Act::Afresh(mut fresh) => (0..times).for_each(|_| drop(fresh()())),
    }
    Ok(())
}
