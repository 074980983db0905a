//! The files of a source tree as one stream of bytes, cut into chunks.
//!
//! The map of a file is made from the size that the walk saw, so a file has to have exactly that many bytes when it is
//! read: one byte more or less would shift every file after it.

use std::{fs::File, io::Read};

use super::{BuildError, cursor::Cursor, error::At, source::SourceTree};
use crate::codec::Chunker;

const READ_BYTES: usize = 256 << 10;

/// Reads all files in order and gives their chunks to `take`, in order.
pub(super) fn cut_files(
    tree: &SourceTree,
    cursor: &mut Cursor,
    take: &mut dyn FnMut(Vec<u8>) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let mut chunker = Chunker::default();
    let mut buffer = vec![0; READ_BYTES];
    for (node, size) in tree.files() {
        let mut reader = FileReader { file: cursor.open_file(tree, node)?, left: size };
        while let Some(bytes) = reader.read(&mut buffer, tree, node)? {
            chunker.push(bytes);
            while let Some(chunk) = chunker.next_chunk() {
                take(chunk)?;
            }
        }
    }
    while let Some(chunk) = chunker.next_of_rest() {
        take(chunk)?;
    }
    Ok(())
}

struct FileReader {
    file: File,
    left: u64,
}

impl FileReader {
    /// The next bytes, or `None` at the end, if the file ends where it should.
    fn read<'b>(
        &mut self,
        buffer: &'b mut [u8],
        tree: &SourceTree,
        node: usize,
    ) -> Result<Option<&'b [u8]>, BuildError> {
        let changed = |what| Err(BuildError::changed(tree.path(node), what));
        let read = loop {
            match self.file.read(buffer) {
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read.at("read", || tree.path(node))?,
            }
        };
        match read as u64 {
            0 if self.left == 0 => Ok(None),
            0 => changed("it became shorter"),
            more if more > self.left => changed("it became longer"),
            some => {
                self.left -= some;
                Ok(Some(&buffer[..read]))
            }
        }
    }
}
