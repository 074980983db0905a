//! Digests that stand in bytes of unknown meaning: mentions. They are found as a stream, whatever the size of the blob.

use crate::name::Digest;

/// Finds every run of exactly 64 hexadecimal digits, of either case, whatever stands before and after it. The bytes are read
/// as they are, and once more without NUL bytes and with escapes of JSON resolved, so that UTF-16 is read too.
#[derive(Debug, Default)]
pub struct MentionScanner {
    plain: Run,
    run: Run,
    /// An escape that has begun: the bytes after the backslash.
    escape: Option<Vec<u8>>,
    found: Vec<Digest>,
}

const DIGITS: usize = 64;

impl MentionScanner {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.plain.add(*byte, &mut self.found);
            if *byte != 0 {
                self.take(*byte);
            }
        }
    }

    /// What was found, sorted, once each.
    pub fn finish(mut self) -> Vec<Digest> {
        self.plain.end(&mut self.found);
        self.run.end(&mut self.found);
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
        self.run.add(byte, &mut self.found);
    }
}

/// Hexadecimal digits in a row.
#[derive(Debug, Default)]
struct Run(Vec<u8>);

impl Run {
    fn add(&mut self, byte: u8, found: &mut Vec<Digest>) {
        match byte.is_ascii_hexdigit() {
            // More than is needed to know that the run is too long is not kept.
            true if self.0.len() <= DIGITS => self.0.push(byte.to_ascii_lowercase()),
            true => {}
            false => self.end(found),
        }
    }

    fn end(&mut self, found: &mut Vec<Digest>) {
        if self.0.len() == DIGITS {
            found.extend(std::str::from_utf8(&self.0).ok().and_then(|run| run.parse::<Digest>().ok()));
        }
        self.0.clear();
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
