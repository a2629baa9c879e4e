//! The run directory: whose it is, and that one process at a time works in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twinlens_dataset::storage;

use crate::error::RunError;

const IDENTITY: &str = "run.json";
const LOCK: &str = "lock";

#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    pipeline: String,
}

/// A run directory that this process holds. The lock is the system's: it ends with the process, however that ends.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Opens (or makes) the directory for a pipeline.
    ///
    /// # Errors
    /// The user's: it belongs to another pipeline, holds other things, or another process works in it.
    pub fn open(path: &Path, pipeline: &str) -> Result<Self, RunError> {
        fs::create_dir_all(path).map_err(|error| RunError::io(path, error))?;
        let lock = lock(path)?;
        match identity(path)? {
            Some(found) if found != pipeline => Err(RunError::user_with_hint(
                format!("{} holds a run of the pipeline `{found}`, not of `{pipeline}`", path.display()),
                "choose another directory with --dir",
            )),
            Some(_) => Ok(Self { path: path.into(), _lock: lock }),
            None => {
                refuse_foreign_files(path)?;
                let identity = Identity { format: 1, pipeline: pipeline.into() };
                let text = serde_json::to_string(&identity)
                    .map_err(|error| RunError::Internal(error.to_string()))?;
                storage::write(&path.join(IDENTITY), text.as_bytes())?;
                Ok(Self { path: path.into(), _lock: lock })
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes every dataset, for `--fresh`.
    pub fn clear(&self) -> Result<(), RunError> {
        for entry in fs::read_dir(&self.path).map_err(|error| RunError::io(&self.path, error))? {
            let path = entry.map_err(|error| RunError::io(&self.path, error))?.path();
            if path.is_dir() {
                storage::remove_file(&path.join(twinlens_dataset::manifest::FILE))?;
                storage::remove_dir(&path)?;
            }
        }
        Ok(())
    }

    /// The folder for what the engine spills; emptied at every start.
    pub fn spill(&self) -> Result<PathBuf, RunError> {
        let spill = self.path.join(".spill");
        storage::remove_dir(&spill)?;
        storage::create_dir(&spill)?;
        Ok(spill)
    }
}

/// The pipeline that a run directory belongs to; `None` when it is no run directory.
pub fn identity(path: &Path) -> Result<Option<String>, RunError> {
    let file = path.join(IDENTITY);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RunError::io(file, error)),
    };
    let identity: Identity = serde_json::from_str(&text).map_err(|error| {
        RunError::user_with_hint(
            format!("{}: damaged: {error}", file.display()),
            "if the directory is a run of this pipeline, delete this file and run again",
        )
    })?;
    Ok(Some(identity.pipeline))
}

fn lock(path: &Path) -> Result<File, RunError> {
    let file = path.join(LOCK);
    let fail = |error| RunError::io(&file, error);
    let mut open =
        OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&file).map_err(fail)?;
    match open.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(fail(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = open.read_to_string(&mut holder);
            return Err(RunError::user_with_hint(
                format!("another process ({}) is running in {}", holder.trim(), path.display()),
                "wait for it, stop it, or choose another directory with --dir",
            ));
        }
    }
    // For the message above only: the lock itself is the system's.
    open.set_len(0).and_then(|()| write!(open, "pid {}", std::process::id())).map_err(fail)?;
    Ok(open)
}

fn refuse_foreign_files(path: &Path) -> Result<(), RunError> {
    for entry in fs::read_dir(path).map_err(|error| RunError::io(path, error))? {
        let name = entry.map_err(|error| RunError::io(path, error))?.file_name();
        let ours = name == LOCK || name.to_string_lossy().ends_with(storage::UNFINISHED);
        let dataset = path.join(&name).join(twinlens_dataset::manifest::FILE).exists();
        if !ours && !dataset && name != ".spill" {
            return Err(RunError::user_with_hint(
                format!(
                    "{} is not empty and no run directory: it holds `{}`",
                    path.display(),
                    name.to_string_lossy()
                ),
                "choose an empty or new directory with --dir",
            ));
        }
    }
    Ok(())
}
