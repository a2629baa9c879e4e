//! A SQL session over one or several runs.
//!
//! Tables of the first run have unqualified names. Tables of a run given as `--with NAME=DIR` are
//! `NAME.table` and `NAME.stage.side_table`; `runs.VIEW` is the union of a view over all runs, with
//! the name of the run in its first column.

use std::sync::Arc;

use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider,
};
use datafusion::dataframe::DataFrame;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{ident, lit};
use datafusion::prelude::SessionContext;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, catalog};
use twinlens_pipeline::Registry;
use twinlens_pipeline::run::{self, session};

use super::live;
use crate::errors::Failure;
use crate::sql::token_count;
use crate::{runtime, status, views};

/// Catalog and schema of unqualified names.
const CATALOG: &str = "datafusion";
const PUBLIC: &str = "public";
/// The schema of views over all runs, and their column with the name of the run.
const RUNS: &str = "runs";
const RUN: &str = "run";

pub(crate) struct Runs<'a> {
    registry: &'a Registry,
    pub dir: Location,
    /// Other runs by name.
    pub with: Vec<(String, Location)>,
}

impl<'a> Runs<'a> {
    pub(crate) fn new(registry: &'a Registry, dir: &str, with: &[(String, String)]) -> Result<Self, Failure> {
        let dir = crate::location::parse_location(dir)?;
        let with = with.iter().map(|(name, dir)| Ok((name.clone(), crate::location::parse_location(dir)?)));
        Ok(Self { registry, dir, with: with.collect::<Result<_, Failure>>()? })
    }

    /// Opens a session in which every dataset and every view of the runs is a table.
    pub(crate) async fn open(&self) -> Result<SessionContext, Failure> {
        let pipeline = status::pipeline_of(&self.dir)?;
        let session = session::plain(self.registry, runtime::cores());
        let datasets = run::datasets(&self.dir)?;
        session.register_udf(token_count::function(&datasets));
        self.register(&session, &datasets).await?;
        // Beside the views, which are of what the pipeline file describes now.
        catalog::register_tables(&session, &run::generations::earlier(&self.dir)?)?;
        live::register(&session, &self.dir.local_path())?;
        if self.with.is_empty() {
            return Ok(session);
        }
        let mut all = vec![(pipeline, session.clone())];
        for (name, dir) in &self.with {
            if is_taken(&session, name) || all.iter().any(|(other, _)| other == name) {
                let message = format!("--with {name}=...: the first run already has a table `{name}`");
                return Err(Failure::user(message).hint("choose another name for the other run"));
            }
            status::pipeline_of(dir)?;
            let other = empty_copy(&session);
            self.register(&other, &run::datasets(dir)?).await?;
            copy_tables(&other, &session, name).await?;
            all.push((name.clone(), other));
        }
        register_unions(&session, &all).await?;
        Ok(session)
    }

    async fn register(&self, session: &SessionContext, datasets: &[Dataset]) -> Result<(), Failure> {
        catalog::register(session, datasets).await?;
        views::register(session, datasets, self.registry).await
    }
}

/// A session with the same functions and memory pool, without tables.
fn empty_copy(session: &SessionContext) -> SessionContext {
    let config = session.copied_config().with_create_default_catalog_and_schema(true);
    let state = SessionStateBuilder::new_from_existing(session.state())
        .with_config(config)
        .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
        .build();
    SessionContext::new_with_state(state)
}

/// Whether a name is already used in the session.
fn is_taken(session: &SessionContext, name: &str) -> bool {
    let schemas = session.catalog(CATALOG).map(|catalog| catalog.schema_names()).unwrap_or_default();
    name == RUNS || schemas.iter().any(|schema| schema == name) || session.table_exist(name).unwrap_or(true)
}

/// Copies the tables of a session to another one, qualified by `name`.
async fn copy_tables(from: &SessionContext, to: &SessionContext, name: &str) -> Result<(), Failure> {
    let (Some(source), Some(target)) = (from.catalog(CATALOG), to.catalog(CATALOG)) else { return Ok(()) };
    let side = Arc::new(MemoryCatalogProvider::new());
    for schema in source.schema_names().iter().filter(|schema| *schema != "information_schema") {
        let copied: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
        let Some(tables) = source.schema(schema) else { continue };
        for table in tables.table_names() {
            if let Some(provider) = tables.table(&table).await? {
                copied.register_table(table, provider)?;
            }
        }
        match schema.as_str() {
            PUBLIC => target.register_schema(name, copied)?,
            stage => side.register_schema(stage, copied)?,
        };
    }
    to.register_catalog(name, side);
    Ok(())
}

/// Registers the union of each view over the runs that have it.
async fn register_unions(session: &SessionContext, all: &[(String, SessionContext)]) -> Result<(), Failure> {
    if let Some(catalog) = session.catalog(CATALOG) {
        catalog.register_schema(RUNS, Arc::new(MemorySchemaProvider::new()))?;
    }
    for view in views::ALL {
        let mut rows: Option<DataFrame> = None;
        for (name, run) in all {
            let table = format!("{}.{}", views::SCHEMA, view.name);
            if !run.table_exist(table.as_str())? {
                continue;
            }
            let frame = session.read_table(run.table_provider(table.as_str()).await?)?;
            let columns = view.columns.iter().map(|(column, _)| ident(*column));
            let frame = frame
                .select([lit(name.as_str()).alias(RUN)].into_iter().chain(columns).collect::<Vec<_>>())?;
            rows = Some(match rows {
                Some(before) => before.union(frame)?,
                None => frame,
            });
        }
        if let Some(rows) = rows {
            session.register_table(format!("{RUNS}.{}", view.name), rows.into_view())?;
        }
    }
    Ok(())
}
