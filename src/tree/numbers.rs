//! A set of inode numbers that costs next to nothing when they are dense, as they are in every image that a builder
//! wrote.

use std::ops::RangeInclusive;

/// A set of numbers, kept as sorted runs.
#[derive(Debug)]
pub struct Numbers {
    runs: Vec<RangeInclusive<u64>>,
    count: u64,
}

impl Numbers {
    /// The set of these numbers, which rise; the same number may come several times.
    pub fn from_sorted(numbers: impl Iterator<Item = u64>) -> Self {
        let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some(run) if number <= *run.end() => {}
                Some(run) if number == run.end() + 1 => *run = *run.start()..=number,
                _ => runs.push(number..=number),
            }
        }
        runs.shrink_to_fit();
        let count = runs.iter().map(|run| run.end() - run.start() + 1).sum();
        Self { runs, count }
    }

    /// Whether the number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        let at = self.runs.partition_point(|run| *run.end() < number);
        self.runs.get(at).is_some_and(|run| run.contains(&number))
    }

    /// How many numbers it has.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// The numbers, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.runs.iter().cloned().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let numbers = [1, 2, 2, 3, 7, 9, 10, u64::MAX];
        let set = Numbers::from_sorted(numbers.into_iter());
        for number in 0..20 {
            assert_eq!(set.contains(number), numbers.contains(&number), "{number}");
        }
        assert!(set.contains(u64::MAX) && !set.contains(u64::MAX - 1));
        assert_eq!(set.len(), 7);
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 2, 3, 7, 9, 10, u64::MAX]);
    }
}
