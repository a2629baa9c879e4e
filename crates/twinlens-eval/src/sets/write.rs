//! Writes the files of a set as a dataset.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, ListBuilder, RecordBatch, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use sha2::{Digest, Sha256};
use twinlens_dataset::SplitWriter;
use twinlens_image::{Limits, probe};
use twinlens_pipeline::run::output::write_rows;
use twinlens_pipeline::{Output, RunContext, RunError};

pub use super::columns::schema;
use super::columns::{Known, Rows};
use super::declaration::{Declaration, Task};
use super::names::{Bound, bind};
use super::read::{self, Example, SetFiles, Truth};
use super::undeclared;
use crate::error::EvalError;
use crate::images::{NO_LABEL, Reject, UNKNOWN_LABEL};

use crate::results::ResultWriter;
use crate::trust;

/// The side table of classes.
pub const CLASSES: &str = "classes";

/// Maximum rows per batch, and the approximate maximum of its image bytes.
const ROWS: usize = 128;
const BYTES: usize = 4 << 20;

/// One row per class: `label` is its id, `in_data` its name in the data, `class_name` and
/// `synonyms` its names in prompts.
pub fn classes_schema() -> SchemaRef {
    let texts = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let field = |name: &str, kind: DataType| Field::new(name, kind, true);
    Arc::new(Schema::new(vec![
        field("label", DataType::Int32),
        field("class_name", DataType::Utf8),
        field("in_data", DataType::Utf8),
        field("synonyms", texts),
    ]))
}

/// The classes and templates of an opened set.
#[derive(Debug, Clone)]
pub struct Written {
    /// Empty for a retrieval set.
    pub bound: Bound,
    /// The declared templates, or if there are none, those in the data.
    pub templates: Vec<String>,
}

/// A set whose files are open and whose classes are bound.
#[derive(Debug)]
pub struct Opened {
    files: Arc<dyn SetFiles>,
    set: Arc<Declaration>,
    bound: Arc<Bound>,
}

/// What to do about integer labels that nobody names.
const DESCRIBE_HINT: &str = "describe the set instead: `{ name = \"mine\", input = \"./mine.parquet\", label = \"label\", class_names = [\"cat\", \"dog\"] }`";

/// Opens the files of a set and binds its classes.
///
/// # Errors
/// The files cannot be read, or the classes cannot be bound.
pub fn open(set: &Declaration, split: &str, root: &Path) -> Result<Opened, EvalError> {
    let files = read::open(set, split, root)?;
    let names = files.names();
    if set.undeclared {
        undeclared::check_names(set, names.as_deref().unwrap_or_default())?;
    }
    let hint = || set.undeclared.then(|| DESCRIBE_HINT.to_string());
    let mut bound = match set.task {
        Task::Retrieval => Bound::default(),
        _ => bind(set, names.as_deref()).map_err(|why| EvalError::set(&set.name, why, hint()))?,
    };
    bound.warnings.extend(trust::unread(&files.unread()));
    Ok(Opened { files: files.into(), set: Arc::new(set.clone()), bound: Arc::new(bound) })
}

impl Opened {
    pub fn written(&self) -> Written {
        let own = &self.set.templates;
        let templates = if own.is_empty() { self.files.templates().unwrap_or_default() } else { own.clone() };
        Written { bound: self.bound.as_ref().clone(), templates }
    }
}

/// Writes the splits of a set that are not committed yet: one per part of its files, and one for
/// its classes and warnings.
///
/// # Errors
/// I/O, and an interruption. A damaged example is a reject.
pub async fn write(
    cx: &RunContext,
    opened: &Opened,
    limits: &Limits,
    output: &mut Output,
) -> Result<(), RunError> {
    let parts = opened.files.parts();
    let classes = parts.len() as u64;
    for (part, label) in parts.iter().enumerate() {
        if output.is_done(part as u64) {
            continue;
        }
        cx.check_cancelled()?;
        let split = output.split(part as u64, label);
        let (files, set, bound) = (opened.files.clone(), opened.set.clone(), opened.bound.clone());
        let (cx, limits) = (cx.clone(), limits.clone());
        let work = twinlens_pipeline::blocking(move || -> Result<SplitWriter, RunError> {
            let rows = Rows::new(&cx.stage);
            let judge = Judge { set: &set, bound: &bound, limits: &limits };
            let mut writer = Part { cx: &cx, judge, rows, split, total: 0 };
            files.read(part, &limits, &mut |example| writer.push(&example))?;
            writer.finish()
        });
        let split = work.await??;
        output.commit(split).await?;
    }
    if !output.is_done(classes) {
        let mut split = output.split(classes, "classes");
        // Without a count here the sum over all splits would be unknown.
        split.count_rows_in(0);
        let rows = classes_batch(&opened.bound).map_err(EvalError::from)?;
        split.write(CLASSES, &rows)?;
        let mut results = ResultWriter::new(&opened.set.name, split);
        results.warnings(None, &opened.bound.warnings)?;
        output.commit(results.into_split()).await?;
    }
    Ok(())
}

fn classes_batch(bound: &Bound) -> Result<RecordBatch, ArrowError> {
    let texts = |text: fn(&super::names::BoundClass) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(bound.classes.iter().map(text)))
    };
    let mut synonyms = ListBuilder::new(StringBuilder::new());
    for class in &bound.classes {
        synonyms.append_value(class.synonyms.iter().map(Some));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(0..bound.classes.len() as i32)),
        texts(|class| &class.name),
        texts(|class| &class.label),
        Arc::new(synonyms.finish()),
    ];
    RecordBatch::try_new(classes_schema(), columns)
}

/// Validates examples.
#[derive(Clone, Copy)]
struct Judge<'a> {
    set: &'a Declaration,
    bound: &'a Bound,
    limits: &'a Limits,
}

impl<'a> Judge<'a> {
    /// Checks the header of the image, and the label against the classes.
    fn row(self, example: &'a Example) -> Result<(&'a [u8], Known<'a>), Reject> {
        let image = example.image.as_deref().map_err(Clone::clone)?;
        let truth = example.truth.as_ref().map_err(Clone::clone)?;
        probe(image, self.limits)
            .map_err(|error| Reject { code: error.code(), detail: error.to_string() })?;
        Ok((image, self.known(truth)?))
    }

    fn known(self, truth: &Truth) -> Result<Known<'a>, Reject> {
        let mut known = Known::default();
        let none = |why: &str| Err(Reject { code: NO_LABEL, detail: why.into() });
        match truth {
            Truth::Captions(texts) => match self.set.task {
                Task::Retrieval if !texts.is_empty() => known.captions = Some(texts.clone()),
                Task::Retrieval => return none("it has no caption"),
                _ => return none("it has captions, and no label"),
            },
            _ if self.set.task == Task::Retrieval => return none("it has a label, and no caption"),
            Truth::Id(id) if self.set.task == Task::MultiLabel => {
                known.labels = Some((self.ids(&[*id])?, vec![]))
            }
            Truth::Id(id) => known.class = Some(self.class(self.id(*id)?)),
            Truth::Ids { of: Some(of), .. } if *of != self.bound.classes.len() => {
                let detail =
                    format!("it has {of} values for the {} classes of the set", self.bound.classes.len());
                return Err(Reject { code: UNKNOWN_LABEL, detail });
            }
            Truth::Ids { present, ignored, .. } if self.set.task == Task::MultiLabel => {
                known.labels = Some((self.ids(present)?, self.ids(ignored)?));
            }
            Truth::Ids { present, .. } => match present[..] {
                [id] => known.class = Some(self.class(self.id(id)?)),
                _ => {
                    let detail = format!("it has {} labels, but the set has one per image", present.len());
                    return Err(Reject { code: UNKNOWN_LABEL, detail });
                }
            },
            Truth::Name(name) => {
                let id = self.bound.id(name).ok_or_else(|| Reject {
                    code: UNKNOWN_LABEL,
                    detail: format!(
                        "the label `{name}` is not one of the {} classes",
                        self.bound.classes.len()
                    ),
                })?;
                known.class = Some(self.class(id as i32));
            }
        }
        Ok(known)
    }

    fn class(self, id: i32) -> (i32, &'a str) {
        (id, &self.bound.classes[id as usize].name)
    }

    fn ids(self, ids: &[i64]) -> Result<Vec<i32>, Reject> {
        let mut found = ids.iter().map(|id| self.id(*id)).collect::<Result<Vec<i32>, _>>()?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Checks that an id is within the classes.
    fn id(self, id: i64) -> Result<i32, Reject> {
        let classes = self.bound.classes.len();
        i32::try_from(id).ok().filter(|id| usize::try_from(*id).is_ok_and(|id| id < classes)).ok_or_else(
            || Reject { code: UNKNOWN_LABEL, detail: format!("label {id} is outside the {classes} classes") },
        )
    }
}

/// Writes one part of the files to a split.
struct Part<'a> {
    cx: &'a RunContext,
    judge: Judge<'a>,
    rows: Rows,
    split: SplitWriter,
    total: u64,
}

impl Part<'_> {
    fn push(&mut self, example: &Example) -> Result<(), EvalError> {
        let uid = hex::encode(&Sha256::digest(format!("{}\0{}", self.judge.set.name, example.place))[..16]);
        let row = self.judge.row(example);
        self.rows.push(&uid, &example.place, &example.path, row);
        self.total += 1;
        self.cx.progress.done(1);
        if self.rows.rows >= ROWS || self.rows.bytes >= BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), EvalError> {
        self.cx.check_cancelled()?;
        let batch = self.rows.finish().map_err(EvalError::from)?;
        Ok(write_rows(&mut self.split, &batch)?)
    }

    fn finish(mut self) -> Result<SplitWriter, RunError> {
        if self.rows.rows > 0 {
            self.flush()?;
        }
        self.split.count_rows_in(self.total);
        Ok(self.split)
    }
}
