//! The steps of running trainings as a table, which their datasets have only when they end.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray, UInt64Array};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

use crate::errors::Failure;
use crate::progress::recorder;

/// The name of the table.
pub(crate) const TABLE: &str = "live_steps";

/// Registers the steps so far, if a training runs in the local run directory.
pub(crate) fn register(session: &SessionContext, dir: &Path) -> Result<(), Failure> {
    let rows: Vec<_> = (recorder::steps(dir).into_iter())
        .flat_map(|(stage, steps)| steps.into_iter().map(move |step| (stage.clone(), step)))
        .collect();
    if rows.is_empty() || session.table_exist(TABLE)? {
        return Ok(());
    }
    let floats = |value: fn(&recorder::Step) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|(_, step)| value(step))))
    };
    let stages = StringArray::from_iter_values(rows.iter().map(|(stage, _)| stage));
    let steps = UInt64Array::from_iter_values(rows.iter().map(|(_, step)| step.step));
    let batch = RecordBatch::try_from_iter([
        ("stage", Arc::new(stages) as ArrayRef),
        ("step", Arc::new(steps)),
        ("loss", floats(|step| step.loss)),
        ("lr", floats(|step| step.lr)),
        ("samples_per_second", floats(|step| step.samples_per_second)),
    ])
    .map_err(datafusion::error::DataFusionError::from)?;
    session.register_table(TABLE, Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))?;
    Ok(())
}
