//! `sql`: a query over other datasets of the run.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, TableProvider,
};
use datafusion::error::Result as EngineResult;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SQLOptions, SessionContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::sql::table_references;
use twinlens_pipeline::{
    Fault, Frames, Inputs, Located, Ports, Product, Query, RunContext, RunError, SortKey, StageKind,
    TableInput, Work,
};

/// The result of a SQL query over other stages, which it names as tables (`wit`, `wit.query_stats`,
/// `funnel`, `rejects`).
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlOptions {
    /// The query, in DataFusion's SQL. Quote names that have upper-case letters or dashes.
    query: Located<String>,
}

/// `sql` as it runs.
pub struct Sql {
    query: String,
    tables: Vec<TableInput>,
}

impl StageKind for Sql {
    type Options = SqlOptions;
    const NAME: &'static str = "sql";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"[stages.leaderboard]
kind = "sql"
query = "select set, prompts, value from zero_shot where metric = 'top1' order by value desc"
"#;
    const PRODUCT: Product = Product::Report;

    fn plan(options: SqlOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let query = options.query;
        let mut tables = Vec::new();
        for input in ports.tables_in(&query)? {
            let table = ports.table(&input);
            ports.reads_all_variants(&table);
            tables.push(table);
        }
        let schema = ports.query(&query);
        if let Some(name) = schema.as_ref().and_then(repeated_column) {
            let fault = Fault::at(query.span(), format!("two columns of the result are called `{name}`"));
            ports.fault(fault.hint("give one of them another name: `... as name`"));
        }
        ports.output(schema.map(all_nullable), SortKey::AsGiven);
        Some(Work::query(Sql { query: query.value().clone(), tables }))
    }
}

/// A name that two columns have.
fn repeated_column(schema: &SchemaRef) -> Option<&String> {
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)).map(|(_, name)| *name)
}

/// A row of the result may lack any value, whatever the engine can prove of it.
fn all_nullable(schema: SchemaRef) -> SchemaRef {
    let fields =
        schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[async_trait]
impl Query for Sql {
    async fn tables(&self, cx: &RunContext, inputs: &Inputs) -> Result<Frames, RunError> {
        let mut tables = Vec::new();
        for input in self.tables.iter().map(|table| inputs.get(table)) {
            tables.push((input.name.clone(), input.frame(&cx.session).await?.into_view()));
        }
        let session = session_with(&cx.session, tables)?;
        // What was checked is a single `select`; the engine is told so once more.
        let read_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        Ok(Frames::main(session.sql_with_options(&self.query, read_only).await?))
    }
}

/// A session with the functions and the memory of `session`, and only these tables: `pages`,
/// `wit.query_stats`.
fn session_with(
    session: &SessionContext,
    tables: Vec<(String, Arc<dyn TableProvider>)>,
) -> EngineResult<SessionContext> {
    let catalogs = Arc::new(MemoryCatalogProviderList::new());
    let state = SessionStateBuilder::new_from_existing(session.state()).with_catalog_list(catalogs).build();
    let own = SessionContext::new_with_state(state);
    let names = own.copied_config().options().catalog.clone();
    let catalog = Arc::new(MemoryCatalogProvider::new());
    catalog.register_schema(&names.default_schema, Arc::new(MemorySchemaProvider::new()))?;
    own.register_catalog(&names.default_catalog, catalog.clone());
    for (name, table) in tables {
        for reference in table_references(&name) {
            if let Some(schema) = reference.schema().filter(|schema| catalog.schema(schema).is_none()) {
                catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new()))?;
            }
            own.register_table(reference, table.clone())?;
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    fn sql(query: &str) -> StageTest {
        let pages = pairs(&[("a", "dog"), ("b", "cat")]);
        let lists = queries(&[(1, "dog"), (2, "cat")]);
        stage("sql", &format!("query = {query:?}")).table("pages", &pages).table("lists", &lists)
    }

    #[test]
    fn queries_are_checked_without_data() {
        for (query, fault) in [
            ("select captoin from pages.parquet", "captoin: unknown column `captoin`"),
            (
                "select a.uid, b.uid from pages.parquet a, pages.parquet b",
                "two columns of the result are called `uid`",
            ),
            ("select uid from", "Expected: identifier"),
            ("drop table pages", "not a query"),
        ] {
            let faults = sql(query).faults();
            assert!(faults.len() == 1 && faults[0].contains(fault), "{query}: {faults:?}");
        }
    }

    #[tokio::test]
    async fn the_result_is_the_querys() {
        let query = "select p.caption, q.id from pages.parquet p join \"lists.parquet\" q on p.caption = q.text order by q.id desc";
        assert_eq!(sql(query).run().await.unwrap().table("data", &["caption", "id"]), ["cat|2", "dog|1"]);
    }
}
