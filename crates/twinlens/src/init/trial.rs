//! Runs source stages on a few rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::config::{self, InputSchemas, Overrides, Pipeline};
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{self, Settings};

use super::found::{Count, Source};
use crate::errors::Failure;
use crate::progress::reason_line;
use crate::runtime;

/// Rows that are read.
const ROWS: u64 = 200;

/// The first rows that a stage makes.
pub(super) struct Trial {
    pub dataset: Dataset,
    /// The dataset is in it.
    _folder: TempDir,
}

impl Source<'_> {
    /// Checks a pipeline; what is wrong with it, in one line.
    pub(crate) fn check(&self, text: &str) -> Result<Pipeline, String> {
        let file = self.files.base.join("pipeline.toml");
        let schemas = InputSchemas::of(&self.files);
        config::check(&file, text, self.registry, &Overrides::default(), &schemas).map_err(|report| {
            let fault = |fault: &twinlens_pipeline::Fault| {
                let hint = fault.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("{}{hint}", fault.message)
            };
            report.faults().iter().map(fault).collect::<Vec<_>>().join("; ")
        })
    }

    /// Runs stages on a few rows; the dataset is that of the stage `last`.
    ///
    /// # Errors
    /// What the stages say, and that they refuse every row.
    pub(super) fn try_stages(&self, stages: &str, last: &str) -> Result<Trial, Failure> {
        let pipeline = self.check(&format!("name = \"init\"\n{stages}")).map_err(Failure::user)?;
        let folder = tempfile::tempdir().map_err(|error| Failure::io(std::env::temp_dir(), error))?;
        let settings = Settings {
            scratch: self.files.scratch.clone(),
            hub: self.files.hub.clone(),
            max_rows: Some(ROWS),
            threads: runtime::cores(),
            ..Settings::in_folder(folder.path())
        };
        let outcome = runtime::block_on(Some(settings.threads), async {
            let silent = Arc::new(Silent);
            Ok(run::run(&pipeline, self.registry, &settings, silent, CancellationToken::new()).await?)
        })?;
        if let Some(ended) = outcome.all_rejected {
            let reasons =
                ended.reasons.iter().map(|reason| format!("\n  {}", reason_line(reason, &ended.stage)));
            let message = format!("no row can be read:{}", reasons.collect::<String>());
            let failure = Failure::user(message);
            return Err(ended
                .hint
                .map_or(failure, |hint| Failure::user(format!("no row can be read: {hint}"))));
        }
        let dataset = Dataset::open(settings.dir.join(last))?;
        Ok(Trial { dataset, _folder: folder })
    }
}

impl Trial {
    pub(super) fn rows(&self) -> u64 {
        self.dataset.rows(MAIN)
    }

    /// Whether there are no more rows than were read.
    pub(super) fn is_all(&self) -> bool {
        self.rows() + self.rejects() < ROWS
    }

    pub(super) fn rejects(&self) -> u64 {
        self.dataset.state().rejects().values().flat_map(BTreeMap::values).sum()
    }

    /// The texts of a column; `None` where it is null.
    pub(super) fn texts(&self, column: &str) -> Result<Vec<Option<String>>, Failure> {
        let mut texts = Vec::new();
        for batch in ShardReader::new(&self.dataset, MAIN, &[column], 1024) {
            let batch = batch?;
            let Some(column) = batch.column_by_name(column) else { continue };
            let column =
                cast(column, &DataType::Utf8).map_err(|error| Failure::internal(error.to_string()))?;
            texts.extend(column.as_string::<i32>().iter().map(|text| text.map(String::from)));
        }
        Ok(texts)
    }
}

/// Lines of a text file, from the size of the file and of the first of them.
///
/// # Errors
/// The file cannot be read.
pub(super) fn lines(path: &Path) -> Result<Count, Failure> {
    use std::io::Read;
    /// Bytes that are counted.
    const MOST: u64 = 64 << 20;
    let length = std::fs::metadata(path).map_err(|error| Failure::io(path, error))?.len();
    let mut input = twinlens_dataset::unpack::open(path)?.take(MOST);
    let (mut buffer, mut bytes, mut lines) = (vec![0; 1 << 16], 0, 0);
    loop {
        let read = input.read(&mut buffer).map_err(|error| Failure::io(path, error))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    let is_exact = bytes < MOST;
    let rows = if is_exact { lines } else { (lines as f64 * length as f64 / bytes as f64) as u64 };
    Ok(Count { rows, is_exact: false })
}
