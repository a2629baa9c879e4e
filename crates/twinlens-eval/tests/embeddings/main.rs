//! The stages `embed`, `probe` and `retrieval`, and `zero-shot` and search on embeddings, from a TOML table to tables, on a random
//! model and generated images.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod embed;
mod probe;
mod retrieval;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use candle_core::{Device, Tensor};
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::{Begin, Dataset, DatasetWriter, MAIN, REJECTS, contracts};
use twinlens_image::{Limits, Preprocess};
use twinlens_model::{
    Clip, ClipConfig, Objective, TOKENIZER_FILE, TextConfig, Tokenizer, VisionConfig, VitConfig,
};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::events::{Event, Observer, Progress, Silent};
use twinlens_pipeline::run::execute::ledger_schema;
use twinlens_pipeline::{
    CheckContext, Clock, InputData, InputTables, Output, RunContext, RunError, StageKind, Work,
};

/// Numbers of an embedding.
const WIDTH: usize = 12;
const CLASSES: [&str; 4] = ["apple", "boat", "cloud", "drum"];

/// A folder with a model of random weights, in which stages are run.
struct Place {
    folder: tempfile::TempDir,
}

fn png(seed: usize) -> Vec<u8> {
    let seed = seed as u32;
    let image = image::RgbImage::from_fn(20 + seed % 7, 16, |x, y| {
        let noise = (x * 7 + y * 13 + seed * 31).wrapping_mul(2_654_435_761) >> 24;
        image::Rgb([noise as u8, (seed * 3) as u8, (x * 9 + seed) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A column in the Hugging Face layout.
fn images(bytes: &[Option<Vec<u8>>]) -> ArrayRef {
    let parts: ArrayRef = Arc::new(BinaryArray::from_iter(bytes.iter().map(|bytes| bytes.as_deref())));
    let paths: ArrayRef = Arc::new(StringArray::new_null(bytes.len()));
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), parts),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ]))
}

fn texts(texts: Vec<Option<String>>) -> ArrayRef {
    Arc::new(StringArray::from(texts))
}

/// 50 good images of 4 classes with captions (two without), then a damaged one and one that is missing.
fn examples() -> RecordBatch {
    let mut bytes: Vec<Option<Vec<u8>>> = (0..50).map(|seed| Some(png(seed))).collect();
    bytes.extend([Some(png(99)[..60].to_vec()), None]);
    let rows = 0..bytes.len();
    let caption = |row: usize| (row % 25 != 7).then(|| format!("{} number {row}", CLASSES[row % 4]));
    RecordBatch::try_from_iter([
        ("uid", texts(rows.clone().map(|row| Some(format!("{row:032x}"))).collect())),
        ("image", images(&bytes)),
        ("class", texts(rows.clone().map(|row| Some(CLASSES[row % 4].into())).collect())),
        ("caption", texts(rows.map(caption).collect())),
    ])
    .unwrap()
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let captions = CLASSES.iter().map(|class| format!("a photo of a {class}, number 1234567890."));
        Tokenizer::train(captions, 300).unwrap().save(&model.join(TOKENIZER_FILE)).unwrap();
        let place = Self { folder };
        place.save_model("model", 5);
        write_parquet(&place.path("test.parquet"), &examples());
        place
    }

    /// A model of random weights.
    fn save_model(&self, name: &str, seed: u64) {
        let vision =
            VisionConfig::Vit(VitConfig { image_size: 16, patch: 8, width: 16, layers: 1, heads: 2 });
        let text = TextConfig { context: 24, vocab: 300, width: 16, layers: 1, heads: 2 };
        let (activation, objective) = (Default::default(), Objective::Contrastive);
        let config = ClipConfig { embed: WIDTH, vision, text, activation, objective };
        Clip::new(config, seed).unwrap().save(&self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, name: &str) -> Dataset {
        let path = self.path(name);
        if path.is_file() { Dataset::of_parquet(path).unwrap() } else { Dataset::open(path).unwrap() }
    }

    /// What `check` knows of the inputs, as if each were a stage.
    fn known<S: StageKind>(&self, stage: &S) -> Vec<InputTables> {
        let known = |input: twinlens_pipeline::Input| {
            let schema = self.open(input.name()).schema(MAIN).unwrap();
            InputTables { input, kind: None, schema: Some(schema) }
        };
        stage.inputs().into_iter().map(known).collect()
    }

    /// Runs a stage into the dataset `out`, as a run would; what is committed there already stays.
    async fn run<S: StageKind>(
        &self,
        out: &str,
        options: &str,
        bytes_in_flight: usize,
        observer: Arc<dyn Observer>,
        cancel: CancellationToken,
    ) -> Result<Dataset, RunError> {
        let stage: S = toml::from_str(options).unwrap();
        let check = CheckContext { session: SessionContext::new() };
        let tables = stage.tables(&check, &self.known(&stage)).unwrap();
        let ledger = ledger_schema(&contracts::pair_texts());
        let mut schemas: BTreeMap<String, SchemaRef> =
            [(MAIN.to_string(), tables.main), (REJECTS.into(), ledger)].into();
        schemas.extend(tables.side.into_iter().map(|(name, schema)| (name.to_string(), schema)));
        let begin = Begin {
            format: 1,
            position: 0,
            recipe: Default::default(),
            stage: out.into(),
            kind: S::KIND.into(),
            fingerprint: "f".into(),
            fused: vec![],
            variant: None,
            tables: schemas,
        };
        let cx = RunContext {
            stage: "stage".into(),
            stream: "stage".into(),
            session: SessionContext::new(),
            files: Files {
                base: self.folder.path().into(),
                scratch: self.folder.path().into(),
                hub: Default::default(),
            },
            seed: 17,
            clock: Clock::Fixed(SystemTime::UNIX_EPOCH),
            cancel,
            progress: Progress::new("stage", observer),
            hosts: Arc::default(),
            bytes_in_flight,
        };
        let input = |input: &twinlens_pipeline::Input| InputData {
            name: input.name().into(),
            table: MAIN.into(),
            dataset: self.open(input.name()),
            view: None,
            variants: vec![],
        };
        let inputs: Vec<InputData> = stage.inputs().iter().map(input).collect();
        let writer = DatasetWriter::open(self.path(out), begin, ShardLimits::default()).unwrap();
        let mut output = Output::new(out, writer, cx.progress.clone());
        let Work::Job(job) = stage.work() else { panic!("a job") };
        job.run(&cx, &inputs, &mut output).await?;
        Ok(output.dataset())
    }

    async fn done<S: StageKind>(&self, out: &str, options: &str) -> Result<Dataset, RunError> {
        self.run::<S>(out, options, 64 << 20, Arc::new(Silent), CancellationToken::new()).await
    }

    fn clip(&self) -> (Clip, Tokenizer) {
        let folder = self.path("model");
        (Clip::load(&folder).unwrap(), Tokenizer::load(&folder.join(TOKENIZER_FILE)).unwrap())
    }
}

/// The vector of one image by itself.
fn image_vector(clip: &Clip, png: &[u8]) -> Vec<f32> {
    let pixels = Preprocess::clip(16).tensor(png, &Limits::default()).unwrap();
    let pixels = Tensor::from_vec(pixels, (1, 3, 16, 16), &Device::Cpu).unwrap();
    clip.encode_image(&pixels).unwrap().to_vec2().unwrap().remove(0)
}

/// The vector of one text by itself.
fn text_vector(clip: &Clip, tokenizer: &Tokenizer, text: &str) -> Vec<f32> {
    let ids = Tensor::from_vec(tokenizer.encode(text, 24), (1, 24), &Device::Cpu).unwrap();
    clip.encode_text(&ids).unwrap().to_vec2().unwrap().remove(0)
}

async fn sql(dataset: &Dataset, query: &str) -> RecordBatch {
    let session = SessionContext::new();
    for table in dataset.tables() {
        let provider = dataset.provider(&session, table).unwrap();
        session.register_table(table, provider).unwrap();
    }
    let frame = session.sql(query).await.unwrap();
    let schema = frame.schema().inner().clone();
    arrow::compute::concat_batches(&schema, &frame.collect().await.unwrap()).unwrap()
}

fn floats(batch: &RecordBatch, column: usize) -> Vec<f64> {
    let column = arrow::compute::cast(batch.column(column), &DataType::Float64).unwrap();
    column.as_primitive::<Float64Type>().iter().map(|value| value.unwrap_or(f64::NAN)).collect()
}

fn strings(batch: &RecordBatch, column: usize) -> Vec<String> {
    let column = arrow::compute::cast(batch.column(column), &DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|value| value.unwrap_or("null").to_string()).collect()
}

fn content(dataset: &Dataset) -> Vec<(String, String)> {
    dataset.state().files().map(|file| (file.path.clone(), file.sha256.clone())).collect()
}

/// What an error says, with its hint.
fn said(result: Result<Dataset, RunError>) -> String {
    match result {
        Err(RunError::User { message, hint }) => format!("{message} / {}", hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

/// What is wrong with options.
fn faults<S: StageKind>(options: &str, schema: Option<Schema>) -> Vec<String> {
    let stage: S = toml::from_str(options).unwrap();
    let schema = schema.map(Arc::new);
    let known = |input| InputTables { input, kind: None, schema: schema.clone() };
    let check = CheckContext { session: SessionContext::new() };
    let inputs: Vec<InputTables> = stage.inputs().into_iter().map(known).collect();
    let faults = stage.tables(&check, &inputs).err().unwrap_or_default();
    faults
        .into_iter()
        .map(|fault| format!("{} / {} / {}", fault.message, fault.label, fault.hint.unwrap_or_default()))
        .collect()
}

/// Asks the run to stop as soon as a split is committed.
struct StopAfterCommit(CancellationToken);

impl Observer for StopAfterCommit {
    fn event(&self, event: &Event) {
        if matches!(event, Event::SplitCommitted { .. }) {
            self.0.cancel();
        }
    }
}
