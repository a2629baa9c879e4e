//! The files by which a run and its workers tell each other what they do.
//!
//! ```text
//! .workers/run.json                     what the run does now; the run alone writes it
//! .workers/drivers/00000003.json        the runs that worked in the directory; put once
//! .workers/alive/HOST-PID-xxxx.json     written again and again by a living process
//! .workers/units/0003-0001/recipe.json  the unit; put once, after its splits
//!                         /splits/00000000.json   a thousand splits
//!                         /claims/00000012-01     who makes split 12, at the second attempt
//!                         /failures/00000012-01   how that attempt failed
//! ```

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use twinlens_dataset::storage::Location;
use twinlens_dataset::{DatasetError, manifest};

use crate::error::RunError;
use crate::run::directory::WORKERS;
use crate::run::failure::SplitFailure;
use crate::run::recipe::UnitRecipe;
use crate::run::splits::SplitTask;

/// Splits in one file.
const SPLITS_TOGETHER: usize = 1000;

/// What a run does now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Current {
    /// The number of the run among those that worked in the directory.
    pub(super) driver: u64,
    /// Grows while the run is alive.
    pub(super) beat: u64,
    /// Whether it has ended.
    pub(super) is_ended: bool,
    /// The unit of which splits can be made.
    pub(super) unit: Option<String>,
    /// Seconds after which a process that shows no sign of life is taken for dead.
    pub(super) lease: f64,
}

/// A run that worked in the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Driver {
    /// Its machine.
    pub(super) host: String,
    /// Its process.
    pub(super) pid: u32,
    /// A random text, which the process also keeps beside its local lock.
    pub(super) token: String,
}

/// The folder `.workers` of a run directory.
#[derive(Debug, Clone)]
pub(super) struct Board {
    folder: Location,
}

impl Board {
    pub(super) fn new(run: &Location) -> Self {
        Self { folder: run.join(WORKERS) }
    }

    pub(super) fn current(&self) -> Result<Option<Current>, RunError> {
        read(&self.folder.join("run.json"))
    }

    pub(super) fn set_current(&self, current: &Current) -> Result<(), RunError> {
        Ok(self.folder.join("run.json").write(&text(current)?)?)
    }

    /// The last run that worked in the directory, and its number.
    pub(super) fn last_driver(&self) -> Result<Option<(u64, Driver)>, RunError> {
        let names = self.folder.join("drivers").list_after("")?;
        let Some(number) = names.last().and_then(|name| name.strip_suffix(".json")?.parse().ok()) else {
            return Ok(None);
        };
        Ok(read(&self.driver(number))?.map(|driver| (number, driver)))
    }

    /// Whether a run with that number, or a later one, worked in the directory.
    pub(super) fn has_driver(&self, number: u64) -> Result<bool, RunError> {
        Ok(self.driver(number).exists()?)
    }

    /// Enters a run under a number; whether no other has it.
    pub(super) fn enter_driver(&self, number: u64, driver: &Driver) -> Result<bool, RunError> {
        Ok(self.driver(number).create(&text(driver)?)?)
    }

    fn driver(&self, number: u64) -> Location {
        self.folder.join(&format!("drivers/{number:08}.json"))
    }

    /// The folder in which living processes show that they are.
    pub(super) fn alive(&self) -> Location {
        self.folder.join("alive")
    }

    pub(super) fn unit(&self, name: &str) -> UnitBoard {
        UnitBoard { folder: self.folder.join(&format!("units/{name}")) }
    }

    /// Deletes the units of earlier runs.
    pub(super) fn delete_units(&self) -> Result<(), DatasetError> {
        self.folder.join("units").delete_folder(manifest::FILE)
    }
}

/// The folder of a unit.
#[derive(Debug, Clone)]
pub(super) struct UnitBoard {
    folder: Location,
}

impl UnitBoard {
    /// Puts the splits and then the recipe.
    pub(super) fn publish(&self, recipe: &UnitRecipe, tasks: &[SplitTask]) -> Result<(), RunError> {
        for (number, together) in tasks.chunks(SPLITS_TOGETHER).enumerate() {
            self.folder.join(&format!("splits/{number:08}.json")).write(&text(&together)?)?;
        }
        Ok(self.folder.join("recipe.json").write(&text(recipe)?)?)
    }

    /// `None` if the unit is over.
    pub(super) fn recipe(&self) -> Result<Option<UnitRecipe>, RunError> {
        read(&self.folder.join("recipe.json"))
    }

    pub(super) fn tasks(&self) -> Result<Vec<SplitTask>, RunError> {
        let (folder, mut tasks) = (self.folder.join("splits"), Vec::new());
        for name in folder.list_after("")? {
            tasks.extend(read::<Vec<SplitTask>>(&folder.join(&name))?.unwrap_or_default());
        }
        Ok(tasks)
    }

    /// Claims an attempt at a split; whether it is the caller's.
    pub(super) fn claim(&self, attempt: Attempt, holder: &str) -> Result<bool, RunError> {
        Ok(self.folder.join(&format!("claims/{}", attempt.name())).create(holder.as_bytes())?)
    }

    /// Who made an attempt.
    pub(super) fn holder(&self, attempt: Attempt) -> Result<String, RunError> {
        let holder = self.folder.join(&format!("claims/{}", attempt.name())).read()?;
        Ok(String::from_utf8_lossy(&holder.unwrap_or_default()).into_owned())
    }

    /// The claimed attempts at splits from `first` on.
    pub(super) fn claims_from(&self, first: u64) -> Result<Vec<Attempt>, RunError> {
        self.attempts("claims", first)
    }

    pub(super) fn fail(&self, attempt: Attempt, failure: &SplitFailure) -> Result<(), RunError> {
        Ok(self.folder.join(&format!("failures/{}", attempt.name())).write(&text(failure)?)?)
    }

    pub(super) fn failures(&self) -> Result<Vec<Attempt>, RunError> {
        self.attempts("failures", 0)
    }

    pub(super) fn failure(&self, attempt: Attempt) -> Result<Option<SplitFailure>, RunError> {
        read(&self.folder.join(&format!("failures/{}", attempt.name())))
    }

    fn attempts(&self, folder: &str, first: u64) -> Result<Vec<Attempt>, RunError> {
        let before = first.checked_sub(1).map(|split| Attempt { split, number: 99 }.name());
        let names = self.folder.join(folder).list_after(&before.unwrap_or_default())?;
        Ok(names.iter().filter_map(|name| Attempt::parse(name)).collect())
    }
}

/// An attempt at a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Attempt {
    pub(super) split: u64,
    /// From 0.
    pub(super) number: u32,
}

impl Attempt {
    /// Names sort like attempts.
    fn name(self) -> String {
        format!("{:08}-{:02}", self.split, self.number)
    }

    fn parse(name: &str) -> Option<Self> {
        let (split, number) = name.split_once('-')?;
        Some(Self { split: split.parse().ok()?, number: number.parse().ok()? })
    }
}

fn text(value: &impl Serialize) -> Result<Vec<u8>, RunError> {
    serde_json::to_vec(value).map_err(|error| RunError::Internal(error.to_string()))
}

fn read<T: DeserializeOwned>(file: &Location) -> Result<Option<T>, RunError> {
    let Some(bytes) = file.read()? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|error| {
        RunError::user_with_hint(
            format!("{file} is not understood: {error}"),
            "run the same build of twinlens on all machines",
        )
    })?;
    Ok(Some(value))
}
