//! Near-equal perceptual hashes.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, UInt32Array,
};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::common::HashMap;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::logical_expr::{Expr, ident};
use futures::StreamExt;
use twinlens_pipeline::passes::GROUP;
use twinlens_pipeline::{RunContext, RunError};

use super::columns::{KEPT, PLACE, group_of_texts};
use crate::functions::{call, strings};
use crate::near::NearIndex;

/// A column of what a pass is told: a hash that is near a kept one.
pub(super) const HASH: &str = "hash";
/// A column of what a pass is told: why it is.
pub(super) const WHY: &str = "why";
/// Rows of a batch of what a pass is told.
const BATCH_ROWS: usize = 8192;

/// The hashes that are near a kept one.
pub(super) struct Followers {
    /// The kept one, and the bits that differ.
    leaders: HashMap<i64, (i64, u32)>,
    /// The smallest uid with a kept hash: of those that others are near to alone, which may be few
    /// among very many.
    uids: HashMap<i64, String>,
}

/// The distinct hashes of rows, with the smallest uid of each.
pub(super) fn distinct(rows: DataFrame, key: &Expr) -> Result<DataFrame, RunError> {
    let known = rows.filter(key.clone().is_not_null())?;
    Ok(known.aggregate(vec![key.clone().alias(PLACE)], vec![min(ident("uid")).alias(KEPT)])?)
}

impl Followers {
    /// Visits [`distinct`] hashes in the order of their uids.
    pub(super) async fn find(cx: &RunContext, distinct: &DataFrame, distance: u32) -> Result<Self, RunError> {
        let order = vec![ident(KEPT).sort(true, true), ident(PLACE).sort(true, true)];
        let pool = cx.session.runtime_env().memory_pool.clone();
        let memory = MemoryConsumer::new("hashes of distinct images").register(&pool);
        let mut index = NearIndex::new(distance);
        let mut leaders: HashMap<i64, (i64, u32)> = HashMap::new();
        let mut stream = distinct.clone().sort(order)?.execute_stream().await?;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            for hash in batch.column(0).as_primitive::<Int64Type>().values() {
                match index.nearest(*hash as u64) {
                    Some((leader, bits)) => drop(leaders.insert(*hash, (leader as i64, bits))),
                    None => index.insert(*hash as u64),
                }
            }
            memory.try_resize(index.bytes() + 32 * leaders.len())?;
            cx.check_cancelled()?;
        }
        drop(index);

        let followed: HashMap<i64, ()> = leaders.values().map(|(leader, _)| (*leader, ())).collect();
        let is_leader = call("is_near_duplicated", vec![ident(PLACE)], DataType::Boolean, move |columns| {
            let hashes = columns[0].as_primitive::<Int64Type>();
            let known = hashes.iter().map(|hash| Some(followed.contains_key(&hash?)));
            Ok(Arc::new(known.collect::<BooleanArray>()))
        });
        let mut uids: HashMap<i64, String> = HashMap::new();
        let mut stream = distinct.clone().filter(is_leader)?.execute_stream().await?;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            let (hashes, first) = (batch.column(0).as_primitive::<Int64Type>(), strings(batch.column(1))?);
            let known = hashes.values().iter().zip(&first);
            uids.extend(known.map(|(hash, uid)| (*hash, uid.unwrap_or("").to_string())));
        }
        Ok(Self { leaders, uids })
    }

    /// Why a hash is a near duplicate.
    fn why(&self, hash: i64) -> Option<String> {
        let (leader, bits) = self.leaders.get(&hash)?;
        Some(format!("{bits} bits from {}", self.uids.get(leader).map_or("", String::as_str)))
    }

    /// An expression: why a row is a near duplicate; null for all other rows.
    pub(super) fn expression(self, key: &Expr) -> Expr {
        call("near_duplicate", vec![key.clone()], DataType::Utf8, move |columns: &[ArrayRef]| {
            let hashes = columns[0].as_primitive::<Int64Type>();
            Ok(Arc::new(hashes.iter().map(|hash| self.why(hash?)).collect::<StringArray>()))
        })
    }

    /// All of them, by group and hash, each with the reason.
    pub(super) fn table(&self, cx: &RunContext, groups: u64) -> Result<DataFrame, RunError> {
        let own = |hash: &i64| (group_of_texts([hash.to_string().as_str()], groups), *hash);
        let mut hashes: Vec<(u32, i64)> = self.leaders.keys().map(own).collect();
        hashes.sort_unstable();
        let batch = |hashes: &[(u32, i64)]| {
            let group = UInt32Array::from_iter_values(hashes.iter().map(|(group, _)| *group));
            let hash = Int64Array::from_iter_values(hashes.iter().map(|(_, hash)| *hash));
            let why = hashes.iter().map(|(_, hash)| self.why(*hash)).collect::<StringArray>();
            let columns: [(&str, ArrayRef); 3] =
                [(GROUP, Arc::new(group)), (HASH, Arc::new(hash)), (WHY, Arc::new(why))];
            let columns = columns.map(|(name, column)| (name, column, true));
            Ok::<_, DataFusionError>(RecordBatch::try_from_iter_with_nullable(columns)?)
        };
        // One batch at least, which has the columns.
        let batches = match hashes.is_empty() {
            true => vec![batch(&[])?],
            false => hashes.chunks(BATCH_ROWS).map(batch).collect::<Result<_, _>>()?,
        };
        Ok(cx.session.read_batches(batches)?)
    }
}
