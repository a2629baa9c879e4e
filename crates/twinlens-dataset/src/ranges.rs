//! Rows of a table by their position: ranges for splits, and the split or position of each row.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};

use crate::conform::conform;
use crate::dataset::Dataset;
use crate::error::{DatasetError, parquet_error};
use crate::guard::catch_panics_of;
use crate::storage::Location;
use crate::types::holds_image_bytes;

impl Dataset {
    /// Rows `start..end` of a table as a plan, counted over its shards in order. Splits are read
    /// this way.
    pub fn range(
        &self,
        session: &SessionContext,
        table: &str,
        start: u64,
        end: u64,
    ) -> Result<DataFrame, DatasetError> {
        let schema = self.schema(table)?;
        let ranges = self.shard_ranges(table, &schema, start..end).into_iter();
        let partitions = ranges.map(|(_, range)| Arc::new(range) as Arc<dyn PartitionStream>);
        stream(session, schema, partitions.collect())
    }

    /// Several ranges of rows of a table as a plan, one after another.
    pub fn ranges(
        &self,
        session: &SessionContext,
        table: &str,
        ranges: &[(u64, u64)],
    ) -> Result<DataFrame, DatasetError> {
        let schema = self.schema(table)?;
        let parts = |&(start, end): &(u64, u64)| self.shard_ranges(table, &schema, start..end);
        let shards = ranges.iter().flat_map(parts).map(|(_, range)| (None, range)).collect();
        stream(session, schema.clone(), vec![Arc::new(ShardSequence { schema: schema.clone(), shards })])
    }

    /// Some columns of rows `start..end` of a table as a plan: the column `label` has the position
    /// of each row, counted over all shards in order from 0.
    pub fn numbered_range(
        &self,
        session: &SessionContext,
        table: &str,
        (start, end): (u64, u64),
        (columns, label): (Option<&[&str]>, &str),
    ) -> Result<DataFrame, DatasetError> {
        let (kept, schema) = labelled(&self.schema(table)?, columns, label);
        let ranges = self.shard_ranges(table, &kept, start..end);
        // A few partitions, so that few of very many shards are open at a time.
        let size = ranges.len().div_ceil(session.copied_config().target_partitions().max(1)).max(1);
        let partition = |shards: &[(u64, ShardRange)]| {
            let shards = shards.iter().map(|(first, range)| (Some(Label::From(*first)), range.clone()));
            Arc::new(ShardSequence { schema: schema.clone(), shards: shards.collect() })
                as Arc<dyn PartitionStream>
        };
        stream(session, schema.clone(), ranges.chunks(size).map(partition).collect())
    }

    /// The parts of shards that make up a range of rows, and the position of their first rows.
    fn shard_ranges(&self, table: &str, schema: &SchemaRef, rows: Range<u64>) -> Vec<(u64, ShardRange)> {
        let (mut ranges, mut first) = (Vec::new(), 0);
        for shard in self.shards(table) {
            let (from, to) = (rows.start.max(first), rows.end.min(first + shard.rows));
            if from < to {
                let rows = (from - first) as usize..(to - first) as usize;
                let (bytes, schema) = (shard.bytes, schema.clone());
                ranges.push((from, ShardRange { shard: self.file(shard), bytes, schema, rows }));
            }
            first += shard.rows;
        }
        ranges
    }

    /// Some columns of the rows of some splits of a table, as one plan: the column `label` has the
    /// number of the row's split.
    pub fn by_split(
        &self,
        session: &SessionContext,
        table: &str,
        columns: Option<&[&str]>,
        (label, splits): (&str, &[u64]),
    ) -> Result<DataFrame, DatasetError> {
        let (kept, schema) = labelled(&self.schema(table)?, columns, label);
        let mut shards = Vec::new();
        for &split in splits {
            let files = self.state().commits.get(&split).into_iter().flat_map(|commit| &commit.files);
            shards.extend(files.filter(|file| file.table.as_deref() == Some(table)).map(|file| {
                let range = ShardRange {
                    shard: self.file(file),
                    bytes: file.bytes,
                    schema: kept.clone(),
                    rows: 0..file.rows as usize,
                };
                (Some(Label::Split(split)), range)
            }));
        }
        // One partition, so that few of very many shards are open at a time.
        let labelled = ShardSequence { schema: schema.clone(), shards: shards.into() };
        stream(session, schema, vec![Arc::new(labelled)])
    }
}

/// Some columns of a table, and these with a column of numbers beside them.
fn labelled(all: &SchemaRef, columns: Option<&[&str]>, label: &str) -> (SchemaRef, SchemaRef) {
    let wanted = |field: &&Arc<Field>| columns.is_none_or(|names| names.contains(&field.name().as_str()));
    let kept: Vec<_> = all.fields().iter().filter(wanted).cloned().collect();
    let number = Arc::new(Field::new(label, DataType::UInt64, false));
    let with_label: Vec<_> = kept.iter().cloned().chain([number]).collect();
    (Arc::new(Schema::new(kept)), Arc::new(Schema::new(with_label)))
}

fn stream(
    session: &SessionContext,
    schema: SchemaRef,
    partitions: Vec<Arc<dyn PartitionStream>>,
) -> Result<DataFrame, DatasetError> {
    if partitions.is_empty() {
        return Ok(session.read_table(Arc::new(MemTable::try_new(schema, vec![vec![]])?))?);
    }
    Ok(session.read_table(Arc::new(StreamingTable::try_new(schema, partitions)?))?)
}

/// A range of rows of one shard, read in order.
#[derive(Debug, Clone)]
struct ShardRange {
    shard: Location,
    bytes: u64,
    /// The columns to read.
    schema: SchemaRef,
    rows: Range<usize>,
}

impl ShardRange {
    fn read(&self, batch_rows: usize) -> BoxStream<'static, EngineResult<RecordBatch>> {
        let Self { shard, bytes, schema, rows } = self.clone();
        let path = shard.display_path();
        let external = |error: DatasetError| DataFusionError::External(Box::new(error));
        let has_images = schema.fields().iter().any(|field| holds_image_bytes(field.data_type()));
        // Batches of images are bounded by rows: row groups hold at most a hundred.
        let batch_rows = if has_images { 100 } else { batch_rows };
        let stream = futures::stream::once(async move {
            let file = shard.open_parquet(bytes).await.map_err(external)?;
            let builder = ParquetRecordBatchStreamBuilder::new(file)
                .await
                .map_err(|error| external(parquet_error(&path, error)))?;
            let wanted = |at: &usize| schema.index_of(builder.schema().field(*at).name()).is_ok();
            let roots = (0..builder.schema().fields().len()).filter(wanted);
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            let stream = builder
                .with_projection(mask)
                .with_batch_size(batch_rows)
                .with_offset(rows.start)
                .with_limit(rows.len())
                .build()
                .map_err(|error| external(parquet_error(&path, error)))?;
            let name = path.clone();
            let batches = stream.map(move |batch| batch.map_err(|error| parquet_error(&path, error)));
            let batches = catch_panics_of(name, batches);
            Ok::<_, DataFusionError>(
                batches
                    .map(move |batch| conform("shard", &batch.map_err(external)?, &schema).map_err(external)),
            )
        });
        stream.try_flatten().boxed()
    }
}

impl PartitionStream for ShardRange {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, cx: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.read(cx.session_config().batch_size());
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}

/// What the column of numbers has for the rows of a shard.
#[derive(Debug, Clone, Copy)]
enum Label {
    /// The number of its split.
    Split(u64),
    /// Positions from this one on.
    From(u64),
}

impl Label {
    /// The numbers of the next rows.
    fn next(&mut self, rows: usize) -> UInt64Array {
        match self {
            Self::Split(split) => UInt64Array::from(vec![*split; rows]),
            Self::From(first) => {
                let start = *first;
                *first += rows as u64;
                (start..*first).collect::<Vec<_>>().into()
            }
        }
    }
}

/// Shards one after another, with numbers beside their rows if they have a label.
#[derive(Debug)]
struct ShardSequence {
    schema: SchemaRef,
    shards: Arc<[(Option<Label>, ShardRange)]>,
}

impl PartitionStream for ShardSequence {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, cx: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, shards) = (self.schema.clone(), self.shards.clone());
        let batch_rows = cx.session_config().batch_size();
        let rows = futures::stream::iter(0..shards.len()).flat_map(move |at| {
            let ((mut label, shard), schema) = (shards[at].clone(), schema.clone());
            shard.read(batch_rows).map(move |batch| {
                let batch = batch?;
                let Some(label) = &mut label else { return Ok(batch) };
                let mut columns = batch.columns().to_vec();
                columns.push(Arc::new(label.next(batch.num_rows())));
                Ok(RecordBatch::try_new(schema.clone(), columns)?)
            })
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}
