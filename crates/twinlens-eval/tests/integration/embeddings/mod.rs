//! The stages `embed`, `probe` and `retrieval`, and `zero-shot` and search on embeddings, from TOML
//! options to tables, with a random model and generated images.

mod embed;
mod probe;
mod retrieval;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema};
use twinlens_dataset::{Dataset, MAIN};
use twinlens_model::{Clip, Tokenizer};
use twinlens_pipeline::{RunContext, RunError, StageKind};

use crate::support::{
    self, WIDTH, content, context, floats, image_vector, images, interrupted, load_model, png, test_dir,
    text_vector, write_parquet,
};

const CLASSES: [&str; 4] = ["apple", "boat", "cloud", "drum"];

/// A directory with a model of random weights, in which stages run.
struct Place {
    folder: tempfile::TempDir,
}

fn texts(texts: Vec<Option<String>>) -> ArrayRef {
    Arc::new(StringArray::from(texts))
}

/// 50 good images of 4 classes with captions (two without), then a damaged and a missing one.
fn examples() -> RecordBatch {
    let mut bytes: Vec<Option<Vec<u8>>> = (0..50).map(|seed| Some(png(seed))).collect();
    bytes.extend([Some(png(99)[..60].to_vec()), None]);
    let rows = 0..bytes.len();
    let caption = |row: usize| (row % 25 != 7).then(|| format!("{} number {row}", CLASSES[row % 4]));
    RecordBatch::try_from_iter([
        ("uid", texts(rows.clone().map(|row| Some(format!("{row:032x}"))).collect())),
        ("image", images(&bytes)),
        ("class", texts(rows.clone().map(|row| Some(CLASSES[row % 4].into())).collect())),
        ("caption", texts(rows.map(caption).collect())),
    ])
    .unwrap()
}

impl Place {
    fn new() -> Self {
        let captions = CLASSES.iter().map(|class| format!("a photo of a {class}, number 1234567890."));
        Self { folder: test_dir(captions, &examples()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cx(&self) -> RunContext {
        context(self.folder.path(), "stage")
    }

    /// Runs a stage into the dataset `out` as a run would, resuming after its commits.
    async fn run<S: StageKind>(
        &self,
        cx: &RunContext,
        out: &str,
        options: &str,
    ) -> Result<Dataset, RunError> {
        support::run::<S>(cx, out, options).await
    }

    async fn done<S: StageKind>(&self, out: &str, options: &str) -> Result<Dataset, RunError> {
        self.run::<S>(&self.cx(), out, options).await
    }

    fn clip(&self) -> (Clip, Tokenizer) {
        load_model(&self.path("model"))
    }
}

async fn sql(dataset: &Dataset, query: &str) -> RecordBatch {
    support::sql(dataset, MAIN, query).await
}

fn strings(batch: &RecordBatch, column: usize) -> Vec<String> {
    let column = arrow::compute::cast(batch.column(column), &DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|value| value.unwrap_or("null").to_string()).collect()
}

/// The message and hint of a user error.
fn said(result: Result<Dataset, RunError>) -> String {
    match result {
        Err(RunError::User { message, hint }) => format!("{message} / {}", hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

/// The faults of options.
fn faults<S: StageKind>(options: &str, schema: Option<Schema>) -> Vec<String> {
    let schema = schema.map(Arc::new);
    let faults = support::plan::<S>(options, |_| support::table(schema.clone())).err().unwrap_or_default();
    faults
        .into_iter()
        .map(|fault| format!("{} / {} / {}", fault.message, fault.label, fault.hint.unwrap_or_default()))
        .collect()
}
