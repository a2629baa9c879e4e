//! The run directory: it belongs to one pipeline, and one process at a time works in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twinlens_dataset::manifest;
use twinlens_dataset::storage::{Location, UNFINISHED, local};

use crate::error::RunError;
use crate::run::generations::{DELETED, OLD};

const IDENTITY: &str = "run.json";
const LOCK: &str = "lock";
const SPILL: &str = ".spill";
/// What a run is doing, for other processes.
pub const LIVE: &str = ".live";

#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    pipeline: String,
}

/// A run directory locked by this process. The operating system releases the lock when the process
/// ends. (If two machines share a directory of an object store, the manifests refuse the second.)
#[derive(Debug)]
pub struct RunDirectory {
    /// The folder of the lock and of spilled data: the directory itself, or its local counterpart.
    local: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Opens or creates the directory for a pipeline.
    ///
    /// # Errors
    /// It belongs to another pipeline, has other contents, or is locked by another process.
    pub fn open(location: &Location, pipeline: &str) -> Result<Self, RunError> {
        let local = location.local_path();
        fs::create_dir_all(&local).map_err(|error| RunError::io(&local, error))?;
        let lock = lock(&local, location)?;
        match identity(location)? {
            Some(found) if found != pipeline => {
                return Err(RunError::user_with_hint(
                    format!("{location} holds a run of the pipeline `{found}`, not of `{pipeline}`"),
                    "choose another directory with --dir",
                ));
            }
            Some(_) => {}
            None => {
                refuse_foreign_files(location)?;
                let identity = Identity { format: 1, pipeline: pipeline.into() };
                let text = serde_json::to_string(&identity)
                    .map_err(|error| RunError::Internal(error.to_string()))?;
                location.join(IDENTITY).write(text.as_bytes())?;
            }
        }
        // What a kill left of a deletion.
        location.join(DELETED).delete_folder(manifest::FILE)?;
        Ok(Self { local, _lock: lock })
    }

    /// The folder for data that the engine spills; emptied at every start.
    pub fn spill(&self) -> Result<PathBuf, RunError> {
        let spill = self.local.join(SPILL);
        local::remove_dir(&spill)?;
        local::create_dir(&spill)?;
        Ok(spill)
    }
}

/// The pipeline of a run directory; `None` if it is not a run directory.
pub fn identity(location: &Location) -> Result<Option<String>, RunError> {
    let file = location.join(IDENTITY);
    let Some(text) = file.read()? else { return Ok(None) };
    let identity: Identity = serde_json::from_slice(&text).map_err(|error| {
        RunError::user_with_hint(
            format!("{file}: damaged: {error}"),
            "if the directory is a run of this pipeline, delete this file and run again",
        )
    })?;
    Ok(Some(identity.pipeline))
}

fn lock(folder: &Path, location: &Location) -> Result<File, RunError> {
    let file = folder.join(LOCK);
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
                format!("another process ({}) is running in {location}", holder.trim()),
                "wait for it, stop it, or choose another directory with --dir",
            ));
        }
    }
    // Only for the message above; the operating system holds the lock.
    open.set_len(0).and_then(|()| write!(open, "pid {}", std::process::id())).map_err(fail)?;
    Ok(open)
}

fn refuse_foreign_files(location: &Location) -> Result<(), RunError> {
    let listing = location.list()?;
    let foreign = listing.files.iter().find(|name| *name != LOCK && !name.ends_with(UNFINISHED));
    let mut unexpected = foreign.cloned();
    for name in listing.folders {
        if ![SPILL, LIVE, DELETED, OLD].contains(&name.as_str()) && !manifest::exists(&location.join(&name))?
        {
            unexpected = Some(name);
        }
    }
    match unexpected {
        None => Ok(()),
        Some(name) => Err(RunError::user_with_hint(
            format!("{location} is not a run directory: it contains `{name}`"),
            "choose an empty or new directory with --dir",
        )),
    }
}
