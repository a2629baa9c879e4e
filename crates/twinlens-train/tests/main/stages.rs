//! The stages `tokenizer` and `train`, from TOML to datasets as in a run.

use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{Array, ArrayRef, AsArray, LargeBinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{Float32Type, Float64Type, Int64Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{MAIN, REJECTS, contracts};
use twinlens_image::{Format, Preprocess, Rgb, encode};
use twinlens_model::{Clip, TOKENIZER_FILE, Tokenizer};
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::evaluation::{Evaluation, Evaluator, Measured, Never, PlannedEvaluation};
use twinlens_pipeline::run::events::{Event, Observer};
use twinlens_pipeline::{Inputs, Ports, Registry, RunContext, RunError};
use twinlens_testkit::stage::{StageOutput, StageTest};

const TRAIN: &str = r#"
input = "pairs.parquet"
tokenizer = "words"
batch_size = 8
steps = 9
checkpoint_every = 2
model = { embed = 8, vision = { image_size = 16, patch = 8, width = 16, layers = 1, heads = 2 }, text = { context = 8, width = 16, layers = 1, heads = 2 } }
"#;

/// A tokenizer of the captions of [`pairs`].
const WORDS: &str = r#"
[stages.words]
kind = "tokenizer"
input = "pairs.parquet"
vocab_size = 300
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

fn registry<E: Evaluation<Clip>>() -> Registry {
    let mut registry = Registry::default();
    twinlens_train::register::<E>(&mut registry);
    registry
}

/// The stage `train` beside the tokenizer `words`.
fn train<E: Evaluation<Clip>>(options: &str) -> StageTest {
    StageTest::new(registry::<E>(), "train", options).stages(WORDS).table("pairs", &pairs())
}

fn rows(output: &StageOutput, table: &str) -> RecordBatch {
    let batches = output.batches(table);
    arrow::compute::concat_batches(&batches[0].schema(), batches).unwrap()
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

/// The steps of a run.
#[derive(Default)]
struct Steps(Mutex<Vec<u64>>);

impl Observer for Steps {
    fn event(&self, event: &Event) {
        if let Event::TrainStep { step, .. } = event {
            self.0.lock().unwrap().push(*step);
        }
    }
}

/// Runs until a step, and is interrupted there.
async fn interrupt_at(step: u64, test: &StageTest) {
    let cancel = CancellationToken::new();
    let error = test.run_observed(Arc::new(StopAt(step, cancel.clone())), cancel).await.err().unwrap();
    assert!(matches!(error, RunError::Interrupted), "{error}");
}

#[tokio::test]
async fn a_tokenizer_is_a_table_and_a_file() {
    let options = "input = \"pairs.parquet\"\nvocab_size = 300";
    let test = StageTest::new(registry::<Never>(), "tokenizer", options).table("pairs", &pairs());
    let output = test.run().await.unwrap();
    let tokenizer = Tokenizer::load(&output.dataset().artifact(TOKENIZER_FILE).unwrap()).unwrap();
    let table = rows(&output, MAIN);
    assert_eq!(table.num_rows(), tokenizer.vocab_size());
    let tokens = table.column(1).as_string::<i32>();
    // Learned from all captions; null is not a caption.
    assert!(tokens.iter().flatten().any(|token| token == "Ġpicture"));
    assert_eq!(tokens.value(tokens.len() - 1), "<|endoftext|>");
}

#[tokio::test]
async fn an_interrupted_training_ends_in_the_same_bits() {
    let mut weights = Vec::new();
    for stops in [&[][..], &[3, 8]] {
        let test = train::<Never>(TRAIN);
        for &stop in stops {
            interrupt_at(stop, &test).await;
        }
        let output = test.run().await.unwrap();
        let dataset = output.dataset();
        weights.push(std::fs::read(dataset.artifact("model.safetensors").unwrap()).unwrap());
        let clip = Clip::load(&dataset.dir()).unwrap();
        let tokenizer = Tokenizer::load(&dataset.artifact(TOKENIZER_FILE).unwrap()).unwrap();
        assert_eq!(clip.config().text.vocab, tokenizer.vocab_size());
        assert!(!dataset.dir().join("work").exists(), "checkpoints are deleted");

        let log = rows(&output, MAIN);
        assert_eq!(log.column(0).as_primitive::<Int64Type>().values().to_vec(), (1..=9).collect::<Vec<_>>());
        assert!(log.column(3).as_primitive::<Float32Type>().values().iter().all(|loss| loss.is_finite()));
        let mut codes = output.table(REJECTS, &["reject_code"]);
        codes.sort_unstable();
        assert_eq!(codes, ["no_caption", "no_image", "truncated"]);
    }
    assert!(weights[0] == weights[1]);
}

#[test]
fn faults_are_found_before_anything_runs() {
    let other = format!("[stages.clip]\nkind = \"train\"\n{TRAIN}");
    let faults = |change: &[(&str, &str)]| {
        let text = change.iter().fold(TRAIN.to_owned(), |text, (from, to)| text.replace(from, to));
        train::<Never>(&text).stages(&other).check().err().map(|report| report.render(false))
    };
    assert_eq!(faults(&[]), None);
    let cases: [(&[(&str, &str)], &str); 32] = [
        (&[("steps = 9", "steps = 9\nweight_decay = -1.0")], "`weight_decay` is -1"),
        (&[("steps = 9", "steps = 9\neps = -1.0")], "`eps` is -1"),
        (&[("steps = 9", "steps = 9\nbeta1 = -0.5")], "`beta1` is -0.5"),
        (&[("steps = 9", "steps = 9\nbeta2 = 1.0")], "`beta2` is 1"),
        (&[("steps = 9", "steps = 9\nclip_grad_norm = nan")], "`clip_grad_norm` is NaN"),
        (&[("steps = 9", "steps = 9\nwarmup = 1000")], "`warmup` is 1000 steps, but the training has only 9"),
        (&[("checkpoint_every = 2", "checkpoint_every = 0")], "`checkpoint_every` must be at least 1"),
        (&[("batch_size = 8", "caption = \"image\"")], "the column `image` of `pairs.parquet` is of type"),
        (&[("batch_size = 8", "captions = \"each\"")], "captions"),
        (&[("steps = 9", "")], "neither `epochs` nor `steps` is set"),
        (&[("steps = 9", "steps = 9\nepochs = 2")], "are both set"),
        (&[("batch_size = 8", "batch_size = 1")], "the loss needs negatives"),
        (
            &[("heads = 2 }, text", "heads = 3 }, text")],
            "vision.width (16) is not a multiple of vision.heads (3)",
        ),
        (&[("batch_size = 8", "caption = \"captoin\"")], "did you mean `caption`?"),
        (&[("\"words\"", "\"clip\"")], "which makes no tokenizer"),
        (&[("batch_size = 8", "lr = -1\nrandom_crop = 0")], "`lr` must be a positive number"),
        (&[("steps = 9", "steps = 9\nranks = 3")], "`batch_size` must be a multiple of `ranks`"),
        (&[("steps = 9", "steps = 9\nmicro_batch = 0")], "this must be at least 1"),
        (&[("steps = 9", "steps = 9\ntext_lr = 0")], "to freeze a tower, use `freeze`"),
        (&[("steps = 9", "steps = 9\nema = 1.0")], "between 0 and 1"),
        (&[("steps = 9", "steps = 9\nfreeze = [\"visaul\"]")], "did you mean `visual`?"),
        (&[("steps = 9", "steps = 9\nfrom_parts = [\"text\"]")], "`from_parts` needs `from`"),
        (&[("steps = 9", "steps = 9\nfrom = \"words\"")], "a `tokenizer` stage, which makes no model"),
        (&[("steps = 9", "steps = 9\nkeep_every = 0")], "`keep_every` must be at least 1"),
        (&[("batch_size = 8", "device = \"cpu\"\nprecision = \"bf16\"")], "bf16 needs a GPU"),
        (&[("batch_size = 8", "augment = { hue = 0.7 }")], "`hue` must be from 0 to 0.5"),
        (&[("input = \"pairs.parquet\"", "")], "neither `input` nor `inputs`"),
        (
            &[("batch_size = 8", "inputs = [{ input = \"pairs.parquet\" }]")],
            "`input` and `inputs` are both set",
        ),
        (
            &[("input = \"pairs.parquet\"", "inputs = [{ input = \"pairs.parquet\", weight = 0.0 }]")],
            "`weight` must be a positive",
        ),
        (&[("batch_size = 8", "image = \"uid\"")], "the column `uid` of `pairs.parquet` is of type"),
        (&[("steps = 9", "epochs = 9\nfollow = true")], "`follow` needs `steps`"),
        (
            &[("input = \"pairs.parquet\"", "input = \"./x/*.tar\"\nfollow = true")],
            "`follow` needs a single stage",
        ),
    ];
    for (change, expected) in cases {
        let faults = faults(change).unwrap();
        assert!(faults.contains(expected), "{change:?}: {faults}");
    }
    if !cfg!(feature = "cuda") {
        let faults = faults(&[("batch_size = 8", "device = \"cuda:0\"")]).unwrap();
        assert!(faults.contains("--features cuda"), "{faults}");
    }
    let preset = "input = \"pairs.parquet\"\ntokenizer = \"words\"\nepochs = 3\nmodel = \"vit-tiny-84\"";
    let report = train::<Never>(preset).check().unwrap_err().render(false);
    assert!(report.contains("did you mean `vit-tiny-"), "{report}");
    let tokenizer = "input = \"pairs.parquet\"\nvocab_size = 100";
    let tokenizer = StageTest::new(registry::<Never>(), "tokenizer", tokenizer).table("pairs", &pairs());
    let report = tokenizer.check().unwrap_err().render(false);
    assert!(report.contains("at least 258"), "{report}");
}

#[test]
fn the_examples_are_valid() {
    let registry = registry::<Never>();
    let text: String = registry.kinds().map(|kind| kind.example).collect();
    let text = format!("name = \"test\"\n{}", text.replace("\"images\"", "\"images.parquet\""));
    let (overrides, schemas) = (Overrides::default(), InputSchemas::none());
    let checked = config::check("p.toml".as_ref(), &text, &registry, &overrides, &schemas);
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
}

/// An evaluation that reports a number of the model itself, and can be interrupted.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Temperature {
    every: u64,
}

impl Evaluation<Clip> for Temperature {
    fn plan(self, _: &mut Ports<'_>) -> Option<Box<dyn PlannedEvaluation<Clip>>> {
        Some(Box::new(self))
    }
}

impl PlannedEvaluation<Clip> for Temperature {
    fn every(&self) -> u64 {
        self.every
    }

    fn open(
        &self,
        cx: &RunContext,
        _: &Inputs,
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
        let test = train::<Temperature>(&options);
        for &stop in stops {
            interrupt_at(stop, &test).await;
        }
        let output = test.run().await.unwrap();
        let dataset = output.dataset();
        let names = ["model", "last", "step-0000000004", "step-0000000008"];
        let read =
            |name: &str| std::fs::read(dataset.artifact(&format!("{name}.safetensors")).unwrap()).unwrap();
        let files = names.map(read);
        assert!(files[0] != files[1] && files[0] != files[3], "the mean is the model");
        let table = rows(&output, "evaluations");
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
    let test = train::<Temperature>(&format!("{options}weights = \"best\"\n"));
    let output = test.run().await.unwrap();
    let dataset = output.dataset();
    let read = |name: &str| std::fs::read(dataset.artifact(name).unwrap()).unwrap();
    assert!(read("model.safetensors") == read("step-0000000004.safetensors"));
}

/// Options that change no bit are no reason to train again, nor to drop checkpoints.
#[tokio::test]
async fn a_training_resumes_with_other_checkpoints_and_cache() {
    let test = train::<Never>(TRAIN);
    interrupt_at(6, &test).await;
    let other = "checkpoint_every = 5\nkeep_checkpoints = 1\ncache = \"none\"";
    let test = test.edit("checkpoint_every = 2", other);
    let steps = Arc::new(Steps::default());
    test.run_observed(steps.clone(), CancellationToken::new()).await.unwrap();
    assert_eq!(*steps.0.lock().unwrap(), [7, 8, 9]);
}

/// A model that starts from another prepares images as that does, and says so.
#[tokio::test]
async fn a_training_keeps_the_preprocessing_of_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let options = format!("{TRAIN}\nfrom = \"{}\"\n", folder.path().display());
    let trained = async |options: &str| {
        let test = train::<Never>(options);
        Clip::load(&test.run().await.unwrap().dataset().dir()).unwrap()
    };
    let mut clip = trained(TRAIN).await;
    let own = clip.preprocess().clone();
    let other = Preprocess { mean: [0.5; 3], std: [0.2, 0.3, 0.4], ..own.clone() };
    clip.set_preprocess(other.clone());
    clip.save(folder.path()).unwrap();
    assert_eq!(*trained(&options).await.preprocess(), other);
    // Without its image tower, there is no reason to.
    assert_eq!(*trained(&format!("{options}from_parts = [\"text\"]")).await.preprocess(), own);
}

/// LiT in small: the image tower of another training, frozen. Weights that do not fit are refused
/// with a hint.
#[tokio::test]
async fn a_training_starts_from_another() {
    let clip = format!("[stages.clip]\nkind = \"train\"\n{TRAIN}");
    let options = format!("{TRAIN}\nfrom = \"clip\"\nfrom_parts = [\"visual\"]\nfreeze = [\"visual\"]\n");
    let test = train::<Never>(&options).stages(&clip);
    let lit = test.run().await.unwrap();
    let clip_folder = test.path("run/clip");
    let [before, after] = [&clip_folder, &lit.dataset().dir()].map(|folder| Clip::load(folder).unwrap());
    for (name, variable) in after.variables() {
        let numbers = |v: &candle_core::Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = numbers(variable) == numbers(&before.variables()[name]);
        assert_eq!(same, name.starts_with("visual."), "{name}");
    }
    // A folder is a model too, and a tokenizer.
    let folder = format!("\"{}\"", clip_folder.display());
    let options = options.replace("\"clip\"", &folder).replace("\"words\"", &folder);
    let again = StageTest::new(registry::<Never>(), "train", &options).table("pairs", &pairs());
    let plan = &again.check().unwrap().nodes[0].plan;
    assert_eq!((plan.inputs.len(), plan.files.len()), (1, 2));
    let again = Clip::load(&again.run().await.unwrap().dataset().dir()).unwrap();
    let numbers = |clip: &Clip| clip.variables()["visual.proj"].to_vec2::<f32>().unwrap();
    assert_eq!(numbers(&again), numbers(&before));

    let wide = format!("{TRAIN}\nfrom = \"clip\"\n").replace("embed = 8", "embed = 12");
    let error = train::<Never>(&wide).stages(&clip).run().await.err().unwrap().to_string();
    assert!(error.contains("`text_projection` has shape [16, 8] there and [16, 12] here"), "{error}");
}
