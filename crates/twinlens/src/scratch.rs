//! Scratch folders of processes that help a run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::errors::Failure;
use crate::in_flight;

const LOCK: &str = "lock";

/// The scratch folder of one process: two on one machine must not share unfinished files. It is
/// deleted on drop, or, after a kill, by the next process of its kind.
pub(crate) struct Scratch {
    pub(crate) folder: PathBuf,
    /// The system releases the lock when the process ends.
    _lock: File,
}

impl Scratch {
    /// A new folder in `all`, the folder of all processes of this kind.
    pub(crate) fn new(all: &Path) -> Result<Self, Failure> {
        let left = delete_abandoned(all);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let folder = all.join(format!("{}-{}", std::process::id(), now.as_nanos()));
        let fail = |error| Failure::io(&folder, error);
        fs::create_dir_all(&folder).map_err(fail)?;
        let lock = File::create(folder.join(LOCK)).map_err(fail)?;
        lock.lock().map_err(fail)?;
        in_flight::leave_in(&folder, &left).map_err(fail)?;
        Ok(Self { folder, _lock: lock })
    }

    /// A folder in it, made.
    pub(crate) fn subfolder(&self, name: &str) -> Result<PathBuf, Failure> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).map_err(|error| Failure::io(&folder, error))?;
        Ok(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is deleted by the next process.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Deletes the folders of killed processes; gives what they were decoding. What cannot be deleted
/// does no harm.
fn delete_abandoned(all: &Path) -> Vec<u8> {
    let mut left = Vec::new();
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let folder = entry.path();
        let lock = File::open(folder.join(LOCK));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            left.extend(in_flight::left_in(&folder));
            let _ = fs::remove_dir_all(&folder);
        }
    }
    left
}
