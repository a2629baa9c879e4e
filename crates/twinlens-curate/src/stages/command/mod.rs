//! `command`: any program as a stage.
//!
//! Rows go to the program as an Arrow IPC stream on stdin and come back as one on stdout
//! ([`wire`]), under the row contract of all stages ([`contract`]). Processes are started in groups
//! of their own ([`process`]), kept warm over splits ([`pool`]) and fed batches that depend on the
//! rows alone ([`split`]). A program that makes rows, or needs all of them, runs once into a file
//! ([`spool`]).

mod contract;
mod pool;
mod process;
mod split;
mod spool;
mod types;
mod wire;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{SortExpr, ident};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_pipeline::rejects::{RESERVED, is_reserved, schema_with_reserved};
use twinlens_pipeline::stage::is_sortable;
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{
    ColumnType, Fault, Frames, Input, InputData, Inputs, Located, Ports, Required, Rows, RunContext,
    RunError, Secret, SortKey, Source, StageKind, TakesOver, Whole, Work,
};

use super::columns::with_field;
use contract::{Breach, RowContract, UID};
use pool::{Lease, Pool};
use process::{Program, passed_environment};
use split::{Split, sort_keys, sorted};
use spool::{Once, Pairing};

/// Runs any program as a stage: it reads Arrow record batches from stdin and answers on stdout,
/// each row with new columns or with a reject code.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandOptions {
    /// The program and its arguments. A word that is a file, seen from the folder of the pipeline
    /// file, is found from any working directory, and a change of the file makes the stage stale.
    command: Located<Vec<String>>,
    /// The rows to send. Without an input, the program makes the rows, and `columns` are all of
    /// their columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Input>,
    /// The columns that the program adds or replaces, with their types: `bool`, `int8` to `int64`,
    /// `uint8` to `uint64`, `float32`, `float64`, `string`, `binary`, `date`, `timestamp` (UTC, in
    /// microseconds), `list<...>` of these, or `image`.
    #[serde(default)]
    columns: BTreeMap<String, Located<String>>,
    /// The columns to send; `uid` is always sent. By default all but images and other binary
    /// columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    send: Option<Vec<Located<String>>>,
    /// Rows of a batch. The program answers each batch with one batch.
    #[serde(default = "batch_rows")]
    batch_rows: Located<usize>,
    /// Send all rows of the input in one stream to one process, which may read them all before it
    /// answers.
    #[serde(default)]
    whole: Located<bool>,
    /// Without an input: run the program this many times, each for a part of the rows. It gets its
    /// number (from 0) as `TWINLENS_SPLIT`, and this number as `TWINLENS_SPLITS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    splits: Option<Located<u64>>,
    /// Processes that run side by side. They stay alive from split to split.
    #[serde(default = "one", skip_serializing)]
    workers: Located<usize>,
    /// Seconds that a batch may take, including the start of the program. With `whole`, the seconds
    /// until the next batch of answers; no limit by default.
    #[serde(skip_serializing)]
    timeout: Option<Located<f64>>,
    /// The program's working directory, seen from the folder of the pipeline file, which it is by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<String>,
    /// Environment variables to set.
    #[serde(default)]
    env: BTreeMap<String, Secret>,
    /// Names of environment variables to pass on. These are always passed: `HOME`, `LANG`,
    /// `LANGUAGE`, `LC_*`, `LD_LIBRARY_PATH`, `LOGNAME`, `PATH`, `SHELL`, `TEMP`, `TMP`, `TMPDIR`,
    /// `TZ`, `USER`.
    #[serde(default)]
    pass_env: Vec<String>,
    /// Files that the program reads, such as modules and weights: a change makes the stage stale.
    #[serde(default)]
    files: Vec<Located<String>>,
    /// The version of the program: a change makes the stage stale.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

/// `command` as it runs.
pub struct Command {
    options: CommandOptions,
    /// The processes, kept from split to split.
    pool: Mutex<Option<Arc<Pool>>>,
}

fn batch_rows() -> Located<usize> {
    Located::without_span(256)
}

fn one() -> Located<usize> {
    Located::without_span(1)
}

/// Seconds that a batch may take where `timeout` does not say it.
const TIMEOUT: f64 = 600.0;

impl StageKind for Command {
    type Options = CommandOptions;
    const NAME: &'static str = "command";
    const EXAMPLE: &'static str = r#"[stages.scores]
kind = "command"
input = "images"
command = ["python3", "score.py"]
columns = { aesthetic = "float32" }
send = ["image", "caption"]
workers = 2
"#;
    const VERSION: u32 = 1;

    fn plan(options: CommandOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = options.input.as_ref().map(|input| ports.rows(input));
        options.files.iter().for_each(|file| ports.file(file));
        let words = options.command.iter().filter(|word| can_be_file(word));
        words.for_each(|word| ports.optional_file(word));
        options.columns.keys().for_each(|column| ports.computes(column));
        options.option_faults().into_iter().for_each(|fault| ports.fault(fault));
        let schema = match &input {
            Some(input) => {
                for name in options.send.iter().flatten() {
                    ports.column(input, name, ColumnType::Any, Required::Yes);
                }
                ports.schema(input).map(|schema| options.output(Some(&schema)))
            }
            None => Some(options.output(None)),
        };
        ports.output(schema, SortKey::columns(ROW_ORDER));
        let (is_source, whole) = (options.input.is_none(), *options.whole.value());
        let command = Command { options, pool: Mutex::default() };
        Some(if is_source {
            Work::source(command)
        } else if whole {
            Work::whole(command)
        } else {
            ports.takes_over(TakesOver::Costly(&[]));
            Work::rows(command)
        })
    }
}

/// Whether a word of a command may be the name of a file.
fn can_be_file(word: &str) -> bool {
    let is_name = (1..256).contains(&word.len()) && !word.contains(char::is_control);
    is_name && !word.starts_with('-') && !word.contains("://") && !word.ends_with('/')
}

impl CommandOptions {
    fn option_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut require = |is_right: bool, span, message: &str, label: &str| {
            if !is_right {
                faults.push(Fault::at(span, message).label(label));
            }
        };
        let command = &self.command;
        require(
            !command.is_empty(),
            command.span(),
            "`command` is empty",
            "expected a program and its arguments",
        );
        require(
            *self.batch_rows.value() > 0,
            self.batch_rows.span(),
            "`batch_rows` is 0",
            "expected at least 1",
        );
        require(*self.workers.value() > 0, self.workers.span(), "`workers` is 0", "expected at least 1");
        if let Some(timeout) = &self.timeout {
            let is_right = Duration::try_from_secs_f64(*timeout.value()).is_ok_and(|limit| !limit.is_zero());
            require(is_right, timeout.span(), "`timeout` is out of range", "expected seconds, more than 0");
        }
        let (source, message) = (self.input.is_none(), "expected with an `input` only");
        require(!(source && *self.whole.value()), self.whole.span(), "`whole` needs an `input`", message);
        for name in self.send.iter().flatten().take(usize::from(source)) {
            require(false, name.span(), "`send` needs an `input`", message);
        }
        if let Some(splits) = &self.splits {
            let label = "expected without `input`, where the program makes the rows";
            require(source, splits.span(), "an input is cut into splits by itself", label);
            require(*splits.value() > 0, splits.span(), "`splits` is 0", "expected at least 1");
        }
        require(
            !(source && self.columns.is_empty()),
            command.span(),
            "without an `input`, `columns` must name the columns that the program makes",
            "expected `columns`",
        );
        for (name, kind) in &self.columns {
            let is_reserved = is_reserved(name) || name == UID && !source;
            require(!is_reserved, kind.span(), &format!("`{name}` cannot be replaced"), "a reserved column");
            if types::parse(kind).is_none() {
                let fault = Fault::at(kind.span(), format!("unknown type of column `{}`", kind.value()));
                let known = format!("expected one of {}, or list<...>", types::NAMES.join(", "));
                faults
                    .push(did_you_mean(kind, types::NAMES).into_iter().fold(fault.label(known), Fault::hint));
                return faults;
            }
        }
        faults
    }

    /// Sorted by name. Types were checked.
    fn declared(&self) -> Vec<(String, DataType)> {
        let declared = self.columns.iter();
        declared.filter_map(|(name, kind)| Some((name.clone(), types::parse(kind)?))).collect()
    }

    /// The input's columns, with those that are declared replaced or added.
    fn output(&self, input: Option<&Schema>) -> SchemaRef {
        let mut schema = Arc::new(input.cloned().unwrap_or_else(Schema::empty));
        for (name, kind) in self.declared() {
            schema = with_field(&schema, Field::new(name, kind, true));
        }
        schema
    }

    /// The columns of the input that are sent.
    fn sent(&self, input: &Schema) -> SchemaRef {
        let is_sent = |field: &Field| match &self.send {
            _ if RESERVED.contains(&field.name().as_str()) => false,
            _ if field.name() == UID => true,
            Some(send) => send.iter().any(|name| name.value() == field.name()),
            None => !holds_image_bytes(field.data_type()),
        };
        let fields = input.fields().iter().filter(|field| is_sent(field)).cloned();
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn timeout(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(*self.timeout.as_ref()?.value()).ok()
    }

    fn batch_timeout(&self) -> Duration {
        self.timeout().unwrap_or(Duration::from_secs_f64(TIMEOUT))
    }

    /// The keys by which the output is sorted if the input was sorted by `keys`.
    fn kept_order(&self, keys: Vec<SortExpr>) -> Vec<SortExpr> {
        let is_kept = |key: &SortExpr| !self.columns.contains_key(&key.expr.schema_name().to_string());
        keys.into_iter().take_while(is_kept).collect()
    }

    fn contract(&self, cx: &RunContext, input: Option<&Schema>) -> Arc<RowContract> {
        let output = schema_with_reserved(&self.output(input));
        Arc::new(RowContract { stage: cx.stage.clone(), declared: self.declared(), output })
    }

    fn program(&self, cx: &RunContext) -> Result<Program, RunError> {
        let base = &cx.files.base;
        let folder = |path: &Path| std::path::absolute(path).map_err(|error| RunError::io(path, error));
        let base = if base.as_os_str().is_empty() { folder(Path::new("."))? } else { folder(base)? };
        let word = |word: &String| {
            let path = base.join(word);
            if can_be_file(word) && path.is_file() { path.into() } else { OsString::from(word) }
        };
        let dir: PathBuf = self.dir.as_ref().map_or_else(|| base.clone(), |dir| base.join(dir));
        if !dir.is_dir() {
            return Err(RunError::user_with_hint(
                format!("{} is not a directory", dir.display()),
                "`dir` is relative to the folder of the pipeline file",
            ));
        }
        let mut environment = passed_environment(&self.pass_env);
        environment.insert("TWINLENS_SEED".into(), cx.seed_for("command").to_string().into());
        environment.extend(self.env.iter().map(|(name, value)| (name.into(), value.reveal().into())));
        Ok(Program {
            words: self.command.iter().map(word).collect(),
            dir,
            environment,
            shown: self.command.join(" "),
        })
    }
}

impl Command {
    /// The processes for batches of `sent`, kept from split to split.
    fn pool(&self, cx: &RunContext, sent: SchemaRef) -> Result<Arc<Pool>, RunError> {
        let mut kept = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = kept.as_ref().filter(|pool| pool.schema == sent) {
            return Ok(pool.clone());
        }
        let (timeout, size) = (self.options.batch_timeout(), *self.options.workers.value());
        let pool = Arc::new(Pool::new(self.options.program(cx)?, sent, timeout, size, cx.progress.clone()));
        *kept = Some(pool.clone());
        Ok(pool)
    }
}

#[async_trait]
impl Rows for Command {
    async fn transform(&self, cx: &RunContext, input: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        let options = &self.options;
        let columns = input.schema().as_arrow().fields().iter();
        let columns = columns.filter(|field| !RESERVED.contains(&field.name().as_str())).cloned();
        let schema = Schema::new(columns.collect::<Vec<_>>());
        let (contract, keys) = (options.contract(cx, Some(&schema)), sort_keys(&schema));
        let split = Split {
            rows: sorted(input, &keys)?,
            batch_rows: *options.batch_rows.value(),
            contract: contract.clone(),
            lease: Arc::new(Lease::new(self.pool(cx, options.sent(&schema))?)),
        };
        let table = StreamingTable::try_new(contract.output.clone(), vec![Arc::new(split)])?;
        Ok(cx.session.read_table(Arc::new(table.with_sort_order(self.options.kept_order(keys))))?)
    }
}

/// A run of a program that makes rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Part {
    number: u64,
    count: u64,
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {}", self.number + 1, self.count)
    }
}

#[async_trait]
impl Source for Command {
    type Split = Part;

    async fn splits(&self, _: &RunContext) -> Result<Vec<Part>, RunError> {
        let count = self.options.splits.as_ref().map_or(1, |splits| *splits.value());
        Ok((0..count).map(|number| Part { number, count }).collect())
    }

    async fn read(&self, cx: &RunContext, part: &Part) -> Result<DataFrame, RunError> {
        let mut program = self.options.program(cx)?;
        program.environment.insert("TWINLENS_SPLIT".into(), part.number.to_string().into());
        program.environment.insert("TWINLENS_SPLITS".into(), part.count.to_string().into());
        let contract = self.options.contract(cx, None);
        let once = Once {
            program: &program,
            progress: &cx.progress,
            folder: &cx.files.scratch,
            timeout: Some(self.options.batch_timeout()),
            schema: contract.output.clone(),
        };
        let accept = |batch: RecordBatch| contract.made(&batch);
        once.run_or_repeat(None, None, accept).await?.frame(&cx.session)
    }
}

/// The position of an answer among all.
const POSITION: &str = "__twinlens_position";

/// `batch` with the positions of its rows, which are counted in `next`.
fn numbered(batch: &RecordBatch, next: &mut u64) -> Result<RecordBatch, Breach> {
    let first = *next;
    *next += batch.num_rows() as u64;
    let schema = with_field(batch.schema_ref(), Field::new(POSITION, DataType::UInt64, false));
    let positions: ArrayRef = Arc::new(UInt64Array::from_iter_values(first..*next));
    let columns = batch.columns().iter().cloned().chain([positions]);
    Ok(RecordBatch::try_new(schema, columns.collect())?)
}

#[async_trait]
impl Whole for Command {
    async fn tables(&self, cx: &RunContext, input: &InputData, _: &Inputs) -> Result<Frames, RunError> {
        let rows = input.frame(&cx.session).await?;
        let schema = rows.schema().as_arrow().clone();
        let (contract, sent) = (self.options.contract(cx, Some(&schema)), self.options.sent(&schema));
        // The rows are read twice and must come in the same order: ties are broken by all columns.
        let mut keys = sort_keys(&schema);
        let ties = schema.fields().iter().filter(|field| is_sortable(field.data_type()));
        keys.extend(ties.map(|field| ident(field.name()).sort(true, true)));
        let rows = sorted(rows, &keys)?;
        let program = self.options.program(cx)?;
        let once = Once {
            program: &program,
            progress: &cx.progress,
            folder: &cx.files.scratch,
            timeout: self.options.timeout(),
            schema: Arc::new(Schema::new(vec![Field::new(POSITION, DataType::UInt64, false)])),
        };
        let mut position = 0;
        let accept = |batch: RecordBatch| {
            contract.check_columns(batch.schema_ref(), &sent)?;
            numbered(&batch, &mut position)
        };
        let spool =
            once.run_or_repeat(Some((sent.clone(), rows.clone())), Some(input.rows()), accept).await?;
        let answers = spool.frame(&cx.session)?;
        let has_uid = sent.field_with_name(UID).is_ok() && spool.schema.field_with_name(UID).is_ok();
        // In the order of the rows, and answers with the same uid in the order in which they came.
        let order = if has_uid { vec![UID, POSITION] } else { vec![POSITION] };
        let answers = answers.sort(order.into_iter().map(|name| ident(name).sort(true, true)).collect())?;
        let answered = spool.schema.fields().iter().filter(|field| field.name() != POSITION).cloned();
        let answered = Arc::new(Schema::new(answered.collect::<Vec<_>>()));
        let pairing = Pairing { rows, answers, sent, answered, contract: contract.clone(), program };
        let table = StreamingTable::try_new(contract.output.clone(), vec![Arc::new(pairing)])?;
        let table = table.with_sort_order(self.options.kept_order(keys));
        Ok(Frames::main(cx.session.read_table(Arc::new(table))?))
    }
}
