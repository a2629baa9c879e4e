//! One split: what a process is told of it, how it makes it, and what it answers.
//!
//! A split is made by the same code wherever that is: by the run itself, or by a process of another
//! machine that built the unit from its [`super::recipe::UnitRecipe`].

use std::sync::Arc;
use std::time::Instant;

use datafusion::dataframe::DataFrame;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::OnceCell;
use tracing::{Instrument, debug_span};
use twinlens_dataset::split_records::SplitRecords;
use twinlens_dataset::storage::Location;
use twinlens_dataset::writer::SplitStarter;
use twinlens_dataset::{Commit, Dataset, MAIN, SplitWriter, blocking};

use crate::error::RunError;
use crate::passes::SplitRows;
use crate::rejects;
use crate::run::copies;
use crate::run::output::{Output, write_table};
use crate::run::pass::{OpenPass, silent};
use crate::run::picked::Picked;
use crate::run::step::{Step, chain, conserved, rows_input, write_sorted};
use crate::run::takeover::TakeOver;
use crate::stage::{SourceSplit, SplitMaker, Work};

/// What a process is told of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitTask {
    /// Its index.
    pub number: u64,
    /// A description for people: `wit rows 6000..6500`.
    pub label: String,
    /// What it is made from.
    pub input: SplitInput,
}

/// What a split is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitInput {
    /// Rows `start..end` of the unit's input.
    Rows {
        /// The first row.
        start: u64,
        /// The row after the last one.
        end: u64,
    },
    /// These rows of the dataset that the pass names, all of a group
    /// ([`grouped`](super::grouped)): the first of each range, and the one after its last.
    Ranges(Vec<(u64, u64)>),
    /// What a source described, in its own terms.
    Source(Value),
}

impl SplitInput {
    /// The rows that it reads; 0 where a source does not say.
    pub fn rows(&self) -> u64 {
        match self {
            Self::Rows { start, end } => end - start,
            Self::Ranges(ranges) => ranges.iter().map(|(start, end)| end - start).sum(),
            Self::Source(_) => 0,
        }
    }
}

/// A split that was made: its files are durable.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitDone {
    /// The entry for the manifest.
    pub commit: Commit,
    /// Seconds that it took; of one that another process made, unknown.
    pub seconds: Option<f64>,
    /// Whether this process made it.
    pub is_own: bool,
}

/// A unit that is ready to make splits in this process.
pub struct Prepared {
    steps: Vec<Step>,
    starter: SplitStarter,
    /// Where made splits are recorded before the manifest has them, in an object store.
    records: Option<SplitRecords>,
    earlier: Option<Arc<TakeOver>>,
    /// Of a stage that writes its splits itself: the earlier dataset, and what makes them.
    earlier_dataset: Option<Dataset>,
    maker: OnceCell<Box<dyn SplitMaker>>,
    /// The pass over the rows whose splits are made.
    pass: Option<OpenPass>,
    /// The rejects that are tried again.
    retry: Option<Picked>,
}

impl Prepared {
    /// A unit of these steps; `starter` and `records` are those of its dataset.
    pub(super) fn new(steps: Vec<Step>, starter: SplitStarter, records: Option<SplitRecords>) -> Self {
        Self {
            steps,
            starter,
            records,
            earlier: None,
            earlier_dataset: None,
            maker: OnceCell::new(),
            pass: None,
            retry: None,
        }
    }

    /// The same stages in a pass over the rows, whose results go to `output`.
    pub(super) fn of_pass(&self, pass: OpenPass, output: &Output) -> Self {
        let (mut steps, earlier) = (self.steps.clone(), self.earlier.clone());
        if !pass.makes_rows() {
            // The rows are counted when they are made.
            steps.iter_mut().for_each(|step| step.cx.progress = step.cx.progress.uncounted());
        }
        Self { earlier, ..Self::new(steps, output.starter(), output.records()).in_pass(pass) }
    }

    /// This unit, to try rejects again.
    pub(super) fn in_retry(self, picked: Picked) -> Self {
        Self { retry: Some(picked), ..self }
    }

    /// This unit in a pass over its rows.
    pub(super) fn in_pass(self, pass: OpenPass) -> Self {
        Self { pass: Some(pass), ..self }
    }

    /// Takes rows over from the dataset in `folder`, if they can be compared with those of the
    /// input.
    pub(super) fn take_over(&mut self, folder: Location) -> Result<(), RunError> {
        match self.head()?.node.work {
            Work::Splits(_) => self.earlier_dataset = Some(Dataset::open(folder)?),
            _ => self.earlier = TakeOver::open(folder, &self.steps)?.map(Arc::new),
        }
        Ok(())
    }

    /// How many rows this process took over, and from which dataset.
    pub(super) fn taken_over(&self) -> Option<(u64, String)> {
        let by_maker = self.maker.get().zip(self.earlier_dataset.as_ref());
        let by_maker = by_maker.map(|(maker, from)| (maker.taken_over(), from.location().name()));
        let taken = self.earlier.as_ref().map(|earlier| earlier.taken()).or(by_maker);
        taken.filter(|(rows, _)| *rows > 0)
    }

    /// The stages of the unit, with all that they read.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Makes a split. Where another process has already recorded the same one, its record is the
    /// result: two attempts never count twice.
    pub async fn split(&self, task: &SplitTask) -> Result<SplitDone, RunError> {
        let span = debug_span!("split", number = task.number, label = %task.label);
        self.publish(task).instrument(span).await
    }

    async fn publish(&self, task: &SplitTask) -> Result<SplitDone, RunError> {
        let started = Instant::now();
        let mut writer = self.write(task).await?;
        if writer.counts().rows_in.is_none() {
            writer.count_rows_in(writer.rows(MAIN) + writer.counts().rejected());
        }
        let records = self.records.clone();
        let commit = blocking(move || {
            let made = writer.publish()?.commit().clone();
            match records {
                Some(records) => records.put(made),
                None => Ok(made),
            }
        });
        let commit = commit.await??;
        Ok(SplitDone { commit, seconds: Some(started.elapsed().as_secs_f64()), is_own: true })
    }

    async fn write(&self, task: &SplitTask) -> Result<SplitWriter, RunError> {
        let head = self.head()?;
        let writer = self.starter.start(task.number, task.label.clone());
        match (&task.input, &head.node.work) {
            (SplitInput::Rows { start, end }, Work::Rows(_)) if let Some(picked) = &self.retry => {
                picked.again(&self.steps, (task.number, *start, *end), writer).await
            }
            (SplitInput::Rows { start, end }, Work::Rows(_)) => {
                let input = rows_input(head)?;
                let rows = SplitRows { input, start: *start, end: *end };
                if let (Some(pass), Some(by)) = (&self.pass, &head.node.plan.split_by) {
                    let copies = copies::copies(head, rows, by, pass.groups)?;
                    return self.write_answers(writer, copies, task).await;
                }
                self.write_rows(writer, rows.frame(&head.cx.session)?, task).await
            }
            (SplitInput::Ranges(ranges), Work::Rows(_)) => {
                let copies = self.pass(head)?.rows_of().await?;
                self.write_rows(writer, copies::rows(&head.cx, copies, ranges)?, task).await
            }
            (SplitInput::Rows { start, end }, Work::Splits(splits)) => {
                let open = || splits.open(&head.cx, &head.inputs, self.earlier_dataset.as_ref());
                let maker = self.maker.get_or_try_init(open).await?;
                let rows = SplitRows { input: rows_input(head)?, start: *start, end: *end };
                let writer = maker.make(&head.cx, rows, writer).await?;
                conserved(&writer, end - start)?;
                Ok(writer)
            }
            (SplitInput::Rows { start, end }, Work::Passes(passes)) => {
                let pass = self.pass(head)?;
                let rows = SplitRows { input: rows_input(head)?, start: *start, end: *end };
                let frame = pass.work(&head.cx, passes.as_ref()).await?.split(&head.cx, rows).await?;
                if pass.makes_rows() {
                    let writer = write_sorted(writer, frame, &self.steps).await?;
                    conserved(&writer, end - start)?;
                    return Ok(writer);
                }
                self.write_answers(writer, frame, task).await
            }
            (SplitInput::Ranges(ranges), Work::Passes(passes)) => {
                let pass = self.pass(head)?;
                let rows = pass.rows_of().await?.ranges(&head.cx.session, MAIN, ranges)?;
                let work = pass.work(&head.cx, passes.as_ref()).await?;
                let frame = work.group(&head.cx, task.number, rows).await?;
                self.write_answers(writer, frame, task).await
            }
            (SplitInput::Source(value), Work::Source(source)) => {
                let value = head.cx.secrets.reveal_value(value.clone());
                let split = SourceSplit { label: task.label.clone(), value };
                let frame = source.read(&head.cx, &split).await?;
                self.write_source(writer, frame).await
            }
            _ => {
                let what = format!("split {} is not one of `{}`", task.number, head.node.name);
                Err(RunError::Internal(what))
            }
        }
    }

    fn pass(&self, head: &Step) -> Result<&OpenPass, RunError> {
        let unknown = || RunError::Internal(format!("a split of `{}` without a pass", head.node.name));
        self.pass.as_ref().ok_or_else(unknown)
    }

    /// Writes what a chain of row stages makes of rows.
    async fn write_rows(
        &self,
        writer: SplitWriter,
        frame: DataFrame,
        task: &SplitTask,
    ) -> Result<SplitWriter, RunError> {
        let frame = match &self.earlier {
            Some(earlier) => earlier.chain(frame, &self.steps).await?,
            None => chain(rejects::with_reserved(frame)?, &self.steps).await?,
        };
        let writer = write_sorted(writer, frame, &self.steps).await?;
        conserved(&writer, task.input.rows())?;
        Ok(writer)
    }

    /// Writes the answer of a pass.
    async fn write_answers(
        &self,
        writer: SplitWriter,
        frame: DataFrame,
        task: &SplitTask,
    ) -> Result<SplitWriter, RunError> {
        let mut writer = write_table(writer, MAIN, frame, &silent(self.head()?)).await?;
        writer.count_rows_in(task.input.rows());
        Ok(writer)
    }

    /// Writes the rows of a source through the stages that are fused to it.
    pub(super) async fn write_source(
        &self,
        writer: SplitWriter,
        frame: DataFrame,
    ) -> Result<SplitWriter, RunError> {
        let frame = chain(frame, &self.steps[1..]).await?;
        let mut writer = write_sorted(writer, frame, &self.steps).await?;
        writer.count_rows_in(writer.rows(MAIN) + writer.counts().rejected());
        Ok(writer)
    }

    /// The first stage.
    pub(super) fn head(&self) -> Result<&Step, RunError> {
        self.steps.first().ok_or_else(|| RunError::Internal("a unit without stages".into()))
    }
}
