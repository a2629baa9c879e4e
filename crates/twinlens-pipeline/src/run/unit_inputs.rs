//! Opens all that the stages of a unit read.

use std::sync::Arc;

use datafusion::arrow::datatypes::Field;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{Dataset, MAIN, REJECTS, catalog, manifest, variants};

use crate::config::{Node, NodeInput, Pipeline, Resolved};
use crate::context::{Clock, InputData, Inputs, RunContext};
use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use crate::run::events::Progress;
use crate::run::session;
use crate::run::settings::Settings;
use crate::run::step::{Step, holds_pixels};
use crate::stage::{SortKey, Work};

/// What the stages of a run find what they read with.
pub(super) struct UnitInputs<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) registry: &'a Registry,
    pub(super) settings: &'a Settings,
    pub(super) files: Files,
    pub(super) runtime: Arc<RuntimeEnv>,
    /// When the run began: what `run_time()` gives in SQL.
    pub(super) began: Clock,
}

impl UnitInputs<'_> {
    /// The steps of a unit: its nodes, first to last, with all that they read.
    pub(super) async fn steps(
        &self,
        nodes: &[usize],
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Vec<Step>, RunError> {
        let mut steps = Vec::new();
        let pixels = self.pixels(nodes)?;
        for (place, &index) in nodes.iter().enumerate() {
            let node = &self.pipeline.nodes[index];
            let cx = self.context(node, pixels, progress, cancel);
            let mut inputs = Vec::new();
            for input in node.table_inputs() {
                inputs.push(self.input(input, &cx.session).await?);
            }
            let rows = match node.rows_input() {
                // The rows of a fused stage are those of the stage before it, which has no dataset.
                Some(input) if place == 0 => Some(self.input(input, &cx.session).await?),
                _ => None,
            };
            steps.push(Step { node: node.clone(), cx, rows, inputs: Inputs::new(inputs) });
        }
        Ok(steps)
    }

    /// Whether images go through the plans of a unit, whose batches must then be few rows: they are
    /// made there, or an input has them. That a schema has room for images alone is no reason, as
    /// small batches cost time.
    fn pixels(&self, nodes: &[usize]) -> Result<bool, RunError> {
        for (place, &index) in nodes.iter().enumerate() {
            let node = &self.pipeline.nodes[index];
            let made = match node.work {
                Work::Rows(_) => {
                    let computed = |field: &&Arc<Field>| node.plan.computes.contains(field.name());
                    let fields = node.main()?.fields().iter();
                    fields.filter(computed).any(|field| holds_image_bytes(field.data_type()))
                }
                Work::Source(_) | Work::Splits(_) | Work::Job(_) => holds_pixels(node.main()?),
                Work::Passes(_) | Work::Whole(_) | Work::Query(_) => false,
            };
            if made {
                return Ok(true);
            }
            let rows = node.rows_input().filter(|_| place == 0);
            for input in node.table_inputs().chain(rows) {
                let read = match &input.resolved {
                    Resolved::Variants { nodes, table } => Some((self.made(nodes[0])?, table.clone())),
                    other => self.dataset(other)?,
                };
                if let Some((dataset, table)) = read
                    && holds_pixels(dataset.schema(&table)?.as_ref())
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn context(
        &self,
        node: &Node,
        pixels: bool,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> RunContext {
        // Without a key to sort by, one partition makes the order of a plan's rows repeat.
        let single =
            node.plan.order == SortKey::AsGiven && !matches!(node.work, Work::Splits(_) | Work::Job(_));
        let threads = if single { 1 } else { self.settings.threads };
        let config = session::config(threads, if pixels { 128 } else { 8192 });
        let session = session::open(self.registry, config, self.runtime.clone(), self.began);
        RunContext {
            stage: node.name.clone(),
            stream: node.family().to_string(),
            session,
            files: self.files.clone(),
            seed: node.seed.unwrap_or(self.pipeline.seed),
            clock: self.settings.clock,
            cancel: cancel.clone(),
            progress: progress.clone(),
            hosts: self.settings.hosts.clone(),
            secrets: self.pipeline.secrets.clone(),
            bytes_in_flight: self.settings.bytes_in_flight,
            ranks: self.settings.ranks.clone().filter(|_| node.plan.ranks.is_some()),
            // Other stages run in one process.
            sharers: match node.work {
                Work::Rows(_) | Work::Source(_) => self.settings.sharers.clone(),
                _ => Arc::default(),
            },
        }
    }

    /// The dataset that an input is, and its table; a system table (of all stages) is none.
    fn dataset(&self, resolved: &Resolved) -> Result<Option<(Dataset, String)>, RunError> {
        match resolved {
            Resolved::Stage { node, table } => Ok(Some((self.made(*node)?, table.clone()))),
            Resolved::Earlier { name, .. } => {
                Ok(Some((Dataset::open(self.settings.dir.join(name))?, MAIN.into())))
            }
            Resolved::Path(path) => Ok(Some((self.files.dataset(path)?, MAIN.into()))),
            Resolved::Variants { .. } | Resolved::System { .. } => Ok(None),
        }
    }

    /// The dataset of a stage that has run.
    pub(super) fn made(&self, node: usize) -> Result<Dataset, RunError> {
        Ok(Dataset::open(self.settings.dir.join(&self.pipeline.nodes[node].name))?)
    }

    /// A table of all variants of a stage.
    async fn variants(
        &self,
        name: String,
        nodes: &[usize],
        table: &str,
        session: &SessionContext,
    ) -> Result<InputData, RunError> {
        let made = nodes.iter().map(|&node| self.made(node)).collect::<Result<Vec<_>, _>>()?;
        let all = variants::union(session, &made.iter().collect::<Vec<_>>(), table).await?;
        match (all, made.first().cloned()) {
            (Some(all), Some(dataset)) => Ok(InputData {
                name,
                table: table.into(),
                dataset,
                view: Some(all.into_view()),
                variants: made,
            }),
            _ => Err(RunError::Internal(format!("the input `{name}` has no variants"))),
        }
    }

    async fn input(&self, input: &NodeInput, session: &SessionContext) -> Result<InputData, RunError> {
        let (name, resolved) = (input.input.name().to_string(), &input.resolved);
        if let Some((dataset, table)) = self.dataset(resolved)? {
            return Ok(InputData { name, table, dataset, view: None, variants: vec![] });
        }
        if let Resolved::Variants { nodes, table } = resolved {
            return self.variants(name, nodes, table, session).await;
        }
        let Resolved::System { table, nodes } = resolved else {
            return Err(RunError::Internal(format!("the input `{name}` has no dataset")));
        };
        let mut datasets = Vec::new();
        for node in nodes {
            // A fused stage has no dataset: it is part of the one that comes after it.
            let dir = self.settings.dir.join(&self.pipeline.nodes[*node].name);
            if manifest::exists(&dir)? {
                datasets.push(Dataset::open(dir)?);
            }
        }
        let view: Arc<dyn TableProvider> = if table == REJECTS {
            catalog::all_rejects(session, &datasets).await?.into_view()
        } else {
            let funnel = catalog::funnel(&datasets)?;
            Arc::new(MemTable::try_new(funnel.schema(), vec![vec![funnel]]).map_err(RunError::from)?)
        };
        let any = datasets.into_iter().next();
        let dataset =
            any.ok_or_else(|| RunError::Internal(format!("`{table}` is read before any stage has run")))?;
        Ok(InputData { name, table: MAIN.into(), dataset, view: Some(view), variants: vec![] })
    }
}
