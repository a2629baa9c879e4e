//! Runs a stage that looks at all rows before it decides: pass after pass, each split by split.
//!
//! What a pass is told and what it answers are datasets in a hidden folder of the run directory, so
//! that a killed run resumes in the middle of a pass, and other processes can make splits.
//! They are deleted once the stage is complete.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::dataframe::DataFrame;
use serde_json::Value;
use sha2::{Digest, Sha256};
use twinlens_dataset::protocol::{Begin, FORMAT};
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::storage::{Location, local};
use twinlens_dataset::{Dataset, DatasetWriter, MAIN, manifest};

use crate::error::RunError;
use crate::passes::{NextPass, Pass, Passes, ROWS};
use crate::run::directory::PASSES;
use crate::run::dispatch::{Helpers, Limits, make_splits, range_tasks, unless_cancelled};
use crate::run::generations;
use crate::run::groups;
use crate::run::output::{Output, write_table};
use crate::run::pass::{OpenPass, PassRecipe, silent};
use crate::run::splits::{Prepared, SplitTask};
use crate::run::step::{Step, rows_input, split_rows};

/// A split of a pass that looks has the rows of so many splits of rows: it reads a few columns, and
/// answers with a small table.
const LOOK_SPLITS: u64 = 16;

/// Deletes what the passes of all stages left. Gives what to say about what stays.
pub(super) fn delete_all(dir: &Location) -> Result<Vec<String>, RunError> {
    let mut notes = Vec::new();
    for stage in dir.join(PASSES).list()?.folders {
        notes.extend(delete(dir, &stage)?);
    }
    Ok(notes)
}

/// Deletes what the passes of a stage left, but no file of somebody else. Gives what to say about
/// what stays.
pub(super) fn delete(dir: &Location, stage: &str) -> Result<Vec<String>, RunError> {
    let (all, mut notes) = (own_folder(dir, stage)?, Vec::new());
    for name in all.list()?.folders {
        let folder = all.join(&name);
        match generations::foreign_file(&folder)? {
            None => folder.delete_folder(manifest::FILE)?,
            Some(foreign) => notes.push(generations::stays(&folder, &foreign)),
        }
    }
    if let Some(all) = all.as_local() {
        // Not, if something stays.
        let _ = fs::remove_dir(all);
        let _ = all.parent().map(fs::remove_dir);
    }
    Ok(notes)
}

/// The folder of a stage's passes.
fn own_folder(dir: &Location, stage: &str) -> Result<Location, RunError> {
    let folder = dir.join(PASSES).join(stage);
    match folder.as_local() {
        Some(path) if local::is_link(path) => Err(RunError::user_with_hint(
            format!("{} is a link, but a run deletes what is in this folder", path.display()),
            "remove the link",
        )),
        _ => Ok(folder),
    }
}

/// Does the passes that are not done, then makes rows and side tables.
pub(super) async fn execute(
    unit: &Prepared,
    passes: &dyn Passes,
    output: &mut Output,
    run: &PassRun<'_>,
) -> Result<(), RunError> {
    let head = unit.head()?;
    let input = rows_input(head)?;
    let rows = range_tasks(input, (split_rows(unit.steps()), input.rows()), output);
    // The side tables are a split of their own.
    let beside = input.rows().div_ceil(split_rows(unit.steps()));
    let has_beside = |output: &Output| head.node.plan.side.is_empty() || output.is_done(beside);
    head.cx.progress.total(input.rows());
    head.cx.progress.done(input.rows() - rows.iter().map(|task| task.input.rows()).sum::<u64>());
    if rows.is_empty() && has_beside(output) {
        return Ok(());
    }
    let mut done = Vec::new();
    let (told, side) = loop {
        let next = passes.next(&head.cx, input, &head.inputs, &done);
        match unless_cancelled(&head.cx, next).await? {
            NextPass::Look { name, told, answers } => {
                let size = LOOK_SPLITS * split_rows(unit.steps());
                let splits = async |output: &Output| Ok(range_tasks(input, (size, input.rows()), output));
                let pass = run.pass(head, name, (done.len(), told), None).await?;
                done.push(run.ask(unit, pass, answers, splits).await?);
            }
            NextPass::Groups { name, of, groups, told, answers } => {
                let earlier = done.get(of).ok_or_else(|| {
                    RunError::Internal(format!("the pass `{name}` groups the answers of none"))
                })?;
                let rows = earlier.answers.clone();
                let splits =
                    async |output: &Output| groups::tasks(&input.name, (&rows, groups), output).await;
                let pass = run.pass(head, name, (done.len(), told), Some(of)).await?;
                done.push(run.ask(unit, pass, answers, splits).await?);
            }
            NextPass::Rows { told, side } => break (run.tell(head, done.len(), told).await?, side),
        }
    };
    let pass = PassRecipe { name: ROWS.into(), told: Some(told.0), answers: None, rows_of: None, groups: 0 };
    let made = unit.of_pass(OpenPass::new(run.dir, &pass), output);
    let helpers = run.helpers.map(|helpers| helpers.of_pass(pass));
    make_splits(&made, rows, output, &run.limits, helpers.as_ref()).await?;
    if has_beside(output) {
        return Ok(());
    }
    let write = async {
        let mut writer = output.split(beside, "tables");
        writer.count_rows_in(0);
        for (table, frame) in side {
            writer = write_table(writer, table, frame, &head.cx.progress).await?;
        }
        Ok(writer)
    };
    let writer = unless_cancelled(&head.cx, write).await?;
    output.commit(writer).await
}

/// What the passes of a stage run with.
pub(super) struct PassRun<'a> {
    /// The run directory.
    pub(super) dir: &'a Location,
    pub(super) limits: Limits,
    pub(super) helpers: Option<&'a Helpers>,
    /// The fingerprint of the stage's dataset.
    pub(super) fingerprint: String,
}

impl PassRun<'_> {
    /// The pass `number`, which is told something; with `of`, over the groups in the answers of
    /// that pass.
    async fn pass(
        &self,
        head: &Step,
        name: &str,
        (number, told): (usize, DataFrame),
        of: Option<usize>,
    ) -> Result<(PassRecipe, Dataset), RunError> {
        let (folder, told) = self.tell(head, number, told).await?;
        let answers = |number: usize| self.folder(head, &format!("{number:02}-answers"));
        let pass = PassRecipe {
            name: name.into(),
            told: Some(folder),
            answers: Some(answers(number)?),
            rows_of: of.map(answers).transpose()?,
            groups: 0,
        };
        Ok((pass, told))
    }

    /// Does a pass that answers.
    async fn ask(
        &self,
        unit: &Prepared,
        (pass, told): (PassRecipe, Dataset),
        columns: SchemaRef,
        splits: impl AsyncFnOnce(&Output) -> Result<Vec<SplitTask>, RunError>,
    ) -> Result<Pass, RunError> {
        let name = pass.name.clone();
        let answers = self.answers(unit, pass, columns, splits).await?;
        Ok(Pass { name, told, answers })
    }

    /// Writes what a pass is told, unless an earlier run has; gives its folder, too.
    async fn tell(&self, head: &Step, number: usize, told: DataFrame) -> Result<(String, Dataset), RunError> {
        let folder = self.folder(head, &format!("{number:02}-told"))?;
        let columns = Arc::new(told.schema().as_arrow().clone());
        let mut output = self.open(head, &folder, columns)?;
        if !output.state().complete {
            if !output.is_done(0) {
                let progress = silent(head);
                let write = write_table(output.split(0, "all"), MAIN, told, &progress);
                let writer = unless_cancelled(&head.cx, write).await?;
                output.commit(writer).await?;
            }
            output.complete()?;
        }
        Ok((folder, output.dataset()))
    }

    /// The folder of a dataset of the stage's passes, in the run directory.
    pub(super) fn folder(&self, head: &Step, name: &str) -> Result<String, RunError> {
        own_folder(self.dir, &head.node.name)?;
        Ok(format!("{PASSES}/{}/{name}", head.node.name))
    }

    /// Gives the answers of a pass in these splits, which are made unless an earlier run has.
    pub(super) async fn answers(
        &self,
        unit: &Prepared,
        pass: PassRecipe,
        columns: SchemaRef,
        splits: impl AsyncFnOnce(&Output) -> Result<Vec<SplitTask>, RunError>,
    ) -> Result<Dataset, RunError> {
        let mut output = self.open(unit.head()?, pass.answers.as_deref().unwrap_or_default(), columns)?;
        if !output.state().complete {
            let tasks = splits(&output).await?;
            let made = unit.of_pass(OpenPass::new(self.dir, &pass), &output);
            let state = output.state();
            let helpers = self.helpers.map(|helpers| {
                let mut helpers = helpers.of_pass(pass);
                helpers.recipe.fingerprint.clone_from(&state.begin.fingerprint);
                helpers.recipe.tables.clone_from(&state.begin.tables);
                helpers
            });
            make_splits(&made, tasks, &mut output, &self.limits, helpers.as_ref()).await?;
            output.complete()?;
        }
        Ok(output.dataset())
    }

    /// A dataset of the stage's passes.
    fn open(&self, head: &Step, folder: &str, columns: SchemaRef) -> Result<Output, RunError> {
        let node = &head.node;
        let begin = Begin {
            format: FORMAT,
            position: 0,
            stage: node.name.clone(),
            kind: node.kind.into(),
            fingerprint: hex::encode(Sha256::digest(format!("{}/{folder}", self.fingerprint))),
            recipe: Value::Null,
            fused: Vec::new(),
            variant: None,
            tables: BTreeMap::from([(MAIN.to_string(), columns)]),
        };
        let writer = DatasetWriter::open_of_run(self.dir.join(folder), begin, ShardLimits::default())?;
        Ok(Output::of_pass(&node.name, writer, silent(head)))
    }
}
