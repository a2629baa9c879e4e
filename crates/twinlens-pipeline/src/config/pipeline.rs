//! A checked pipeline: what the TOML file means once nothing is wrong with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use schemars::JsonSchema;
use serde::Deserialize;
use twinlens_dataset::protocol::Variant;
use twinlens_dataset::{MAIN, REJECTS};

use crate::error::RunError;
use crate::located::Input;
use crate::ports::Plan;
use crate::secrets::Secrets;
use crate::stage::{Product, Work};

/// A pipeline whose every name, type and predicate has been checked. Its nodes are in an order in
/// which they can run.
#[derive(Debug)]
pub struct Pipeline {
    /// Its name; a run directory belongs to one name.
    pub name: String,
    /// Where everything drawn at random comes from.
    pub seed: u64,
    /// The file it was read from; `None` for one of values.
    pub file: Option<PathBuf>,
    /// The folder at which relative paths in options start: that of the file.
    pub base: PathBuf,
    /// Web sites of the program's own that are served on loopback during a run (`sites =
    /// ["gallery"]`).
    pub sites: Vec<String>,
    /// The stages: each after its inputs, otherwise as in the file.
    pub nodes: Vec<Arc<Node>>,
    /// Checks on the finished run.
    pub tests: Vec<Test>,
    /// The most rejected rows, as a share of the rows in, before a finished run exits with 3.
    /// `None`: a stage of which all rows are rejected ends the run.
    pub max_reject_share: Option<f64>,
    /// Whether images are decoded in processes that can do nothing else.
    pub isolate: bool,
    /// Where the splits of its runs are made.
    pub cluster: Cluster,
    /// What it was checked from; `None` for a pipeline of values.
    pub written: Option<Written>,
    /// What must be in no file and no message.
    pub secrets: Arc<Secrets>,
}

/// Where the splits of a pipeline's runs are made. No part of any recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The scheduler.
    pub on: Option<String>,
    /// Stages whose splits the run makes itself.
    pub here: Vec<String>,
}

/// The text of a pipeline and all that it was filled in with: another process makes the same
/// pipeline of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The text of the file.
    pub text: String,
    /// The values of `--set`.
    pub set: Vec<String>,
    /// The environment variables that the file lists and that are set.
    pub env: BTreeMap<String, String>,
}

impl Pipeline {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<(usize, &Node)> {
        self.nodes.iter().map(Arc::as_ref).enumerate().find(|(_, node)| node.name == name)
    }
}

/// One stage of a pipeline, or one variant of a swept stage.
#[derive(Debug)]
pub struct Node {
    /// Its name: that of the file, of a variant with its values behind it.
    pub name: String,
    /// Which variant of which stage it is.
    pub variant: Option<Variant>,
    /// Where what it draws at random comes from; `None`: the pipeline's seed.
    pub seed: Option<u64>,
    /// Its kind.
    pub kind: &'static str,
    /// The version of the kind's logic.
    pub version: u32,
    /// What the kind makes.
    pub product: Product,
    /// What its progress counts.
    pub unit: &'static str,
    /// Its options with every default filled in: what the fingerprint is made of.
    pub options: serde_json::Value,
    /// What it declared.
    pub plan: Plan,
    /// What it does when it runs.
    pub work: Work,
    /// Its inputs, in the order of [`Plan::inputs`].
    pub inputs: Vec<NodeInput>,
    /// `rejects = "keep"` (true) or `"count"`.
    pub keep_rejects: bool,
}

/// An input of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInput {
    /// As written in the pipeline file.
    pub input: Input,
    /// What it means.
    pub resolved: Resolved,
}

impl Node {
    /// Its name in the file.
    pub fn family(&self) -> &str {
        self.variant.as_ref().map_or(&self.name, |variant| &variant.of)
    }

    /// Its tables with their schemas: the main one, the side tables and the ledger. A schema is
    /// `None` if it depends on an input that has not been opened.
    pub fn tables(&self) -> impl Iterator<Item = (&'static str, Option<SchemaRef>)> {
        tables(&self.plan, self.keep_rejects)
    }

    /// The schema of the main table.
    ///
    /// # Errors
    /// Ours: the pipeline was loaded without the schemas of its inputs.
    pub fn main(&self) -> Result<&SchemaRef, RunError> {
        let unknown = || format!("the columns of `{}` are not known: its inputs were not opened", self.name);
        self.plan.main.as_ref().ok_or_else(|| RunError::Internal(unknown()))
    }

    /// The input whose rows it transforms.
    pub(crate) fn rows_input(&self) -> Option<&NodeInput> {
        self.inputs.get(self.plan.rows?)
    }

    /// The input of which rows are taken over.
    pub(crate) fn growing_input(&self) -> Option<&NodeInput> {
        self.inputs.get(self.plan.rows?)
    }

    /// The inputs that it reads as tables, in the order of their handles.
    pub(crate) fn table_inputs(&self) -> impl Iterator<Item = &NodeInput> {
        let inputs = self.inputs.iter().enumerate();
        inputs.filter(|(port, _)| Some(*port) != self.plan.rows).map(|(_, input)| input)
    }
}

/// The tables of a stage that declared `plan`.
pub(crate) fn tables(
    plan: &Plan,
    keep_rejects: bool,
) -> impl Iterator<Item = (&'static str, Option<SchemaRef>)> {
    let side = plan.side.iter().map(|(name, schema)| (*name, schema.clone()));
    let ledger = plan.ledger.clone().filter(|_| keep_rejects).map(|schema| (REJECTS, schema));
    [(MAIN, plan.main.clone())].into_iter().chain(side).chain(ledger)
}

/// What an input's name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// A table of a stage before this one.
    Stage {
        /// Index in [`Pipeline::nodes`].
        node: usize,
        /// `data`, `rejects`, or a side table.
        table: String,
    },
    /// A table of all variants of a swept stage, as one table.
    Variants {
        /// Indices in [`Pipeline::nodes`].
        nodes: Vec<usize>,
        /// `data`, `rejects`, or a side table.
        table: String,
    },
    /// A table about the run itself, computed when the stage starts: `funnel` (rows in, kept and
    /// rejected, by stage) or `rejects` (the ledgers of all stages). A `sql` stage may name them.
    System {
        /// `funnel` or `rejects`.
        table: String,
        /// The stages that it covers, as indices in [`Pipeline::nodes`]: all that the file declares
        /// before the reading stage, except queries. They run before it.
        nodes: Vec<usize>,
    },
    /// An earlier generation of a stage's dataset, which need not be made.
    Earlier {
        /// `clip@1`.
        name: String,
        /// The stage, as an index in [`Pipeline::nodes`].
        of: usize,
    },
    /// A Parquet file or the folder of a dataset: the path as written, joined to the folder of the
    /// pipeline file.
    Path(String),
}

impl Resolved {
    /// The stages that it reads, as indices in [`Pipeline::nodes`].
    pub fn nodes(&self) -> &[usize] {
        match self {
            Resolved::Stage { node, .. } => std::slice::from_ref(node),
            Resolved::Variants { nodes, .. } | Resolved::System { nodes, .. } => nodes,
            Resolved::Earlier { .. } | Resolved::Path(_) => &[],
        }
    }
}

/// A check on the finished run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// What must hold, in words.
    pub that: String,
    /// A query over the datasets of the run.
    pub sql: String,
    /// What it must give.
    pub expect: Expect,
    /// How long it may take.
    pub timeout: Duration,
    /// The line in the pipeline file where the test begins, from 1.
    pub line: usize,
}

/// What the query of a test must give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// No row.
    Empty,
    /// At least one row.
    NonEmpty,
    /// One row with one column that is true.
    True,
}
