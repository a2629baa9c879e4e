//! The stages `tokenizer` and `train`, from TOML to datasets as in a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::{Array, ArrayRef, AsArray, LargeBinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{Field, Float32Type, Float64Type, Int64Type, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::{Begin, Dataset, DatasetWriter, MAIN, REJECTS, contracts};
use twinlens_image::{Format, Rgb, encode};
use twinlens_model::{Clip, TOKENIZER_FILE, Tokenizer};
use twinlens_pipeline::evaluation::{Evaluation, Evaluator, Measured};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::events::{Event, Observer, Progress, Silent};
use twinlens_pipeline::{
    CheckContext, Clock, Fault, Input, InputData, InputTables, Output, RunContext, RunError, StageKind,
    Tables, Work,
};
use twinlens_train::{TokenizerStage, Train};

const TRAIN: &str = r#"
input = "pairs"
tokenizer = "words"
batch_size = 8
steps = 9
checkpoint_every = 2
model = { embed = 8, vision = { image_size = 16, patch = 8, width = 16, layers = 1, heads = 2 }, text = { context = 8, width = 16, layers = 1, heads = 2 } }
"#;

/// 30 usable pairs, then one with a damaged image, one without an image, and one without a caption.
fn pairs() -> RecordBatch {
    let png = |seed: u32| {
        let pixels = (0..20 * 24 * 3).map(|i: u32| (i.wrapping_mul(seed + 3) >> 3) as u8).collect();
        encode(&Rgb::new(24, 20, pixels).unwrap(), Format::Png, None).unwrap()
    };
    let mut bytes: Vec<Option<Vec<u8>>> = (0..30).map(|seed| Some(png(seed))).collect();
    let mut captions: Vec<Option<String>> =
        (0..30).map(|i| Some(format!("picture {} of thing {i}", i % 4))).collect();
    bytes.extend([Some(png(40)[..50].to_vec()), None, Some(png(41))]);
    captions.extend([Some("damaged".into()), Some("no image".into()), None]);
    let uids = StringArray::from_iter_values((0..bytes.len()).map(|row| format!("{row:032x}")));
    let paths: ArrayRef = Arc::new(StringArray::new_null(bytes.len()));
    let parts: ArrayRef = Arc::new(LargeBinaryArray::from_iter(bytes.iter().map(|bytes| bytes.as_deref())));
    let arrow::datatypes::DataType::Struct(fields) = contracts::image() else { unreachable!() };
    let image = StructArray::new(fields, vec![parts, paths], None);
    RecordBatch::try_from_iter([
        ("uid", Arc::new(uids) as ArrayRef),
        ("caption", Arc::new(StringArray::from(captions))),
        ("image", Arc::new(image)),
    ])
    .unwrap()
}

/// A writer for the dataset `name` with these tables.
fn writer(folder: &Path, name: &str, kind: &str, tables: BTreeMap<String, SchemaRef>) -> DatasetWriter {
    let begin = Begin {
        format: 1,
        position: 0,
        recipe: Default::default(),
        stage: name.into(),
        kind: kind.into(),
        fingerprint: "f".into(),
        fused: vec![],
        variant: None,
        tables,
    };
    DatasetWriter::open(folder.join(name), begin, ShardLimits::default()).unwrap()
}

/// Runs one stage, with its output in `folder/name`.
async fn run<K: StageKind>(
    folder: &Path,
    name: &str,
    options: &str,
    cancel: CancellationToken,
    observer: Arc<dyn Observer>,
) -> Result<Dataset, RunError> {
    let stage: K = toml::from_str(options).unwrap();
    let inputs: Vec<InputData> = (stage.inputs().iter())
        .map(|input| InputData {
            name: input.name().into(),
            table: MAIN.into(),
            dataset: Dataset::open(folder.join(input.name())).unwrap(),
            view: None,
            variants: vec![],
        })
        .collect();
    let tables = check(&stage, Some(&inputs)).unwrap();
    let ledger: Vec<Field> = (pairs().schema().fields().iter())
        .filter(|field| field.name() != "image")
        .chain(contracts::rejects().fields())
        .map(|field| field.as_ref().clone())
        .collect();
    let side = tables.side.into_iter().map(|(name, schema)| (name.to_owned(), schema));
    let own = [(MAIN.to_owned(), tables.main), (REJECTS.to_owned(), Arc::new(Schema::new(ledger)))];
    let schemas: BTreeMap<String, SchemaRef> = own.into_iter().chain(side).collect();
    let progress = Progress::new(name, observer);
    let cx = RunContext {
        stage: name.into(),
        stream: name.into(),
        session: SessionContext::new(),
        files: Files { base: folder.into(), scratch: folder.into(), hub: Default::default() },
        seed: 17,
        clock: Clock::Fixed(SystemTime::UNIX_EPOCH),
        cancel,
        progress: progress.clone(),
        hosts: Arc::default(),
        bytes_in_flight: 1 << 20,
    };
    let mut output = Output::new(name, writer(folder, name, K::KIND, schemas), progress);
    let Work::Job(job) = stage.work() else { panic!("not a job") };
    job.run(&cx, &inputs, &mut output).await?;
    output.complete()?;
    Ok(output.dataset())
}

/// The schemas of the tables, or all faults as text.
fn check<K: StageKind>(stage: &K, inputs: Option<&[InputData]>) -> Result<Tables, String> {
    let known: Vec<InputTables> = (stage.inputs().into_iter().enumerate())
        .map(|(i, input)| InputTables {
            kind: Some(match input.name() {
                "words" => "tokenizer",
                "clip" => "train",
                _ => "fetch",
            }),
            schema: inputs.map_or(Some(pairs().schema()), |inputs| inputs[i].dataset.schema(MAIN).ok()),
            input,
        })
        .collect();
    let cx = CheckContext { session: SessionContext::new() };
    stage.tables(&cx, &known).map_err(|faults| {
        faults
            .iter()
            .map(|f| format!("{} | {} | {}\n", f.message, f.label, f.hint.as_deref().unwrap_or("")))
            .collect::<String>()
    })
}

/// A directory with the datasets `pairs` and `words`.
async fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tables = [(MAIN.to_owned(), pairs().schema())].into();
    let mut dataset = writer(folder.path(), "pairs", "fetch", tables);
    for (split, rows) in [(0, 0..20), (1, 20..33)] {
        let mut split = dataset.split(split, "rows");
        split.write(MAIN, &pairs().slice(rows.start, rows.len())).unwrap();
        dataset.commit(split.publish().unwrap()).unwrap();
    }
    dataset.complete().unwrap();
    let options = "input = \"pairs\"\nvocab_size = 300";
    run::<TokenizerStage>(folder.path(), "words", options, CancellationToken::new(), Arc::new(Silent))
        .await
        .unwrap();
    folder
}

async fn rows(dataset: &Dataset, table: &str) -> RecordBatch {
    let frame = dataset.frame(&SessionContext::new(), table).await.unwrap();
    let batches = frame.collect().await.unwrap();
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

/// Cancels a run at a step.
struct StopAt(u64, CancellationToken);

impl Observer for StopAt {
    fn event(&self, event: &Event) {
        if matches!(event, Event::TrainStep { step, .. } if *step == self.0) {
            self.1.cancel();
        }
    }
}

#[tokio::test]
async fn a_tokenizer_is_a_table_and_a_file() {
    let folder = prepared().await;
    let dataset = Dataset::open(folder.path().join("words")).unwrap();
    let tokenizer = Tokenizer::load(&dataset.artifact(TOKENIZER_FILE).unwrap()).unwrap();
    let table = rows(&dataset, MAIN).await;
    assert_eq!(table.num_rows(), tokenizer.vocab_size());
    let tokens = table.column(1).as_string::<i32>();
    // Learned from all captions, including the last shard's; null is not a caption.
    assert!(tokens.iter().flatten().any(|token| token == "Ġpicture"));
    assert_eq!(tokens.value(tokens.len() - 1), "<|endoftext|>");
}

#[tokio::test]
async fn an_interrupted_training_ends_in_the_same_bits() {
    let mut weights = Vec::new();
    for stops in [&[][..], &[3, 8]] {
        let folder = prepared().await;
        for &stop in stops {
            let cancel = CancellationToken::new();
            let observer = Arc::new(StopAt(stop, cancel.clone()));
            let error = run::<Train>(folder.path(), "clip", TRAIN, cancel, observer).await.unwrap_err();
            assert!(matches!(error, RunError::Interrupted), "{error}");
        }
        let dataset = run::<Train>(folder.path(), "clip", TRAIN, CancellationToken::new(), Arc::new(Silent))
            .await
            .unwrap();
        weights.push(std::fs::read(dataset.artifact("model.safetensors").unwrap()).unwrap());
        let clip = Clip::load(&dataset.dir()).unwrap();
        let tokenizer = Tokenizer::load(&dataset.artifact(TOKENIZER_FILE).unwrap()).unwrap();
        assert_eq!(clip.config().text.vocab, tokenizer.vocab_size());
        assert!(!dataset.dir().join("work").exists(), "checkpoints are deleted");

        let log = rows(&dataset, MAIN).await;
        assert_eq!(log.column(0).as_primitive::<Int64Type>().values().to_vec(), (1..=9).collect::<Vec<_>>());
        assert!(log.column(3).as_primitive::<Float32Type>().values().iter().all(|loss| loss.is_finite()));
        let rejects = rows(&dataset, REJECTS).await;
        let codes = rejects.column_by_name("reject_code").unwrap().as_string::<i32>();
        let mut codes: Vec<_> = codes.iter().flatten().collect();
        codes.sort_unstable();
        assert_eq!(codes, ["no_caption", "no_image", "truncated"]);
    }
    assert!(weights[0] == weights[1]);
}

#[test]
fn faults_are_found_before_anything_runs() {
    let train = |change: &[(&str, &str)]| {
        let text = change.iter().fold(TRAIN.to_owned(), |text, (from, to)| text.replace(from, to));
        check(&toml::from_str::<Train>(&text).unwrap(), None).map(|_| ())
    };
    train(&[]).unwrap();
    let cases: [(&[(&str, &str)], &str); 23] = [
        (&[("steps = 9", "")], "neither `epochs` nor `steps` is set"),
        (&[("steps = 9", "steps = 9\nepochs = 2")], "are both set"),
        (&[("batch_size = 8", "batch_size = 1")], "the loss needs negatives"),
        (
            &[("heads = 2 }, text", "heads = 3 }, text")],
            "vision.width (16) is not a multiple of vision.heads (3)",
        ),
        (&[("batch_size = 8", "caption = \"captoin\"")], "did you mean `caption`?"),
        (&[("\"words\"", "\"pairs\"")], "expected a `tokenizer` stage"),
        (&[("batch_size = 8", "lr = -1\nrandom_crop = 0")], "`lr` must be a positive number"),
        (&[("steps = 9", "steps = 9\nranks = 3")], "`batch_size` must be a multiple of `ranks`"),
        (&[("steps = 9", "steps = 9\nmicro_batch = 0")], "this must be at least 1"),
        (&[("steps = 9", "steps = 9\ntext_lr = 0")], "to freeze a tower, use `freeze`"),
        (&[("steps = 9", "steps = 9\nema = 1.0")], "between 0 and 1"),
        (&[("steps = 9", "steps = 9\nfreeze = [\"visaul\"]")], "did you mean `visual`?"),
        (&[("steps = 9", "steps = 9\nfrom_parts = [\"text\"]")], "`from_parts` needs `from`"),
        (&[("steps = 9", "steps = 9\nfrom = \"words\"")], "a `tokenizer` stage, which has no model"),
        (&[("steps = 9", "steps = 9\nkeep_every = 0")], "`keep_every` must be at least 1"),
        (&[("batch_size = 8", "device = \"cpu\"\nprecision = \"bf16\"")], "bf16 is for GPUs"),
        (&[("batch_size = 8", "augment = { hue = 0.7 }")], "`hue` must be from 0 to 0.5"),
        (&[("input = \"pairs\"", "")], "neither `input` nor `inputs`"),
        (&[("batch_size = 8", "inputs = [{ input = \"pairs\" }]")], "`input` and `inputs` are both set"),
        (
            &[("input = \"pairs\"", "inputs = [{ input = \"pairs\", weight = 0.0 }]")],
            "`weight` must be a positive",
        ),
        (&[("batch_size = 8", "image = \"uid\"")], "the column `uid` is of type Utf8"),
        (&[("steps = 9", "epochs = 9\nfollow = true")], "`follow` needs `steps`"),
        (&[("input = \"pairs\"", "input = \"./x/*.tar\"\nfollow = true")], "`follow` needs a single stage"),
    ];
    for (change, expected) in cases {
        let faults = train(change).unwrap_err();
        assert!(faults.contains(expected), "{change:?}: {faults}");
    }
    if !cfg!(feature = "cuda") {
        let faults = train(&[("batch_size = 8", "device = \"cuda:0\"")]).unwrap_err();
        assert!(faults.contains("--features cuda"), "{faults}");
    }
    let preset: Train =
        toml::from_str("input = \"pairs\"\ntokenizer = \"words\"\nepochs = 3\nmodel = \"vit-tiny-84\"")
            .unwrap();
    assert!(check(&preset, None).unwrap_err().contains("did you mean `vit-tiny-"));
    let tokenizer: TokenizerStage = toml::from_str("input = \"pairs\"\nvocab_size = 100").unwrap();
    assert!(check(&tokenizer, None).unwrap_err().contains("at least 258"));
}

#[test]
fn examples_parse() {
    for (kind, example, parse) in [
        (TokenizerStage::KIND, TokenizerStage::EXAMPLE, parses::<TokenizerStage> as fn(&str)),
        (<Train>::KIND, <Train>::EXAMPLE, parses::<Train>),
    ] {
        assert!(example.contains(&format!("kind = \"{kind}\"")));
        parse(
            &example
                .lines()
                .filter(|line| !line.starts_with('[') && !line.starts_with("kind"))
                .collect::<Vec<_>>()
                .join("\n"),
        );
    }
}

fn parses<K: StageKind>(text: &str) {
    let _: K = toml::from_str(text).unwrap();
}

/// An evaluation that reports a number of the model itself, and can be interrupted.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Temperature {
    every: u64,
}

impl Evaluation<Clip> for Temperature {
    fn every(&self) -> u64 {
        self.every
    }

    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn faults(&self, _: &[InputTables]) -> Vec<Fault> {
        Vec::new()
    }

    fn open(
        &self,
        cx: &RunContext,
        _: &[InputData],
        tokenizer: &Path,
    ) -> Result<Box<dyn Evaluator<Clip>>, RunError> {
        assert!(Tokenizer::load(tokenizer).is_ok());
        Ok(Box::new(Thermometer(cx.clone())))
    }
}

struct Thermometer(RunContext);

impl Evaluator<Clip> for Thermometer {
    fn evaluate(&mut self, clip: &Clip, step: u64) -> Result<Vec<Measured>, RunError> {
        self.0.check_cancelled()?;
        let one = |metric: &str, value| Measured {
            set: "model".into(),
            prompts: "{}".into(),
            metric: metric.into(),
            value,
            ci_low: value,
            ci_high: value,
            chance: 0.5,
            n: 1,
        };
        // Step 4 is the best by the first metric, which is the one compared.
        let distance = f64::from(clip.logit_scale());
        Ok(vec![one("nearness", 1.0 / (1.0 + step.abs_diff(4) as f64)), one("logit_scale", distance)])
    }
}

/// Many options at once, uninterrupted and interrupted. At steps 4 and 9 the evaluation itself is
/// interrupted.
#[tokio::test]
async fn moving_average_kept_weights_and_evaluations_are_written() {
    let options = format!(
        "{TRAIN}\nmicro_batch = 3\nranks = 2\nema = 0.9\nkeep_every = 4\nimage_lr = 1e-4\nrecompute = true\n\
         evaluate = {{ every = 4 }}\n"
    );
    let mut found = Vec::new();
    for stops in [&[][..], &[3, 4, 9]] {
        let folder = prepared().await;
        for &stop in stops {
            let cancel = CancellationToken::new();
            let observer = Arc::new(StopAt(stop, cancel.clone()));
            let error = run::<Train<Temperature>>(folder.path(), "clip", &options, cancel, observer)
                .await
                .unwrap_err();
            assert!(matches!(error, RunError::Interrupted), "{error}");
        }
        let (token, silent) = (CancellationToken::new(), Arc::new(Silent));
        let dataset =
            run::<Train<Temperature>>(folder.path(), "clip", &options, token, silent).await.unwrap();
        let names = ["model", "last", "step-0000000004", "step-0000000008"];
        let read =
            |name: &str| std::fs::read(dataset.artifact(&format!("{name}.safetensors")).unwrap()).unwrap();
        let files = names.map(read);
        assert!(files[0] != files[1] && files[0] != files[3], "the mean is the model");
        let table = rows(&dataset, "evaluations").await;
        assert_eq!(table.column(0).as_primitive::<Int64Type>().values().to_vec(), [4, 4, 8, 8, 9, 9]);
        assert_eq!(table.column(1).as_primitive::<Int64Type>().values().to_vec(), [32, 32, 64, 64, 72, 72]);
        // The mean is what is measured.
        let clip = Clip::load(&dataset.dir()).unwrap();
        let values = table.column_by_name("value").unwrap().as_primitive::<Float64Type>().values().to_vec();
        assert_eq!(values[5], f64::from(clip.logit_scale()));
        found.push((files, values));
    }
    assert!(found[0] == found[1]);

    // The best step is 4, and its weights are those that were kept of it.
    let folder = prepared().await;
    let options = format!("{options}weights = \"best\"\n");
    let (token, silent) = (CancellationToken::new(), Arc::new(Silent));
    let dataset = run::<Train<Temperature>>(folder.path(), "clip", &options, token, silent).await.unwrap();
    let read = |name: &str| std::fs::read(dataset.artifact(name).unwrap()).unwrap();
    assert!(read("model.safetensors") == read("step-0000000004.safetensors"));
}

/// LiT in small: the image tower of another training, held fast. And weights that do not fit are
/// refused with a hint.
#[tokio::test]
async fn a_training_starts_from_another() {
    let folder = prepared().await;
    let token = CancellationToken::new;
    let first = run::<Train>(folder.path(), "clip", TRAIN, token(), Arc::new(Silent)).await.unwrap();
    let options = format!("{TRAIN}\nfrom = \"clip\"\nfrom_parts = [\"visual\"]\nfreeze = [\"visual\"]\n");
    let lit = run::<Train>(folder.path(), "lit", &options, token(), Arc::new(Silent)).await.unwrap();
    let [before, after] = [&first, &lit].map(|dataset| Clip::load(&dataset.dir()).unwrap());
    for (name, variable) in after.variables() {
        let numbers = |v: &candle_core::Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = numbers(variable) == numbers(&before.variables()[name]);
        assert_eq!(same, name.starts_with("visual."), "{name}");
    }
    // A folder is a model too, and a tokenizer.
    let path = folder.path().join("clip");
    let options = options.replace("\"clip\"", &format!("\"{}\"", path.display()));
    let options = options.replace("\"words\"", &format!("\"{}\"", path.display()));
    let stage: Train = toml::from_str(&options).unwrap();
    assert_eq!(twinlens_pipeline::Stage::inputs(&stage).len(), 1);
    assert_eq!(twinlens_pipeline::Stage::files(&stage).len(), 2);
    let again = run::<Train>(folder.path(), "again", &options, token(), Arc::new(Silent)).await.unwrap();
    // The seed is the stage's own, so its order of the data is another: what was held fast is the
    // same.
    let again = Clip::load(&again.dir()).unwrap();
    let numbers = |clip: &Clip| clip.variables()["visual.proj"].to_vec2::<f32>().unwrap();
    assert_eq!(numbers(&again), numbers(&before));

    let wide = format!("{TRAIN}\nfrom = \"clip\"\n").replace("embed = 8", "embed = 12");
    let error =
        run::<Train>(folder.path(), "wide", &wide, token(), Arc::new(Silent)).await.unwrap_err().to_string();
    assert!(error.contains("`text_projection` is [16, 8] there, and [16, 12] here"), "{error}");
}
