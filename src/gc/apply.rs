//! Carrying a plan out, in small batches under the exclusive lock.
//!
//! The race: between the walk and a rename somebody may mount an image, finish a build, or write an index that needs a blob of
//! the plan. So every batch first compares index and leases with the stamp of the marks, under the lock that mounts and
//! builds take shared. If they are others, the lock is let go, everything is walked again, and the batch begins anew. What other
//! programs write in spite of the lock is caught by a last look before the purge, when all of it can still go back.
//!
//! Nothing that is done under the lock waits for the disk, so that others wait for milliseconds only.

use super::{
    Facts, GcError, GcPlan, GcReport, Hold, Marks, PlannedBlob, Policy, Roots, Verdict,
    facts::traces,
    hold, plan,
    plan::{Waits, waits},
};
use crate::{
    name::Digest,
    observe::{Event, Observer},
    store::{ExclusiveGuard, QuarantinedBlob, StaleStaging, Store, Turn},
};

/// Stale pins are cheap to unlink, since their blobs mostly have another name.
const PINS_PER_TURN: usize = 256;
/// How often the marks are made anew before the collector gives up.
const REMARKS_MAX: u32 = 32;
const CLOCK_SKEW_SECONDS_MAX: u64 = 300;

/// Gathers, plans and applies.
pub fn collect(store: &Store, policy: Policy, now_seconds: i64, watch: &dyn Observer) -> Result<GcReport, GcError> {
    let facts = Facts::gather(store, Roots::Current, now_seconds, watch)?;
    apply(plan(facts, policy, now_seconds), store, now_seconds, watch)
}

/// Applies a plan. Becomes the store's collector first, or fails with [`crate::store::StoreError::Locked`].
pub fn apply(plan: GcPlan, store: &Store, now_seconds: i64, watch: &dyn Observer) -> Result<GcReport, GcError> {
    let collector = match plan.waits_for_collector {
        true => store.await_collector()?,
        false => store.lock_collector()?,
    };
    // The index first, whoever wrote it: see `Store::log_index`.
    store.settle_index()?;
    store.restore_lost_indexes()?;
    check_clock(store, now_seconds)?;
    let mut run =
        Run { store, watch, now_seconds, marks: plan.marks, remarks: 0, is_hidden: false, report: GcReport::default() };
    run.heal()?;
    run.remove_stale_pins(&plan.stale_pins.manifests)?;
    let (condemned, in_quarantine): (Vec<_>, Vec<_>) = plan
        .blobs
        .into_iter()
        .filter(|blob| matches!(blob.verdict, Verdict::Condemn | Verdict::Purge | Verdict::Restore))
        .partition(|blob| blob.verdict == Verdict::Condemn);
    let mut quarantined: Vec<_> =
        in_quarantine.into_iter().filter_map(|blob| blob.quarantined).map(|blob| *blob).collect();
    let (epoch, moved) = run.condemn(&condemned, plan.hold_seconds)?;
    match run.hold_seconds(plan.hold, plan.hold_seconds)? {
        _ if run.is_hidden => run.put_back(&moved)?,
        0 => quarantined.extend(moved),
        seconds => {
            run.report.held_seconds = seconds;
            let held = run.put_off(&epoch, moved, plan.hold_seconds, seconds)?;
            run.hold(held)?;
        }
    }
    let may_free = plan.waits == waits(plan.hold, &run.report.evidence, run.is_hidden) || plan.waits == Waits::Not;
    run.purge(quarantined, may_free)?;
    store.log_index(&store.index()?)?;
    run.tidy(&plan.stale)?;
    store.save_references(&collector);
    Ok(run.report)
}

fn check_clock(store: &Store, now_seconds: i64) -> Result<(), GcError> {
    let seconds = store.clock_seconds()?.abs_diff(now_seconds);
    if seconds > CLOCK_SKEW_SECONDS_MAX {
        return Err(GcError::Clock { seconds });
    }
    Ok(())
}

struct Run<'s> {
    store: &'s Store,
    watch: &'s dyn Observer,
    now_seconds: i64,
    marks: Marks,
    remarks: u32,
    /// A mount may exist that cannot be seen.
    is_hidden: bool,
    report: GcReport,
}

impl<'s> Run<'s> {
    /// The exclusive lock, together with marks that are up to date while it is held.
    fn lock_with_current_marks(&mut self) -> Result<ExclusiveGuard<'s>, GcError> {
        loop {
            let guard = self.store.lock_exclusive()?;
            if self.marks.are_current(self.store)? {
                return Ok(guard);
            }
            drop(guard);
            self.remark()?;
        }
    }

    /// How long what was condemned has to wait, by evidence that is taken now. Other programs do not know the lock, so one of
    /// them may have begun to write after the plan was made, and have seen a blob before it was condemned. Such a program is
    /// either still running, and found here, or has written its index, which the marks are compared with afterwards. So the
    /// marks are current when this returns, too.
    fn hold_seconds(&mut self, hold: Hold, planned_seconds: u64) -> Result<u64, GcError> {
        loop {
            let processes = self.marks.look_at_processes(self.store)?;
            let evidence = hold::evidence(&traces(self.store)?, &processes, 0, self.now_seconds);
            if self.marks.are_current(self.store)? && self.marks.needs_what_is_used(&processes) {
                let seconds = hold.seconds(&evidence).max(planned_seconds);
                self.is_hidden = hold != Hold::Seconds(0) && processes.hidden.is_some();
                self.report.evidence = evidence;
                return Ok(seconds);
            }
            self.remark()?;
        }
    }

    /// Puts back what was condemned before a mount may have come that cannot be seen: it would miss it at once.
    fn put_back(&mut self, moved: &[QuarantinedBlob]) -> Result<(), GcError> {
        let _guard = if moved.is_empty() { return Ok(()) } else { self.store.lock_shared()? };
        for blob in moved {
            self.report.freed_bytes += self.store.restore(blob)?;
            self.report.restored.push(blob.digest);
        }
        Ok(())
    }

    /// Sees to it that what was condemned waits for so long, where the plan had it wait less.
    fn put_off(
        &mut self,
        epoch: &str,
        mut moved: Vec<QuarantinedBlob>,
        planned_seconds: u64,
        seconds: u64,
    ) -> Result<Vec<QuarantinedBlob>, GcError> {
        if seconds > planned_seconds && !moved.is_empty() {
            let guard = self.store.lock_exclusive()?;
            let epoch = self.store.put_off_epoch(&guard, epoch, self.until(seconds))?;
            moved.iter_mut().for_each(|blob| blob.epoch.clone_from(&epoch));
        }
        Ok(moved)
    }

    /// The second from which on what is condemned now may go.
    fn until(&self, seconds: u64) -> i64 {
        self.now_seconds.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX))
    }

    fn remark(&mut self) -> Result<(), GcError> {
        self.remarks += 1;
        if self.remarks > REMARKS_MAX {
            return Err(GcError::Restless);
        }
        self.marks = Marks::gather(self.store, Roots::Current, self.now_seconds)?;
        self.marks.settle(self.store)
    }

    /// Moves what is still not needed into quarantine, for so many seconds, and gives the epoch and what was moved.
    fn condemn(
        &mut self,
        condemned: &[PlannedBlob],
        hold_seconds: u64,
    ) -> Result<(String, Vec<QuarantinedBlob>), GcError> {
        let mut moved = Vec::new();
        if condemned.is_empty() {
            return Ok((String::new(), moved));
        }
        let epoch = self.store.begin_epoch(&self.store.lock_exclusive()?, self.until(hold_seconds))?;
        self.watch.event(Event::Phase("moving to quarantine"));
        let mut left = condemned.iter().peekable();
        while left.peek().is_some() {
            let guard = self.lock_with_current_marks()?;
            let turn = Turn::begin();
            while let Some(blob) = left.next_if(|_| turn.goes_on()) {
                if !self.marks.needs(&blob.digest)
                    && self.store.condemn(&guard, &blob.digest, &blob.stat, blob.newest_max, &epoch)?
                {
                    moved.push(QuarantinedBlob { digest: blob.digest, epoch: epoch.clone(), stat: blob.stat });
                }
            }
            turn.end(guard, left.peek().is_none());
            let done = moved.len() as u64;
            self.watch.event(Event::Progress { done, total: condemned.len() as u64 });
        }
        Ok((epoch, moved))
    }

    /// Leaves what was moved in quarantine, but for what is needed by now.
    fn hold(&mut self, moved: Vec<QuarantinedBlob>) -> Result<(), GcError> {
        for blob in moved {
            if self.marks.needs(&blob.digest) {
                self.report.freed_bytes += self.store.restore(&blob)?;
                self.report.restored.push(blob.digest);
            } else {
                self.report.held.push(blob.digest);
                self.report.held_bytes += blob.stat.size;
            }
        }
        Ok(())
    }

    /// Puts back what an entry of the index needs, another tool has unlinked, and a pin still has.
    fn heal(&mut self) -> Result<(), GcError> {
        let needed = self.marks.needed_by_entries();
        let wanted = |digest: &Digest| self.marks.graph.find(digest).is_some_and(|blob| needed[blob as usize]);
        self.report.healed = self.store.heal_all_from_pins(wanted)?;
        Ok(())
    }

    /// Removes the pins that ended mounts have left behind. They may be the last names of blobs, so the marks have to be as
    /// current and as durable as for a purge.
    fn remove_stale_pins(&mut self, manifests: &[Digest]) -> Result<(), GcError> {
        if manifests.is_empty() {
            return Ok(());
        }
        self.marks.settle(self.store)?;
        for manifest in manifests {
            let pinned = self.store.pinned_by(manifest)?;
            let mut turns = pinned.chunks(PINS_PER_TURN);
            loop {
                let guard = self.lock_with_current_marks()?;
                let (pause, pins) = (Turn::begin(), turns.next().unwrap_or_default());
                let removed =
                    self.store.remove_stale_pins(&guard, manifest, pins, |digest| self.marks.needs(digest))?;
                self.report.freed_bytes += removed.freed_bytes;
                self.report.healed += removed.healed;
                let is_last = turns.len() == 0;
                pause.end(guard, is_last);
                if is_last {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Restores what is needed by now, and unlinks the rest, if that may be freed.
    fn purge(&mut self, quarantined: Vec<QuarantinedBlob>, may_free: bool) -> Result<(), GcError> {
        if quarantined.is_empty() {
            return Ok(());
        }
        self.watch.event(Event::Phase("freeing"));
        self.marks.settle(self.store)?;
        let mut left = quarantined.iter().peekable();
        while left.peek().is_some() {
            let guard = self.lock_with_current_marks()?;
            let turn = Turn::begin();
            while let Some(blob) = left.next_if(|_| turn.goes_on()) {
                if self.marks.needs(&blob.digest) {
                    self.report.freed_bytes += self.store.restore(blob)?;
                    self.report.restored.push(blob.digest);
                } else if may_free {
                    self.report.freed_bytes += self.store.purge(&guard, blob)?;
                    self.report.freed.push(blob.digest);
                }
            }
            turn.end(guard, left.peek().is_none());
        }
        Ok(())
    }

    /// Removes what dead owners have left behind.
    fn tidy(&mut self, stale: &[StaleStaging]) -> Result<(), GcError> {
        for stale in stale {
            self.remove_stale_staging(&stale.name)?;
        }
        self.remove_dead_leases()?;
        self.remove_pins_that_are_over()?;
        self.store.remove_empty_epochs(&self.store.lock_exclusive()?)?;
        Ok(())
    }

    fn remove_stale_staging(&mut self, name: &str) -> Result<(), GcError> {
        let mut is_done = false;
        while !is_done {
            let guard = self.store.lock_exclusive()?;
            let turn = Turn::begin();
            let freed_bytes;
            (freed_bytes, is_done) = self.store.remove_stale_staging(&guard, name, || turn.goes_on())?;
            self.report.freed_bytes += freed_bytes;
            turn.end(guard, is_done);
        }
        Ok(())
    }

    fn remove_dead_leases(&mut self) -> Result<(), GcError> {
        let leases = self.store.leases()?;
        let mut dead = leases.iter().filter(|lease| !lease.live).peekable();
        while dead.peek().is_some() {
            let guard = self.store.lock_exclusive()?;
            let turn = Turn::begin();
            while let Some(lease) = dead.next_if(|_| turn.goes_on()) {
                self.report.dead_leases += u64::from(self.store.remove_dead_lease(&lease.id)?);
            }
            turn.end(guard, dead.peek().is_none());
        }
        Ok(())
    }

    /// Looks at them anew in each turn: whoever pins again holds the lock shared.
    fn remove_pins_that_are_over(&mut self) -> Result<(), GcError> {
        let mut is_done = false;
        while !is_done {
            let guard = self.store.lock_exclusive()?;
            let pins = self.store.pins()?;
            let turn = Turn::begin();
            let mut over = pins.iter().filter(|pin| pin.is_over(self.now_seconds)).peekable();
            while let Some(pin) = over.next_if(|_| turn.goes_on()) {
                self.store.unpin(&pin.digest)?;
            }
            is_done = over.peek().is_none();
            turn.end(guard, is_done);
        }
        Ok(())
    }
}
