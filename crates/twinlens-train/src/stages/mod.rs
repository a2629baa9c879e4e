//! The stages `tokenizer` and `train`, as thin wrappers around the rest of the crate.

mod inputs;
mod output;
mod start;
mod tokenizer;
mod train;

use crate::error::TrainError;
use datafusion::arrow::datatypes::{DataType, Schema};
use std::ops::Range;
use twinlens_model::{Clip, ModelError};
use twinlens_pipeline::evaluation::Evaluation;
use twinlens_pipeline::suggest::{did_you_mean, list_names};
use twinlens_pipeline::{Fault, Registry, RunError};

pub use tokenizer::TokenizerStage;
pub use train::Train;

/// Registers the stages. `E` evaluates models during training.
pub fn register<E: Evaluation<Clip>>(registry: &mut Registry) {
    registry.add::<TokenizerStage>();
    registry.add::<Train<E>>();
}

/// The type of column `name`, or a fault at `span` that lists the columns.
fn column<'a>(schema: &'a Schema, name: &str, span: Range<usize>) -> Result<&'a DataType, Fault> {
    let names = || schema.fields().iter().map(|field| field.name().as_str());
    schema.field_with_name(name).map(|field| field.data_type()).map_err(|_| {
        let fault = Fault::at(span, format!("there is no column `{name}`"));
        let fault = fault.label(format!("the columns are {}", list_names(names())));
        did_you_mean(name, names()).into_iter().fold(fault, Fault::hint)
    })
}

/// A fault unless `name` is a column of text.
fn text_column(schema: &Schema, name: &str, span: Range<usize>) -> Result<(), Fault> {
    match column(schema, name, span.clone())? {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(()),
        other => {
            Err(Fault::at(span, format!("the column `{name}` is of type {other}")).label("expected text"))
        }
    }
}

fn model_error(error: ModelError) -> RunError {
    match error {
        ModelError::Io { path, source } => RunError::io(path, source),
        ModelError::Tensor(error) => RunError::Internal(error.to_string()),
        other => RunError::user(other.to_string()),
    }
}

impl From<TrainError> for RunError {
    fn from(error: TrainError) -> Self {
        train_error(error)
    }
}

fn train_error(error: TrainError) -> RunError {
    match error {
        TrainError::Io { path, source } => RunError::io(path, source),
        TrainError::Model(error) => model_error(error),
        TrainError::Evaluation(error) => *error,
        TrainError::Data(error) => RunError::Dataset(error),
        TrainError::Interrupted => RunError::Interrupted,
        TrainError::Tensor(error) => RunError::Internal(error.to_string()),
        TrainError::Panicked(_) | TrainError::RankExited => RunError::Internal(error.to_string()),
        other => RunError::user(other.to_string()),
    }
}

fn engine(error: datafusion::arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}
