//! The protocol as a small model, and every schedule of it.
//!
//! Three blobs and two images: `OLD` needs blobs 0 and 1 and is tagged, `NEW` needs 0 and 2 and is being built, 2 being garbage
//! that lies there already. Somebody deletes `OLD` unless it is mounted, another program may bring its entry back, somebody
//! mounts one of them, and a collector runs twice, with an age and a hold of zero. Every process may be killed between any two steps.
//!
//! The steps are those of the code, one for each moment at which others can come between:
//! `BuildSession::put` and `publish` in `src/store/build_session.rs`, `lease_and_load` in `src/mount/serve.rs`,
//! `DeletePlan::untag` in `src/delete/mod.rs` and `remove_entries` in `src/store/index.rs`, `Marks::gather` and `are_current` in `src/gc/facts.rs`, and `Run` in
//! `src/gc/apply.rs`, with a batch of one blob. Each rule of the protocol can be left out; the search then has to find what
//! goes wrong, which shows that it can.

use std::collections::HashSet;

type Blobs = u8;
const BLOBS: [Blobs; 3] = [1, 2, 4];
const NEEDS: [Blobs; 2] = [0b011, 0b101];
const OLD: u8 = 0;
const NEW: u8 = 1;

/// The rules of the protocol.
#[derive(Clone, Copy)]
struct Rules {
    /// A builder looks again whether a blob is there when it has claimed it.
    looks_after_claim: bool,
    /// A collector compares the marks with index and leases before each blob goes for good.
    remarks_before_purge: bool,
    /// The same, before each blob goes to quarantine.
    remarks_before_condemn: bool,
    /// A collector holds the lock while it compares and acts.
    locks_batches: bool,
    /// A mount takes its lease before it looks at the index, all of it under the lock.
    leases_before_index: bool,
    /// A condemned blob goes to quarantine, not for good.
    quarantines: bool,
    /// A builder claims what it staged, and holds the lock until that is revealed.
    claims_staged: bool,
    /// A deleter compares the index with the one that it prepared the change of.
    compares_before_swap: bool,
    /// A deleter looks at the leases again when it has the lock.
    looks_at_leases_under_lock: bool,
}

const RULES: Rules = Rules {
    looks_after_claim: true,
    remarks_before_purge: true,
    remarks_before_condemn: true,
    locks_batches: true,
    leases_before_index: true,
    quarantines: true,
    claims_staged: true,
    compares_before_swap: true,
    looks_at_leases_under_lock: true,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Lease {
    None,
    /// Taken, and it does not say yet for what.
    Pending,
    Of(u8),
}

/// What the marks of a collector were derived from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Stamp {
    index: u8,
    leases: Option<(bool, Blobs, Lease)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Builder {
    Begin,
    Stat(usize),
    Claim(usize),
    Look(usize),
    Lock,
    ClaimStaged,
    Reveal(usize),
    Unlock,
    WriteIndex,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Mounter {
    Lock,
    Lease,
    Resolve,
    Tell(u8),
    Unlock,
    Mounted,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Deleter {
    Stage,
    /// The new index is written aside. This is what the old one was.
    Swap(u8),
    Done,
}

/// A process that writes the index once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Once {
    Ready,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Collector {
    ReadIndex(Then),
    ReadLeases(Then),
    Plan,
    LockToCondemn,
    CompareToCondemn,
    Condemn,
    Refresh,
    LockToPurge,
    CompareToPurge,
    Purge,
    Done,
}

/// What the marks are made for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Then {
    Plan,
    Condemn,
    Refresh,
    Purge,
}

const BUILDER: u8 = 1;
const MOUNTER: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    blobs: Blobs,
    quarantine: Blobs,
    index: u8,
    /// Who holds the store lock.
    shared: u8,
    exclusive: bool,
    builder: Builder,
    staged: Blobs,
    building: bool,
    claims: Blobs,
    published: bool,
    mounter: Mounter,
    lease: Lease,
    mounted: Option<u8>,
    deleter: Deleter,
    /// The tag of an image was taken away while it was mounted.
    untagged_mounted: bool,
    foreign: Once,
    collector: Collector,
    rounds: u8,
    remarks: u8,
    stamp: Stamp,
    marks: Blobs,
    to_condemn: Blobs,
    to_purge: Blobs,
}

const REMARKS_MAX: u8 = 3;

const START: State = State {
    blobs: 0b111,
    quarantine: 0,
    index: 1 << OLD,
    shared: 0,
    exclusive: false,
    builder: Builder::Begin,
    staged: 0,
    building: false,
    claims: 0,
    published: false,
    mounter: Mounter::Lock,
    lease: Lease::None,
    mounted: None,
    deleter: Deleter::Stage,
    untagged_mounted: false,
    foreign: Once::Ready,
    collector: Collector::ReadIndex(Then::Plan),
    rounds: 2,
    remarks: 0,
    stamp: Stamp { index: 0, leases: None },
    marks: 0,
    to_condemn: 0,
    to_purge: 0,
};

/// The blobs that the images in an index need.
fn closure(index: u8) -> Blobs {
    [OLD, NEW].into_iter().filter(|image| index & 1 << image != 0).fold(0, |all, image| all | NEEDS[usize::from(image)])
}

fn first(blobs: Blobs) -> Blobs {
    blobs & blobs.wrapping_neg()
}

type Step = (&'static str, State);

impl State {
    /// Everything that can happen next.
    fn steps(&self, rules: &Rules) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend(self.build(rules));
        steps.extend(self.mount(rules));
        steps.extend(self.delete(rules));
        steps.extend(self.bring_back());
        steps.extend(self.collect(rules));
        steps.extend(self.kill());
        steps
    }

    fn has(&self, blob: Blobs) -> bool {
        self.blobs & blob != 0
    }

    /// The blobs that pfs can read.
    fn readable(&self) -> Blobs {
        self.blobs | self.quarantine
    }

    fn build(&self, rules: &Rules) -> Option<Step> {
        let mut next = *self;
        let of = |at: usize| [BLOBS[0], BLOBS[2]][at];
        let after = |at: usize| if at == 0 { Builder::Stat(1) } else { Builder::Lock };
        let what = match self.builder {
            Builder::Begin if self.exclusive => return None,
            Builder::Begin => {
                (next.building, next.builder) = (true, Builder::Stat(0));
                "builder takes its lease"
            }
            Builder::Stat(at) if self.has(of(at)) => {
                next.builder = Builder::Claim(at);
                "builder sees a blob"
            }
            Builder::Stat(at) => {
                (next.staged, next.builder) = (self.staged | of(at), after(at));
                "builder stages a blob that is not there"
            }
            Builder::Claim(_) if self.exclusive => return None,
            Builder::Claim(at) => {
                next.claims |= of(at);
                next.builder = if rules.looks_after_claim { Builder::Look(at) } else { after(at) };
                "builder claims a blob"
            }
            Builder::Look(at) => {
                next.staged |= if self.has(of(at)) { 0 } else { of(at) };
                next.builder = after(at);
                "builder looks at a claimed blob"
            }
            Builder::Lock if self.exclusive => return None,
            Builder::Lock => {
                next.shared |= if rules.claims_staged { BUILDER } else { 0 };
                next.builder = Builder::ClaimStaged;
                "builder takes the lock"
            }
            Builder::ClaimStaged => {
                next.claims |= if rules.claims_staged { self.staged } else { 0 };
                next.builder = Builder::Reveal(0);
                "builder claims what it staged"
            }
            Builder::Reveal(at) => {
                next.blobs |= self.staged & of(at);
                next.builder = if at == 0 { Builder::Reveal(1) } else { Builder::Unlock };
                "builder reveals a blob"
            }
            Builder::Unlock => {
                next.shared &= !BUILDER;
                next.builder = Builder::WriteIndex;
                "builder releases the lock, and keeps its claims"
            }
            Builder::WriteIndex if self.exclusive || self.shared != 0 => return None,
            Builder::WriteIndex => {
                next.index |= 1 << NEW;
                next.published = true;
                next.end_build();
                "builder writes the index and ends"
            }
            Builder::Done => return None,
        };
        Some((what, next))
    }

    fn end_build(&mut self) {
        (self.builder, self.building, self.claims, self.staged) = (Builder::Done, false, 0, 0);
        self.shared &= !BUILDER;
    }

    fn mount(&self, rules: &Rules) -> Vec<Step> {
        let mut next = *self;
        let what = match self.mounter {
            Mounter::Lock if self.exclusive => return Vec::new(),
            Mounter::Lock => {
                next.shared |= if rules.leases_before_index { MOUNTER } else { 0 };
                next.mounter = if rules.leases_before_index { Mounter::Lease } else { Mounter::Resolve };
                "mounter takes the lock"
            }
            Mounter::Lease => {
                (next.lease, next.mounter) = (Lease::Pending, Mounter::Resolve);
                "mounter takes its lease"
            }
            Mounter::Resolve => {
                let whole = |image: &u8| {
                    let needs = NEEDS[usize::from(*image)];
                    self.index & 1 << image != 0 && self.readable() & needs == needs
                };
                let mut steps: Vec<Step> = [OLD, NEW]
                    .into_iter()
                    .filter(whole)
                    .map(|image| ("mounter loads an image", State { mounter: Mounter::Tell(image), ..next }))
                    .collect();
                next.end_mount();
                steps.push(("mounter finds no image", next));
                return steps;
            }
            Mounter::Tell(image) => {
                (next.lease, next.mounted, next.mounter) = (Lease::Of(image), Some(image), Mounter::Unlock);
                "mounter tells in its lease what it needs"
            }
            Mounter::Unlock => {
                next.shared &= !MOUNTER;
                next.mounter = Mounter::Mounted;
                "mounter lets the lock go"
            }
            Mounter::Mounted => {
                next.end_mount();
                "the mount ends"
            }
            Mounter::Done => return Vec::new(),
        };
        vec![(what, next)]
    }

    fn end_mount(&mut self) {
        (self.mounter, self.lease, self.mounted) = (Mounter::Done, Lease::None, None);
        self.shared &= !MOUNTER;
    }

    /// Staging takes the lock shared and lets it go; the swap has it exclusively for one step.
    fn delete(&self, rules: &Rules) -> Option<Step> {
        let mut next = *self;
        let is_held = self.lease == Lease::Of(OLD);
        let what = match self.deleter {
            Deleter::Stage if self.exclusive => return None,
            Deleter::Stage if is_held => {
                next.deleter = Deleter::Done;
                "deleter finds OLD mounted"
            }
            Deleter::Stage => {
                next.deleter = Deleter::Swap(self.index);
                "deleter writes an index without OLD aside"
            }
            Deleter::Swap(_) if self.exclusive || self.shared != 0 => return None,
            Deleter::Swap(_) if is_held && rules.looks_at_leases_under_lock => {
                next.deleter = Deleter::Done;
                "deleter finds OLD mounted after all"
            }
            Deleter::Swap(before) if before != self.index && rules.compares_before_swap => {
                next.deleter = Deleter::Stage;
                "deleter finds another index"
            }
            Deleter::Swap(before) => {
                (next.index, next.deleter) = (before & !(1 << OLD), Deleter::Done);
                next.untagged_mounted = self.mounted == Some(OLD);
                "deleter swaps the index"
            }
            Deleter::Done => return None,
        };
        Some((what, next))
    }

    /// Another program knows no lock. It brings back an entry whose blobs it has seen.
    fn bring_back(&self) -> Option<Step> {
        let may = self.foreign == Once::Ready && self.deleter == Deleter::Done;
        may.then_some((
            "another program brings OLD back",
            State { foreign: Once::Done, index: self.index | 1 << OLD, ..*self },
        ))
    }

    fn leases(&self) -> (bool, Blobs, Lease) {
        (self.building, self.claims, self.lease)
    }

    fn marks_are_current(&self) -> bool {
        self.stamp == Stamp { index: self.index, leases: Some(self.leases()) }
    }

    fn collect(&self, rules: &Rules) -> Option<Step> {
        let mut next = *self;
        let what = match self.collector {
            Collector::ReadIndex(then) => {
                next.stamp.index = self.index;
                next.collector = Collector::ReadLeases(then);
                "collector reads the index"
            }
            Collector::ReadLeases(_) if self.lease == Lease::Pending => {
                next.end_round();
                "collector gives up: a mount is being set up"
            }
            Collector::ReadLeases(then) => {
                next.stamp.leases = Some(self.leases());
                let mounted = if let Lease::Of(image) = self.lease { 1 << image } else { 0 };
                next.marks = closure(self.stamp.index | mounted) | self.claims;
                next.collector = match then {
                    Then::Plan => Collector::Plan,
                    Then::Condemn => Collector::LockToCondemn,
                    Then::Refresh => Collector::Refresh,
                    Then::Purge => Collector::LockToPurge,
                };
                "collector reads the leases and marks"
            }
            Collector::Plan => {
                next.to_condemn = self.blobs & !self.marks;
                next.to_purge = self.quarantine;
                next.collector = Collector::LockToCondemn;
                "collector plans"
            }
            Collector::LockToCondemn if self.to_condemn == 0 => {
                next.collector = Collector::Refresh;
                "collector has condemned"
            }
            Collector::LockToCondemn | Collector::LockToPurge if rules.locks_batches && self.shared != 0 => {
                return None;
            }
            Collector::LockToCondemn => {
                next.exclusive = rules.locks_batches;
                next.collector = Collector::CompareToCondemn;
                "collector locks to condemn"
            }
            Collector::CompareToCondemn if rules.remarks_before_condemn && !self.marks_are_current() => {
                next.remark(Then::Condemn);
                "collector finds its marks out of date"
            }
            Collector::CompareToCondemn => {
                next.collector = Collector::Condemn;
                "collector finds its marks current"
            }
            Collector::Condemn => {
                let blob = first(self.to_condemn);
                next.to_condemn &= !blob;
                if self.marks & blob == 0 && self.has(blob) {
                    next.blobs &= !blob;
                    next.quarantine |= if rules.quarantines { blob } else { 0 };
                    next.to_purge |= blob;
                }
                (next.exclusive, next.collector) = (false, Collector::LockToCondemn);
                "collector condemns a blob"
            }
            Collector::Refresh if !self.marks_are_current() && rules.remarks_before_purge => {
                next.remark(Then::Refresh);
                "collector finds its marks out of date"
            }
            Collector::Refresh => {
                next.collector = Collector::LockToPurge;
                "collector has looked again"
            }
            Collector::LockToPurge if self.to_purge == 0 => {
                next.end_round();
                "collector has purged"
            }
            Collector::LockToPurge => {
                next.exclusive = rules.locks_batches;
                next.collector = Collector::CompareToPurge;
                "collector locks to purge"
            }
            Collector::CompareToPurge if rules.remarks_before_purge && !self.marks_are_current() => {
                next.remark(Then::Purge);
                "collector finds its marks out of date"
            }
            Collector::CompareToPurge => {
                next.collector = Collector::Purge;
                "collector finds its marks current"
            }
            Collector::Purge => {
                let blob = first(self.to_purge);
                next.to_purge &= !blob;
                next.blobs |= self.quarantine & blob & self.marks;
                next.quarantine &= !blob;
                (next.exclusive, next.collector) = (false, Collector::LockToPurge);
                "collector purges or restores a blob"
            }
            Collector::Done => return None,
        };
        Some((what, next))
    }

    fn remark(&mut self, then: Then) {
        self.exclusive = false;
        self.remarks += 1;
        match self.remarks > REMARKS_MAX {
            true => self.end_round(),
            false => self.collector = Collector::ReadIndex(then),
        }
    }

    fn end_round(&mut self) {
        (self.exclusive, self.rounds, self.remarks, self.to_condemn, self.to_purge) = (false, self.rounds - 1, 0, 0, 0);
        (self.marks, self.stamp) = (0, Stamp::default());
        self.collector = if self.rounds == 0 { Collector::Done } else { Collector::ReadIndex(Then::Plan) };
    }

    /// The kernel takes locks and leases back from whoever is killed.
    fn kill(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut add = |alive: bool, what, act: fn(&mut State)| {
            if alive {
                let mut next = *self;
                act(&mut next);
                steps.push((what, next));
            }
        };
        add(self.builder != Builder::Done, "builder is killed", State::end_build);
        add(self.deleter != Deleter::Done, "deleter is killed", |state| state.deleter = Deleter::Done);
        add(self.mounter != Mounter::Done, "mounter is killed", State::end_mount);
        add(self.collector != Collector::Done, "collector is killed", State::end_round);
        steps
    }

    /// What must be true at every moment.
    fn problem(&self) -> Option<&'static str> {
        let lacks = |needs: Blobs| self.readable() & needs != needs;
        match () {
            () if self.mounted.is_some_and(|image| lacks(NEEDS[usize::from(image)])) => {
                Some("a mounted image cannot be read")
            }
            () if self.published && lacks(NEEDS[usize::from(NEW)]) => Some("a published image has lost a blob"),
            () if self.published && self.index & 1 << NEW == 0 => Some(ENTRY_LOST),
            () if self.untagged_mounted => Some(UNTAGGED),
            () if self.exclusive && self.shared != 0 => Some("the lock is held both ways"),
            () => None,
        }
    }
}

/// Looks at every state that can be reached. Gives how many there are, or the way to one in which something is wrong.
fn explore(rules: &Rules) -> Result<usize, Vec<&'static str>> {
    let mut seen = HashSet::from([START]);
    let mut open = vec![(START.steps(rules), None)];
    while let Some((steps, _)) = open.last_mut() {
        let Some((what, state)) = steps.pop() else {
            open.pop();
            continue;
        };
        if let Some(problem) = state.problem() {
            let way = open.iter().filter_map(|(_, what)| *what).chain([what, problem]);
            return Err(way.collect());
        }
        if seen.insert(state) {
            open.push((state.steps(rules), Some(what)));
        }
    }
    Ok(seen.len())
}

#[track_caller]
fn assert_breaks(rules: &Rules, problem: &str) {
    let way = explore(rules).expect_err("the search has not seen what this rule is for");
    assert_eq!(way.last(), Some(&problem), "{way:#?}");
}

const UNREADABLE: &str = "a mounted image cannot be read";
const LOST: &str = "a published image has lost a blob";
const ENTRY_LOST: &str = "a published image has lost its entry";
const UNTAGGED: &str = "a mounted image has lost its tag";

#[test]
fn no_schedule_loses_a_published_or_a_mounted_image() {
    match explore(&RULES) {
        Ok(states) => {
            println!("{states} states");
            assert!(states > 10_000, "the model does too little: {states} states");
        }
        Err(way) => panic!("{way:#?}"),
    }
}

#[test]
fn a_builder_that_does_not_look_after_its_claim_loses() {
    assert_breaks(&Rules { looks_after_claim: false, ..RULES }, LOST);
}

#[test]
fn a_collector_that_does_not_mark_again_before_it_purges_loses() {
    assert_breaks(&Rules { remarks_before_purge: false, ..RULES }, UNREADABLE);
}

#[test]
fn a_collector_that_does_not_lock_loses() {
    explore(&Rules { locks_batches: false, ..RULES }).expect_err("the search has not seen what the lock is for");
}

#[test]
fn a_mount_without_a_lease_from_the_start_loses() {
    assert_breaks(&Rules { leases_before_index: false, ..RULES }, UNREADABLE);
}

#[test]
fn a_builder_that_does_not_claim_what_it_staged_loses() {
    assert_breaks(&Rules { claims_staged: false, ..RULES }, LOST);
}

#[test]
fn a_deleter_that_does_not_compare_before_it_swaps_loses_what_others_have_published() {
    assert_breaks(&Rules { compares_before_swap: false, ..RULES }, ENTRY_LOST);
}

#[test]
fn a_deleter_that_looks_at_the_leases_only_before_it_has_the_lock_untags_what_is_mounted() {
    assert_breaks(&Rules { looks_at_leases_under_lock: false, ..RULES }, UNTAGGED);
}

/// What the quarantine is for: neither the lock nor the marks bind other programs.
#[test]
fn without_quarantine_and_marks_before_condemning_a_published_image_is_lost() {
    explore(&Rules { quarantines: false, remarks_before_condemn: false, ..RULES }).expect_err("nothing was seen");
}
