//! The local file with the identity of the remote store.

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The known identity of the remote store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::idempotency) enum Known {
    /// No remote store was used here before.
    Nothing,
    This(String),
}

/// The local file that keeps it, so that a process refuses another store after its own restart, too.
pub(in crate::idempotency) struct IdentityFile {
    path: PathBuf,
}

impl IdentityFile {
    pub(in crate::idempotency) fn new(path: &Path) -> IdentityFile {
        IdentityFile { path: path.to_owned() }
    }

    /// Reads the identity.
    ///
    /// # Errors
    /// The file is there and cannot be read, or is empty.
    pub(in crate::idempotency) fn read(&self) -> io::Result<Known> {
        match fs::read_to_string(&self.path) {
            Ok(text) if text.trim().is_empty() => Err(io::Error::other("it is empty")),
            Ok(text) => Ok(Known::This(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that the file can be made, without making it.
    ///
    /// # Errors
    /// This user may not write to its folder, or the folder cannot be made.
    pub(in crate::idempotency) fn may_write(&self) -> io::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let access = Access::WRITE_OK | Access::EXEC_OK;
        for folder in
            folder.ancestors().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        {
            match rustix::fs::accessat(CWD, folder, access, AtFlags::EACCESS) {
                // It would be made.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
                Ok(()) if folder.is_dir() => return Ok(()),
                Ok(()) => return Err(Errno::NOTDIR.into()),
            }
        }
        Err(Errno::NOENT.into())
    }

    /// Writes the identity durably: beside the file first, then in its place.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub(in crate::idempotency) fn write(&self, identity: &str) -> io::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let beside = self.path.with_extension(format!("new{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        writeln!(file, "{identity}")?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Takes the store with this identity for the right one. Returns a sentence for operators.
    ///
    /// # Errors
    /// The file cannot be read or written; the sentence names it.
    pub(in crate::idempotency) fn adopt(&self, found: &str) -> Result<String, String> {
        let named = |error: io::Error| format!("`{}`: {error}", self.path.display());
        let before = self.read().map_err(named)?;
        self.write(found).map_err(named)?;
        Ok(match before {
            Known::This(before) if before == found => format!("the store {found} was the known one already"),
            Known::This(before) => format!(
                "the store {found} is the known one now, in the place of {before}; requests that {before} alone \
                 remembered can run again"
            ),
            Known::Nothing => format!("the store {found} is the known one now"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_made_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let may = |path: &str| IdentityFile::new(&folder.path().join(path)).may_write().is_ok();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(may("store.id"));
        assert!(may("new/folders/store.id"));
        assert!(!may("file/store.id"), "below a file");
        assert!(!folder.path().join("new").exists(), "nothing is made");
    }
}
