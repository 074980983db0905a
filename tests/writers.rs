//! Two more models, and every schedule of them: publishers of one index beside other programs, and a collector beside writers
//! and mounts that take no lock. `tests/protocol.rs` has the locks and leases of pfs itself.
//!
//! Each remedy can be left out; the search then has to find what goes wrong, which shows that it can.

use std::{collections::HashSet, hash::Hash};

/// Looks at every state that can be reached. Gives how many there are, or the steps to one in which something is wrong.
fn explore<S: Copy + Eq + Hash>(
    start: S,
    steps: impl Fn(&S) -> Vec<(&'static str, S)>,
    problem: impl Fn(&S) -> Option<&'static str>,
) -> Result<usize, Vec<&'static str>> {
    let mut seen = HashSet::from([start]);
    let mut open = vec![(steps(&start), None)];
    while let Some((left, _)) = open.last_mut() {
        let Some((what, state)) = left.pop() else {
            open.pop();
            continue;
        };
        if let Some(problem) = problem(&state) {
            return Err(open.iter().filter_map(|(_, what)| *what).chain([what, problem]).collect());
        }
        if seen.insert(state) {
            open.push((steps(&state), Some(what)));
        }
    }
    Ok(seen.len())
}

#[track_caller]
fn assert_sound(found: Result<usize, Vec<&'static str>>, states_min: usize) {
    match found {
        Ok(states) => assert!(states >= states_min, "the model does too little: {states} states"),
        Err(way) => panic!("{way:#?}"),
    }
}

#[track_caller]
fn assert_breaks(found: Result<usize, Vec<&'static str>>, problem: &str) {
    let way = found.expect_err("the search has not seen what this remedy is for");
    assert_eq!(way.last(), Some(&problem), "{way:#?}");
}

/// `publish` in `src/store/index.rs`, `swap_index` and `restore_lost_entries` in `src/store/index_swap.rs`.
mod publishers {
    use super::{assert_breaks, assert_sound, explore};

    /// Tags of an index: a bit for each publisher, then one for each edit of other programs.
    type Tags = u8;
    const PUBLISHERS: usize = 3;
    const FOREIGN: [Tags; 2] = [1 << 3, 1 << 4];

    #[derive(Clone, Copy)]
    struct Rules {
        /// Publishers take turns.
        turns: bool,
        /// What the exchange has brought out is compared with what was edited, and put back if it is something else.
        compares: bool,
        /// What cannot go back, or was left by a publisher that was killed, is restored by the next one.
        restores: bool,
    }

    const RULES: Rules = Rules { turns: true, compares: true, restores: true };

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Step {
        Wait,
        Read,
        Check(Tags),
        Exchange(Tags),
        Compare { before: Tags, out: Tags },
        Back { before: Tags, out: Tags },
        BackAgain { out: Tags },
        Told,
        Killed,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    struct State {
        index: Tags,
        publishers: [Step; PUBLISHERS],
        holder: Option<usize>,
        /// Texts that were left aside.
        lost: [Option<Tags>; 3],
        foreign: Tags,
        kills: u8,
    }

    const START: State =
        State { index: 0, publishers: [Step::Wait; PUBLISHERS], holder: None, lost: [None; 3], foreign: 0, kills: 1 };

    fn own(publisher: usize) -> Tags {
        1 << publisher
    }

    impl State {
        fn leave_aside(&mut self, text: Tags) {
            if let Some(free) = self.lost.iter_mut().find(|lost| lost.is_none()) {
                *free = Some(text);
            }
        }

        fn publish(&self, rules: &Rules, at: usize) -> Option<(&'static str, Self)> {
            let mut next = *self;
            let (what, step) = match self.publishers[at] {
                Step::Wait if rules.turns && self.holder.is_some() => return None,
                Step::Wait => {
                    next.holder = Some(at);
                    ("a publisher has its turn", Step::Read)
                }
                Step::Read => {
                    for lost in next.lost.iter_mut().filter(|_| rules.restores) {
                        next.index |= lost.take().unwrap_or(0);
                    }
                    ("a publisher restores what was lost, and reads", Step::Check(next.index))
                }
                Step::Check(before) if before != self.index => ("a publisher finds another index", Step::Read),
                Step::Check(before) => ("a publisher finds the same index", Step::Exchange(before)),
                Step::Exchange(before) => {
                    next.index = before | own(at);
                    ("a publisher exchanges the index", Step::Compare { before, out: self.index })
                }
                Step::Compare { before, out } if out == before || !rules.compares => {
                    next.holder = None;
                    ("a publisher tells that it has published", Step::Told)
                }
                Step::Compare { before, out } => {
                    next.index = out;
                    ("a publisher puts another program's index back", Step::Back { before, out: self.index })
                }
                Step::Back { before, out } if out == before | own(at) => ("it was its own that came out", Step::Read),
                Step::Back { out, .. } => {
                    next.index = out;
                    ("a newer one came out and goes back", Step::BackAgain { out: self.index })
                }
                Step::BackAgain { out } => {
                    if rules.restores {
                        next.leave_aside(out);
                    }
                    ("the older one stays aside", Step::Read)
                }
                Step::Told | Step::Killed => return None,
            };
            next.publishers[at] = step;
            Some((what, next))
        }

        /// The kernel takes the turn back. What had been exchanged lies aside under the name of what was staged.
        fn kill(&self, rules: &Rules, at: usize) -> Option<(&'static str, Self)> {
            let mut next = *self;
            match self.publishers[at] {
                Step::Told | Step::Killed | Step::Wait => return None,
                Step::Compare { before, out } if out != before && rules.restores => next.leave_aside(out),
                Step::Back { before, out } if out != before | own(at) && rules.restores => next.leave_aside(out),
                Step::BackAgain { out } if rules.restores => next.leave_aside(out),
                _ => {}
            }
            (next.publishers[at], next.holder, next.kills) = (Step::Killed, None, self.kills.checked_sub(1)?);
            Some(("a publisher is killed", next))
        }

        fn steps(&self, rules: &Rules) -> Vec<(&'static str, Self)> {
            let publish = (0..PUBLISHERS).filter_map(|at| self.publish(rules, at));
            let kill = (0..PUBLISHERS).filter_map(|at| self.kill(rules, at));
            let foreign = FOREIGN.into_iter().filter(|tag| self.foreign & tag == 0).map(|tag| {
                let next = Self { index: self.index | tag, foreign: self.foreign | tag, ..*self };
                ("another program adds a tag", next)
            });
            publish.chain(kill).chain(foreign).collect()
        }

        /// Judged when nobody is in the middle of it.
        fn problem(&self) -> Option<&'static str> {
            if !self.publishers.iter().all(|step| matches!(step, Step::Told | Step::Killed | Step::Wait)) {
                return None;
            }
            let kept = self.lost.iter().flatten().fold(self.index, |all, lost| all | lost);
            let told = (0..PUBLISHERS).filter(|at| self.publishers[*at] == Step::Told).map(own).sum::<Tags>();
            match () {
                () if told & !self.index != 0 => Some(TOLD),
                () if self.foreign & !kept != 0 => Some(FOREIGN_LOST),
                () => None,
            }
        }
    }

    const TOLD: &str = "a tag that somebody was told of is not there";
    const FOREIGN_LOST: &str = "another program's tag is in no text any more";

    fn search(rules: Rules) -> Result<usize, Vec<&'static str>> {
        explore(START, |state| state.steps(&rules), State::problem)
    }

    #[test]
    fn no_schedule_of_publishers_loses_a_tag() {
        assert_sound(search(RULES), 1000);
    }

    #[test]
    fn publishers_that_do_not_take_turns_lose_tags() {
        assert_breaks(search(Rules { turns: false, ..RULES }), TOLD);
    }

    #[test]
    fn a_publisher_that_does_not_compare_loses_other_tags() {
        assert_breaks(search(Rules { compares: false, ..RULES }), FOREIGN_LOST);
    }

    #[test]
    fn a_text_left_aside_and_not_restored_is_lost() {
        assert_breaks(search(Rules { restores: false, ..RULES }), FOREIGN_LOST);
    }
}

/// `apply` in `src/gc/apply.rs`: condemn, take the evidence again, compare the index, purge; `Facts::is_released`;
/// `seconds_left` in `src/gc/plan.rs`; liveness in `src/store/lease.rs`. One blob, which an image needed that has been deleted.
mod collector {
    use super::{assert_breaks, assert_sound, explore};

    #[derive(Clone, Copy)]
    struct Rules {
        /// The evidence of writers is taken again after condemning.
        looks_again: bool,
        /// The index is compared after the evidence, not before it.
        compares_last: bool,
        /// A released blob whose file was written since is an upload.
        released_by_time: bool,
        /// A live process is evidence of its mount where the lease is gone.
        process_is_evidence: bool,
        /// The deadline of a quarantine is that of the run that condemned.
        deadline_stays: bool,
    }

    const RULES: Rules = Rules {
        looks_again: true,
        compares_last: true,
        released_by_time: true,
        process_is_evidence: true,
        deadline_stays: true,
    };

    /// Another program that publishes an image which needs the blob.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Writer {
        Away,
        Started,
        /// It has seen the blob, or written it.
        Relies,
        Published,
        Ended,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Place {
        Stored,
        Quarantined,
        Freed,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Collector {
        Mark,
        Evidence,
        Condemn,
        First,
        Second,
        Purge,
        Done,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    struct State {
        blob: Place,
        /// The file was written after the last index that named it.
        rewritten: bool,
        writer: Writer,
        /// Its processes cannot be seen; it writes every blob itself.
        is_unseen: bool,
        is_mounted: bool,
        has_lease: bool,
        collector: Collector,
        rounds: u8,
        is_needed: bool,
        sees_writer: bool,
        /// Whether the run found the index as it was when it marked.
        is_current: bool,
        marked_index: bool,
        /// Hours until the quarantine ends, and what the present run would say.
        left: u8,
        wish: u8,
        purged_early: bool,
    }

    fn start(is_unseen: bool, is_mounted: bool, wish: u8) -> State {
        State {
            blob: Place::Stored,
            rewritten: false,
            writer: Writer::Away,
            is_unseen,
            is_mounted,
            has_lease: is_mounted,
            collector: Collector::Mark,
            rounds: 3,
            is_needed: false,
            sees_writer: false,
            is_current: true,
            marked_index: false,
            left: 0,
            wish,
            purged_early: false,
        }
    }

    impl State {
        fn is_in_index(&self) -> bool {
            matches!(self.writer, Writer::Published | Writer::Ended)
        }

        fn is_seen(&self) -> bool {
            !self.is_unseen && matches!(self.writer, Writer::Started | Writer::Relies | Writer::Published)
        }

        fn write(&self) -> Option<(&'static str, Self)> {
            let mut next = *self;
            let (what, writer) = match self.writer {
                Writer::Away => ("a writer starts", Writer::Started),
                Writer::Started if self.is_unseen || self.blob != Place::Stored => {
                    (next.blob, next.rewritten) = (Place::Stored, true);
                    ("the writer uploads the blob", Writer::Relies)
                }
                Writer::Started => ("the writer sees the blob", Writer::Relies),
                Writer::Relies => ("the writer writes its index", Writer::Published),
                Writer::Published => ("the writer ends", Writer::Ended),
                Writer::Ended => return None,
            };
            next.writer = writer;
            Some((what, next))
        }

        fn holds(&self, rules: &Rules) -> bool {
            self.is_mounted && (self.has_lease || rules.process_is_evidence)
        }

        fn collect(&self, rules: &Rules) -> Option<(&'static str, Self)> {
            let mut next = *self;
            let (what, collector) = match self.collector {
                Collector::Mark => {
                    next.marked_index = self.is_in_index();
                    next.is_needed = self.is_in_index() || self.holds(rules);
                    ("the collector marks", Collector::Evidence)
                }
                Collector::Evidence => {
                    next.sees_writer = self.is_seen();
                    ("the collector looks for writers", Collector::Condemn)
                }
                Collector::Condemn => {
                    let is_young = self.rewritten && rules.released_by_time;
                    if !self.is_needed && self.blob == Place::Stored && !is_young && self.index_is_marked() {
                        next.blob = Place::Quarantined;
                        next.left = if self.sees_writer { 2 } else { self.wish };
                    }
                    ("the collector condemns", Collector::First)
                }
                Collector::First | Collector::Second => {
                    let is_look = (self.collector == Collector::First) == rules.compares_last;
                    if is_look && rules.looks_again {
                        next.sees_writer |= self.is_seen();
                    }
                    if !is_look {
                        next.is_current = self.index_is_marked();
                    }
                    let after = if self.collector == Collector::First { Collector::Second } else { Collector::Purge };
                    (if is_look { "the collector looks again" } else { "the collector compares" }, after)
                }
                Collector::Purge => {
                    next.purge(rules);
                    (next.rounds, next.is_current, next.sees_writer) = (self.rounds - 1, true, false);
                    // The runs after the first have no wish of their own.
                    next.wish = 0;
                    ("the collector purges", if next.rounds == 0 { Collector::Done } else { Collector::Mark })
                }
                Collector::Done => return None,
            };
            next.collector = collector;
            Some((what, next))
        }

        fn index_is_marked(&self) -> bool {
            self.marked_index == self.is_in_index()
        }

        fn purge(&mut self, rules: &Rules) {
            if self.blob != Place::Quarantined {
                return;
            }
            let left = if rules.deadline_stays { self.left } else { self.wish };
            match () {
                // The index changed: the run marks again, and finds what is needed.
                () if !self.is_current => self.blob = if self.is_in_index() { Place::Stored } else { self.blob },
                () if self.is_needed => self.blob = Place::Stored,
                () if self.sees_writer => self.left = self.left.max(2),
                () if left == 0 => {
                    self.purged_early = self.left > 0;
                    self.blob = Place::Freed;
                }
                () => {}
            }
        }

        fn steps(&self, rules: &Rules) -> Vec<(&'static str, Self)> {
            let mut steps: Vec<_> = self.write().into_iter().chain(self.collect(rules)).collect();
            if self.has_lease {
                steps.push(("somebody removes the lease", Self { has_lease: false, ..*self }));
            }
            if self.left > 0 {
                steps.push(("an hour goes by", Self { left: self.left - 1, ..*self }));
            }
            steps
        }

        fn problem(&self) -> Option<&'static str> {
            match () {
                () if self.is_in_index() && self.blob == Place::Freed => Some(LOST),
                () if self.is_mounted && self.blob == Place::Freed => Some(UNREADABLE),
                () if self.purged_early => Some(EARLY),
                () => None,
            }
        }
    }

    const LOST: &str = "a published image has lost a blob";
    const UNREADABLE: &str = "a mounted image cannot be read";
    const EARLY: &str = "a quarantine ended before its time";

    fn search(rules: Rules, start: State) -> Result<usize, Vec<&'static str>> {
        explore(start, |state| state.steps(&rules), State::problem)
    }

    #[test]
    fn no_schedule_frees_what_a_writer_or_a_mount_needs() {
        for (is_unseen, is_mounted, wish) in [(false, false, 0), (true, false, 0), (false, true, 0), (false, false, 3)]
        {
            // A writer that cannot be seen is safe only as long as it writes its blobs itself.
            assert_sound(search(RULES, start(is_unseen, is_mounted, wish)), 40);
        }
    }

    #[test]
    fn evidence_taken_once_loses() {
        assert_breaks(search(Rules { looks_again: false, ..RULES }, start(false, false, 0)), LOST);
    }

    #[test]
    fn an_index_compared_before_the_evidence_loses() {
        assert_breaks(search(Rules { compares_last: false, ..RULES }, start(false, false, 0)), LOST);
    }

    #[test]
    fn released_whatever_the_time_of_the_file_loses() {
        assert_breaks(search(Rules { released_by_time: false, ..RULES }, start(true, false, 0)), LOST);
    }

    #[test]
    fn a_lease_that_is_gone_is_no_proof_of_death() {
        assert_breaks(search(Rules { process_is_evidence: false, ..RULES }, start(false, true, 0)), UNREADABLE);
    }

    #[test]
    fn a_later_run_must_not_shorten_a_quarantine() {
        assert_breaks(search(Rules { deadline_stays: false, ..RULES }, start(false, false, 3)), EARLY);
    }
}
