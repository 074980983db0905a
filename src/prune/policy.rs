//! The rules: one verdict for each entry, decided in one place.

use crate::name::{Glob, Tag};

/// What is to be kept, and what is to be reached. Without a rule only dangling entries go.
#[derive(Debug, Clone, Default)]
pub struct PrunePolicy {
    /// Keep so many tags, the newest.
    pub keep_last: Option<usize>,
    /// Keep the tags whose manifest came into the store within so many seconds.
    pub keep_within_seconds: Option<u64>,
    /// Keep the tags that fit one of these.
    pub keep_tags: Vec<Glob>,
    /// Keep the tags that were set after this time, in nanoseconds since 1970: when the run began.
    pub begun_nanoseconds: Option<i64>,
    /// Of those that no rule keeps, let go only as many as it takes to free so many bytes.
    pub free_bytes: Option<u64>,
}

/// What is to become of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PruneVerdict {
    /// It stays.
    Keep(KeepReason),
    /// It goes.
    Go(GoReason),
}

/// Why an entry stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// It is mounted.
    Mounted,
    /// It is pinned.
    Pinned,
    /// Its tag stands for several manifests, so a person must say which.
    Ambiguous,
    /// It has no tag and is not dangling: something with a name has it.
    NoTag,
    /// Its tag fits this.
    Tag(Glob),
    /// It is among the newest.
    Last,
    /// It is not old enough.
    Within,
    /// Its tag was set after the run had begun.
    SetMeanwhile,
    /// No rule asks for any tag to go.
    NoRule,
    /// Enough falls free without it.
    Enough,
    /// To free enough, it would have to go with others that stay.
    FreesNothing,
}

/// Why an entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoReason {
    /// It has no name, is in no index that has one, and is neither mounted nor pinned.
    Dangling,
    /// No rule keeps it.
    NotKept,
    /// It frees most, or is the oldest of those that free as much.
    Frees,
}

/// The facts of an entry.
pub(super) struct Entry {
    pub tag: Option<Tag>,
    pub digest: String,
    pub node: usize,
    pub created_seconds: Option<i64>,
    pub set_nanoseconds: Option<i64>,
    pub is_dangling: bool,
    pub is_mounted: bool,
    pub is_pinned: bool,
    pub is_ambiguous: bool,
}

impl PrunePolicy {
    /// The verdicts, in the order of the entries. Where bytes are to be freed, what no rule keeps is `Keep(Enough)` until it
    /// is chosen.
    pub(super) fn decide(&self, entries: &[Entry], now_seconds: i64) -> Vec<PruneVerdict> {
        let ranks = ranks(entries);
        entries.iter().zip(ranks).map(|(entry, rank)| self.verdict(entry, rank, now_seconds)).collect()
    }

    fn verdict(&self, entry: &Entry, rank: usize, now_seconds: i64) -> PruneVerdict {
        use PruneVerdict::{Go, Keep};
        let Some(tag) = &entry.tag else {
            return if entry.is_dangling { Go(GoReason::Dangling) } else { Keep(KeepReason::NoTag) };
        };
        let glob = self.keep_tags.iter().find(|glob| glob.matches(tag.as_str()));
        match () {
            () if entry.is_mounted => Keep(KeepReason::Mounted),
            () if entry.is_pinned => Keep(KeepReason::Pinned),
            () if entry.is_ambiguous => Keep(KeepReason::Ambiguous),
            () if glob.is_some() => Keep(KeepReason::Tag(glob.cloned().expect("it was just found"))),
            () if self.keep_last.is_some_and(|last| rank < last) => Keep(KeepReason::Last),
            () if self.is_within(entry, now_seconds) => Keep(KeepReason::Within),
            () if entry.set_nanoseconds > self.begun_nanoseconds.or(entry.set_nanoseconds) => {
                Keep(KeepReason::SetMeanwhile)
            }
            () if self.free_bytes.is_some() => Keep(KeepReason::Enough),
            () if self.keep_last.is_some() || self.keep_within_seconds.is_some() => Go(GoReason::NotKept),
            () => Keep(KeepReason::NoRule),
        }
    }

    /// What has no known age is young, and so is what comes from the future.
    fn is_within(&self, entry: &Entry, now_seconds: i64) -> bool {
        let Some(within) = self.keep_within_seconds else { return false };
        let age = entry.created_seconds.map(|created| now_seconds.saturating_sub(created));
        age.is_none_or(|age| u64::try_from(age).unwrap_or(0) <= within)
    }
}

/// For each entry, how many tags are newer. Of two of one age, the later one in the index is newer.
fn ranks(entries: &[Entry]) -> Vec<usize> {
    let mut newest: Vec<usize> = (0..entries.len()).filter(|at| entries[*at].tag.is_some()).collect();
    newest.sort_by_key(|at| (entries[*at].created_seconds.unwrap_or(i64::MAX), *at));
    let mut ranks = vec![usize::MAX; entries.len()];
    newest.iter().rev().enumerate().for_each(|(rank, at)| ranks[*at] = rank);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: &str, created: i64) -> Entry {
        Entry {
            tag: (!tag.is_empty()).then(|| tag.parse().unwrap()),
            digest: String::new(),
            node: 0,
            created_seconds: Some(created),
            set_nanoseconds: Some(created * 1_000_000_000),
            is_dangling: tag.is_empty(),
            is_mounted: tag == "mounted",
            is_pinned: tag == "pinned",
            is_ambiguous: tag == "twice",
        }
    }

    /// The tags that go, of six that are 600 to 100 seconds old.
    fn going(policy: &PrunePolicy) -> Vec<String> {
        let tags = ["", "mounted", "pinned", "twice", "app-1", "app-2"];
        let entries: Vec<_> = (0..).zip(tags).map(|(at, tag)| entry(tag, 400 + at * 100)).collect();
        let verdicts = policy.decide(&entries, 1000);
        let goes = entries.iter().zip(verdicts).filter(|(_, verdict)| matches!(verdict, PruneVerdict::Go(_)));
        goes.map(|(entry, _)| entry.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string)).collect()
    }

    #[test]
    fn without_a_rule_only_dangling_entries_go() {
        assert_eq!(going(&PrunePolicy::default()), ["<none>"]);
        let only_tags = PrunePolicy { keep_tags: vec!["x".parse().unwrap()], ..PrunePolicy::default() };
        assert_eq!(going(&only_tags), ["<none>"]);
    }

    #[test]
    fn what_a_rule_keeps_stays_and_what_is_in_use_stays_anyway() {
        let last = |keep_last| PrunePolicy { keep_last: Some(keep_last), ..PrunePolicy::default() };
        assert_eq!(going(&last(0)), ["<none>", "app-1", "app-2"]);
        assert_eq!(going(&last(1)), ["<none>", "app-1"]);
        assert_eq!(going(&last(2)), ["<none>"]);
        let within = |seconds| PrunePolicy { keep_within_seconds: Some(seconds), ..PrunePolicy::default() };
        assert_eq!(going(&within(99)), ["<none>", "app-1", "app-2"]);
        assert_eq!(going(&within(100)), ["<none>", "app-1"]);
        let begun = PrunePolicy { begun_nanoseconds: Some(850_000_000_000), ..last(0) };
        assert_eq!(going(&begun), ["<none>", "app-1"], "what was set after the run had begun stays");
        let tags = PrunePolicy { keep_tags: vec!["*-2".parse().unwrap()], ..last(0) };
        assert_eq!(going(&tags), ["<none>", "app-1"]);
    }
}
