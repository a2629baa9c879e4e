//! The run directory: it belongs to one pipeline, and one process at a time works in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twinlens_dataset::manifest;
use twinlens_dataset::storage::{Location, UNFINISHED, local};

use crate::error::RunError;
use crate::run::generations::{DELETED, OLD};
use crate::secrets::Secrets;

const IDENTITY: &str = "run.json";
const LOCK: &str = "lock";
pub(super) const SPILL: &str = ".spill";
/// What a run is doing, for other processes.
pub const LIVE: &str = ".live";
/// What a run and the processes that make splits of it tell each other.
pub(super) const WORKERS: &str = ".workers";
/// What the passes of stages are told and answer.
pub(super) const PASSES: &str = ".passes";

#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    pipeline: String,
    /// CRC-32 of the name: with a flipped bit, the directory would be another pipeline's. Those of
    /// older versions have none.
    #[serde(default)]
    crc32: Option<u32>,
}

impl Identity {
    fn new(pipeline: &str) -> Self {
        Self { format: 1, pipeline: pipeline.into(), crc32: Some(crc32fast::hash(pipeline.as_bytes())) }
    }

    fn is_sound(&self) -> bool {
        self.format == 1 && self.crc32.is_none_or(|crc| crc == crc32fast::hash(self.pipeline.as_bytes()))
    }
}

/// A run directory locked by this process. The operating system releases the lock when the process
/// ends. (If two machines share a directory of an object store, the manifests refuse the second.)
#[derive(Debug)]
pub struct RunDirectory {
    /// The folder of the lock and of spilled data: the directory itself, or its local counterpart.
    local: PathBuf,
    _lock: Lock,
}

/// The locked folder, and in it a file that says by whom. The file can be deleted, the folder
/// cannot without its contents. Some network file systems lock files alone.
#[derive(Debug)]
struct Lock {
    _folder: Option<File>,
    _file: File,
}

impl RunDirectory {
    /// Opens or creates the directory for a pipeline. Of one with secrets, only its owner can read
    /// the directory.
    ///
    /// # Errors
    /// It belongs to another pipeline, has other contents, or is locked by another process.
    pub fn open(location: &Location, pipeline: &str, secrets: &Secrets) -> Result<Self, RunError> {
        let local = location.local_path();
        local::create_dir(&local)?;
        if !secrets.is_empty() {
            make_private(&local)?;
        }
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
                let text = serde_json::to_string(&Identity::new(pipeline))
                    .map_err(|error| RunError::Internal(error.to_string()))?;
                location.join(IDENTITY).write(text.as_bytes())?;
            }
        }
        // A folder that machines share, which is written as a store.
        let name = location.to_string();
        let shared = name.strip_prefix("file://").map(Path::new);
        if let Some(shared) = shared.filter(|folder| !secrets.is_empty() && folder.is_dir()) {
            make_private(shared)?;
        }
        refuse_links(&local)?;
        // What a kill left of a deletion.
        location.join(DELETED).delete_folder(manifest::FILE)?;
        Ok(Self { local, _lock: lock })
    }

    /// Locks the directory of an earlier run, and changes nothing in it.
    ///
    /// # Errors
    /// It is not a run directory, or is locked by another process.
    pub(super) fn lock_existing(location: &Location) -> Result<Self, RunError> {
        if identity(location)?.is_none() {
            return Err(RunError::user(format!("{location} is not a run directory")));
        }
        let local = location.local_path();
        local::create_dir(&local)?;
        let lock = lock(&local, location)?;
        refuse_links(&local)?;
        Ok(Self { local, _lock: lock })
    }

    /// The local folder that the lock guards.
    pub(super) fn lock_folder(&self) -> &Path {
        &self.local
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
    let damaged = |what: &str| {
        RunError::user_with_hint(
            format!("{file}: damaged: {what}"),
            "if the directory is a run of this pipeline, delete this file and run again",
        )
    };
    match serde_json::from_slice::<Identity>(&text) {
        Err(error) => Err(damaged(&error.to_string())),
        Ok(identity) if !identity.is_sound() => Err(damaged("its checksum differs")),
        Ok(identity) => Ok(Some(identity.pipeline)),
    }
}

fn lock(folder: &Path, location: &Location) -> Result<Lock, RunError> {
    let file = folder.join(LOCK);
    let is_locked = || {
        let holder = fs::read_to_string(&file).unwrap_or_default();
        let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() };
        RunError::user_with_hint(
            format!("another process ({holder}) is running in {location}"),
            "wait for it, stop it, or choose another directory with --dir",
        )
    };
    let handle = File::open(folder).map_err(|error| RunError::io(folder, error))?;
    let handle = match handle.try_lock() {
        Ok(()) => Some(handle),
        Err(TryLockError::Error(_)) => None,
        Err(TryLockError::WouldBlock) => return Err(is_locked()),
    };
    let fail = |error| RunError::io(&file, error);
    let mut open =
        OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&file).map_err(fail)?;
    match open.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(fail(error)),
        Err(TryLockError::WouldBlock) => return Err(is_locked()),
    }
    // Only for the message above; the operating system holds the lock.
    open.set_len(0).and_then(|()| write!(open, "pid {}", std::process::id())).map_err(fail)?;
    Ok(Lock { _folder: handle, _file: open })
}

/// Refuses links in place of the folders whose contents are deleted.
fn refuse_links(folder: &Path) -> Result<(), RunError> {
    let paths = [SPILL, LIVE, DELETED, OLD, PASSES].map(|name| folder.join(name));
    match paths.iter().find(|path| local::is_link(path)) {
        None => Ok(()),
        Some(link) => Err(RunError::user_with_hint(
            format!("{} is a link, but a run deletes what is in this folder", link.display()),
            "remove the link",
        )),
    }
}

/// Denies all others access to a folder.
#[cfg(unix)]
fn make_private(folder: &Path) -> Result<(), RunError> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |error| RunError::io(folder, error);
    let mode = fs::metadata(folder).map_err(fail)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode & 0o700)).map_err(fail)
}

#[cfg(not(unix))]
fn make_private(_: &Path) -> Result<(), RunError> {
    Ok(())
}

fn refuse_foreign_files(location: &Location) -> Result<(), RunError> {
    let listing = location.list()?;
    let is_foreign = |name: &String| name != LOCK && !name.ends_with(UNFINISHED);
    let mut foreign: Vec<String> = listing.files.into_iter().filter(is_foreign).collect();
    let (mut own, mut has_dataset) = (Vec::new(), false);
    for name in listing.folders {
        if manifest::exists(&location.join(&name))? {
            has_dataset = true;
        } else if [SPILL, LIVE, DELETED, OLD, WORKERS, PASSES].contains(&name.as_str()) {
            own.push(name);
        } else {
            foreign.push(name);
        }
    }
    // What is in these is deleted. They are a run's if there are datasets beside them.
    for name in own.into_iter().filter(|_| !has_dataset) {
        let within = location.join(&name).list()?;
        if !within.files.is_empty() || !within.folders.is_empty() {
            foreign.push(name);
        }
    }
    match foreign.first() {
        None => Ok(()),
        Some(name) => Err(RunError::user_with_hint(
            format!("{location} is not a run directory: it contains `{name}`"),
            "choose an empty or new directory with --dir",
        )),
    }
}
