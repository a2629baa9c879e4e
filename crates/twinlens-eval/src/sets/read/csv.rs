//! A CSV file with the paths of images, or with their pixels as numbers (FER2013).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema};
use twinlens_image::Limits;
use twinlens_pipeline::suggest::{did_you_mean, list_names};

use super::example::{Example, MALFORMED, SetFiles, Take, Truth};
use super::files::{bytes_of, short, unpacked};
use super::raw::{Layout, png};
use crate::error::EvalError;
use crate::images::{NO_IMAGE, NO_LABEL, Reject};
use crate::sets::layout::CsvFile;

/// Lines per batch: a malformed line loses its whole batch.
const LINES: usize = 1;

/// The file, and the directory of its images.
#[derive(Debug)]
pub(super) struct Csv {
    options: CsvFile,
    path: PathBuf,
    folder: PathBuf,
}

impl Csv {
    pub(super) fn new(options: &CsvFile, split: &str, root: &Path) -> Self {
        let at = |path: &str| root.join(path.replace("{split}", split));
        Self { path: at(&options.file), folder: at(&options.folder), options: options.clone() }
    }

    fn format(&self) -> Format {
        Format::default()
            .with_header(true)
            .with_truncated_rows(true)
            .with_delimiter(u8::try_from(self.options.delimiter).unwrap_or(b','))
    }

    fn columns(&self) -> Result<Vec<String>, EvalError> {
        let (schema, _) = self.format().infer_schema(unpacked(&self.path)?, Some(0)).map_err(|error| {
            EvalError::set(&short(&self.path), format!("its first line is not a header: {error}"), None)
        })?;
        Ok(schema.fields().iter().map(|field| field.name().clone()).collect())
    }

    fn place(&self, columns: &[String], name: &str) -> Result<usize, EvalError> {
        columns.iter().position(|column| column == name).ok_or_else(|| {
            let hint = did_you_mean(name, columns.iter().map(String::as_str));
            let has = list_names(columns.iter().map(String::as_str));
            EvalError::set(&short(&self.path), format!("it has no column `{name}`; it has {has}"), hint)
        })
    }

    fn image(&self, value: Option<&str>, limits: &Limits) -> Result<Result<Vec<u8>, Reject>, EvalError> {
        let refuse = |code, detail: String| Ok(Err(Reject { code, detail }));
        let Some(value) = value else { return refuse(NO_IMAGE, "the line names no image".into()) };
        let Some(side) = self.options.side else { return bytes_of(&self.folder.join(value), limits) };
        let values: Result<Vec<u8>, _> = value.split_ascii_whitespace().map(str::parse).collect();
        match values {
            Ok(values) if values.len() as u64 == u64::from(side) * u64::from(side) => {
                Ok(png(&values, side, side, Layout::Grey))
            }
            Ok(values) => refuse(MALFORMED, format!("{} values are not {side} x {side}", values.len())),
            Err(error) => refuse(MALFORMED, format!("a value of a pixel: {error}")),
        }
    }

    fn truth(&self, value: Option<&str>) -> Result<Truth, Reject> {
        let value = value.map(str::trim).filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| Reject { code: NO_LABEL, detail: "the label is empty".into() })?;
        Ok(match value.parse::<i64>() {
            Ok(id) => Truth::Id(id - self.options.first_label),
            Err(_) => Truth::Name(value.into()),
        })
    }
}

impl SetFiles for Csv {
    fn parts(&self) -> Vec<String> {
        vec![short(&self.path)]
    }

    fn read(&self, _: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        let (name, columns) = (short(&self.path), self.columns()?);
        let [image, label] =
            [&self.options.image, &self.options.label].map(|column| self.place(&columns, column));
        let (image, label) = (image?, label?);
        let part = self.options.part.as_ref().map(|column| self.place(&columns, column)).transpose()?;
        let fields: Vec<Field> =
            columns.iter().map(|column| Field::new(column, DataType::Utf8, true)).collect();
        let builder = ReaderBuilder::new(Arc::new(Schema::new(fields)))
            .with_format(self.format())
            .with_batch_size(LINES);
        let reader = builder
            .build(unpacked(&self.path)?)
            .map_err(|error| EvalError::set(&name, error.to_string(), None))?;
        let mut line = 2_u64;
        for batch in reader {
            let batch: RecordBatch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    // After a malformed line it is unknown where the next one begins.
                    let refusal = Reject { code: MALFORMED, detail: error.to_string() };
                    let place = format!("{name} from line {line} on");
                    let (image, truth) = (Err(refusal.clone()), Err(refusal));
                    return take(Example { path: place.clone(), place, image, truth });
                }
            };
            let cell = |column: usize, row: usize| {
                let column = batch.column(column).as_string_opt::<i32>()?;
                column.is_valid(row).then(|| column.value(row))
            };
            for row in 0..batch.num_rows() {
                let own = part.is_none_or(|part| cell(part, row) == self.options.part_is.as_deref());
                if own {
                    let written = cell(image, row);
                    let path = written.filter(|_| self.options.side.is_none()).map(String::from);
                    let place = format!("{name} line {}", line + row as u64);
                    let truth = self.truth(cell(label, row));
                    let image = self.image(written, limits)?;
                    take(Example { path: path.unwrap_or_else(|| place.clone()), place, image, truth })?;
                }
            }
            line += batch.num_rows() as u64;
        }
        Ok(())
    }
}
