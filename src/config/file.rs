//! Reads of complete regular files: reading a FIFO or a device could block forever.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Returns the content of a regular file of at most `most` bytes.
///
/// # Errors
///
/// Fails where the file does not exist, is not a regular file (a FIFO, a folder, a device), or is larger.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Without it, opening a FIFO would wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    read_from(file, most)
}

/// Returns the content of a file, pipe or device, of at most `most` bytes.
pub(crate) fn read_any(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_from(std::fs::File::open(path)?, most)
}

/// Returns standard input up to its end, of at most `most` bytes.
pub(crate) fn read_stdin(most: u64) -> io::Result<Vec<u8>> {
    read_from(io::stdin().lock(), most)
}

fn read_from(file: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {} MiB", most >> 20)));
    }
    Ok(bytes)
}
