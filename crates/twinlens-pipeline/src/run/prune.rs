//! Finds and deletes what a run directory holds and no run needs: earlier generations, and what
//! killed processes left.
//!
//! While a dataset is not complete, its newest complete generation stays, and so does what
//! `--fresh` moved aside; a generation that a current dataset was made from stays; and so does a
//! folder with a file that no run wrote.

use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use twinlens_dataset::manifest;
use twinlens_dataset::protocol::WORK;
use twinlens_dataset::storage::Location;

use crate::error::RunError;
use crate::run::cost::Cost;
use crate::run::directory::{PASSES, RunDirectory, SPILL};
use crate::run::generations::{self, DELETED, OLD, parts};

/// What something in a run directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An earlier dataset of a stage.
    Generation,
    /// An earlier dataset of a stage that was never completed.
    Unfinished,
    /// A dataset that `--fresh` replaced.
    Replaced,
    /// What passes over rows left, of a stage that is complete or gone.
    Passes,
    /// Checkpoints and cached images of a training that is complete.
    Work,
    /// What the query engine spilled to disk.
    Spilled,
    /// What a killed process did not delete to the end.
    Deleted,
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generation => "earlier generation",
            Self::Unfinished => "earlier generation, unfinished",
            Self::Replaced => "replaced by --fresh",
            Self::Passes => "passes of a finished stage",
            Self::Work => "checkpoints of a finished training",
            Self::Spilled => "spilled data of a killed run",
            Self::Deleted => "half deleted by a killed run",
        })
    }
}

/// Something that can be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its folder, relative to the run directory.
    pub folder: String,
    /// What it is.
    pub kind: Kind,
    /// Its size.
    pub bytes: u64,
    /// The time since it was last written to; unknown in an object store.
    pub age: Option<Duration>,
}

/// A locked run directory, and what can be deleted there.
#[derive(Debug)]
pub struct Leftovers {
    dir: Location,
    _lock: RunDirectory,
    /// What can be deleted.
    pub found: Vec<Leftover>,
    /// Folders that stay, and why.
    pub kept: Vec<(String, String)>,
}

impl Leftovers {
    /// Looks through a run directory; changes nothing. It stays locked as long as the result lives.
    ///
    /// # Errors
    /// The user's: it is not a run directory, or a run is in progress.
    pub fn find(dir: &Location) -> Result<Self, RunError> {
        let lock = RunDirectory::lock_existing(dir)?;
        let mut all = Self { dir: dir.clone(), _lock: lock, found: Vec::new(), kept: Vec::new() };
        all.generations()?;
        all.replaced()?;
        all.passes()?;
        for folder in dir.list()?.folders.iter().filter(|folder| parts(folder).is_none()) {
            let dataset = dir.join(folder);
            let state = manifest::read(&dataset)?;
            if state.is_some_and(|state| state.complete) {
                all.add_rest(&format!("{folder}/{WORK}"), Kind::Work)?;
            }
        }
        all.add_rest(SPILL, Kind::Spilled)?;
        all.add_rest(DELETED, Kind::Deleted)?;
        Ok(all)
    }

    /// The earlier generations of all stages.
    fn generations(&mut self) -> Result<(), RunError> {
        let dir = self.dir.clone();
        let folders = dir.list()?.folders;
        let (mut read, mut complete) = (HashSet::new(), HashSet::new());
        for folder in folders.iter().filter(|folder| parts(folder).is_none()) {
            let Some(state) = manifest::read(&dir.join(folder))? else { continue };
            read.extend(inputs(&state.begin.recipe));
            if state.complete {
                complete.insert(folder.as_str());
            }
        }
        let mut earlier = Vec::new();
        for folder in &folders {
            if let Some((stage, number)) = parts(folder)
                && let Some(state) = manifest::read(&dir.join(folder))?
            {
                earlier.push((stage, number, folder, state));
            }
        }
        earlier.sort_by_key(|(stage, number, ..)| (*stage, std::cmp::Reverse(*number)));
        for (stage, _, folder, state) in &earlier {
            let is_newest_complete = state.complete && complete.insert(stage);
            let why = if read.contains(*folder) {
                Some("a dataset was made from it".into())
            } else if is_newest_complete {
                Some(format!("`{stage}` is not complete, and this is its newest complete generation"))
            } else {
                foreign(&dir.join(folder))?
            };
            let bytes = Cost::of(&dir.join(folder), state)?.bytes;
            let kind = if state.complete { Kind::Generation } else { Kind::Unfinished };
            self.add(folder, kind, bytes, why)?;
        }
        Ok(())
    }

    /// What `--fresh` moved aside.
    fn replaced(&mut self) -> Result<(), RunError> {
        for name in self.dir.join(OLD).list()?.folders {
            let folder = format!("{OLD}/{name}");
            let stage = parts(&name).map_or(name.as_str(), |(stage, _)| stage);
            let old = self.dir.join(OLD).join(&name);
            let current = manifest::read(&self.dir.join(stage))?;
            let why = if current.is_some_and(|state| state.complete) {
                foreign(&old)?
            } else {
                Some(format!("`{stage}` is not complete yet"))
            };
            let bytes = old.files("")?.values().sum();
            self.add(&folder, Kind::Replaced, bytes, why)?;
        }
        Ok(())
    }

    /// What passes over rows left.
    fn passes(&mut self) -> Result<(), RunError> {
        for stage in self.dir.join(PASSES).list()?.folders {
            let current = manifest::read(&self.dir.join(&stage))?;
            let why = match current {
                Some(state) if !state.complete => Some(format!("`{stage}` is not complete yet")),
                _ => None,
            };
            for name in self.dir.join(PASSES).join(&stage).list()?.folders {
                let folder = format!("{PASSES}/{stage}/{name}");
                let location = self.location(&folder);
                let why = why.clone().map_or_else(|| foreign(&location), |why| Ok(Some(why)))?;
                self.add(&folder, Kind::Passes, location.files("")?.values().sum(), why)?;
            }
        }
        Ok(())
    }

    /// A folder that has nothing of others, if it has anything.
    fn add_rest(&mut self, folder: &str, kind: Kind) -> Result<(), RunError> {
        let bytes: u64 = self.location(folder).files("")?.values().sum();
        if bytes > 0 { self.add(folder, kind, bytes, None) } else { Ok(()) }
    }

    fn add(&mut self, folder: &str, kind: Kind, bytes: u64, why: Option<String>) -> Result<(), RunError> {
        match why {
            Some(why) => self.kept.push((folder.into(), why)),
            None => {
                let age = age(&self.location(folder));
                self.found.push(Leftover { folder: folder.into(), kind, bytes, age });
            }
        }
        Ok(())
    }

    fn location(&self, folder: &str) -> Location {
        folder.split('/').fold(self.dir.clone(), |location, name| location.join(name))
    }

    /// Deletes what was found.
    pub fn delete(self) -> Result<(), RunError> {
        for Leftover { folder, kind, .. } in &self.found {
            match kind {
                Kind::Generation | Kind::Unfinished => generations::delete(&self.dir, folder)?,
                _ => self.location(folder).delete_folder(manifest::FILE)?,
            }
        }
        Ok(())
    }
}

/// The names of the inputs of a dataset and of the stages that are fused into it.
fn inputs(recipe: &Value) -> Vec<String> {
    let fused = recipe["fused"].as_object().into_iter().flat_map(|fused| fused.values());
    let all = fused.chain([recipe]).filter_map(|recipe| recipe["inputs"].as_object());
    all.flat_map(|inputs| inputs.keys().cloned()).collect()
}

/// That a dataset has a file that no run wrote.
fn foreign(dataset: &Location) -> Result<Option<String>, RunError> {
    let file = generations::foreign_file(dataset)?;
    Ok(file.map(|file| format!("it contains `{file}`, which no run wrote")))
}

/// The time since a local folder was last written to, by its log or else by itself.
fn age(folder: &Location) -> Option<Duration> {
    let path = folder.as_local()?;
    let changed = [path.join(manifest::FILE), path.to_path_buf()]
        .into_iter()
        .find_map(|path| std::fs::metadata(path).ok()?.modified().ok());
    SystemTime::now().duration_since(changed?).ok()
}
