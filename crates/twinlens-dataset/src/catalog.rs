//! The datasets of a run as SQL tables.
//!
//! A dataset `wit` is the table `wit`; its other tables are `wit.rejects` and `wit.query_stats`, or
//! just `query_stats` if only one dataset has that table. A stage that is fused into the plan of
//! another is a view over that dataset: its output is the rows that reached the end and those that
//! a later stage rejected. Variants of a swept stage are tables under their own names and, with the
//! swept options as columns, one table under the name of the stage. `rejects` is the ledger of all
//! stages, and `funnel` counts the rows in, kept, and rejected by code for each stage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::MemorySchemaProvider;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{cast, col, ident, lit};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

use crate::contracts;
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::protocol::{MAIN, REJECTS};
use crate::variants;

/// Registers datasets, given in the order of their stages, in a session.
pub async fn register(session: &SessionContext, datasets: &[Dataset]) -> Result<(), DatasetError> {
    // The stages that have a side table, by the name of the table.
    let mut side_tables: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    register_tables(session, datasets)?;
    for dataset in datasets {
        for table in dataset.tables().filter(|table| ![MAIN, REJECTS].contains(table)) {
            side_tables.entry(table).or_default().insert(dataset.state().begin.family());
        }
        for (fused, schema) in &dataset.state().begin.fused {
            let view = fused_view(session, dataset, fused, schema).await?;
            session.register_table(identifier(fused), view.into_view())?;
        }
    }
    for (family, members) in variants::families(datasets) {
        add_schema(session, family)?;
        for table in members[0].tables() {
            let with: Vec<&Dataset> = members
                .iter()
                .copied()
                .filter(|member| member.tables().any(|other| other == table))
                .collect();
            // A leftover dataset of a stage with this name takes precedence.
            if let Some(all) = variants::union(session, &with, table).await?
                && !session.table_exist(sql_name(family, table))?
            {
                session.register_table(sql_name(family, table), all.into_view())?;
            }
        }
    }
    for (table, owners) in side_tables {
        if let Some(owner) = owners.first().filter(|_| owners.len() == 1)
            && !session.table_exist(identifier(table))?
        {
            session
                .register_table(identifier(table), session.table_provider(sql_name(owner, table)).await?)?;
        }
    }
    session.register_table(REJECTS, all_rejects(session, datasets).await?.into_view())?;
    let funnel = funnel(datasets)?;
    session.register_table("funnel", Arc::new(MemTable::try_new(funnel.schema(), vec![vec![funnel]])?))?;
    Ok(())
}

/// Registers the tables of datasets under their own names alone.
pub fn register_tables(session: &SessionContext, datasets: &[Dataset]) -> Result<(), DatasetError> {
    for dataset in datasets {
        let stage = &dataset.state().begin.stage;
        add_schema(session, stage)?;
        for table in dataset.tables() {
            session.register_table(sql_name(stage, table), dataset.provider(session, table)?)?;
        }
    }
    Ok(())
}

/// A name as a quoted identifier of SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The SQL name of a table of a stage; the main table has the name of the stage.
fn sql_name(stage: &str, table: &str) -> String {
    match table {
        MAIN => identifier(stage),
        side => format!("{}.{}", identifier(stage), identifier(side)),
    }
}

fn add_schema(session: &SessionContext, name: &str) -> Result<(), DatasetError> {
    if let Some(catalog) = session.catalog("datafusion")
        && catalog.schema(name).is_none()
    {
        catalog.register_schema(name, Arc::new(MemorySchemaProvider::new()))?;
    }
    Ok(())
}

/// The output of a fused stage: rows that reached the end, and rows that a later stage rejected.
async fn fused_view(
    session: &SessionContext,
    dataset: &Dataset,
    fused: &str,
    schema: &Schema,
) -> Result<DataFrame, DatasetError> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let kept = dataset.frame(session, MAIN).await?.select_columns(&names)?;
    let ledger = dataset.schema(REJECTS)?;
    if !names.iter().all(|name| ledger.field_with_name(name).is_ok()) {
        return Ok(kept);
    }
    let stages: Vec<&String> = dataset.state().begin.fused.iter().map(|(name, _)| name).collect();
    let upto = stages.iter().position(|name| *name == fused).map_or(0, |at| at + 1);
    let earlier = stages[..upto].iter().map(|name| lit(name.as_str())).collect();
    let later = dataset.frame(session, REJECTS).await?.filter(col("reject_stage").in_list(earlier, true))?;
    Ok(kept.union(later.select_columns(&names)?)?)
}

/// The schema of the table `rejects`: columns of pairs that ledgers share, then the reserved ones.
pub fn rejects_schema() -> SchemaRef {
    let texts =
        ["uid", "url", "caption", "page_url"].map(|name| Arc::new(Field::new(name, DataType::Utf8, true)));
    let reserved = contracts::rejects();
    Arc::new(Schema::new(texts.into_iter().chain(reserved.fields().iter().cloned()).collect::<Vec<_>>()))
}

/// The ledgers of all stages in one table.
pub async fn all_rejects(session: &SessionContext, datasets: &[Dataset]) -> Result<DataFrame, DatasetError> {
    let common = rejects_schema();
    let mut all = session.read_table(Arc::new(MemTable::try_new(common.clone(), vec![vec![]])?))?;
    for dataset in datasets {
        let Ok(schema) = dataset.schema(REJECTS) else { continue };
        let columns = common.fields().iter().map(|field| {
            let value = match schema.field_with_name(field.name()) {
                Ok(found) => ident(found.name()),
                Err(_) => lit(ScalarValue::Null),
            };
            cast(value, field.data_type().clone()).alias(field.name())
        });
        all = all.union(dataset.frame(session, REJECTS).await?.select(columns.collect::<Vec<_>>())?)?;
    }
    Ok(all)
}

/// The schema of the table `funnel`.
pub fn funnel_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("position", DataType::Int64, false),
        Field::new("stage", DataType::Utf8, false),
        Field::new("outcome", DataType::Utf8, false),
        Field::new("rows", DataType::Int64, false),
    ]))
}

/// The rows in, rejected by code, and kept, for each stage in order.
pub fn funnel(datasets: &[Dataset]) -> Result<RecordBatch, DatasetError> {
    let (mut positions, mut stages, mut outcomes, mut rows) = (vec![], vec![], vec![], vec![]);
    let mut position = 0;
    let mut add = |stage: &str, outcome: &str, count: u64| {
        position += 1;
        positions.push(position);
        stages.push(stage.to_string());
        outcomes.push(outcome.to_string());
        rows.push(count as i64);
    };
    for stage in datasets.iter().flat_map(|dataset| dataset.state().stages()) {
        if let Some(rows) = stage.rows_in {
            add(stage.stage, "in", rows);
        }
        for (code, count) in &stage.rejects {
            add(stage.stage, code, *count);
        }
        if let Some(rows) = stage.kept {
            add(stage.stage, "kept", rows);
        }
    }
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from(positions)),
        Arc::new(StringArray::from(stages)),
        Arc::new(StringArray::from(outcomes)),
        Arc::new(Int64Array::from(rows)),
    ];
    RecordBatch::try_new(funnel_schema(), columns)
        .map_err(|source| DatasetError::Schema { table: "funnel".into(), source })
}
