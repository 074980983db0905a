//! Patterns for tags, as a shell has them.

use std::{convert::Infallible, fmt, str::FromStr};

/// A pattern: `*` stands for any characters, also none and also slashes, `?` for exactly one, all others for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<char>);

impl Glob {
    /// Whether the whole text fits. Takes time in the product of both lengths at worst.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut next) = (0, 0);
        // Where the last star stands, and how much of the text it has taken so far.
        let mut star: Option<(usize, usize)> = None;
        while at < text.len() {
            match (self.0.get(next), star) {
                (Some('*'), _) => {
                    star = Some((next, at));
                    next += 1;
                }
                (Some(wanted), _) if *wanted == '?' || *wanted == text[at] => (at, next) = (at + 1, next + 1),
                (_, Some((place, taken))) => {
                    star = Some((place, taken + 1));
                    (at, next) = (taken + 1, place + 1);
                }
                (_, None) => return false,
            }
        }
        self.0[next..].iter().all(|wanted| *wanted == '*')
    }
}

impl FromStr for Glob {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.chars().collect()))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.iter().collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts() {
        let matches = |glob: &str, text: &str| glob.parse::<Glob>().unwrap().matches(text);
        for (glob, text) in [("", ""), ("*", ""), ("*", "a/b"), ("a*c", "abcbc"), ("v?.*", "v1."), ("*é", "café")] {
            assert!(matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [("", "a"), ("?", ""), ("a*c", "abcb"), ("v?.*", "v10"), ("app", "app-1"), ("[ab]", "a")] {
            assert!(!matches(glob, text), "{glob} {text}");
        }
        assert!(!matches(&"*a".repeat(30), &"a".repeat(29)));
    }
}
