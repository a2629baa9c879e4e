//! Takes rows over from an earlier dataset of the same recipe whose input was another: of a list
//! that grew by one URL, one image is fetched.
//!
//! A row is taken over if all columns of its input are equal, not only its key; so are rejects,
//! except those that another attempt may turn into rows. What is left goes through the plan. Splits
//! and their order are those of a run from nothing.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::lit;
use serde_json::Value;
use tokio::sync::OnceCell;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN, REJECTS, blocking};

use crate::config::Node;
use crate::error::RunError;
use crate::files::Files;
use crate::ports::TakesOver;
use crate::rejects::{self, ATTEMPTS};
use crate::run::fingerprint::without_rows_input;
use crate::run::generations;
use crate::run::step::{Step, aligned, chain, divided_fields, holds_pixels, rows_input};
use crate::stage::SortKey;

/// Most rows of an earlier dataset: what the index of their keys may hold in memory.
const MAX_ROWS: u64 = 16 << 20;
/// Rows that are compared at a time.
const BATCH_ROWS: usize = 1024;

/// An earlier dataset whose rows are taken over.
pub struct TakeOver {
    dataset: Dataset,
    /// The columns of the input; the first one finds the split of a row.
    columns: Vec<String>,
    /// The stages of the unit, with the codes that are tried again.
    retried: HashMap<String, &'static [&'static str]>,
    /// The splits of each hash of a key, sorted.
    index: OnceCell<Arc<Vec<(u64, u32)>>>,
    taken: AtomicU64,
}

impl TakeOver {
    /// The folder of the newest generation of a unit's dataset with rows to take over. `recipe` is
    /// that of the dataset to be made.
    pub(super) fn find(
        dir: &Location,
        files: &Files,
        nodes: &[Arc<Node>],
        recipe: &Value,
    ) -> Result<Option<String>, RunError> {
        let Some(last) = nodes.last() else { return Ok(None) };
        let declared: Option<Vec<TakesOver>> = nodes.iter().map(|node| node.plan.takes_over).collect();
        if !declared.is_some_and(|all| all.iter().any(|one| matches!(one, TakesOver::Costly(_)))) {
            return Ok(None);
        }
        let now = without_rows_input(recipe, nodes, files);
        let earlier = generations::read_earlier(dir, &dir.list()?.folders, &last.name)?;
        let same = earlier.into_iter().find(|(_, state)| {
            !state.commits.is_empty() && without_rows_input(&state.begin.recipe, nodes, files) == now
        });
        Ok(same.map(|(number, _)| generations::name(&last.name, number)))
    }

    /// Opens the dataset in `folder` for a unit; `None` if its rows cannot be compared with those
    /// of the input.
    pub(super) fn open(folder: Location, steps: &[Step]) -> Result<Option<Self>, RunError> {
        let (Some(head), Some(last)) = (steps.first(), steps.last()) else { return Ok(None) };
        let input = rows_input(head)?;
        let SortKey::Columns(order) = &last.node.plan.order else { return Ok(None) };
        let (Some(key), None) = (order.first(), &input.view) else { return Ok(None) };
        let schema = input.dataset.schema(&input.table)?;
        let dataset = Dataset::open(folder)?;
        let state = dataset.state();
        let rows = state.rows(MAIN) + state.rows(REJECTS);
        let tables = [MAIN, REJECTS].map(|table| dataset.schema(table));
        let [Ok(main), Ok(ledger)] = tables else { return Ok(None) };
        let is_computed = |name: &String| steps.iter().any(|step| step.node.plan.computes.contains(name));
        let is_comparable = schema.fields().iter().all(|field| {
            let same = |table: &SchemaRef| {
                table.field_with_name(field.name()).is_ok_and(|other| other.data_type() == field.data_type())
            };
            same(&main) && same(&ledger) && !is_computed(field.name())
        });
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let is_encodable = RowConverter::supports_fields(&fields.collect::<Vec<_>>());
        let has_key = schema.field_with_name(key).is_ok();
        if holds_pixels(&schema) || !is_comparable || !is_encodable || !has_key || rows > MAX_ROWS {
            return Ok(None);
        }
        let others = schema.fields().iter().map(|field| field.name()).filter(|name| *name != key);
        let retried = steps.iter().map(|step| {
            let codes: &[&str] = match step.node.plan.takes_over {
                Some(TakesOver::Costly(codes)) => codes,
                _ => &[],
            };
            (step.node.name.clone(), codes)
        });
        Ok(Some(Self {
            columns: [key].into_iter().chain(others).cloned().collect(),
            retried: retried.collect(),
            dataset,
            index: OnceCell::new(),
            taken: AtomicU64::new(0),
        }))
    }

    /// How many rows were taken over, and from which dataset.
    pub(super) fn taken(&self) -> (u64, String) {
        (self.taken.load(Ordering::Relaxed), self.dataset.location().name())
    }

    /// The rows of a split: those that are taken over, and what the plan makes of the others.
    pub(super) async fn chain(&self, input: DataFrame, steps: &[Step]) -> Result<DataFrame, RunError> {
        let (session, last) = (&steps[0].cx.session, &steps[steps.len() - 1]);
        let schema: SchemaRef = Arc::new(input.schema().as_arrow().clone());
        // Only texts and numbers, for the rows of one split.
        let rows = concat_batches(&schema, &input.collect().await?).map_err(engine)?;
        let found = self.find_rows(&rows).await?;
        let left = filter_record_batch(&rows, &found.is_left).map_err(engine)?;
        let made =
            async |rows: RecordBatch| chain(rejects::with_reserved(session.read_batch(rows)?)?, steps).await;
        if left.num_rows() == rows.num_rows() {
            return made(rows).await;
        }
        self.taken.fetch_add((rows.num_rows() - left.num_rows()) as u64, Ordering::Relaxed);
        let fields = divided_fields(last)?;
        let mut parts = Vec::new();
        for batches in [found.kept, found.rejected].into_iter().filter(|batches| !batches.is_empty()) {
            parts.push(aligned(session.read_batches(batches)?, &fields)?);
        }
        if left.num_rows() > 0 {
            parts.push(aligned(made(left).await?.with_column(ATTEMPTS, lit(1))?, &fields)?);
        }
        let mut parts = parts.into_iter();
        let first = parts.next().ok_or_else(|| RunError::Internal("a split without rows".into()))?;
        parts.try_fold(first, |all, part| Ok(all.union(part)?))
    }

    async fn find_rows(&self, rows: &RecordBatch) -> Result<Found, RunError> {
        let (dataset, columns) = (self.dataset.clone(), self.columns.clone());
        let index = self.index.get_or_try_init(|| async move {
            Ok::<_, RunError>(Arc::new(blocking(move || read_index(&dataset, &columns[0])).await??))
        });
        let index = index.await?.clone();
        let (dataset, columns, retried) = (self.dataset.clone(), self.columns.clone(), self.retried.clone());
        let rows = rows.clone();
        blocking(move || {
            Search { dataset: &dataset, columns: &columns, retried: &retried }.run(&rows, &index)
        })
        .await?
    }
}

/// The rows of an earlier dataset that rows of a split have.
struct Found {
    kept: Vec<RecordBatch>,
    rejected: Vec<RecordBatch>,
    /// Which rows of the split are not among them.
    is_left: BooleanArray,
}

struct Search<'a> {
    dataset: &'a Dataset,
    columns: &'a [String],
    retried: &'a HashMap<String, &'static [&'static str]>,
}

impl Search<'_> {
    fn run(&self, rows: &RecordBatch, index: &[(u64, u32)]) -> Result<Found, RunError> {
        // The places of equal rows: each is found once for each that there was.
        let mut wanted: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        for (place, row) in encoded(rows, self.columns)?.into_iter().enumerate() {
            wanted.entry(row).or_default().push(place);
        }
        let mut splits = BTreeSet::new();
        for key in encoded(rows, &self.columns[..1])? {
            let hash = hashed(&key);
            let first = index.partition_point(|(other, _)| *other < hash);
            splits.extend(
                index[first..].iter().take_while(|(other, _)| *other == hash).map(|(_, split)| *split),
            );
        }
        let mut is_left = vec![true; rows.num_rows()];
        let [mut kept, mut rejected] = [Vec::new(), Vec::new()];
        for split in splits {
            let split = self.dataset.only_split(split.into());
            for (table, batches) in [(MAIN, &mut kept), (REJECTS, &mut rejected)] {
                let schema = split.schema(table)?;
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                for batch in ShardReader::new(&split, table, &names, BATCH_ROWS) {
                    let batch = batch?;
                    let mut is_taken = Vec::with_capacity(batch.num_rows());
                    for (row, key) in encoded(&batch, self.columns)?.into_iter().enumerate() {
                        let place = if table == MAIN || self.is_final(&batch, row)? {
                            wanted.get_mut(&key).and_then(Vec::pop)
                        } else {
                            None
                        };
                        place.into_iter().for_each(|place| is_left[place] = false);
                        is_taken.push(place.is_some());
                    }
                    let taken = filter_record_batch(&batch, &BooleanArray::from(is_taken)).map_err(engine)?;
                    batches.extend(Some(taken).filter(|taken| taken.num_rows() > 0));
                }
            }
        }
        Ok(Found { kept, rejected, is_left: is_left.into() })
    }

    /// Whether another attempt at a reject would end as it did.
    fn is_final(&self, ledger: &RecordBatch, row: usize) -> Result<bool, RunError> {
        let text = |name: &str| {
            let column = ledger.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
            let column = column.filter(|column| column.is_valid(row)).map(|column| column.value(row));
            column.ok_or_else(|| RunError::Internal(format!("a ledger has no text in {name}")))
        };
        let codes = self.retried.get(text(rejects::STAGE)?).copied().unwrap_or_default();
        Ok(!codes.contains(&text(rejects::CODE)?))
    }
}

/// The hashes of the keys of a dataset, with their splits.
fn read_index(dataset: &Dataset, key: &str) -> Result<Vec<(u64, u32)>, RunError> {
    let mut index = Vec::new();
    for &split in dataset.state().commits.keys() {
        let Ok(number) = u32::try_from(split) else { continue };
        let only = dataset.only_split(split);
        for table in [MAIN, REJECTS] {
            for batch in ShardReader::new(&only, table, &[key], 8192) {
                let keys = encoded(&batch?, &[key.to_string()])?;
                index.extend(keys.iter().map(|key| (hashed(key), number)));
            }
        }
    }
    index.sort_unstable();
    index.dedup();
    Ok(index)
}

/// The values of some columns as bytes, which are equal if the values are.
fn encoded(rows: &RecordBatch, columns: &[String]) -> Result<Vec<Vec<u8>>, RunError> {
    let schema: SchemaRef = rows.schema();
    let places = columns.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>();
    let rows = rows.project(&places.map_err(engine)?).map_err(engine)?;
    let fields = |schema: &Schema| {
        schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect()
    };
    let converter = RowConverter::new(fields(&rows.schema())).map_err(engine)?;
    let encoded = converter.convert_columns(rows.columns()).map_err(engine)?;
    Ok(encoded.iter().map(|row| <[u8]>::to_vec(row.as_ref())).collect())
}

fn hashed(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn engine(error: ArrowError) -> RunError {
    RunError::Engine(error.into())
}
