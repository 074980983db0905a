//! A seekable zstd blob: its table, the frames of any range, and the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pfs::codec::{SeekTable, decode_all, decode_frame};

const LIMIT: u64 = 1 << 20;

fuzz_target!(|stored: &[u8]| {
    let Ok(table) = SeekTable::parse(stored) else {
        assert!(decode_all(stored, LIMIT).is_err());
        return;
    };
    let middle = table.decoded_len() / 2;
    for frame in table.overlapping(middle..middle + 1) {
        assert!(frame.stored.end <= stored.len() && frame.decoded.contains(&middle));
    }
    let Ok(decoded) = decode_all(stored, LIMIT) else { return };
    assert_eq!(decoded.len() as u64, table.decoded_len());
    for frame in table.overlapping(0..table.decoded_len()) {
        let mut alone = vec![0; frame.decoded_len() as usize];
        decode_frame(stored, frame, &mut alone).expect("it was decoded before");
        assert_eq!(alone, decoded[frame.decoded.start as usize..frame.decoded.end as usize]);
    }
});
