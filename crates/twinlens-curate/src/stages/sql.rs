//! `sql`: a query over other datasets of the run.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, TableProvider,
};
use datafusion::common::TableReference;
use datafusion::dataframe::DataFrame;
use datafusion::error::Result as EngineResult;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SQLOptions, SessionContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, RunContext, RunError, Stage, StageKind,
    Tables, Whole, Work,
};

/// The result of a SQL query over other stages, which it names as tables (`wit`, `wit.query_stats`,
/// `funnel`, `rejects`).
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// The query, in DataFusion's SQL. Quote names that have upper-case letters or dashes.
    query: Located<String>,
}

impl StageKind for Sql {
    const KIND: &'static str = "sql";
    const ABOUT: &'static str = "The result of a SQL query over other stages, which it names as tables";
    const EXAMPLE: &'static str = r#"[stages.leaderboard]
kind = "sql"
query = "select set, prompts, value from zero_shot where metric = 'top1' order by value desc"
"#;
    const VERSION: u32 = 1;
}

/// The tables that a query names, each once: what `tables` complains of names none.
fn references(query: &Located<String>) -> Vec<String> {
    CheckContext { session: SessionContext::new() }.tables_in(query).unwrap_or_default()
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
        let reference = match name.split_once('.') {
            None => TableReference::bare(name),
            Some((stage, side)) => {
                if catalog.schema(stage).is_none() {
                    catalog.register_schema(stage, Arc::new(MemorySchemaProvider::new()))?;
                }
                TableReference::partial(stage, side)
            }
        };
        own.register_table(reference, table)?;
    }
    Ok(own)
}

impl Stage for Sql {
    fn inputs(&self) -> Vec<Input> {
        references(&self.query).into_iter().map(|name| Input(Located::new(name, self.query.span()))).collect()
    }

    fn tables(&self, cx: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        cx.tables_in(&self.query).map_err(|fault| vec![fault])?;
        let (mut tables, mut faults) = (Vec::new(), Vec::new());
        for input in inputs {
            match &input.schema {
                Some(schema) => tables.push((input.input.name().to_string(), schema.clone())),
                None => faults.push(
                    input
                        .fault(format!(
                            "the columns of {} are not known before it is opened",
                            input.input.name()
                        ))
                        .hint("read the file with a `table` stage, and name that stage here"),
                ),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let schema = cx.query(&self.query, &tables).map_err(|fault| vec![fault])?;
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        if let Some((_, twice)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            let fault =
                Fault::at(self.query.span(), format!("two columns of the result are called `{twice}`"));
            return Err(vec![fault.hint("give one of them another name: `... as name`")]);
        }
        // A row of the result may lack any value, whatever the engine can prove of it.
        let fields = schema.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true));
        Ok(Tables::main(Arc::new(Schema::new(fields.collect::<Vec<_>>()))))
    }

    fn work(&self) -> Work<'_> {
        Work::Whole(self)
    }
}

#[async_trait]
impl Whole for Sql {
    fn conserves(&self) -> bool {
        false
    }

    async fn plan(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
    ) -> Result<Vec<(&'static str, DataFrame)>, RunError> {
        let mut tables = Vec::new();
        for input in inputs {
            tables.push((input.name.clone(), input.frame(&cx.session).await?.into_view()));
        }
        let session = session_with(&cx.session, tables)?;
        // What was checked is a single `select`; the engine is told so once more.
        let read_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        Ok(vec![("data", session.sql_with_options(&self.query, read_only).await?)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::collections::BTreeMap;
    use twinlens_dataset::contracts;

    fn stage(query: &str) -> Sql {
        Sql { query: Located::new(query.into(), 3..9) }
    }

    #[test]
    fn inputs_are_the_tables_that_the_query_names() {
        let query = "with best as (select * from wit.query_stats) \
                     select * from best join pages using (uid) where uid in (select uid from \"Old\")";
        let names: Vec<String> = stage(query).inputs().iter().map(|input| input.name().to_string()).collect();
        assert_eq!(names, ["Old", "pages", "wit.query_stats"]);
        assert!(stage("select from (").inputs().is_empty());
    }

    #[test]
    fn queries_are_checked_without_data() {
        let tables = |query: &str| {
            stage(query)
                .tables(&check(), &[input("pages", contracts::pair_texts())])
                .map_err(|faults| faults[0].clone())
        };
        let found = tables("select caption, count(*) as n from pages group by 1 order by n").unwrap();
        let fields: Vec<String> =
            found.main.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
        assert_eq!(fields, ["caption Utf8", "n Int64"]);
        for (query, message) in [
            ("select captoin from pages", "unknown column `captoin`"),
            ("select a.uid, b.uid from pages a, pages b", "two columns of the result are called `uid`"),
            ("drop table pages", "not a query"),
            ("selec 1", ""),
        ] {
            let fault = tables(query).unwrap_err();
            assert!(fault.message.contains(message), "{query}: {fault:?}");
            assert_eq!(fault.span, 3..9);
        }
    }

    #[tokio::test]
    async fn the_result_is_the_querys() {
        let stage = stage(
            "select p.caption, q.id from pages p join lists q on p.caption = q.text order by q.id desc",
        );
        let inputs =
            [("lists", queries(&[(1, "dog"), (2, "cat")])), ("pages", pairs(&[("a", "dog"), ("b", "cat")]))];
        let columns = BTreeMap::from([("data", vec!["caption", "id"])]);
        assert_eq!(whole(&stage, &inputs, &columns).await["data"], ["cat|2", "dog|1"]);
    }
}
