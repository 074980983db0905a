//! How long a condemned blob waits in quarantine: as long as something speaks for another writer.
//!
//! Another program may have looked whether a blob is there, found it, and not yet written the index that needs it. It takes
//! no lock of ours, so the only protection is time, and a way back.

use std::{fmt, path::PathBuf};

use crate::store::{ForeignTraces, ProcessEvidence};

/// How long to wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    #[default]
    /// Not at all if nothing speaks for another writer, else a day.
    Auto,
    /// This many seconds, whatever the evidence.
    Seconds(u64),
}

/// Something that speaks for another writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// A process that has the layout open, stands in it, or has it in its arguments.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
        /// How it is at the layout, as in "has it in its arguments".
        how: &'static str,
    },
    /// A file in the layout that neither belongs to it nor is ours.
    File(PathBuf),
    /// The index was written by another program, so many seconds ago.
    IndexWritten(u64),
    /// So many entries went out of the index without pfs.
    EntriesLost(u64),
    /// So many blobs that no index names are young: they may be an upload.
    YoungBlobs(u64),
    /// The store lies on a filesystem that others may use from other machines.
    Remote(&'static str),
    /// What could be a writer cannot be looked into, in words.
    CannotSee(String),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name, how } => write!(f, "process {pid} ({name}) {how}"),
            Self::File(path) => write!(f, "{} may be another program's temporary file", path.display()),
            Self::IndexWritten(age) => write!(f, "another program wrote index.json {age} s ago"),
            Self::EntriesLost(1) => write!(f, "1 entry of index.json is gone that pfs did not remove"),
            Self::EntriesLost(number) => write!(f, "{number} entries of index.json are gone that pfs did not remove"),
            Self::YoungBlobs(number) => write!(f, "{number} young blobs that no index names may be an upload"),
            Self::Remote(kind) => write!(f, "the store lies on {kind}, where other machines may write to it"),
            Self::CannotSee(what) => write!(f, "{what}"),
        }
    }
}

/// What `auto` waits when there is evidence.
pub const AUTO_SECONDS: u64 = 24 * 3600;
/// A temporary file that has not changed for a day is nobody's any more.
const FILE_SECONDS_MAX: u64 = 24 * 3600;
/// An index that was written by another program speaks for that program being at work for so long.
const INDEX_SECONDS_MAX: u64 = 3600;

impl Hold {
    /// The seconds that a condemned blob waits in the face of this evidence.
    pub fn seconds(self, evidence: &[Evidence]) -> u64 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Auto if evidence.is_empty() => 0,
            Self::Auto => AUTO_SECONDS,
        }
    }
}

/// What speaks for another writer at this time.
pub fn evidence(
    traces: &ForeignTraces,
    processes: &ProcessEvidence,
    young_blobs: u64,
    now_seconds: i64,
) -> Vec<Evidence> {
    let age = |seconds: i64| u64::try_from(now_seconds.saturating_sub(seconds)).unwrap_or(0);
    let at_layout = processes.processes.iter().filter_map(|process| {
        let how = process.at_layout?;
        Some(Evidence::Process { pid: process.pid, name: process.name.clone(), how })
    });
    let files = traces.files.iter().filter(|(_, seconds)| age(*seconds) < FILE_SECONDS_MAX);
    let index = traces.unknown_index_seconds.map(age).filter(|age| *age < INDEX_SECONDS_MAX);
    let mut evidence: Vec<Evidence> = at_layout.chain(files.map(|(path, _)| Evidence::File(path.clone()))).collect();
    evidence.extend(index.map(Evidence::IndexWritten));
    evidence.extend((traces.lost_entries > 0).then_some(Evidence::EntriesLost(traces.lost_entries)));
    evidence.extend((young_blobs > 0).then_some(Evidence::YoungBlobs(young_blobs)));
    evidence.extend(traces.remote_filesystem.map(Evidence::Remote));
    let many = "not every directory beside the store was looked at; a layout that uses its blobs could be among them";
    let unseen = traces.unseen_siblings.then(|| many.to_string());
    let unseen = processes.unseen_writers.iter().chain(&processes.hidden).cloned().chain(unseen);
    evidence.extend(unseen.map(Evidence::CannotSee));
    evidence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_held_where_nothing_speaks_for_another_writer() {
        let none = evidence(&ForeignTraces::default(), &ProcessEvidence::default(), 0, 1000);
        assert_eq!((none.len(), Hold::Auto.seconds(&none)), (0, 0));
    }

    #[test]
    fn old_traces_fade_and_young_ones_hold() {
        let traces = ForeignTraces {
            files: vec![("/s/.umoci-1".into(), 0)],
            unknown_index_seconds: Some(0),
            ..ForeignTraces::default()
        };
        let at = |now| evidence(&traces, &ProcessEvidence::default(), 0, now).len();
        assert_eq!((at(10), at(3600), at(86_400)), (2, 1, 0));
        assert_eq!(Hold::Auto.seconds(&[Evidence::IndexWritten(3)]), AUTO_SECONDS);
        assert_eq!(Hold::Seconds(0).seconds(&[Evidence::IndexWritten(3)]), 0);
    }
}
