//! The interface of processes elsewhere that make splits of a run.

use std::fmt::Debug;
use std::path::Path;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use crate::error::RunError;
use crate::run::events::Progress;
use crate::run::recipe::UnitRecipe;
use crate::run::splits::{Prepared, SplitDone, SplitTask};

/// Processes elsewhere that make splits of the units of a run.
#[async_trait]
pub trait Elsewhere: Send + Sync + Debug {
    /// Called when a run begins, after it has locked the local folder `lock`. Fails if another run
    /// uses the same directory.
    async fn begin(&self, lock: &Path, cancel: &CancellationToken) -> Result<(), RunError>;

    /// Makes the splits of a unit and gives them in any order, each once. It ends early when the
    /// unit's `cancel` fires: splits in flight are still given.
    fn splits<'a>(&'a self, unit: UnitWork<'a>) -> BoxStream<'a, Result<SplitDone, RunError>>;

    /// Called when the run has ended, well or not.
    async fn end(&self) -> Result<(), RunError>;
}

/// The splits of a unit that are to be made.
pub struct UnitWork<'a> {
    /// All that another process needs to make them.
    pub recipe: &'a UnitRecipe,
    /// The splits.
    pub tasks: Vec<SplitTask>,
    /// The unit in this process, which can make splits, too.
    pub here: &'a Prepared,
    /// How many it makes at a time.
    pub in_flight: usize,
    /// For messages to the user.
    pub progress: Progress,
    /// Fires when the run should stop.
    pub cancel: CancellationToken,
}

/// Makes splits in this process, `in_flight` at a time.
pub(super) fn splits_here<'a>(
    tasks: Vec<SplitTask>,
    here: &'a Prepared,
    in_flight: usize,
    cancel: CancellationToken,
) -> BoxStream<'a, Result<SplitDone, RunError>> {
    let tasks = futures::stream::iter(tasks).take_until(cancel.cancelled_owned());
    let make = move |task: SplitTask| async move { here.split(&task).await };
    tasks.map(make).buffered(in_flight).boxed()
}
