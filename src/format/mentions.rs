//! Digests that stand in bytes of unknown meaning: mentions. They are found as a stream, whatever the size of the blob.

use crate::name::Digest;

/// Finds every run of exactly 64 hexadecimal digits, of either case, whatever stands before and after it. NUL bytes are
/// passed over, so that UTF-16 is read too, and escapes of JSON are resolved.
#[derive(Debug, Default)]
pub struct MentionScanner {
    run: Vec<u8>,
    /// An escape that has begun: the bytes after the backslash.
    escape: Option<Vec<u8>>,
    found: Vec<Digest>,
}

const DIGITS: usize = 64;

impl MentionScanner {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().filter(|byte| **byte != 0) {
            self.take(*byte);
        }
    }

    /// What was found, sorted, once each.
    pub fn finish(mut self) -> Vec<Digest> {
        self.end_run();
        self.found.sort_unstable();
        self.found.dedup();
        self.found
    }

    fn take(&mut self, byte: u8) {
        match self.escape.take() {
            None if byte == b'\\' => self.escape = Some(Vec::new()),
            None => self.add(byte),
            Some(mut escape) => {
                escape.push(byte);
                match escape[..] {
                    [b'u', ..] if escape.len() < 5 => self.escape = Some(escape),
                    [b'u', ..] => {
                        let code = std::str::from_utf8(&escape[1..]).ok();
                        let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
                        self.add(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(b' '));
                    }
                    _ => self.add(b' '),
                }
            }
        }
    }

    fn add(&mut self, byte: u8) {
        match byte.is_ascii_hexdigit() {
            // More than is needed to know that the run is too long is not kept.
            true if self.run.len() <= DIGITS => self.run.push(byte.to_ascii_lowercase()),
            true => {}
            false => self.end_run(),
        }
    }

    fn end_run(&mut self) {
        if self.run.len() == DIGITS {
            self.found.extend(std::str::from_utf8(&self.run).ok().and_then(|run| run.parse::<Digest>().ok()));
        }
        self.run.clear();
    }
}

/// Every 32 bytes at a word of a Cap'n Proto message, whose blobs of bytes begin at words: digests, if there are such blobs.
pub fn digests_at_words(message: &[u8]) -> impl Iterator<Item = Digest> {
    message.windows(32).step_by(8).filter_map(Digest::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8]) -> Vec<Digest> {
        let mut scanner = MentionScanner::default();
        text.chunks(7).for_each(|part| scanner.feed(part));
        scanner.finish()
    }

    #[test]
    fn digests_are_found_however_they_are_written() {
        let digest = Digest::of(b"x");
        let hex = digest.to_string();
        let wide: Vec<u8> = format!("sha256:{hex}").bytes().flat_map(|byte| [byte, 0]).collect();
        let escaped: String = hex.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
        for text in [
            format!("sha256:{hex}"),
            format!("\u{feff}  {{\"digest\":{{\"sha256\":\"{hex}\"}}}}"),
            format!("sha256\\u003a{hex}"),
            hex.to_uppercase(),
            format!("\"{escaped}\""),
        ] {
            assert_eq!(found(text.as_bytes()), [digest], "{text}");
        }
        assert_eq!(found(&wide), [digest]);
        assert_eq!(found(format!("{hex}0").as_bytes()), [], "65 digits are another number");
        assert_eq!(found(&hex.as_bytes()[1..]), []);
    }
}
