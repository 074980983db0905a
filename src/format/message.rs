//! How long a Cap'n Proto message is, by its own first bytes: what tells one from a blob of any other kind.

/// More segments than any writer makes.
const SEGMENTS_MAX: u32 = 500;

/// The length in bytes of the message that begins like this, segment table included. `None` if no message begins so.
pub fn message_length(start: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u32::from_le_bytes(start.get(at * 4..at * 4 + 4)?.try_into().ok()?));
    let segments = word(0)?.checked_add(1).filter(|segments| *segments <= SEGMENTS_MAX)?;
    let mut words = 0;
    for segment in 1..=segments as usize {
        words += u64::from(word(segment)?);
    }
    let table_words = u64::from(segments / 2 + 1);
    Some((table_words + words) * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_how_long_it_is() {
        let one = [[0, 0, 0, 0], [3, 0, 0, 0]].concat();
        assert_eq!(message_length(&one), Some(8 + 3 * 8));
        let two = [[1, 0, 0, 0], [3, 0, 0, 0], [1, 0, 0, 0], [0; 4]].concat();
        assert_eq!(message_length(&two), Some(16 + 4 * 8));
    }

    #[test]
    fn other_bytes_are_no_message() {
        for bytes in [&b""[..], b"\0\0", b"a text about nothing", &[0xff; 8]] {
            assert_eq!(message_length(bytes), None, "{bytes:?}");
        }
    }
}
