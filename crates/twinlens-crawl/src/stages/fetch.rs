//! The `fetch` stage: fetches, decodes, resizes and encodes the images of pairs.
//!
//! Many fetches are in flight at a time, in any order; equal URLs of a split are fetched once.
//! Bytes are reserved before a body is read and before pixels are decoded. The two have separate
//! budgets, so that bodies waiting for a decoder cannot block the decoders.

mod assemble;
mod body;
mod columns;
mod images;
mod local;
mod stored;
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
use tracing::Instrument;
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::rejects;
use twinlens_pipeline::{
    Fault, Input, Inputs, Located, Ports, Required, Rows, RunContext, RunError, Secrets, SortKey, StageKind,
    TakesOver, Work,
};
use url::Url;

use self::assemble::{Assembler, FinishedRows};
use self::columns::{added_columns, with_images};
use self::images::ImageFetcher;
use self::stored::Originals;
pub use self::verify::{CODES as VERIFY_CODES, Verify};
use super::common::arrow_error;
use super::local::Root;
use super::options;
use crate::net::{HttpOptions, PASSING_CODES};

/// Fetches the image of each pair, or reads its file; checks, decodes, resizes and encodes it; adds
/// the image columns.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchOptions {
    /// The pairs whose `url` is fetched; it may be the path of a file instead, relative to the
    /// pipeline file.
    input: Input,
    /// How to resize images.
    #[serde(default = "super::options::default_option::<Resize>")]
    resize: Located<Resize>,
    /// How to encode images.
    #[serde(default = "super::options::default_option::<Encode>")]
    encode: Located<Encode>,
    /// Limits on the size of images.
    #[serde(default = "super::options::default_option::<Limits>")]
    limits: Located<Limits>,
    /// Whether to accept a JPEG without an end marker, and a PNG without one or with wrong
    /// checksums, if its pixels are complete. The column `damage` then says what was wrong.
    #[serde(default)]
    lenient: bool,
    /// What becomes of images in formats that are not decoded: SVG, HEIC, JPEG XL, JPEG 2000.
    #[serde(default)]
    originals: Originals,
    /// Known hashes of the images. Others are rejected: the new owner of an expired domain may
    /// serve anything.
    #[serde(default = "super::options::default_option::<Verify>")]
    verify: Located<Verify>,
    /// Directories, relative to the pipeline file, below which local files may be read. Default:
    /// that of the pipeline file.
    #[serde(default = "pipeline_folder")]
    local: Vec<Located<String>>,
    /// Maximum number of requests in flight, to all hosts together. Two splits are fetched at a
    /// time, so their rows are a limit too.
    #[serde(default = "concurrency")]
    #[schemars(range(min = 1, max = 10_000))]
    concurrency: usize,
    /// Rows per split. A split is committed as a whole, and fetched again after a kill.
    #[serde(default = "split_rows")]
    #[schemars(range(min = 1))]
    split_rows: usize,
    /// Which rows are in one split. With `"host"`, all images of a host are fetched by one of the
    /// processes that make splits, which then has the whole of the host's limits; a host with more
    /// images than `split_rows` is one split.
    #[serde(default, skip_serializing_if = "SplitRule::is_default")]
    split_by: SplitRule,
    /// HTTP settings.
    #[serde(default = "super::options::default_option::<HttpOptions>")]
    http: Located<HttpOptions>,
    /// The JPEG decoder of this build. It affects pixel values, so a dataset of another build is
    /// rebuilt.
    #[serde(skip_deserializing, default = "decoder")]
    #[schemars(skip)]
    decoder: &'static str,
}

/// Which rows are in one split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SplitRule {
    /// Those that follow each other.
    #[default]
    Rows,
    /// All of some hosts.
    Host,
}

impl SplitRule {
    fn is_default(&self) -> bool {
        *self == Self::Rows
    }
}

/// The host of a URL; nothing for a path, and for what is no URL.
fn host(url: &str) -> String {
    Url::parse(url).ok().and_then(|url| url.host_str().map(String::from)).unwrap_or_default()
}

/// `fetch` as it runs.
pub struct Fetch {
    options: FetchOptions,
    /// One client for all splits, which share connections, robots.txt files and limits.
    images: OnceCell<Arc<ImageFetcher>>,
}

fn pipeline_folder() -> Vec<Located<String>> {
    vec![Located::without_span(".".into())]
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
    type Options = FetchOptions;
    const NAME: &'static str = "fetch";
    const VERSION: u32 = 4;
    const REJECT_HINTS: &'static [(&'static str, &'static str)] = &[
        (
            "private_address",
            "if the hosts are your own, list their addresses: `http = { allow_private = [\"127.0.0.0/8\"] }`",
        ),
        ("credentials_in_url", CREDENTIALS_HINT),
        ("outside_root", "list the folder of the images: `local = [\"...\"]`"),
        ("file_not_found", "restore the files and run `twinlens retry`; or set `root` in the table's stage"),
    ];
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "fetch"
input = "pairs"
resize = { size = 96, mode = "shortest" }
http = { user_agent = "my-fetcher/1.0 (me@example.org)" }
"#;

    fn plan(options: FetchOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        let added = added_columns(options.lenient);
        let output = ports.schema(&input).map(|schema| with_images(&schema, &added));
        ports.output(output, SortKey::columns(ROW_ORDER));
        added.fields().iter().for_each(|field| ports.computes(field.name()));
        ports.split_rows(options.split_rows);
        if options.split_by == SplitRule::Host {
            ports.split_by("url", host);
        }
        ports.takes_over(TakesOver::Costly(PASSING_CODES));
        options::check_http(ports, &options.http);
        options::check_images(ports, &options.resize, &options.encode, &options.limits);
        let hint = Required::Hint("make one with a `select` stage: columns = { url = \"...\" }");
        ports.text(&input, "url", hint);
        options.verify.check(ports, &input, options.verify.span());
        if let Some(files) = ports.files().cloned() {
            for folder in &options.local {
                if let Err(error) = Root::open(&files.base.join(folder.value())) {
                    ports.fault(Fault::at(folder.span(), error.to_string()));
                }
            }
        }
        Some(Work::rows(Fetch { options, images: OnceCell::new() }))
    }
}

/// What to do instead of writing credentials into the URLs of rows.
pub(crate) const CREDENTIALS_HINT: &str = "take them out of the URLs, and send a header from the environment: \
     `http = { headers = { Authorization = \"${TOKEN}\" } }`";

#[async_trait]
impl Rows for Fetch {
    async fn transform(&self, cx: &RunContext, rows: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        let images = self
            .images
            .get_or_try_init(|| async { Ok::<_, RunError>(Arc::new(self.open(cx)?)) })
            .await?
            .clone();
        let old = added_columns(self.options.lenient);
        let names = rows.schema().fields().iter().map(|field| field.name().clone());
        let kept: Vec<_> = names.filter(|name| old.field_with_name(name).is_err()).collect();
        let reserved = |name: &str| rejects::RESERVED.contains(&name);
        let texts = rows.schema().fields().iter().filter(|field| !reserved(field.name()));
        let schema = rejects::schema_with_reserved(&with_images(
            &Schema::new(texts.cloned().collect::<Vec<_>>()),
            &old,
        ));
        // The expected hashes travel under other names: they may be image columns of an earlier
        // fetch.
        let expected = self.options.verify.columns().map(|(column, name)| ident(column).alias(name));
        let frame = rows.select(kept.iter().map(ident).chain(expected).collect::<Vec<_>>())?;
        let verify = self.options.verify.value().clone();
        let (stage, secrets) = (cx.stage.clone(), cx.secrets.clone());
        let split = FetchSplit { frame, schema: schema.clone(), images, verify, stage, secrets };
        Ok(cx.session.read_table(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(split)])?))?)
    }
}

impl Fetch {
    fn open(&self, cx: &RunContext) -> Result<ImageFetcher, RunError> {
        let options = &self.options;
        let images = images::ImageOptions {
            limits: options.limits.value().clone(),
            resize: options.resize.value().clone(),
            encode: options.encode.value().clone(),
            lenient: options.lenient,
            originals: options.originals,
            concurrency: options.concurrency.clamp(1, 10_000),
            has_own_hosts: options.split_by == SplitRule::Host,
        };
        ImageFetcher::open(cx, &options.http, &options.local, images)
    }
}

#[derive(Debug)]
struct FetchSplit {
    frame: DataFrame,
    schema: SchemaRef,
    images: Arc<ImageFetcher>,
    verify: Verify,
    stage: String,
    secrets: Arc<Secrets>,
}

impl PartitionStream for FetchSplit {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), 1);
        let (batches, frame, images, verify) =
            (builder.tx(), self.frame.clone(), self.images.clone(), self.verify.clone());
        let assembler = Assembler::new(&self.stage, self.schema.clone(), self.secrets.clone());
        builder.spawn(async move { Ok(fetch_split(frame, &images, &verify, assembler, &batches).await?) });
        builder.build()
    }
}

/// Fetches the images of all rows of a split.
async fn fetch_split(
    frame: DataFrame,
    images: &Arc<ImageFetcher>,
    verify: &Verify,
    assembler: Assembler,
    batches: &Sender<Result<RecordBatch, DataFusionError>>,
) -> Result<(), RunError> {
    let schema = Arc::new(frame.schema().as_arrow().clone());
    // Only texts, for the rows of one split.
    let rows = concat_batches(&schema, &frame.collect().await?).map_err(arrow_error)?;
    let (work, expected) = (SplitWork::new(&rows)?, verify.expected_hashes(&rows)?);
    let mut assembler = assembler.with_rows(rows)?;
    // Stop when the receiver is gone.
    let send = async |batch: Option<RecordBatch>| match batch {
        Some(batch) => batches.send(Ok(batch)).await.is_ok(),
        None => true,
    };
    if !send(assembler.pass_through(&work.rejected)?).await {
        return Ok(());
    }
    let fetches = work.urls.into_iter().map(|(url, rows)| {
        let images = images.clone();
        // A task of its own, so that timeouts do not run while a batch waits for its reader.
        let fetch = async move { (images.get(&url).await, url) };
        let task = AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()));
        async move { (rows, task.await) }
    });
    // All rows of the split at once: the client bounds requests and bytes, and a slow host only
    // delays its own rows.
    let mut fetched = fetches.collect::<FuturesUnordered<_>>();
    while let Some((mut rows, image)) = fetched.next().await {
        let (image, url) = image.map_err(|error| RunError::Internal(error.to_string()))?;
        match &image {
            Err(_) => images.check_reachable(false)?,
            Ok(fetched) => {
                let mismatch = |row: u32| Some((row, expected.mismatch(row, &url, &fetched.stored)?));
                let mismatches: Vec<_> = rows.iter().copied().filter_map(mismatch).collect();
                rows.retain(|row| mismatches.iter().all(|(other, _)| other != row));
                for (row, rejection) in mismatches {
                    if !send(assembler.add(FinishedRows { rows: vec![row], image: Err(rejection) })?).await {
                        return Ok(());
                    }
                }
            }
        }
        if !send(assembler.add(FinishedRows { rows, image })?).await {
            return Ok(());
        }
    }
    images.check_reachable(true)?;
    send(assembler.finish()?).await;
    Ok(())
}

struct SplitWork {
    /// Distinct URLs in order of first occurrence, and the rows of each.
    urls: Vec<(String, Vec<u32>)>,
    /// Rows rejected by an earlier stage.
    rejected: Vec<u32>,
}

impl SplitWork {
    fn new(rows: &RecordBatch) -> Result<Self, RunError> {
        let column = |name: &str| -> Result<StringArray, RunError> {
            let column = rows
                .column_by_name(name)
                .ok_or_else(|| RunError::Internal(format!("a split has no column {name}")))?;
            let column = arrow::compute::cast(column, &DataType::Utf8).map_err(arrow_error)?;
            Ok(column.as_string::<i32>().clone())
        };
        let (url, code) = (column("url")?, column(rejects::CODE)?);
        let mut work = Self { urls: Vec::new(), rejected: Vec::new() };
        let mut url_index: HashMap<&str, usize> = HashMap::new();
        for row in 0..rows.num_rows() {
            if code.is_valid(row) {
                work.rejected.push(row as u32);
                continue;
            }
            // A missing URL is rejected like an empty one.
            let url = if url.is_valid(row) { url.value(row) } else { "" };
            let index = *url_index.entry(url).or_insert_with(|| {
                work.urls.push((url.to_string(), Vec::new()));
                work.urls.len() - 1
            });
            work.urls[index].1.push(row as u32);
        }
        Ok(work)
    }
}
