//! Files are read as a whole, and only files: whatever else has a name may have its reader wait for ever.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads a regular file of at most so many bytes.
///
/// # Errors
///
/// Fails where there is no such file, where it is none (a FIFO, a folder, a device), and where it is larger.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // To open a FIFO would wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    read_from(file, most)
}

/// Reads the file, pipe or device of this name, at most so many bytes.
pub(super) fn read_any(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_from(std::fs::File::open(path)?, most)
}

/// Reads standard input to its end, at most so many bytes.
pub(super) fn read_stdin(most: u64) -> io::Result<Vec<u8>> {
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
