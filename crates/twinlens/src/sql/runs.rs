//! The tables of one run, and of others beside it.
//!
//! The first run's tables have their plain names. Those of a run given as `--with NAME=DIR` are
//! `NAME.table` and `NAME.stage.side_table`; `runs.VIEW` is a view over all of them, with the run
//! in its first column.

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
use twinlens_pipeline::run::{self, session};

use super::ident as written;
use crate::errors::Failure;
use crate::{registry, runtime, status, views};

/// The catalog and the schema of the tables that have plain names.
const CATALOG: &str = "datafusion";
const PUBLIC: &str = "public";
/// The schema of views over all runs, and the column that says which.
const RUNS: &str = "runs";
const RUN: &str = "run";

/// A run, and others by name.
#[derive(Debug, Clone)]
pub struct Runs {
    /// The first.
    pub dir: Location,
    /// The others.
    pub with: Vec<(String, Location)>,
}

/// `NAME=DIR`.
pub fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, dir)) if written(name) == name && !dir.is_empty() => Ok((name.into(), dir.into())),
        _ => Err("expected NAME=DIR, the name of small letters, digits and `_`".into()),
    }
}

impl Runs {
    /// The directories that the arguments name.
    pub fn new(dir: &str, with: &[(String, String)]) -> Result<Self, Failure> {
        let dir = crate::run::location(dir)?;
        let with = with.iter().map(|(name, dir)| Ok((name.clone(), crate::run::location(dir)?)));
        Ok(Self { dir, with: with.collect::<Result<_, Failure>>()? })
    }

    /// A session in which every dataset and every view of the runs is a table.
    pub async fn open(&self) -> Result<SessionContext, Failure> {
        let pipeline = status::belongs_to(&self.dir)?;
        let session = session::plain(&registry::all(), runtime::cores());
        fill(&session, &run::datasets(&self.dir)?).await?;
        if self.with.is_empty() {
            return Ok(session);
        }
        let mut all = vec![(pipeline, session.clone())];
        for (name, dir) in &self.with {
            if taken(&session, name) || all.iter().any(|(other, _)| other == name) {
                let message = format!("--with {name}=...: the first run has a table of that name");
                return Err(Failure::user(message).hint("choose another name for the other run"));
            }
            status::belongs_to(dir)?;
            let beside = beside(&session);
            fill(&beside, &run::datasets(dir)?).await?;
            copy(&beside, &session, name).await?;
            all.push((name.clone(), beside));
        }
        together(&session, &all).await?;
        Ok(session)
    }
}

/// Registers the tables and views of a run.
async fn fill(session: &SessionContext, datasets: &[Dataset]) -> Result<(), Failure> {
    catalog::register(session, datasets).await?;
    views::register(session, datasets).await
}

/// A session with the functions and the memory of another, and no tables.
fn beside(session: &SessionContext) -> SessionContext {
    let config = session.copied_config().with_create_default_catalog_and_schema(true);
    let state = SessionStateBuilder::new_from_existing(session.state())
        .with_config(config)
        .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
        .build();
    SessionContext::new_with_state(state)
}

/// Whether a name means something in the session already.
fn taken(session: &SessionContext, name: &str) -> bool {
    let schemas = session.catalog(CATALOG).map(|catalog| catalog.schema_names()).unwrap_or_default();
    name == RUNS || schemas.iter().any(|schema| schema == name) || session.table_exist(name).unwrap_or(true)
}

/// Makes the tables of one session those of another, under a name.
async fn copy(from: &SessionContext, to: &SessionContext, name: &str) -> Result<(), Failure> {
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

/// The views over all runs, as far as any has them.
async fn together(session: &SessionContext, all: &[(String, SessionContext)]) -> Result<(), Failure> {
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
            let one = session.read_table(run.table_provider(table.as_str()).await?)?;
            let columns = view.columns.iter().map(|(column, _)| ident(*column));
            let one =
                one.select([lit(name.as_str()).alias(RUN)].into_iter().chain(columns).collect::<Vec<_>>())?;
            rows = Some(match rows {
                Some(before) => before.union(one)?,
                None => one,
            });
        }
        if let Some(rows) = rows {
            session.register_table(format!("{RUNS}.{}", view.name), rows.into_view())?;
        }
    }
    Ok(())
}
