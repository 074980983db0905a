//! What falls free when entries go: exact under sharing, and kept up to date while one goes after the other.
//!
//! Entries of one manifest are one group, since none of them frees anything without the others. For each blob there is
//! the number of its holders and the exclusive or of their names; when one holder is left, that is its name, and the blob
//! is its own from then on. So all removals together cost no more than one look at everything that is needed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

use super::policy::{Entry, GoReason, KeepReason, PruneVerdict};
use crate::{
    gc::Facts,
    graph::{ImageGraph, RootOrigin},
};

/// The groups of entries, and what each would free now.
pub(super) struct Gains<'f> {
    graph: &'f ImageGraph,
    sizes: Vec<u64>,
    holders: Vec<u32>,
    names: Vec<u32>,
    groups: Vec<Group>,
    /// The groups whose gain has grown since somebody looked.
    grown: Vec<usize>,
    /// What has fallen free so far.
    pub freed: u64,
}

struct Group {
    node: usize,
    /// The places of its entries.
    entries: Vec<usize>,
    /// What falls free if it goes next.
    gain: u64,
    size: u64,
    gone: bool,
}

/// The name of what cannot go: mounts, pins, builds and processes. A group has its number plus one.
const FIXED: u32 = 0;

impl<'f> Gains<'f> {
    pub fn new(facts: &'f Facts, entries: &[Entry]) -> Self {
        let graph = &facts.marks.graph;
        let freed_bytes = |blob| facts.inventory.get(&graph.digest(blob)).map_or(0, |stat| stat.freed_bytes());
        let sizes = (0..u32::try_from(graph.len()).unwrap_or(u32::MAX)).map(freed_bytes).collect();
        let (holders, names) = (vec![0; graph.len()], vec![0; graph.len()]);
        let mut gains = Self { graph, sizes, holders, names, groups: groups(entries), grown: Vec::new(), freed: 0 };
        for number in 0..gains.groups.len() {
            gains.hold(number);
        }
        for claim in facts.marks.claims.iter().filter_map(|claim| graph.find(claim)) {
            gains.holders[claim as usize] += 1;
        }
        let others = graph.roots().iter().filter(|(root, _)| !matches!(root.origin, RootOrigin::Entry(..)));
        let nodes: HashSet<usize> = others.map(|(_, node)| *node).collect();
        for blob in nodes.into_iter().flat_map(|node| graph.closure(&[node]).0) {
            gains.holders[blob as usize] += 1;
        }
        for blob in 0..gains.holders.len() {
            gains.settle(blob);
        }
        gains
    }

    /// Counts a group as a holder of all that it needs.
    fn hold(&mut self, number: usize) {
        for blob in self.graph.closure(&[self.groups[number].node]).0 {
            self.holders[blob as usize] += 1;
            self.names[blob as usize] ^= name(number);
            self.groups[number].size += self.sizes[blob as usize];
        }
    }

    /// If a blob has one holder left, and that can go, the blob is its gain.
    fn settle(&mut self, blob: usize) {
        if self.holders[blob] == 1 && self.names[blob] != FIXED {
            let number = self.names[blob] as usize - 1;
            self.groups[number].gain += self.sizes[blob];
            self.grown.push(number);
        }
    }

    /// Lets a group go; gives what falls free.
    fn remove(&mut self, number: usize) -> u64 {
        let gain = self.groups[number].gain;
        self.groups[number].gone = true;
        self.freed += gain;
        for blob in self.graph.closure(&[self.groups[number].node]).0 {
            let blob = blob as usize;
            self.holders[blob] -= 1;
            self.names[blob] ^= name(number);
            self.settle(blob);
        }
        gain
    }

    /// Takes a removal back, if enough falls free all the same.
    fn take_back(&mut self, number: usize, wanted: u64) -> bool {
        let needs = self.graph.closure(&[self.groups[number].node]).0;
        let own = needs.iter().filter(|blob| self.holders[**blob as usize] == 0);
        let loss: u64 = own.map(|blob| self.sizes[*blob as usize]).sum();
        if self.freed - loss < wanted {
            return false;
        }
        self.freed -= loss;
        self.groups[number].gone = false;
        for blob in needs {
            self.holders[blob as usize] += 1;
            self.names[blob as usize] ^= name(number);
        }
        true
    }

    /// Lets those groups go that are to go as a whole; gives for each entry what that frees.
    pub fn remove_going(&mut self, verdicts: &[PruneVerdict]) -> Vec<u64> {
        let mut frees = vec![0; verdicts.len()];
        for number in 0..self.groups.len() {
            let entries = &self.groups[number].entries;
            if entries.iter().all(|place| matches!(verdicts[*place], PruneVerdict::Go(_))) {
                frees[self.groups[number].last()] = self.remove(number);
            }
        }
        frees
    }

    /// Lets groups go that no rule keeps until `wanted` bytes have fallen free: always the one that frees most by then, of
    /// those the oldest, of those the largest. What turns out not to have been needed for it is taken back.
    pub fn choose(&mut self, entries: &[Entry], verdicts: &mut [PruneVerdict], frees: &mut [u64], wanted: u64) {
        let mut chosen = Vec::new();
        let free = |place: &usize| verdicts[*place] == PruneVerdict::Keep(KeepReason::Enough);
        let may_go: Vec<bool> = self.groups.iter().map(|group| !group.gone && group.entries.iter().all(free)).collect();
        let mut best = BinaryHeap::new();
        self.grown = (0..self.groups.len()).collect();
        while self.freed < wanted {
            // A gain only grows, so what is said of it here twice counts as the larger one says.
            let grown = std::mem::take(&mut self.grown).into_iter().filter(|number| may_go[*number]);
            best.extend(grown.map(|number| self.groups[number].rank(entries, number)));
            let Some((gain, .., number)) = best.pop() else { break };
            let Group { gone, gain: now, .. } = self.groups[number];
            if gain > 0 && !gone && gain == now {
                frees[self.groups[number].last()] = self.remove(number);
                chosen.push(number);
            }
        }
        chosen.retain(|number| !self.take_back(*number, wanted));
        self.groups.iter().filter(|group| !group.gone).for_each(|group| frees[group.last()] = 0);
        let is_enough = self.freed >= wanted;
        self.tell(verdicts, is_enough);
        self.measure(&chosen, frees);
    }

    /// Writes the verdicts of those that were chosen, and of those that could not be.
    fn tell(&self, verdicts: &mut [PruneVerdict], is_enough: bool) {
        for group in &self.groups {
            for place in &group.entries {
                let open = verdicts[*place] == PruneVerdict::Keep(KeepReason::Enough);
                match (open, group.gone, is_enough) {
                    (true, true, _) => verdicts[*place] = PruneVerdict::Go(GoReason::Frees),
                    (true, false, false) => verdicts[*place] = PruneVerdict::Keep(KeepReason::FreesNothing),
                    _ => {}
                }
            }
        }
    }

    /// What each of the chosen ones frees, now that some have been taken back: a blob that several let go is counted for
    /// the last of them.
    fn measure(&self, chosen: &[usize], frees: &mut [u64]) {
        let mut last: HashMap<u32, usize> = HashMap::new();
        for number in chosen {
            let group = &self.groups[*number];
            let place = group.last();
            frees[place] = 0;
            let free = |blob: &u32| self.holders[*blob as usize] == 0;
            for blob in self.graph.closure(&[group.node]).0.into_iter().filter(free) {
                last.insert(blob, place);
            }
        }
        for (blob, place) in last {
            frees[place] += self.sizes[blob as usize];
        }
    }
}

/// What frees most goes first, of those the oldest, of those the largest, of those the last.
type Rank = (u64, Reverse<Option<i64>>, u64, usize);

impl Group {
    fn rank(&self, entries: &[Entry], number: usize) -> Rank {
        (self.gain, Reverse(entries[self.entries[0]].created_seconds), self.size, number)
    }

    /// The place of its last entry, which is what frees something.
    fn last(&self) -> usize {
        self.entries[self.entries.len() - 1]
    }
}

fn name(number: usize) -> u32 {
    u32::try_from(number + 1).expect("an index has fewer than 2^32 entries")
}

fn groups(entries: &[Entry]) -> Vec<Group> {
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        let number = *numbers.entry(entry.node).or_insert(groups.len());
        match groups.get_mut(number) {
            Some(group) => group.entries.push(place),
            None => groups.push(Group { node: entry.node, entries: vec![place], gain: 0, size: 0, gone: false }),
        }
    }
    groups
}
