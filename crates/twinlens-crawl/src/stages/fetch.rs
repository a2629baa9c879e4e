//! The `fetch` stage: the images of pairs, fetched, decoded, resized, encoded.
//!
//! Many fetches are in flight at a time, in any order; equal URLs of a split are fetched once. The
//! bytes of a body are reserved before it is read, and those of the pixels before they are decoded;
//! the two have a budget each, so that bodies that wait for a decoder can never keep a decoder
//! waiting.

mod assemble;
mod images;
mod verify;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::ident;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::sync::mpsc::Sender;
use tokio_util::task::AbortOnDropHandle;
use twinlens_dataset::contracts;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::rejects;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, Rows, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use self::assemble::{Assembler, Finished};
use self::images::Images;
pub use self::verify::{CODES as VERIFY_CODES, Verify};
use super::checks;
use super::files::engine;
use crate::net::HttpOptions;

/// The images of pairs.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    /// The pairs; their `url` is fetched.
    input: Input,
    /// How images are resized.
    #[serde(default = "super::nowhere::<Resize>")]
    resize: Located<Resize>,
    /// How images are stored.
    #[serde(default = "super::nowhere::<Encode>")]
    encode: Located<Encode>,
    /// How large an image may be.
    #[serde(default = "super::nowhere::<Limits>")]
    limits: Located<Limits>,
    /// What is known of the images beforehand: those that are others are refused (expired domains
    /// serve what their buyers like).
    #[serde(default = "super::nowhere::<Verify>")]
    verify: Located<Verify>,
    /// Requests that are in flight at a time, at all hosts together; the rows of two splits bound
    /// it too.
    #[serde(default = "concurrency")]
    concurrency: usize,
    /// Rows of a split: what is committed, and after a kill fetched again, as one.
    #[serde(default = "split_rows")]
    split_rows: usize,
    /// How the network is used.
    #[serde(default = "super::nowhere::<HttpOptions>")]
    http: Located<HttpOptions>,
    /// What decodes JPEG in this build: it decides single values of pixels, so a dataset of another
    /// build is made anew.
    #[serde(skip_deserializing, default = "decoder")]
    #[schemars(skip)]
    decoder: &'static str,
    /// One client for all splits: its connections, robots.txt files and limits are shared.
    #[serde(skip)]
    images: OnceCell<Arc<Images>>,
}

fn concurrency() -> usize {
    256
}
fn decoder() -> &'static str {
    twinlens_image::JPEG_DECODER
}
fn split_rows() -> usize {
    500
}

impl StageKind for Fetch {
    const KIND: &'static str = "fetch";
    const ABOUT: &'static str =
        "Fetches the image of each pair, checks, decodes, resizes and encodes it; adds the image columns.";
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "fetch"
input = "pairs"
resize = { size = 96, mode = "shortest" }
http = { user_agent = "my-fetcher/1.0 (me@example.org)" }
"#;
    const VERSION: u32 = 2;
}

impl Stage for Fetch {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = checks::http(&self.http);
        faults.extend(checks::images(&self.resize, &self.encode, &self.limits));
        let schema =
            inputs.first().and_then(|input| input.schema.clone()).unwrap_or_else(contracts::pair_texts);
        let text =
            |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        if !schema.field_with_name("url").is_ok_and(|field| text(field.data_type())) {
            let fault = Fault::at(
                self.input.0.span(),
                format!("`{}` has no column `url` of strings to fetch", self.input.name()),
            );
            faults.push(fault.hint("make one with a `select` stage: columns = { url = \"...\" }"));
        }
        let verify = self.verify.check(&schema);
        faults.extend(verify.map(|why| Fault::at(self.verify.span(), why)));
        checks::tables(faults, || Tables::main(with_images(&schema)))
    }

    fn work(&self) -> Work<'_> {
        Work::Rows(self)
    }
}

/// The input's columns but for images, and then the image columns.
fn with_images(schema: &Schema) -> SchemaRef {
    let images = contracts::image_columns();
    let kept = schema.fields().iter().filter(|field| images.field_with_name(field.name()).is_err());
    let fields: Vec<_> = kept.chain(images.fields()).cloned().collect();
    Arc::new(Schema::new(fields))
}

#[async_trait]
impl Rows for Fetch {
    fn computes(&self) -> Vec<String> {
        contracts::image_columns().fields().iter().map(|field| field.name().clone()).collect()
    }

    fn split_rows(&self) -> Option<usize> {
        Some(self.split_rows.max(1))
    }

    async fn plan(&self, cx: &RunContext, input: DataFrame, _: &[InputData]) -> Result<DataFrame, RunError> {
        let images = self
            .images
            .get_or_try_init(|| async { Ok::<_, RunError>(Arc::new(self.open(cx)?)) })
            .await?
            .clone();
        let old = contracts::image_columns();
        let names = input.schema().fields().iter().map(|field| field.name().clone());
        let kept: Vec<_> = names.filter(|name| old.field_with_name(name).is_err()).collect();
        let reserved = |name: &str| rejects::RESERVED.contains(&name);
        let texts = input.schema().fields().iter().filter(|field| !reserved(field.name()));
        let schema =
            rejects::schema_with_reserved(&with_images(&Schema::new(texts.cloned().collect::<Vec<_>>())));
        // Beside the columns that are kept travel those that are expectations, which may be image
        // columns of an earlier fetch.
        let expected = self.verify.columns().map(|(column, name)| ident(column).alias(name));
        let frame = input.select(kept.iter().map(ident).chain(expected).collect::<Vec<_>>())?;
        let verify = self.verify.value().clone();
        let split = Split { frame, schema: schema.clone(), images, verify, stage: cx.stage.clone() };
        Ok(cx.session.read_table(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(split)])?))?)
    }
}

impl Fetch {
    fn open(&self, cx: &RunContext) -> Result<Images, RunError> {
        let (limits, resize, encode) =
            (self.limits.value().clone(), self.resize.value().clone(), self.encode.value().clone());
        Images::open(
            cx,
            &self.http,
            images::Options { limits, resize, encode, concurrency: self.concurrency.clamp(1, 10_000) },
        )
    }
}

/// One split: a stream of rows that become rows with images.
#[derive(Debug)]
struct Split {
    frame: DataFrame,
    schema: SchemaRef,
    images: Arc<Images>,
    verify: Verify,
    stage: String,
}

impl PartitionStream for Split {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), 1);
        let (batches, frame, images, verify) =
            (builder.tx(), self.frame.clone(), self.images.clone(), self.verify.clone());
        let assembler = Assembler::new(&self.stage, self.schema.clone());
        builder.spawn(async move { Ok(fetch_split(frame, &images, &verify, assembler, &batches).await?) });
        builder.build()
    }
}

/// Fetches the images of all rows of a split.
async fn fetch_split(
    frame: DataFrame,
    images: &Arc<Images>,
    verify: &Verify,
    assembler: Assembler,
    batches: &Sender<Result<RecordBatch, DataFusionError>>,
) -> Result<(), RunError> {
    let schema = Arc::new(frame.schema().as_arrow().clone());
    // Texts alone, and no more rows than a split has: the pixels come later, and go soon.
    let rows = concat_batches(&schema, &frame.collect().await?).map_err(engine)?;
    let (work, expected) = (Plan::of(&rows)?, verify.of(&rows)?);
    let mut assembler = assembler.over(rows);
    // A receiver that is gone has no use for what is left.
    let send = async |batch: Option<RecordBatch>| match batch {
        Some(batch) => batches.send(Ok(batch)).await.is_ok(),
        None => true,
    };
    if !send(assembler.pass_through(&work.refused)?).await {
        return Ok(());
    }
    let fetches = work.urls.into_iter().map(|(url, rows)| {
        let images = images.clone();
        // A task of its own: the time-outs of a body do not run while a batch waits for the reader
        // of this stream.
        let fetch = async move { (images.get(&url).await, url) };
        let task = AbortOnDropHandle::new(tokio::spawn(fetch));
        async move { (rows, task.await) }
    });
    // All rows of the split at a time: the client bounds requests and bytes, and a host that is
    // slow holds up its own rows alone.
    let mut fetched = fetches.collect::<FuturesUnordered<_>>();
    while let Some((mut rows, image)) = fetched.next().await {
        let (image, url) = image.map_err(|error| RunError::Internal(error.to_string()))?;
        match &image {
            Err(_) => images.reachable(false)?,
            Ok(fetched) => {
                let refuse = |row: u32| Some((row, expected.refuse(row, &url, &fetched.image)?));
                let others: Vec<_> = rows.iter().copied().filter_map(refuse).collect();
                rows.retain(|row| others.iter().all(|(other, _)| other != row));
                for (row, refusal) in others {
                    if !send(assembler.add(Finished { rows: vec![row], image: Err(refusal) })?).await {
                        return Ok(());
                    }
                }
            }
        }
        if !send(assembler.add(Finished { rows, image })?).await {
            return Ok(());
        }
    }
    images.reachable(true)?;
    send(assembler.finish()?).await;
    Ok(())
}

/// What there is to do in a split.
struct Plan {
    /// Distinct URLs in the order of their first rows, and the rows of each.
    urls: Vec<(String, Vec<u32>)>,
    /// Rows that an earlier stage refused.
    refused: Vec<u32>,
}

impl Plan {
    fn of(rows: &RecordBatch) -> Result<Self, RunError> {
        let column = |name: &str| -> Result<StringArray, RunError> {
            let column = rows
                .column_by_name(name)
                .ok_or_else(|| RunError::Internal(format!("a split has no column {name}")))?;
            let column = arrow::compute::cast(column, &DataType::Utf8).map_err(engine)?;
            Ok(column.as_string::<i32>().clone())
        };
        let (url, code) = (column("url")?, column(rejects::CODE)?);
        let mut work = Self { urls: Vec::new(), refused: Vec::new() };
        let mut places: HashMap<&str, usize> = HashMap::new();
        for row in 0..rows.num_rows() {
            if code.is_valid(row) {
                work.refused.push(row as u32);
                continue;
            }
            // A missing URL is refused as an empty one is.
            let url = if url.is_valid(row) { url.value(row) } else { "" };
            let place = *places.entry(url).or_insert_with(|| {
                work.urls.push((url.to_string(), Vec::new()));
                work.urls.len() - 1
            });
            work.urls[place].1.push(row as u32);
        }
        Ok(work)
    }
}
