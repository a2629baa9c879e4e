//! A pass over the rows of a unit: what a process is told of it, and what makes its splits.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, blocking};

use crate::context::RunContext;
use crate::error::RunError;
use crate::passes::{PassWork, Passes, ROWS};
use crate::run::events::{Progress, Silent};
use crate::run::step::Step;

/// What a process is told of a pass, beside the unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassRecipe {
    /// Its name in the stage.
    pub name: String,
    /// The folder of what it is told, in the run directory.
    pub told: Option<String>,
    /// The folder of its answers; `None` for the pass that makes the rows of the stage's dataset.
    pub answers: Option<String>,
    /// The folder of the dataset whose rows a split has, where they are not those of the input: all
    /// of a group ([`grouped`](super::grouped)).
    #[serde(default)]
    pub rows_of: Option<String>,
    /// How many groups the pass makes of the rows of the input.
    #[serde(default)]
    pub groups: u64,
}

/// A pass in a process that makes splits of it.
pub(super) struct OpenPass {
    name: String,
    told: Source,
    rows_of: Source,
    work: OnceCell<Box<dyn PassWork>>,
    pub(super) groups: u64,
}

impl OpenPass {
    /// A pass of a run in `dir`.
    pub(super) fn new(dir: &Location, recipe: &PassRecipe) -> Self {
        let source = |folder: &Option<String>| Source {
            folder: folder.as_ref().map(|folder| dir.join(folder)),
            dataset: OnceCell::new(),
        };
        let (told, rows_of) = (source(&recipe.told), source(&recipe.rows_of));
        Self { name: recipe.name.clone(), told, rows_of, work: OnceCell::new(), groups: recipe.groups }
    }

    /// What it is told.
    pub(super) async fn told(&self) -> Result<&Dataset, RunError> {
        self.told.dataset(&self.name).await
    }

    /// The dataset whose rows its splits have.
    pub(super) async fn rows_of(&self) -> Result<&Dataset, RunError> {
        self.rows_of.dataset(&self.name).await
    }

    /// Whether it makes the rows.
    pub(super) fn makes_rows(&self) -> bool {
        self.name == ROWS
    }

    /// What makes its splits.
    pub(super) async fn work(&self, cx: &RunContext, passes: &dyn Passes) -> Result<&dyn PassWork, RunError> {
        let open = || async { passes.open(cx, &self.name, self.told().await?).await };
        Ok(&**self.work.get_or_try_init(open).await?)
    }
}

/// A dataset that is opened when it is needed.
struct Source {
    folder: Option<Location>,
    dataset: OnceCell<Dataset>,
}

impl Source {
    async fn dataset(&self, pass: &str) -> Result<&Dataset, RunError> {
        let open = || async {
            let missing = || RunError::Internal(format!("the pass `{pass}` lacks what it reads"));
            let folder = self.folder.clone().ok_or_else(missing)?;
            Ok(blocking(move || Dataset::open(folder)).await??)
        };
        self.dataset.get_or_try_init(open).await
    }
}

/// The splits of a pass are none of the stage's.
pub(super) fn silent(head: &Step) -> Progress {
    Progress::new(&head.node.name, Arc::new(Silent))
}
