//! Stages that look at all rows of their input before they make any of them a row or a reject.
//!
//! The rows go by split by split, so that other processes can make the splits, and images need not
//! pass through one machine. A *pass* over them is told something (a table) and answers with a
//! table for each split. The process of the run puts the answers together and says what the next
//! pass is told. The last pass makes the rows.

use std::fmt::{self, Debug, Formatter};

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use twinlens_dataset::Dataset;

use crate::context::{InputData, Inputs, RunContext};
use crate::error::RunError;

/// A stage that looks at all rows of its input before it makes each of them a row or a reject.
#[async_trait]
pub trait Passes: Send + Sync {
    /// The next pass, after those that are done. The same answers give the same pass, whatever the
    /// limits of this process: a run that resumes uses the answers that it finds.
    async fn next(
        &self,
        cx: &RunContext,
        input: &InputData,
        inputs: &Inputs,
        done: &[Pass],
    ) -> Result<NextPass, RunError>;

    /// Reads what a pass is told, once for all splits that this process makes.
    async fn open(&self, cx: &RunContext, pass: &str, told: &Dataset) -> Result<Box<dyn PassWork>, RunError>;
}

/// A pass that is done.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Its name.
    pub name: String,
    /// What it was told.
    pub told: Dataset,
    /// The answers of all splits.
    pub answers: Dataset,
}

/// What comes next.
pub enum NextPass {
    /// A pass whose splits answer.
    Look {
        /// Its name in the stage.
        name: &'static str,
        /// What it is told.
        told: DataFrame,
        /// The columns of its answers.
        answers: SchemaRef,
    },
    /// A pass over the answers of an earlier one, which have the number of a group in the column
    /// [`GROUP`]: a split has all rows of a group.
    Groups {
        /// Its name in the stage.
        name: &'static str,
        /// The number of the earlier pass, counted from 0.
        of: usize,
        /// How many groups there are at most.
        groups: u64,
        /// What it is told.
        told: DataFrame,
        /// The columns of its answers.
        answers: SchemaRef,
    },
    /// The pass that makes the rows; its name is [`ROWS`].
    Rows {
        /// What it is told.
        told: DataFrame,
        /// The side tables of the stage.
        side: Vec<(&'static str, DataFrame)>,
    },
}

/// The name of the pass that makes the rows.
pub const ROWS: &str = "rows";

/// The column of 32-bit numbers of groups. An answer with this column is sorted by it.
pub const GROUP: &str = "__twinlens_group";

/// The number of one of `groups` groups for all rows with this content, evenly distributed.
pub fn group_of(content: &[u8], groups: u64) -> u32 {
    // Below `groups`, which fits: there are that many splits of at least one row.
    ((u64::from(crc32fast::hash(content)) * groups) >> 32) as u32
}

/// A column of plans: the position of a row.
const POSITION: &str = "__twinlens_position";

impl Debug for NextPass {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Look { name, .. } | Self::Groups { name, .. } => name,
            Self::Rows { .. } => ROWS,
        })
    }
}

/// A pass that knows what it was told.
#[async_trait]
pub trait PassWork: Send + Sync {
    /// The answer of a split; in the pass that makes the rows, these, with the reserved columns of
    /// [`crate::rejects`].
    async fn split(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError>;

    /// The answer of a pass over groups for the rows of one. Such passes implement it.
    async fn group(&self, _: &RunContext, group: u64, _: DataFrame) -> Result<DataFrame, RunError> {
        Err(RunError::Internal(format!("group {group} of a pass over rows")))
    }
}

/// The rows of a split.
#[derive(Clone, Copy)]
pub struct SplitRows<'a> {
    pub(crate) input: &'a InputData,
    /// The position of the first row in the input.
    pub start: u64,
    /// The position after the last one.
    pub end: u64,
}

impl SplitRows<'_> {
    /// The input that they are rows of.
    pub fn input(&self) -> &InputData {
        self.input
    }

    /// All columns.
    pub fn frame(&self, session: &SessionContext) -> Result<DataFrame, RunError> {
        let InputData { dataset, table, .. } = self.input;
        Ok(dataset.range(session, table, self.start, self.end)?)
    }

    /// Some columns.
    pub fn columns(&self, session: &SessionContext, columns: &[&str]) -> Result<DataFrame, RunError> {
        Ok(self.numbered(session, Some(columns), POSITION)?.drop_columns(&[POSITION])?)
    }

    /// Some columns, or all, with the position of each row in the column `position`.
    pub fn numbered(
        &self,
        session: &SessionContext,
        columns: Option<&[&str]>,
        position: &str,
    ) -> Result<DataFrame, RunError> {
        let InputData { dataset, table, .. } = self.input;
        Ok(dataset.numbered_range(session, table, (self.start, self.end), (columns, position))?)
    }
}

impl InputData {
    /// All rows, as a split has some of them: where the process of the run decides alone.
    pub fn all_rows(&self) -> SplitRows<'_> {
        self.rows_between(0, self.rows())
    }

    /// The rows `start..end`.
    pub fn rows_between(&self, start: u64, end: u64) -> SplitRows<'_> {
        SplitRows { input: self, start, end }
    }
}
