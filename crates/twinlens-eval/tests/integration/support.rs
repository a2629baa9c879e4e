//! Shared by the tests of stages: images, models with random weights, and running a stage in a
//! directory.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Float64Type, SchemaRef};
use candle_core::{Device, Tensor};
use datafusion::prelude::{SessionConfig, SessionContext};
use parquet::arrow::ArrowWriter;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::{Begin, Dataset, DatasetWriter, MAIN, REJECTS};
use twinlens_image::{Limits, Preprocess};
use twinlens_model::{Clip, ClipConfig, Objective, TOKENIZER_FILE, TextConfig, Tokenizer, VitConfig};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::ports::{KnownInput, Plan};
use twinlens_pipeline::run::events::{Event, Observer, Progress, Silent};
use twinlens_pipeline::stage::plan_alone;
use twinlens_pipeline::{
    Clock, Fault, Input, InputData, Inputs, Output, RunContext, RunError, StageKind, Work,
};

/// A small image, different for each seed.
pub(crate) fn png(seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(20 + seed % 7, 16, |x, y| {
        let noise = (x * 7 + y * 13 + seed * 31).wrapping_mul(2_654_435_761) >> 24;
        image::Rgb([noise as u8, (seed * 3) as u8, (x * 9 + seed) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// An image column in the Hugging Face layout.
pub(crate) fn images(bytes: &[Option<Vec<u8>>]) -> ArrayRef {
    let parts: ArrayRef = Arc::new(BinaryArray::from_iter(bytes.iter().map(|bytes| bytes.as_deref())));
    let paths: ArrayRef = Arc::new(StringArray::new_null(bytes.len()));
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), parts),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ]))
}

pub(crate) fn write_parquet(path: &Path, batch: &RecordBatch) {
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// Width of an embedding.
pub(crate) const WIDTH: usize = 12;

/// A model with random weights for images of 16 pixels and 300 tokens.
pub(crate) fn save_model(folder: &Path, seed: u64) {
    let vision = VitConfig { image_size: 16, patch: 8, width: 16, layers: 1, heads: 2 }.into();
    let text = TextConfig { context: 24, vocab: 300, width: 16, layers: 1, heads: 2 };
    let (activation, objective) = (Default::default(), Objective::CONTRASTIVE);
    let config = ClipConfig { embed: WIDTH, vision, text, activation, objective };
    Clip::new(config, seed).unwrap().save(folder).unwrap();
}

/// A directory with a model in `model`, whose tokenizer is trained on `captions`, and a file
/// `test.parquet`.
pub(crate) fn test_dir(captions: impl Iterator<Item = String>, test: &RecordBatch) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    Tokenizer::train(captions, 300).unwrap().save(&model.join(TOKENIZER_FILE)).unwrap();
    save_model(&model, 5);
    write_parquet(&dir.path().join("test.parquet"), test);
    dir
}

/// The model in a directory.
pub(crate) fn load_model(model: &Path) -> (Clip, Tokenizer) {
    (Clip::load(model).unwrap(), Tokenizer::load(&model.join(TOKENIZER_FILE)).unwrap())
}

/// The embedding of a single image.
pub(crate) fn image_vector(clip: &Clip, png: &[u8]) -> Vec<f32> {
    let pixels = Preprocess::clip(16).tensor(png, &Limits::default()).unwrap();
    let pixels = Tensor::from_vec(pixels, (1, 3, 16, 16), &Device::Cpu).unwrap();
    clip.encode_image(&pixels).unwrap().to_vec2().unwrap().remove(0)
}

/// The embedding of a single text.
pub(crate) fn text_vector(clip: &Clip, tokenizer: &Tokenizer, text: &str) -> Vec<f32> {
    let ids = Tensor::from_vec(tokenizer.encode(text, 24), (1, 24), &Device::Cpu).unwrap();
    clip.encode_text(&ids).unwrap().to_vec2().unwrap().remove(0)
}

pub(crate) fn context(folder: &Path, stage: &str) -> RunContext {
    RunContext {
        stage: stage.into(),
        stream: stage.into(),
        session: SessionContext::new(),
        files: Files { base: folder.into(), scratch: folder.into(), hub: Default::default() },
        seed: 17,
        clock: Clock::Fixed(SystemTime::UNIX_EPOCH),
        cancel: CancellationToken::new(),
        progress: Progress::new(stage, Arc::new(Silent)),
        hosts: Arc::default(),
        secrets: Arc::default(),
        bytes_in_flight: 64 << 20,
        ranks: None,
        sharers: Arc::default(),
    }
}

/// Stops the run after the first committed split.
struct StopAfterCommit(CancellationToken);

impl Observer for StopAfterCommit {
    fn event(&self, event: &Event) {
        if matches!(event, Event::SplitCommitted { .. }) {
            self.0.cancel();
        }
    }
}

/// The same context, interrupted after the first commit.
pub(crate) fn interrupted(cx: RunContext) -> RunContext {
    let observer = Arc::new(StopAfterCommit(cx.cancel.clone()));
    RunContext { progress: Progress::new(&cx.stage, observer), ..cx }
}

/// An input: a Parquet file, or a dataset.
pub(crate) fn input(cx: &RunContext, name: &str) -> InputData {
    let path = cx.path(name);
    let dataset = if path.is_file() { Dataset::from_parquet(path) } else { Dataset::open(path) };
    let dataset = dataset.unwrap();
    InputData { name: name.into(), table: MAIN.into(), dataset, view: None, variants: vec![] }
}

/// What is known of an input with these columns that is not a model.
pub(crate) fn table(schema: Option<SchemaRef>) -> KnownInput {
    KnownInput { schema, maker: None }
}

/// Plans a stage from its options. `known` says what is known of its inputs.
pub(crate) fn plan<S: StageKind>(
    options: &str,
    known: impl Fn(&Input) -> KnownInput,
) -> Result<(Plan, Work), Vec<Fault>> {
    plan_alone::<S>(SessionContext::new(), &toml::from_str(options).unwrap(), known)
}

/// Runs a stage into the dataset `out`, resuming what is committed there.
pub(crate) async fn run<S: StageKind>(
    cx: &RunContext,
    out: &str,
    options: &str,
) -> Result<Dataset, RunError> {
    let known = |option: &Input| table(Some(input(cx, option.name()).dataset.schema(MAIN).unwrap()));
    let (plan, work) = match plan::<S>(options, |_| table(None)).unwrap() {
        (declared, _) if declared.main.is_none() => plan::<S>(options, known).unwrap(),
        planned => planned,
    };
    let mut schemas: BTreeMap<String, SchemaRef> =
        [(MAIN.to_string(), plan.main.unwrap()), (REJECTS.into(), plan.ledger.flatten().unwrap())].into();
    schemas.extend(plan.side.into_iter().map(|(name, schema)| (name.to_string(), schema.unwrap())));
    let begin = Begin {
        format: 1,
        position: 0,
        recipe: Default::default(),
        stage: cx.stage.clone(),
        kind: S::NAME.into(),
        fingerprint: "f".into(),
        fused: vec![],
        variant: None,
        tables: schemas,
    };
    let mut inputs: Vec<_> = plan.inputs.iter().map(|port| input(cx, port.input.name())).collect();
    let writer = DatasetWriter::open(cx.path(out), begin, ShardLimits::default()).unwrap();
    let mut output = Output::new(&cx.stage, writer, cx.progress.clone());
    match work {
        Work::Job(job) => job.run(cx, &Inputs::new(inputs), &mut output).await?,
        Work::Splits(splits) => {
            let data = inputs.remove(plan.rows.unwrap());
            let (total, size) = (data.rows(), plan.split_rows.unwrap() as u64);
            let maker = splits.open(cx, &Inputs::new(inputs), None).await?;
            for number in 0..total.div_ceil(size) {
                if output.is_done(number) {
                    continue;
                }
                cx.check_cancelled()?;
                let (start, end) = (number * size, total.min((number + 1) * size));
                let split = output.split(number, format!("{} rows {start}..{end}", data.name));
                let split = maker.make(cx, data.rows_between(start, end), split).await?;
                output.commit(split).await?;
            }
        }
        other => panic!("{other:?}"),
    }
    Ok(output.dataset())
}

/// The result of a query over a dataset's tables, in shard order; the main table is called `main`.
pub(crate) async fn sql(dataset: &Dataset, main: &str, query: &str) -> RecordBatch {
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for table in dataset.tables() {
        let provider = dataset.provider(&session, table).unwrap();
        session.register_table(if table == MAIN { main } else { table }, provider).unwrap();
    }
    let frame = session.sql(query).await.unwrap();
    let schema = frame.schema().inner().clone();
    arrow::compute::concat_batches(&schema, &frame.collect().await.unwrap()).unwrap()
}

/// The files of a dataset, with their hashes.
pub(crate) fn content(dataset: &Dataset) -> Vec<(String, String)> {
    dataset.state().files().map(|file| (file.path.clone(), file.sha256.clone())).collect()
}

/// A column as numbers.
pub(crate) fn floats(batch: &RecordBatch, column: usize) -> Vec<f64> {
    let column = arrow::compute::cast(batch.column(column), &DataType::Float64).unwrap();
    column.as_primitive::<Float64Type>().iter().map(|value| value.unwrap_or(f64::NAN)).collect()
}
