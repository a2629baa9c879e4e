//! What a stage declares while it is planned: inputs, files, tables, and every fault of its
//! options.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::Expr;
use datafusion::parquet::arrow::ArrowSchemaConverter;
use twinlens_dataset::storage::is_url;
use twinlens_dataset::types;

use crate::columns::{self, ColumnName, ColumnType, Required};
use crate::context::{Inputs, RunContext};
use crate::earlier;
use crate::error::{Fault, RunError};
use crate::files::{Files, verify_artifacts};
pub use crate::handles::{Port, RowsInput, TableInput};
use crate::hub::{Layout, is_hub_name};
use crate::located::{Input, Located};
use crate::product::Product;
use crate::ranks::SharedJob;
use crate::rejects::{self, ledger_schema};
use crate::sql::SqlPlanner;
use crate::work::{SortKey, Work};

/// The file of a tokenizer's folder that is read.
const TOKENIZER_FILE: &str = "tokenizer.json";
/// What is read beside a file of weights.
const CONFIG_FILE: &str = "config.json";
const PREPROCESSING_FILE: &str = "preprocessor_config.json";
/// What the names of files of weights end in.
const WEIGHTS_ENDING: &str = ".safetensors";

/// Which rows of a row stage are in one split.
#[derive(Debug, Clone)]
pub struct SplitBy {
    /// A text column.
    pub column: String,
    /// The group of a text.
    pub group: fn(&str) -> String,
}

/// What a stage declared.
#[derive(Debug, Default)]
pub struct Plan {
    /// Its inputs, in the order in which it declared them.
    pub inputs: Vec<InputPort>,
    /// The index of the input whose rows it transforms.
    pub rows: Option<usize>,
    /// The index of the input that it reads while that is still being made.
    pub streamed: Option<usize>,
    /// The schema of its main table; `None` while that of an input is not known.
    pub main: Option<SchemaRef>,
    /// The order of the rows of its main table.
    pub order: SortKey,
    /// The schemas of its side tables; `None` while that of an input is not known.
    pub side: BTreeMap<&'static str, Option<SchemaRef>>,
    /// The schema of its ledger of rejects: `None` if it never has one, `Some(None)` while that of
    /// an input is not known.
    pub ledger: Option<Option<SchemaRef>>,
    /// Files outside the run that it reads.
    pub files: Vec<Located<String>>,
    /// What must hold of files' contents: checked when inputs are opened.
    pub file_checks: Vec<FileCheck>,
    /// Files outside the run that it reads where they exist.
    pub optional_files: Vec<String>,
    /// Columns that it computes.
    pub computes: Vec<String>,
    /// The most rows of a split.
    pub split_rows: Option<usize>,
    /// Which rows are in one split.
    pub split_by: Option<SplitBy>,
    /// Lines that `plan` shows.
    pub notes: Vec<String>,
    /// Whether rows are taken over from a dataset that was made from fewer; `None`: never.
    pub takes_over: Option<TakesOver>,
    /// How many generations of its dataset are kept; 0 means 1, the current one.
    pub generations: usize,
    /// Whether several processes can do its job together, and what its options say of them.
    pub ranks: Option<SharedJob>,
}

/// A row stage each of whose rows depends on nothing but the row of its input and its other inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesOver {
    /// Computing a row is cheaper than finding it.
    Cheap,
    /// Finding a row is cheaper. Rejects with these codes are tried again.
    Costly(&'static [&'static str]),
}

/// A file whose contents are checked before anything runs.
#[derive(Debug, Clone)]
pub struct FileCheck {
    /// As an option names it.
    pub file: Located<String>,
    /// Reads a local copy. Blocking.
    pub check: fn(&Path) -> Result<(), RunError>,
}

/// An input that a stage declared.
#[derive(Debug, Clone)]
pub struct InputPort {
    /// As written in the pipeline file.
    pub input: Input,
    /// Whether it is one table of all variants of a swept stage.
    pub all_variants: bool,
    /// How many times it was declared.
    uses: usize,
}

/// What is known of an input before it is opened.
#[derive(Debug, Clone, Default)]
pub struct KnownInput {
    /// The schema of the table that is named.
    pub schema: Option<SchemaRef>,
    /// The kind of the stage that makes it, and what that kind makes; `None` for a file.
    pub maker: Option<(&'static str, Product)>,
}

/// A model or a tokenizer.
#[derive(Debug, Clone)]
pub enum ArtifactInput {
    /// What a stage of this run, or a dataset in an object store, holds.
    Dataset(TableInput),
    /// Weights of an earlier step of such a training: a file of its dataset.
    Step(TableInput, String),
    /// A local folder, a file of weights in one, or a model of the Hugging Face hub, as written.
    Folder(Located<String>),
}

impl ArtifactInput {
    /// The local folder of the model or tokenizer, or its file of weights. That of a dataset holds
    /// `files`; of a model of the hub, the files of the first of `layouts` that it has are copied.
    /// Blocking.
    ///
    /// # Errors
    /// The user's: there is no such model, or it lacks a file.
    pub fn folder(
        &self,
        cx: &RunContext,
        inputs: &Inputs,
        files: &[&str],
        layouts: &[Layout<'_>],
    ) -> Result<PathBuf, RunError> {
        match self {
            Self::Folder(written) => {
                let path = cx.files.model(written, layouts)?;
                let optional = layouts.iter().flat_map(|(_, optional)| *optional);
                let mut files: Vec<&str> = files.iter().chain(optional).copied().collect();
                let named = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                match path.parent().filter(|_| path.is_file()) {
                    Some(folder) => {
                        files.push(&named);
                        verify_artifacts(folder, &files)?;
                    }
                    None => verify_artifacts(&path, &files)?,
                }
                Ok(path)
            }
            Self::Step(table, weights) => {
                let folder = Self::Dataset(*table).folder(cx, inputs, files, layouts)?;
                inputs.get(table).artifact(weights)?;
                Ok(folder.join(weights))
            }
            Self::Dataset(table) => {
                let input = inputs.get(table);
                let has = |name: &&&str| {
                    input.dataset.state().files().any(|file| file.table.is_none() && file.path == **name)
                };
                let optional = layouts.iter().flat_map(|(_, optional)| *optional).filter(has);
                files.iter().chain(optional).try_for_each(|file| input.artifact(file).map(drop))?;
                Ok(input.dataset.dir())
            }
        }
    }
}

/// What [`crate::StageKind::plan`] declares its inputs, files and tables to.
pub struct Ports<'a> {
    sql: &'a SqlPlanner,
    /// What is known of the inputs in the order of their declaration; `None` in the first call.
    known: Option<&'a [KnownInput]>,
    /// `None` while no file may be opened.
    files: Option<&'a Files>,
    plan: Plan,
    rejects: Option<SchemaRef>,
    has_output: bool,
    faults: Vec<Fault>,
}

/// Inputs.
impl Ports<'_> {
    /// The input whose rows a [`crate::Rows`] or [`crate::Whole`] stage transforms into rows or
    /// rejects. A stage has at most one.
    pub fn rows(&mut self, input: &Input) -> RowsInput {
        if self.plan.rows.is_some() {
            self.fault(input.fault("a stage transforms the rows of one input, not of two"));
        }
        let rows = RowsInput { port: self.declare(input) };
        self.plan.rows = Some(rows.port);
        if let Some(schema) = self.schema(&rows) {
            let owner = format!("`{}`", input.name());
            let reserved = schema.fields().iter().find(|field| rejects::is_reserved(field.name()));
            self.faults
                .extend(reserved.map(|field| rejects::reserved_fault(input.span(), &owner, field.name())));
        }
        rows
    }

    /// A table that the stage reads. Declaring one again has no effect.
    pub fn table(&mut self, input: &Input) -> TableInput {
        let tables = |(port, _): &(usize, &InputPort)| Some(*port) != self.plan.rows;
        let mut known = self.plan.inputs.iter().enumerate().filter(tables).enumerate();
        let declared = known.find(|(_, (_, port))| port.input.name() == input.name());
        if let Some((table, (port, _))) = declared {
            self.plan.inputs[port].uses += 1;
            return TableInput { port, table };
        }
        let table = self.plan.inputs.len() - usize::from(self.plan.rows.is_some());
        TableInput { port: self.declare(input), table }
    }

    /// A model: of a stage that trains one, or in a folder here or on the hub.
    pub fn model(&mut self, input: &Input) -> ArtifactInput {
        self.artifact(input, Product::Model, "")
    }

    /// A tokenizer: of a stage that learns one, or in a folder here or on the hub.
    pub fn tokenizer(&mut self, input: &Input) -> ArtifactInput {
        self.artifact(input, Product::Tokenizer, TOKENIZER_FILE)
    }

    fn artifact(&mut self, input: &Input, product: Product, file: &str) -> ArtifactInput {
        let (name, span) = (input.name(), input.span());
        // `@step-500` may be a revision of the hub.
        let is_step = product == Product::Model && !is_hub_name(name);
        if let Some((training, weights)) = earlier::step(name).filter(|_| is_step) {
            let training = Input(Located::new(training.into(), span.clone()));
            if training.is_path() {
                return self.weights_file(Located::new(format!("{}/{weights}", training.name()), span));
            }
            return match self.artifact(&training, product, file) {
                ArtifactInput::Dataset(table) => ArtifactInput::Step(table, weights),
                other => other,
            };
        }
        if input.is_path() && !is_hub_name(name) && name.ends_with(WEIGHTS_ENDING) {
            return self.weights_file(input.0.clone());
        }
        if is_hub_name(name) || input.is_path() && !is_url(name) {
            // What a name of the hub means does not change while it is in the cache.
            if !is_hub_name(name) {
                self.file(&Located::new(format!("{}/{file}", name.trim_end_matches('/')), span));
            }
            return ArtifactInput::Folder(input.0.clone());
        }
        let table = self.table(input);
        if let (Some(side), Some(stage)) = (input.table(), input.stage()) {
            let message = format!("`{side}` is a table: a {product} is what a whole stage makes");
            self.fault(input.fault(message).hint(format!("write `{stage}`")));
        } else if let Some((kind, made)) = self.known(&table).and_then(|known| known.maker)
            && made != product
        {
            let fault = input.fault(format!("`{name}` is a `{kind}` stage, which makes no {product}"));
            self.fault(
                fault
                    .label(format!("expected a stage that makes a {product}, or a folder"))
                    .hint("a value is a path if it contains `/`: `./models/b32`"),
            );
        }
        ArtifactInput::Dataset(table)
    }

    /// A file of weights, whose folder describes the model.
    fn weights_file(&mut self, written: Located<String>) -> ArtifactInput {
        let folder = written.rsplit_once('/').map_or(".", |(folder, _)| folder);
        for beside in [CONFIG_FILE, TOKENIZER_FILE] {
            self.file(&Located::new(format!("{folder}/{beside}"), written.span()));
        }
        self.file(&written);
        self.optional_file(format!("{folder}/{PREPROCESSING_FILE}"));
        ArtifactInput::Folder(written)
    }

    /// The stage may begin while this input is still being made: it reads what is committed, waits
    /// for more, and learns from the manifest when there will be no more. The runner starts it
    /// beside that input if its other inputs allow it, and if it is declared once: who reads a
    /// table elsewhere needs all of it.
    pub fn streams_input(&mut self, input: &TableInput) {
        self.plan.streamed = Some(input.port);
    }

    /// The stage reads the variants of a swept input as one table, with the swept values as
    /// columns, instead of being made once for each of them.
    pub fn reads_all_variants(&mut self, input: &TableInput) {
        self.plan.inputs[input.port].all_variants = true;
    }

    /// The columns of an input. `None` in the first call, and for a file that has not been opened:
    /// nothing is then assumed about it.
    pub fn schema(&self, input: &impl Port) -> Option<SchemaRef> {
        self.known(input)?.schema.clone()
    }

    /// The files that options name, if they may be opened: a source then reads the types of its
    /// columns from them. `None` in the first call, and where files are only checked when they are
    /// read.
    pub fn files(&self) -> Option<&Files> {
        self.files
    }

    fn known(&self, input: &impl Port) -> Option<&KnownInput> {
        self.known?.get(input.number())
    }

    fn declare(&mut self, input: &Input) -> usize {
        self.plan.inputs.push(InputPort { input: input.clone(), all_variants: false, uses: 1 });
        self.plan.inputs.len() - 1
    }
}

/// Checks.
impl Ports<'_> {
    /// Reports a fault.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Requires a column of an input. Gives its type, if it is known and as required.
    pub fn column<'n>(
        &mut self,
        input: &impl Port,
        column: impl Into<ColumnName<'n>>,
        expected: ColumnType,
        required: Required<'_>,
    ) -> Option<DataType> {
        let schema = self.schema(input)?;
        let named = &self.plan.inputs[input.number()].input;
        let place = (named.name(), named.span());
        let found = columns::check(place, &schema, &column.into(), expected, required);
        self.checked(found)?
    }

    /// Requires a column of text.
    pub fn text<'n>(&mut self, input: &impl Port, column: impl Into<ColumnName<'n>>, required: Required<'_>) {
        self.column(input, column, ColumnType::Text, required);
    }

    /// Checks a condition on the rows of an input: every column exists, every function is known,
    /// the types fit, and the result is a boolean.
    pub fn predicate(&mut self, sql: &Located<String>, input: &impl Port) -> Option<Expr> {
        let checked = match self.columns_for_sql(input)? {
            Some(schema) => self.sql.predicate(sql, &schema).map(Some),
            None => self.sql.syntax(sql).map(|()| None),
        };
        self.checked(checked)?
    }

    /// Checks a value computed from one row of an input. Gives its type, too.
    pub fn expression(&mut self, sql: &Located<String>, input: &impl Port) -> Option<(Expr, DataType)> {
        let checked = match self.columns_for_sql(input)? {
            Some(schema) => self.sql.expression(sql, &schema).map(Some),
            None => self.sql.syntax(sql).map(|()| None),
        };
        self.checked(checked)?
    }

    /// The tables that a query names, each once; `None` after a fault.
    pub fn tables_in(&mut self, query: &Located<String>) -> Option<Vec<Input>> {
        let names = self.checked(self.sql.tables_in(query))?;
        Some(names.into_iter().map(|name| Input(Located::new(name, query.span()))).collect())
    }

    /// Checks a query over the declared inputs. Gives the schema of its result, if the schemas of
    /// all inputs are known.
    pub fn query(&mut self, query: &Located<String>) -> Option<SchemaRef> {
        let known = self.plan.inputs.iter().zip(self.known?);
        let tables: Option<Vec<_>> =
            known.map(|(port, known)| Some((port.input.name().to_string(), known.schema.clone()?))).collect();
        let schema = self.sql.query(query, &tables?);
        self.checked(schema)
    }

    /// The columns to plan SQL with, `Some(None)` if they are not known; `None` in the first call.
    fn columns_for_sql(&self, input: &impl Port) -> Option<Option<SchemaRef>> {
        Some(self.known?.get(input.number())?.schema.clone())
    }

    fn checked<T>(&mut self, checked: Result<T, Fault>) -> Option<T> {
        checked.map_err(|fault| self.faults.push(fault)).ok()
    }
}

/// Outputs, and dependencies that are not inputs.
impl Ports<'_> {
    /// The main table, which has the stage's name in SQL, and the order of its rows. Required. The
    /// schema is `None` if it depends on an input whose schema is not known.
    pub fn output(&mut self, schema: impl Into<Option<SchemaRef>>, order: SortKey) {
        (self.plan.main, self.plan.order, self.has_output) = (schema.into(), order, true);
    }

    /// A side table: `query_stats`, `per_class`.
    pub fn side_table(&mut self, name: &'static str, schema: impl Into<Option<SchemaRef>>) {
        self.plan.side.insert(name, schema.into());
    }

    /// The rows that end in the ledger have these columns. Otherwise they have those of the main
    /// table.
    pub fn rejects(&mut self, schema: SchemaRef) {
        self.rejects = Some(schema);
    }

    /// A file outside the run that the stage reads (relative to the pipeline file; globs allowed; a
    /// name that ends in `/` is a local folder with everything below it). Its size and time of
    /// change are part of the fingerprint; a missing one is reported before anything runs.
    pub fn file(&mut self, file: &Located<String>) {
        self.plan.files.push(file.clone());
    }

    /// As [`Ports::file`], for a file whose contents must pass `check`: it is read when the inputs
    /// of the pipeline are opened, before anything runs.
    pub fn checked_file(&mut self, file: &Located<String>, check: fn(&Path) -> Result<(), RunError>) {
        self.file(file);
        self.plan.file_checks.push(FileCheck { file: file.clone(), check });
    }

    /// A file or folder (a name, no pattern) that the stage reads if it exists. The fingerprint
    /// changes when it appears, disappears or changes.
    pub fn optional_file(&mut self, file: impl Into<String>) {
        self.plan.optional_files.push(file.into());
    }

    /// A column that a row stage computes. If its input has one of that name, the values are
    /// replaced; the stage before is then not fused, since its own rows could not be read back.
    pub fn computes(&mut self, column: impl Into<String>) {
        self.plan.computes.push(column.into());
    }

    /// The most rows of a split of a row stage that needs small ones (fetching: what is redone
    /// after a crash).
    pub fn split_rows(&mut self, rows: usize) {
        self.plan.split_rows = Some(rows.max(1));
    }

    /// Rows of a row stage with the same group are in one split, which may then have more rows than
    /// [`split_rows`](Self::split_rows) says. `group` gives the group of a text in `column`.
    pub fn split_by(&mut self, column: &str, group: fn(&str) -> String) {
        self.plan.split_by = Some(SplitBy { column: column.into(), group });
    }

    /// Each row that the stage makes depends on nothing but the row of its input and its other
    /// inputs: if only that input changes, the rows that it still has are taken over.
    pub fn takes_over(&mut self, how: TakesOver) {
        self.plan.takes_over = Some(how);
    }

    /// How many generations of the dataset are kept, the current one included: what took long to
    /// make survives a change of options.
    pub fn generations(&mut self, count: usize) {
        self.plan.generations = count;
    }

    /// Several processes can do the job of this stage together, as ranks; it has one split.
    pub fn ranks(&mut self, job: SharedJob) {
        self.plan.ranks = Some(job);
    }

    /// A line that `plan` shows: a condition of a preset.
    pub fn note(&mut self, line: impl Into<String>) {
        self.plan.notes.push(line.into());
    }
}

/// A finished call of [`crate::StageKind::plan`].
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    /// `None` only if there are faults.
    pub(crate) work: Option<Work>,
    pub(crate) faults: Vec<Fault>,
}

/// The fault of a column of a main table that cannot be written. `ledger` is whether the stage
/// rejects rows.
fn unusable_column(field: &Arc<Field>, ledger: bool, place: Range<usize>) -> Option<Fault> {
    if ledger && rejects::is_reserved(field.name()) {
        return Some(rejects::reserved_fault(place, "its table", field.name()));
    }
    let schema = Schema::new(vec![field.clone()]);
    ArrowSchemaConverter::new().convert(&schema).err().map(|_| {
        let kind = types::name(field.data_type());
        Fault::at(place, format!("Parquet cannot hold the column `{}`, of type {kind}", field.name()))
            .hint("cast it to another type, or leave it out")
    })
}

impl<'a> Ports<'a> {
    /// Plans a stage of the kind `kind`. `known` are its inputs, in the order of their declaration.
    pub(crate) fn plan(
        sql: &'a SqlPlanner,
        known: Option<&'a [KnownInput]>,
        files: Option<&'a Files>,
        kind: &str,
        plan: impl FnOnce(&mut Ports<'_>) -> Option<Work>,
    ) -> Planned {
        let mut ports = Ports {
            sql,
            known,
            files,
            plan: Plan::default(),
            rejects: None,
            has_output: false,
            faults: Vec::new(),
        };
        let work = plan(&mut ports);
        let Ports { mut plan, rejects: ledger, has_output, mut faults, .. } = ports;
        if faults.is_empty() {
            let ledger = !matches!(work, Some(Work::Query(_)));
            faults.extend(plan.main.iter().flat_map(|main| main.fields()).find_map(|field| {
                let place = plan.inputs.first().map_or(0..0, |port| port.input.span());
                unusable_column(field, ledger, place)
            }));
        }
        if faults.is_empty() {
            let declared = |known: &[KnownInput]| known.len() != plan.inputs.len();
            let broken = match &work {
                None => Some("makes no work and reports no fault"),
                Some(_) if !has_output => Some("declares no output"),
                Some(Work::Rows(_) | Work::Splits(_) | Work::Passes(_) | Work::Whole(_))
                    if plan.rows.is_none() =>
                {
                    Some("declares no input whose rows it transforms")
                }
                Some(_) if known.is_some_and(declared) => Some("declares other inputs once it knows schemas"),
                Some(_) => None,
            };
            let fault = |why| Fault::at(0..0, format!("bug in the kind of stage `{kind}`: it {why}"));
            faults.extend(broken.map(fault));
        }
        plan.streamed.take_if(|port| plan.inputs[*port].uses > 1);
        plan.ledger = match &work {
            Some(Work::Query(_)) => None,
            _ => Some(ledger.or_else(|| plan.main.clone()).map(|schema| ledger_schema(&schema))),
        };
        Planned { plan, work, faults }
    }
}
