//! The side tables of a crawl, which record its waves.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::logical_expr::ident;
use twinlens_pipeline::{Output, RunContext, RunError};

use crate::frontier::{Visit, VisitKind, WaveRecord};
use crate::stages::common::arrow_error;

/// Side table of visits.
pub(super) const VISITS: &str = "visits";
/// Side table of URLs found.
pub(super) const FRONTIER: &str = "frontier";

fn nullable_schema(columns: &[(&str, DataType)]) -> SchemaRef {
    let field = |(name, kind): &(&str, DataType)| Field::new(*name, kind.clone(), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// Visits. `kind` is `page`, `sitemap` or `robots`; `outcome` is `page`, `duplicate` (of a page
/// with the same canonical URL), `redirect`, `sitemap`, `robots`, or the reject code. `charset` is
/// that in which the page was decoded.
pub(super) fn visits_schema() -> SchemaRef {
    nullable_schema(&[
        ("url", DataType::Utf8),
        ("kind", DataType::Utf8),
        ("depth", DataType::Int32),
        ("outcome", DataType::Utf8),
        ("redirect", DataType::Utf8),
        ("canonical", DataType::Utf8),
        ("charset", DataType::Utf8),
        ("pairs", DataType::Int32),
        ("links", DataType::Int32),
    ])
}

/// The URLs found, each once, and where.
pub(super) fn frontier_schema() -> SchemaRef {
    nullable_schema(&[
        ("url", DataType::Utf8),
        ("kind", DataType::Utf8),
        ("depth", DataType::Int32),
        ("found_on", DataType::Utf8),
    ])
}

/// Reads the record of a committed wave.
pub(super) async fn read_wave(cx: &RunContext, output: &Output, number: u64) -> Result<WaveRecord, RunError> {
    if !output.is_done(number) {
        return Err(RunError::Internal(format!("wave {number} is not recorded")));
    }
    let wave = output.dataset().only_split(number);
    let mut record = WaveRecord::default();
    for (table, third) in [(VISITS, "canonical"), (FRONTIER, "found_on")] {
        let columns = ["url", "kind", "depth", third].map(ident);
        let frame = wave.frame(&cx.session, table).await?.select(columns)?;
        for batch in frame.collect().await? {
            let rows = rows(&batch)?;
            match table {
                VISITS => record.visits.extend(rows),
                _ => record.found.extend(rows.into_iter().map(|(visit, _)| visit)),
            }
        }
    }
    Ok(record)
}

/// Visits, and the value of the fourth column.
fn rows(batch: &RecordBatch) -> Result<Vec<(Visit, Option<String>)>, RunError> {
    let text = |column: usize| -> Result<_, RunError> {
        Ok(cast(batch.column(column), &DataType::Utf8).map_err(arrow_error)?.as_string::<i32>().clone())
    };
    let (url, kind, last) = (text(0)?, text(1)?, text(3)?);
    let depth = batch.column(2).as_primitive::<Int32Type>();
    let row = |row: usize| {
        let visit = Visit {
            kind: VisitKind::from_name(kind.value(row)),
            depth: depth.value(row).unsigned_abs(),
            url: url.value(row).into(),
        };
        (visit, last.is_valid(row).then(|| last.value(row).to_string()))
    };
    Ok((0..batch.num_rows()).map(row).collect())
}
