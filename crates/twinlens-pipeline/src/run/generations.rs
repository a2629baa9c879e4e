//! Earlier generations of a stage's dataset.
//!
//! A dataset whose recipe changed is not deleted: its folder `clip` becomes `clip@1`, stays
//! readable, and is deleted when the new dataset is complete, or later where the stage keeps
//! generations. If the recipe changes back, the generation of that recipe takes its place again:
//! finished work is reused, unfinished work resumes.
//!
//! Folders are moved by one rename. A generation that is no longer wanted first moves to a folder
//! for deletions, so that a kill leaves nothing that looks like a dataset.

use std::collections::HashSet;

use twinlens_dataset::protocol::{State, WORK};
use twinlens_dataset::storage::{Location, UNFINISHED, local};
use twinlens_dataset::{Dataset, MAIN, manifest};

use crate::config::Pipeline;
pub(super) use crate::earlier::{name, parts};
use crate::error::RunError;
use crate::run::cost::Cost;

/// Holds what is being deleted.
pub(super) const DELETED: &str = ".deleted";
/// Holds the datasets that `--fresh` replaces.
pub(super) const OLD: &str = ".old";

/// The datasets of a stage.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// The current one.
    current: Option<State>,
    /// The earlier ones with their numbers, newest first.
    earlier: Vec<(u64, State)>,
}

impl Generations {
    /// Reads the manifests of a stage's datasets. `folders` are those of the run directory.
    pub(super) fn read(dir: &Location, folders: &[String], stage: &str) -> Result<Self, RunError> {
        let earlier = read_earlier(dir, folders, stage)?;
        Ok(Self { current: manifest::read(&dir.join(stage))?, earlier })
    }

    /// The dataset of a recipe and its number (0 for the current one), or else the current dataset.
    pub(super) fn of(&self, fingerprint: &str) -> (Option<&State>, u64) {
        let fits = |state: &State| state.begin.fingerprint == fingerprint;
        if let Some((number, state)) = self.earlier.iter().find(|(_, state)| fits(state))
            && !self.current.as_ref().is_some_and(fits)
        {
            return (Some(state), *number);
        }
        (self.current.as_ref(), 0)
    }

    /// All, the current one last: of what several record, the last holds.
    pub(super) fn all(&self) -> impl Iterator<Item = &State> {
        self.earlier.iter().rev().map(|(_, state)| state).chain(&self.current)
    }

    /// The current dataset if its recipe differs.
    pub(super) fn replaced(&self, fingerprint: &str) -> Option<&State> {
        self.current.as_ref().filter(|state| state.begin.fingerprint != fingerprint)
    }

    /// The earlier ones as they will be when the current one has made room, newest first: their
    /// numbers, and those of now (0 for the current one).
    fn after(&self, change: &Change) -> Vec<(u64, u64, &State)> {
        let (next, back) = match change {
            Change::None => (None, None),
            Change::SetAside { next, .. } => (Some(*next), None),
            Change::BringBack { number, next } => (Some(*next), Some(*number)),
        };
        let set_aside = next.and_then(|next| Some((next, 0, self.current.as_ref()?)));
        let earlier = self.earlier.iter().map(|(number, state)| (*number, *number, state));
        set_aside.into_iter().chain(earlier.filter(|(number, ..)| Some(*number) != back)).collect()
    }

    /// The datasets that a run deletes: their folders of now, and their states.
    pub(super) fn deleted(
        &self,
        stage: &str,
        change: &Change,
        is_rebuilt: bool,
        kept: &Kept<'_>,
    ) -> Vec<(String, &State)> {
        let after = self.after(change);
        // As the runner does: when it makes room, and when the new dataset is complete.
        let list: Vec<_> = after.iter().map(|(number, _, state)| (*number, *state)).collect();
        let places = match change {
            _ if is_rebuilt => kept.surplus(stage, &list, false),
            Change::None => Vec::new(),
            _ => kept.surplus(stage, &list, true),
        };
        let now = |number: u64| if number == 0 { stage.into() } else { name(stage, number) };
        places.into_iter().map(|place| (now(after[place].1), after[place].2)).collect()
    }

    /// What identifies the content of the generation `generation`; see
    /// [`super::fingerprint::Recorded::earlier`].
    pub(super) fn print(&self, dir: &Location, reader: &str, generation: &str) -> Result<String, RunError> {
        let Some((stage, number)) = parts(generation) else {
            return Err(RunError::Internal(format!("`{generation}` is not a generation")));
        };
        let earlier = self.earlier.iter().find(|(of, _)| *of == number);
        let found = match (earlier, &self.current) {
            (Some((_, state)), _) => Some((generation, state)),
            (None, Some(current)) if reader == stage && number == self.next() => Some((stage, current)),
            _ => None,
        };
        let Some((folder, state)) = found else {
            let known: Vec<String> = self.earlier.iter().map(|(number, _)| name(stage, *number)).collect();
            let message = format!("there is no `{generation}` in {dir}");
            return Err(RunError::user_with_hint(
                message,
                match &known[..] {
                    [] => format!("`{stage}` has no earlier generations there"),
                    known => format!("the earlier generations are {}", known.join(", ")),
                },
            ));
        };
        let print = format!("{}/{MAIN}", state.begin.fingerprint);
        if state.complete {
            return Ok(print);
        }
        // The names of checkpoints have sums of their contents.
        let files = dir.join(folder).join(WORK).files("")?;
        let newest = files.keys().rfind(|file| file.ends_with(".safetensors"));
        Ok(format!("{print}, unfinished, {}", newest.map_or("", String::as_str)))
    }

    /// The number of the next generation.
    pub(super) fn next(&self) -> u64 {
        self.earlier.first().map_or(0, |(number, _)| *number) + 1
    }
}

/// What happens to the dataset under a stage's name before a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It stays, or there is none.
    None,
    /// It becomes a generation.
    SetAside {
        /// The number of the generation.
        next: u64,
        /// What it cost.
        cost: Cost,
    },
    /// It becomes a generation, and an earlier one takes its place.
    BringBack {
        /// The number of the earlier one.
        number: u64,
        /// The number that the current one gets.
        next: u64,
    },
}

/// Which generations of a stage stay.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    /// How many datasets of the stage, the current one included.
    pub(super) generations: usize,
    /// Folders that stages of the pipeline read.
    pub(super) read: &'a HashSet<String>,
}

impl Kept<'_> {
    /// The places, in a list of generations that begins with the newest, of those that are too
    /// many. While the current dataset is not complete, at least one stays, and the newest complete
    /// one.
    fn surplus(&self, stage: &str, earlier: &[(u64, &State)], is_unfinished: bool) -> Vec<usize> {
        let keep = self.generations.saturating_sub(1);
        let keep = if is_unfinished { keep.max(1) } else { keep };
        let complete = earlier.iter().position(|(_, state)| state.complete).filter(|_| is_unfinished);
        let is_read = |place: usize| self.read.contains(&name(stage, earlier[place].0));
        (keep..earlier.len()).filter(|place| Some(*place) != complete && !is_read(*place)).collect()
    }
}

/// The earlier datasets of a stage with their numbers, newest first.
pub(super) fn read_earlier(
    dir: &Location,
    folders: &[String],
    stage: &str,
) -> Result<Vec<(u64, State)>, RunError> {
    let mut earlier = Vec::new();
    for folder in folders {
        if let Some((_, number)) = parts(folder).filter(|(of, _)| *of == stage)
            && let Some(state) = manifest::read(&dir.join(folder))?
        {
            earlier.push((number, state));
        }
    }
    earlier.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(earlier)
}

/// The name that the dataset of a stage gets when it becomes a generation.
pub fn next_name(dir: &Location, stage: &str) -> Result<String, RunError> {
    let newest = read_earlier(dir, &dir.list()?.folders, stage)?.first().map_or(0, |(number, _)| *number);
    Ok(name(stage, newest + 1))
}

/// The folders of generations that stages of a pipeline read.
pub(super) fn read_by(pipeline: &Pipeline) -> HashSet<String> {
    let inputs = pipeline.nodes.iter().flat_map(|node| &node.inputs);
    let names = inputs.filter_map(|input| input.input.stage());
    names.filter(|name| parts(name).is_some()).map(String::from).collect()
}

/// Refuses a folder that is not a dataset: its files are somebody else's.
pub(super) fn refuse_foreign(dir: &Location, stage: &str) -> Result<(), RunError> {
    let folder = dir.join(stage);
    // In an object store, the deletion of a dataset may have been interrupted.
    if folder.as_local().is_none() || manifest::exists(&folder)? {
        return Ok(());
    }
    let listing = folder.list()?;
    // A kill before the first line of a manifest leaves an unfinished one.
    let foreign = listing.files.iter().find(|name| !name.ends_with(UNFINISHED));
    match foreign.or(listing.folders.first()) {
        None => Ok(()),
        Some(name) => Err(RunError::user_with_hint(
            format!("{folder} is not a dataset of this program: it contains `{name}`"),
            format!("move it away, or give the stage `{stage}` another name"),
        )),
    }
}

/// Makes room for a new dataset: the current one becomes the generation `next`.
pub(super) fn set_aside(dir: &Location, stage: &str, next: u64) -> Result<(), RunError> {
    let current = dir.join(stage);
    if manifest::exists(&current)? {
        current.move_folder(&dir.join(&name(stage, next)), manifest::FILE)?;
    }
    Ok(())
}

/// Makes an earlier generation the current dataset again.
pub(super) fn bring_back(dir: &Location, stage: &str, number: u64, next: u64) -> Result<(), RunError> {
    set_aside(dir, stage, next)?;
    Ok(dir.join(&name(stage, number)).move_folder(&dir.join(stage), manifest::FILE)?)
}

/// Deletes the generations of a stage that are too many; `is_unfinished` says that its dataset is
/// not complete. One with a file of somebody else stays; gives what to say about it.
pub(super) fn prune(
    dir: &Location,
    stage: &str,
    kept: &Kept<'_>,
    is_unfinished: bool,
) -> Result<Vec<String>, RunError> {
    let earlier = read_earlier(dir, &dir.list()?.folders, stage)?;
    let list: Vec<_> = earlier.iter().map(|(number, state)| (*number, state)).collect();
    let mut notes = Vec::new();
    for place in kept.surplus(stage, &list, is_unfinished) {
        let folder = name(stage, earlier[place].0);
        match foreign_file(&dir.join(&folder))? {
            None => delete(dir, &folder)?,
            Some(foreign) => notes.push(stays(&dir.join(&folder), &foreign)),
        }
    }
    Ok(notes)
}

/// For `--fresh`: moves every dataset of `stages` aside, where no recipe finds it. What is there
/// already from an unfinished `--fresh` stays if it is complete.
///
/// # Errors
/// The user's: one that would be deleted has a file of somebody else.
pub(super) fn set_all_aside(dir: &Location, stages: &HashSet<&str>) -> Result<(), RunError> {
    for folder in dir.list()?.folders {
        let stage = parts(&folder).map_or(folder.as_str(), |(stage, _)| stage);
        let (current, old) = (dir.join(&folder), dir.join(OLD).join(&folder));
        if !stages.contains(stage) || !manifest::exists(&current)? {
            continue;
        }
        match manifest::read(&old)? {
            Some(state) if state.complete => {
                refuse_foreign_file(&current)?;
                delete(dir, &folder)?;
            }
            _ => {
                refuse_foreign_file(&old)?;
                old.delete_folder(manifest::FILE)?;
                current.move_folder(&old, manifest::FILE)?;
            }
        }
    }
    Ok(())
}

/// Deletes what `--fresh` moved aside of a stage whose dataset is complete again. One with a file
/// of somebody else stays; gives what to say about it.
pub(super) fn delete_old(dir: &Location, stage: &str) -> Result<Vec<String>, RunError> {
    let mut notes = Vec::new();
    for folder in dir.join(OLD).list()?.folders {
        if folder == stage || parts(&folder).is_some_and(|(of, _)| of == stage) {
            let old = dir.join(OLD).join(&folder);
            match foreign_file(&old)? {
                None => old.delete_folder(manifest::FILE)?,
                Some(foreign) => notes.push(stays(&old, &foreign)),
            }
        }
    }
    Ok(notes)
}

/// A file in a dataset's folder that no run wrote. Of a link to a folder, only the link is deleted.
pub(super) fn foreign_file(folder: &Location) -> Result<Option<String>, RunError> {
    if folder.as_local().is_some_and(local::is_link) {
        return Ok(None);
    }
    match manifest::read(folder)? {
        Some(state) => Ok(Dataset::from_state(folder.clone(), state).foreign_file()?),
        None => Ok(None),
    }
}

fn refuse_foreign_file(folder: &Location) -> Result<(), RunError> {
    match foreign_file(folder)? {
        None => Ok(()),
        Some(foreign) => Err(RunError::user_with_hint(
            format!("{folder} would be deleted, but it contains `{foreign}`, which no run wrote"),
            "move that file away",
        )),
    }
}

pub(super) fn stays(folder: &Location, foreign: &str) -> String {
    format!("{folder} is not deleted: it contains `{foreign}`, which no run wrote")
}

/// Deletes a dataset.
pub(super) fn delete(dir: &Location, folder: &str) -> Result<(), RunError> {
    if dir.as_local().is_some() {
        let to = dir.join(DELETED).join(folder);
        to.delete_folder(manifest::FILE)?;
        dir.join(folder).move_folder(&to, manifest::FILE)?;
        Ok(to.delete_folder(manifest::FILE)?)
    } else {
        Ok(dir.join(folder).delete_folder(manifest::FILE)?)
    }
}

/// The earlier generations of all stages in a run directory, as datasets named `stage@number`.
pub fn earlier(dir: &Location) -> Result<Vec<Dataset>, RunError> {
    let mut found = Vec::new();
    for folder in dir.list()?.folders {
        if parts(&folder).is_none() {
            continue;
        }
        if let Some(mut state) = manifest::read(&dir.join(&folder))? {
            state.begin.stage = folder.clone();
            // Their names are those of the current datasets.
            state.begin.variant = None;
            state.begin.fused = Vec::new();
            found.push(Dataset::from_state(dir.join(&folder), state));
        }
    }
    Ok(found)
}
