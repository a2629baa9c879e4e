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
    /// How many groups of rows there are, where a split is a group ([`grouped`](super::grouped)).
    pub groups: u64,
}

/// A pass in a process that makes splits of it.
pub(super) struct OpenPass {
    name: String,
    told: Option<Location>,
    dataset: OnceCell<Dataset>,
    work: OnceCell<Box<dyn PassWork>>,
    pub(super) groups: u64,
}

impl OpenPass {
    /// A pass of a run in `dir`.
    pub(super) fn new(dir: &Location, recipe: &PassRecipe) -> Self {
        let told = recipe.told.as_ref().map(|folder| dir.join(folder));
        let (dataset, work) = (OnceCell::new(), OnceCell::new());
        Self { name: recipe.name.clone(), told, dataset, work, groups: recipe.groups }
    }

    /// What it is told.
    pub(super) async fn told(&self) -> Result<&Dataset, RunError> {
        let open = || async {
            let untold = || RunError::Internal(format!("the pass `{}` is told nothing", self.name));
            let folder = self.told.clone().ok_or_else(untold)?;
            Ok(blocking(move || Dataset::open(folder)).await??)
        };
        self.dataset.get_or_try_init(open).await
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

/// The splits of a pass are none of the stage's.
pub(super) fn silent(head: &Step) -> Progress {
    Progress::new(&head.node.name, Arc::new(Silent))
}
