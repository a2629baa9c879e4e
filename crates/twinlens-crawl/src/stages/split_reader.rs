//! Blocking readers of splits as tables of the engine.

use datafusion::dataframe::DataFrame;
use twinlens_pipeline::batch_reader;
pub(super) use twinlens_pipeline::batch_reader::{BatchReader as SplitReader, BatchSink};
use twinlens_pipeline::{RunContext, RunError};

/// The rows of a split as a data frame.
pub(super) fn data_frame(cx: &RunContext, split: impl SplitReader) -> Result<DataFrame, RunError> {
    batch_reader::data_frame(&cx.session, split)
}
