//! Passes over `uid` and `query_ids`, one task per partition. Their results are a few numbers per
//! query, so memory does not grow with the number of rows.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int32Type;
use datafusion::common::HashMap;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result};
use futures::StreamExt;
use tokio::task::JoinSet;

use crate::balance::{Balancer, QueryCounts, Round, pair_hash};
use crate::functions::{int_lists, strings};

/// Folds the batches of each partition from `start`, and merges the results. Dropping the future
/// stops the tasks.
async fn fold<A: Clone + Send + 'static>(
    frame: DataFrame,
    start: A,
    each: impl Fn(&mut A, &RecordBatch) -> Result<()> + Clone + Send + 'static,
    merge: impl Fn(&mut A, A),
) -> Result<A> {
    let mut tasks = JoinSet::new();
    for mut stream in frame.execute_stream_partitioned().await? {
        let (mut sum, each) = (start.clone(), each.clone());
        tasks.spawn(async move {
            while let Some(batch) = stream.next().await {
                each(&mut sum, &batch?)?;
            }
            Ok::<_, DataFusionError>(sum)
        });
    }
    let mut whole = start;
    while let Some(part) = tasks.join_next().await {
        merge(&mut whole, part.map_err(|error| DataFusionError::External(error.into()))??);
    }
    Ok(whole)
}

/// Calls `take` with the distinct queries of each row, sorted; an empty list if it has none.
pub(super) fn each_set(column: &ArrayRef, mut take: impl FnMut(usize, &[i32])) -> Result<()> {
    let lists = int_lists(column)?;
    let values = lists.values().as_primitive::<Int32Type>();
    let (offsets, mut own) = (lists.value_offsets(), Vec::new());
    for row in 0..lists.len() {
        let items = offsets[row] as usize..offsets[row + 1] as usize;
        if lists.is_null(row) {
            take(row, &[]);
        } else if values.null_count() == 0 && values.values()[items.clone()].is_sorted_by(|a, b| a < b) {
            // The form that `match` writes: no copy.
            take(row, &values.values()[items]);
        } else {
            own.clear();
            own.extend(items.filter(|item| values.is_valid(*item)).map(|item| values.value(item)));
            own.sort_unstable();
            own.dedup();
            take(row, &own);
        }
    }
    Ok(())
}

/// Calls `take` with the uid and the distinct queries of each row that has any.
fn each_pair(batch: &RecordBatch, mut take: impl FnMut(&str, &[i32])) -> Result<()> {
    let uids = strings(batch.column(0))?;
    each_set(batch.column(1), |row, queries| {
        if !queries.is_empty() {
            // A null reads as the empty text.
            take(uids.value(row), queries);
        }
    })
}

fn pairs(frame: &DataFrame) -> Result<DataFrame> {
    frame.clone().select_columns(&["uid", "query_ids"])
}

/// How many pairs each query matched.
pub(super) async fn counts(frame: &DataFrame) -> Result<HashMap<i32, u64>> {
    let each = |counts: &mut HashMap<i32, u64>, batch: &RecordBatch| {
        each_set(batch.column(0), |_, queries| {
            queries.iter().for_each(|query| *counts.entry(*query).or_default() += 1);
        })
    };
    let merge = |counts: &mut HashMap<i32, u64>, part: HashMap<i32, u64>| {
        part.into_iter().for_each(|(query, matched)| *counts.entry(query).or_default() += matched);
    };
    fold(frame.clone().select_columns(&["query_ids"])?, HashMap::new(), each, merge).await
}

/// What is in the windows of a round.
pub(super) async fn search(frame: &DataFrame, seed: u64, round: Round) -> Result<Round> {
    let each = move |round: &mut Round, batch: &RecordBatch| {
        each_pair(batch, |uid, queries| round.add(pair_hash(seed, uid), queries))
    };
    fold(pairs(frame)?, round, each, Round::merge).await
}

/// How many pairs each query matched, contributed and kept.
pub(super) async fn outcomes(
    frame: &DataFrame,
    balancer: &Arc<Balancer>,
) -> Result<HashMap<i32, QueryCounts>> {
    let balancer = balancer.clone();
    let each = move |all: &mut HashMap<i32, QueryCounts>, batch: &RecordBatch| {
        each_pair(batch, |uid, queries| {
            let pair = balancer.pair(uid);
            let kept = balancer.keeps(pair, queries);
            for query in queries {
                let counts = all.entry(*query).or_default();
                counts.matched += 1;
                counts.contributed += u64::from(kept && balancer.contributes(pair, *query));
                counts.kept += u64::from(kept);
            }
        })
    };
    let merge = |all: &mut HashMap<i32, QueryCounts>, part: HashMap<i32, QueryCounts>| {
        for (query, part) in part {
            let counts = all.entry(query).or_default();
            counts.matched += part.matched;
            counts.contributed += part.contributed;
            counts.kept += part.kept;
        }
    };
    fold(pairs(frame)?, HashMap::new(), each, merge).await
}
