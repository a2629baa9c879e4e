//! What the passes of `balance` are told and answer, as tables: a few numbers per query.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, ListArray, RecordBatch, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Int32Type, Schema, SchemaRef, UInt64Type};
use datafusion::common::HashMap;
use datafusion::error::Result as EngineResult;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::RunError;

use crate::balance::{Balancer, QueryCounts, Round, Share, Window};

/// Calls `take` with each batch of a table.
async fn each_batch(
    session: &SessionContext,
    dataset: &Dataset,
    mut take: impl FnMut(&RecordBatch),
) -> Result<(), RunError> {
    let mut batches = dataset.frame(session, MAIN).await?.execute_stream().await?;
    while let Some(batch) = batches.next().await {
        take(&batch?);
    }
    Ok(())
}

fn with_query(others: impl IntoIterator<Item = Field>) -> SchemaRef {
    let query = Field::new("query_id", DataType::Int32, false);
    Arc::new(Schema::new([query].into_iter().chain(others).collect::<Vec<_>>()))
}

fn number(name: &str) -> Field {
    Field::new(name, DataType::UInt64, false)
}

fn queries<'a>(ids: impl IntoIterator<Item = &'a i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(ids.into_iter().copied()))
}

fn numbers(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

fn ids(batch: &RecordBatch) -> &[i32] {
    batch.column(0).as_primitive::<Int32Type>().values()
}

fn values(batch: &RecordBatch, column: usize) -> &[u64] {
    batch.column(column).as_primitive::<UInt64Type>().values()
}

/// How many pairs each query matched: `query_id`, `matched`.
pub(super) fn counts_schema() -> SchemaRef {
    with_query([number("matched")])
}

pub(super) fn counts_batch(counts: HashMap<i32, u64>) -> EngineResult<RecordBatch> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    let columns = vec![
        queries(counts.iter().map(|(query, _)| query)),
        numbers(counts.iter().map(|(_, matched)| *matched)),
    ];
    Ok(RecordBatch::try_new(counts_schema(), columns)?)
}

pub(super) async fn read_counts(
    session: &SessionContext,
    answers: &Dataset,
) -> Result<HashMap<i32, u64>, RunError> {
    let mut counts = HashMap::new();
    each_batch(session, answers, |batch| {
        for (query, matched) in ids(batch).iter().zip(values(batch, 1)) {
            *counts.entry(*query).or_default() += *matched;
        }
    })
    .await?;
    Ok(counts)
}

/// What a pass searches: `query_id`, `low`, `high`.
pub(super) fn windows_batch(windows: &[(i32, Window)]) -> EngineResult<RecordBatch> {
    let columns = vec![
        queries(windows.iter().map(|(query, _)| query)),
        numbers(windows.iter().map(|(_, window)| window.low)),
        numbers(windows.iter().map(|(_, window)| window.high)),
    ];
    Ok(RecordBatch::try_new(with_query([number("low"), number("high")]), columns)?)
}

pub(super) async fn read_windows(
    session: &SessionContext,
    told: &Dataset,
) -> Result<Vec<(i32, Window)>, RunError> {
    let mut windows = Vec::new();
    each_batch(session, told, |batch| {
        let (low, high) = (values(batch, 1), values(batch, 2));
        windows.extend(
            ids(batch)
                .iter()
                .zip(low.iter().zip(high))
                .map(|(id, (&low, &high))| (*id, Window { low, high })),
        );
    })
    .await?;
    Ok(windows)
}

/// What a pass saw of each query: `query_id`, `below`, `within`.
pub(super) fn seen_schema() -> SchemaRef {
    let item = Field::new_list_field(DataType::UInt64, true);
    with_query([number("below"), Field::new("within", DataType::List(Arc::new(item)), false)])
}

pub(super) fn seen_batch(round: Round) -> EngineResult<RecordBatch> {
    let seen = round.into_seen();
    let within = seen.iter().map(|(.., within)| Some(within.iter().copied().map(Some)));
    let columns: Vec<ArrayRef> = vec![
        queries(seen.iter().map(|(query, ..)| query)),
        numbers(seen.iter().map(|(_, below, _)| *below)),
        Arc::new(ListArray::from_iter_primitive::<UInt64Type, _, _>(within)),
    ];
    Ok(RecordBatch::try_new(seen_schema(), columns)?)
}

/// Adds what all splits saw.
pub(super) async fn add_seen(
    session: &SessionContext,
    answers: &Dataset,
    round: &mut Round,
) -> Result<(), RunError> {
    each_batch(session, answers, |batch| {
        let (below, within) = (values(batch, 1), batch.column(2).as_list::<i32>());
        let hashes = within.values().as_primitive::<UInt64Type>().values();
        for (row, query) in ids(batch).iter().enumerate() {
            let offsets = within.value_offsets();
            round.add_seen(*query, below[row], &hashes[offsets[row] as usize..offsets[row + 1] as usize]);
        }
    })
    .await
}

/// The shares of a balancer: `query_id`, `bound`, `probability`.
pub(super) fn shares_batch(balancer: &Balancer) -> EngineResult<RecordBatch> {
    let shares = balancer.shares();
    let schema = with_query([
        Field::new("bound", DataType::UInt64, true),
        Field::new("probability", DataType::Float64, false),
    ]);
    let columns: Vec<ArrayRef> = vec![
        queries(shares.iter().map(|(query, _)| query)),
        Arc::new(shares.iter().map(|(_, share)| share.bound).collect::<UInt64Array>()),
        Arc::new(Float64Array::from_iter_values(shares.iter().map(|(_, share)| share.probability))),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

pub(super) async fn read_shares(
    session: &SessionContext,
    told: &Dataset,
    seed: u64,
) -> Result<Balancer, RunError> {
    let mut shares = Vec::new();
    each_batch(session, told, |batch| {
        let bounds = batch.column(1).as_primitive::<UInt64Type>();
        let probabilities = batch.column(2).as_primitive::<Float64Type>().values();
        for (row, query) in ids(batch).iter().enumerate() {
            let bound = bounds.is_valid(row).then(|| bounds.value(row));
            shares.push((*query, Share { bound, probability: probabilities[row] }));
        }
    })
    .await?;
    Ok(Balancer::of_shares(seed, shares))
}

/// What became of the pairs of each query: `query_id`, `matched`, `contributed`, `kept`.
pub(super) fn outcomes_schema() -> SchemaRef {
    with_query(["matched", "contributed", "kept"].map(number))
}

pub(super) fn outcomes_batch(outcomes: HashMap<i32, QueryCounts>) -> EngineResult<RecordBatch> {
    let mut outcomes: Vec<_> = outcomes.into_iter().collect();
    outcomes.sort_unstable_by_key(|(query, _)| *query);
    let of = |count: fn(&QueryCounts) -> u64| numbers(outcomes.iter().map(|(_, counts)| count(counts)));
    let columns = vec![
        queries(outcomes.iter().map(|(query, _)| query)),
        of(|counts| counts.matched),
        of(|counts| counts.contributed),
        of(|counts| counts.kept),
    ];
    Ok(RecordBatch::try_new(outcomes_schema(), columns)?)
}

pub(super) async fn read_outcomes(
    session: &SessionContext,
    answers: &Dataset,
) -> Result<HashMap<i32, QueryCounts>, RunError> {
    let mut outcomes: HashMap<i32, QueryCounts> = HashMap::new();
    each_batch(session, answers, |batch| {
        let (matched, contributed, kept) = (values(batch, 1), values(batch, 2), values(batch, 3));
        for (row, query) in ids(batch).iter().enumerate() {
            let counts = outcomes.entry(*query).or_default();
            counts.matched += matched[row];
            counts.contributed += contributed[row];
            counts.kept += kept[row];
        }
    })
    .await?;
    Ok(outcomes)
}
