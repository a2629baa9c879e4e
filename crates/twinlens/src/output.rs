//! Files that a command makes for its user: whole, or not there.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use twinlens_dataset::storage::local;

use crate::errors::{Failure, FileError};

/// Writes a file. If that fails, nothing of it stays.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    local::write(path, content).map_err(|error| {
        remove_unfinished(path);
        error.into()
    })
}

/// A file in the making. Unless it is published, nothing of it stays.
pub(crate) struct OutputFile {
    path: PathBuf,
    is_published: bool,
}

impl OutputFile {
    /// Begins a file, and gives what writes to it; its errors name the file.
    pub(crate) fn create(path: &Path) -> Result<(Self, Box<dyn Write + Send>), Failure> {
        let unfinished = local::unfinished(path);
        let file = File::create(&unfinished).map_err(|error| Failure::io(&unfinished, error))?;
        let file = BufWriter::new(NamedFile { file, path: path.into() });
        Ok((Self { path: path.into(), is_published: false }, Box::new(file)))
    }

    pub(crate) fn publish(mut self) -> Result<(), Failure> {
        local::publish(&self.path)?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if !self.is_published {
            remove_unfinished(&self.path);
        }
    }
}

fn remove_unfinished(path: &Path) {
    // Best effort: the failure itself is reported.
    let _ = fs::remove_file(local::unfinished(path));
}

struct NamedFile {
    file: File,
    path: PathBuf,
}

impl Write for NamedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file
            .write(bytes)
            .map_err(|error| io::Error::new(error.kind(), FileError { path: self.path.clone(), error }))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_published_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let (file, mut out) = OutputFile::create(&path).unwrap();
        out.write_all(b"half").unwrap();
        drop((out, file));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let (file, mut out) = OutputFile::create(&path).unwrap();
        out.write_all(b"whole").unwrap();
        drop(out);
        file.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn errors_name_the_file() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut named = NamedFile { file: full, path: "out.csv".into() };
        let failure = Failure::from(named.write_all(b"x").unwrap_err());
        assert!(failure.message.starts_with("out.csv: "), "{}", failure.message);
        assert!(failure.hint.unwrap().contains("free some disk space"));
    }
}
