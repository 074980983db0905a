//! What goes to stdout: tables for people, one JSON document for machines.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use pfs::name::ByteCount;
use serde::Serialize;

use super::failure::Failure;

/// Prints lines for people. A reader that has gone away, as in `pfs ls | head -1`, is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|cause| Failure::failed(format!("cannot write to stdout: {cause}"))),
    }
}

/// Prints one document for machines.
pub fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(document).expect("documents have only texts, numbers and lists");
    print(&(json + "\n"))
}

/// A table without lines, with the numbers to the right.
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_string()).collect();
    lines.join("\n") + "\n"
}

pub fn bytes(count: u64) -> String {
    ByteCount(count).to_string()
}

/// How long ago, in the one or two units that matter.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// RFC 3339, to the second.
pub fn timestamp(seconds: i64) -> Option<String> {
    jiff::Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

/// `1 blob`, `2 blobs`, `2 entries`, `2 processes`.
pub fn count(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix(['y', 's'])) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) if noun.ends_with("ry") => format!("{number} {stem}ies"),
        (_, Some(_)) if noun.ends_with("ss") => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

/// That there were processes nobody could look into: they may use the store.
pub fn unreadable_line(processes: u64) -> String {
    match processes {
        0 => String::new(),
        1 => "note: 1 process could not be looked into; it may use this store\n".into(),
        number => format!("note: {number} processes could not be looked into; they may use this store\n"),
    }
}
