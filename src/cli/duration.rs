//! Durations as people write them.

use std::time::Duration;

use pfs::gc::Hold;

/// `auto`, or a duration.
pub fn hold(text: &str) -> Result<Hold, String> {
    match text {
        "auto" => Ok(Hold::Auto),
        _ => Ok(Hold::Seconds(duration(text)?.as_secs())),
    }
}

/// Units of durations, with their seconds. `m` is minutes, `mo` months of 30 days.
const UNITS: &[(&[&str], u64)] = &[
    (&["s", "sec", "secs", "second", "seconds"], 1),
    (&["m", "min", "mins", "minute", "minutes"], 60),
    (&["h", "hr", "hrs", "hour", "hours"], 3600),
    (&["d", "day", "days"], 24 * 3600),
    (&["w", "week", "weeks"], 7 * 24 * 3600),
    (&["mo", "month", "months"], 30 * 24 * 3600),
    (&["y", "year", "years"], 365 * 24 * 3600),
];

/// A duration: whole numbers, each with a unit, as in `90s`, `2h 30m`, `4w`. Only 0 needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = rest[..digits].parse::<u64>();
        let number = number.map_err(|_| format!("{text:?} is no duration, as in 90s, 30min, 12h, 7d, 4w, 6mo, 1y"))?;
        rest = rest[digits..].trim_start();
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let unit = &rest[..letters];
        rest = rest[letters..].trim_start();
        let known = UNITS.iter().find(|(names, _)| names.contains(&unit));
        let (_, factor) = known.ok_or_else(|| match unit {
            "" if rest.starts_with(['.', ',']) => {
                format!("{text:?} is no duration: whole numbers only, as in 1h 30min")
            }
            "" => format!("{number} needs a unit, as in {number}s, {number}min, {number}h, {number}d"),
            _ => format!("{unit:?} is no unit; s, min, h, d, w, mo and y are"),
        })?;
        let more = number.checked_mul(*factor).and_then(|more| seconds.checked_add(more));
        seconds = more.ok_or_else(|| format!("{text:?} is too long"))?;
    }
    match text.trim().is_empty() {
        true => Err("a duration, as in 7d, is missing".into()),
        false => Ok(Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let day = 24 * 3600;
        let good = [
            ("0", 0),
            ("0s", 0),
            ("90s", 90),
            (" 2h 30m ", 9000),
            ("2h30min", 9000),
            ("1 hour", 3600),
            ("7d", 7 * day),
            ("4w", 28 * day),
            ("6mo", 180 * day),
            ("1y", 365 * day),
        ];
        for (text, seconds) in good {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_told_how_to_become_one() {
        let bad = [
            ("", "missing"),
            ("30", "30 needs a unit, as in 30s"),
            ("1h 30", "30 needs a unit"),
            ("1.5h", "whole numbers only"),
            ("h", "is no duration"),
            ("-1d", "is no duration"),
            ("3 fortnights", "\"fortnights\" is no unit"),
            ("7D", "\"D\" is no unit"),
            ("99999999999999999999s", "is no duration"),
            ("999999999999999y", "too long"),
        ];
        for (text, expected) in bad {
            let problem = duration(text).unwrap_err();
            assert!(problem.contains(expected), "{text:?}: {problem}");
        }
    }

    #[test]
    fn a_hold_may_be_left_to_pfs() {
        assert_eq!(hold("auto"), Ok(Hold::Auto));
        assert_eq!(hold("1d"), Ok(Hold::Seconds(24 * 3600)));
        assert!(hold("1").is_err());
    }
}
