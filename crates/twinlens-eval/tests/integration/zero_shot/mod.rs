//! The stage `zero-shot` from its options to its tables, on a random model and generated images.

mod declared;
mod parts;
mod prompts;
mod training;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Int32Type, Int64Type, SchemaRef};
use twinlens_dataset::{Dataset, MAIN};
use twinlens_eval::ZeroShot;
use twinlens_image::Limits;
use twinlens_model::{Clip, TOKENIZER_FILE, Tokenizer};
use twinlens_pipeline::ports::KnownInput;
use twinlens_pipeline::{Input, Product, RunContext, RunError, StageKind};

use crate::support::{
    self, content, context, floats, image_vector, images, input, interrupted, load_model, png, save_model,
    test_dir, text_vector, write_parquet,
};

const CLASSES: [&str; 7] = ["apple", "boat", "cloud", "drum", "egg", "fox", "glass"];
const IMAGES: usize = 70;

/// A directory with a model and an evaluation set in the Hugging Face layout: 70 good images of 7
/// classes, a damaged one, one without a label, one without an image.
struct Bench {
    folder: tempfile::TempDir,
}

fn examples() -> RecordBatch {
    let mut bytes: Vec<Option<Vec<u8>>> = (0..IMAGES).map(|seed| Some(png(seed as u32))).collect();
    let mut labels: Vec<Option<&str>> = (0..IMAGES).map(|row| Some(CLASSES[row % 7])).collect();
    bytes.extend([Some(png(99)[..60].to_vec()), Some(png(98)), None]);
    labels.extend([Some("apple"), None, Some("boat")]);
    let numbers =
        labels.iter().map(|label| label.and_then(|label| CLASSES.iter().position(|name| *name == label)));
    let numbers = Int64Array::from_iter(numbers.map(|number| number.map(|number| number as i64)));
    let uids = StringArray::from_iter((0..bytes.len()).map(|row| (row != 3).then(|| format!("{row:032x}"))));
    RecordBatch::try_from_iter([
        ("uid", Arc::new(uids) as ArrayRef),
        ("image", images(&bytes)),
        ("class", Arc::new(StringArray::from(labels))),
        ("number", Arc::new(numbers)),
    ])
    .unwrap()
}

impl Bench {
    fn new() -> Self {
        let captions = CLASSES.iter().map(|class| format!("a photo of a {class}."));
        Self { folder: test_dir(captions, &examples()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cx(&self) -> RunContext {
        context(self.folder.path(), "zero_shot")
    }

    /// Runs the stage into the dataset `out`, resuming what is committed there.
    async fn run(&self, cx: &RunContext, out: &str, options: &str) -> Result<Dataset, RunError> {
        support::run::<ZeroShot>(cx, out, options).await
    }

    async fn evaluate(&self, out: &str, options: &str) -> Result<Dataset, RunError> {
        self.run(&self.cx(), out, options).await
    }
}

/// An input as `check` knows it: `schema` for stages, none for paths.
fn known(input: &Input, schema: Option<&SchemaRef>) -> KnownInput {
    let maker = match input.name() {
        path if input.is_path() || path.is_empty() => None,
        "clip" => Some(("train", Product::Model)),
        _ => Some(("fetch", Product::Table)),
    };
    KnownInput { schema: maker.and(schema.cloned()), maker }
}

async fn sql(dataset: &Dataset, query: &str) -> RecordBatch {
    support::sql(dataset, "accuracy", query).await
}

const TWO_SETS: &str = r#"
model = "./model"
sets = [
    { name = "things", input = "./test.parquet", label = "class", names = { "glass" = "drinking glass" }, main_metric = "mean_per_class" },
    { name = "some", input = "./test.parquet", label = "number", class_names = ["apple", "boat", "cloud", "drum", "egg", "fox", "glass"], classes = ["fox", "egg", "boat"] },
]
prompts = ["{}", "a photo of a {}.", "ensemble", { name = "mine", templates = ["one {c}", "{c}, drawn"] }]
batch_size = 16
"#;

#[tokio::test]
async fn accuracies_agree_with_the_other_tables() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", TWO_SETS).await.unwrap();
    // 4 prompt sets: 3 metrics for seven classes, 2 for three.
    assert_eq!(
        (dataset.rows(MAIN), dataset.rows("per_class"), dataset.rows("predictions")),
        (20, 4 * 10, 4 * 100)
    );
    let sums = sql(&dataset, "select a.set, a.n, sum(c.n) as examples, max(a.value * a.n) - sum(c.correct) as difference, max(p.correct) - sum(c.correct) as other
        from accuracy a join per_class c on a.set = c.set and a.prompts = c.prompts
        join (select set, prompts, count(*) filter (where label = predicted) as correct from predictions group by 1, 2) p on a.set = p.set and a.prompts = p.prompts
        where a.metric = 'top1' group by a.set, a.prompts, a.n order by a.set").await;
    assert_eq!(sums.num_rows(), 8);
    assert_eq!(
        sums.column(1).as_primitive::<Int64Type>().values(),
        sums.column(2).as_primitive::<Int64Type>().values()
    );
    assert_eq!(sums.column(1).as_primitive::<Int64Type>().values().to_vec(), [[30; 4], [70; 4]].concat());
    assert!(floats(&sums, 3).iter().all(|difference| difference.abs() < 1e-9));
    assert!(sums.column(4).as_primitive::<Int64Type>().values().iter().all(|difference| *difference == 0));

    let rows = sql(&dataset, "select value, ci_low, ci_high, chance, metric, set from accuracy").await;
    let (value, low, high, chance) = (floats(&rows, 0), floats(&rows, 1), floats(&rows, 2), floats(&rows, 3));
    for row in 0..rows.num_rows() {
        let (metric, set) =
            (rows.column(4).as_string::<i32>().value(row), rows.column(5).as_string::<i32>().value(row));
        let classes = if set == "things" { 7.0 } else { 3.0 };
        let expected = if metric == "top5" { 5.0 / classes } else { 1.0 / classes };
        assert!((chance[row] - expected).abs() < 1e-12, "{metric}");
        assert!(low[row] <= value[row] && value[row] <= high[row], "{metric}");
        // The model is random, and the labels are unrelated to the images.
        assert!(
            low[row] <= chance[row] && chance[row] <= high[row],
            "{set} {metric}: {} in [{}, {}]",
            chance[row],
            low[row],
            high[row]
        );
    }
    // The rows of a set are in one shard, the main metric first.
    let first =
        "select metric, split, precision, model, checkpoint from accuracy where set = 'things' limit 1";
    let first = sql(&dataset, first).await;
    let text = |column: usize| first.column(column).as_string::<i32>().value(0).to_string();
    assert_eq!([text(0), text(1), text(2), text(3)], ["mean_per_class", "./test.parquet", "f32", "./model"]);
    assert!(first.column(4).is_null(0));
    let names =
        sql(&dataset, "select class_name from per_class where set = 'things' and class_id = 6 group by 1")
            .await;
    assert_eq!(names.column(0).as_string::<i32>().value(0), "drinking glass");
    let hashes = sql(&dataset, "select count(distinct set_hash), count(distinct classes_hash), count(distinct prompts_hash), count(distinct weights_hash),
        min(char_length(set_hash) + char_length(classes_hash) + char_length(prompts_hash) + char_length(weights_hash)) from accuracy").await;
    let counts: Vec<i64> = (0..5)
        .map(|column| {
            arrow::compute::cast(hashes.column(column), &DataType::Int64)
                .unwrap()
                .as_primitive::<Int64Type>()
                .value(0)
        })
        .collect();
    // Both sets have the same images and labels, as strings and as integers.
    assert_eq!(counts, [1, 2, 4, 1, 256]);
}

#[tokio::test]
async fn every_row_is_predicted_or_rejected_with_its_location() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", TWO_SETS).await.unwrap();
    let codes: Vec<(String, u64)> = dataset.state().rejects()["zero_shot"].clone().into_iter().collect();
    // Per set. `some` knows 30 of the 70 labels, and of the bad rows only the one without an image.
    let expected = [("no_image", 2), ("no_label", 2), ("truncated", 1), ("unknown_label", 41)];
    assert_eq!(codes, expected.map(|(code, rows)| (code.to_string(), rows)));
    let ledger =
        sql(&dataset, "select uid, reject_detail from rejects where reject_code = 'truncated'").await;
    let detail = ledger.column(1).as_string::<i32>().value(0);
    assert!(
        detail.contains("set `things`") && detail.contains("test.parquet row 70") && detail.contains("uid"),
        "{detail}"
    );
    let unknown =
        sql(&dataset, "select reject_detail from rejects where reject_code = 'unknown_label' limit 1").await;
    assert!(unknown.column(0).as_string::<i32>().value(0).contains("`apple` is not one of the classes"));
    let numbered =
        sql(&dataset, "select count(*) from predictions where example = '3' and set = 'things'").await;
    assert_eq!(
        numbered.column(0).as_primitive::<Int64Type>().value(0),
        4,
        "a row without uid is identified by its index"
    );
}

#[tokio::test]
async fn predictions_match_one_image_and_one_prompt_at_a_time() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", TWO_SETS).await.unwrap();
    let predictions = sql(
        &dataset,
        "select predicted, top5, label from predictions where set = 'things' and prompts = 'mine'",
    )
    .await;
    let (clip, tokenizer) = load_model(&bench.path("model"));
    let text = |prompt: String| text_vector(&clip, &tokenizer, &prompt);
    let names = ["apple", "boat", "cloud", "drum", "egg", "fox", "drinking glass"];
    let classes: Vec<Vec<f32>> = names
        .iter()
        .map(|name| {
            let mut mean: Vec<f32> = text(format!("one {name}"))
                .iter()
                .zip(text(format!("{name}, drawn")))
                .map(|(a, b)| (a + b) / 2.0)
                .collect();
            let length = mean.iter().map(|value| value * value).sum::<f32>().sqrt();
            mean.iter_mut().for_each(|value| *value /= length);
            mean
        })
        .collect();
    for row in 0..IMAGES {
        let image = image_vector(&clip, &png(row as u32));
        let cosines: Vec<f32> =
            classes.iter().map(|class| class.iter().zip(&image).map(|(a, b)| a * b).sum()).collect();
        let mut order: Vec<i32> = (0..7).collect();
        order.sort_by(|a, b| cosines[*b as usize].total_cmp(&cosines[*a as usize]));
        // Nearly equal cosines are ordered by rounding.
        let gap = (1..6)
            .map(|at| cosines[order[at - 1] as usize] - cosines[order[at] as usize])
            .fold(f32::MAX, f32::min);
        if gap > 1e-5 {
            let top5 = predictions.column(1).as_list::<i32>().value(row);
            assert_eq!(top5.as_primitive::<Int32Type>().values(), &order[..5], "row {row}");
            assert_eq!(predictions.column(0).as_primitive::<Int32Type>().value(row), order[0], "row {row}");
        }
        assert_eq!(predictions.column(2).as_primitive::<Int32Type>().value(row), (row % 7) as i32);
    }
}

#[tokio::test]
async fn an_interrupted_evaluation_resumes_to_the_same_bytes() {
    let bench = Bench::new();
    let batch = examples();
    let order = UInt32Array::from_iter_values((0..batch.num_rows() as u32).rev());
    write_parquet(&bench.path("other.parquet"), &arrow::compute::take_record_batch(&batch, &order).unwrap());
    let options =
        TWO_SETS.replacen("\"some\", input = \"./test.parquet\"", "\"some\", input = \"./other.parquet\"", 1);
    let whole = bench.evaluate("whole", &options).await.unwrap();
    let stopped = bench.run(&interrupted(bench.cx()), "parts", &options).await;
    assert!(matches!(stopped, Err(RunError::Interrupted)), "{stopped:?}");
    let parts = bench.evaluate("parts", &options).await.unwrap();
    assert_eq!(content(&parts), content(&whole));
    assert_eq!(whole.state().commits.len(), 2);
    // Less memory means smaller chunks of rows, but the same batches for the model.
    let little = RunContext { bytes_in_flight: 2000, ..bench.cx() };
    let small = bench.run(&little, "small", &options).await.unwrap();
    assert_eq!(small.rows("predictions"), whole.rows("predictions"));
    let cheap: Vec<_> = content(&small).into_iter().filter(|(path, _)| !path.contains("rejects")).collect();
    assert_eq!(
        cheap,
        content(&whole).into_iter().filter(|(path, _)| !path.contains("rejects")).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn unusable_sets_report_why() {
    let bench = Bench::new();
    let few = bench.path("few.parquet");
    write_parquet(&few, &examples().slice(70, 3));
    write_parquet(&bench.path("none.parquet"), &examples().slice(0, 0));
    let cases = [
        (
            "a duplicate name",
            r#"input = "./test.parquet", label = "class", names = { "egg" = "fox" }"#,
            "`bad`: the class name `fox` occurs twice",
        ),
        (
            "an empty name",
            r#"input = "./test.parquet", label = "class", names = { "egg" = "" }"#,
            "`bad`: the name of class 4",
        ),
        (
            "a rename of an unknown class",
            r#"input = "./test.parquet", label = "class", names = { "appel" = "x" }"#,
            "did you mean `apple`?",
        ),
        ("no such column", r#"input = "./test.parquet", label = "clas""#, "did you mean `class`?"),
        ("numbers without names", r#"input = "./test.parquet", label = "number""#, "class_names"),
        ("no usable rows", r#"input = "./few.parquet", label = "class""#, "all of its 3 rows were rejected"),
        ("no rows", r#"input = "./none.parquet", label = "class""#, "there are no classes"),
    ];
    for (name, set, expected) in cases {
        let options = format!("model = \"./model\"\nsets = [{{ name = \"bad\", {set} }}]");
        match bench.evaluate(&format!("out {name}"), &options).await {
            Err(RunError::User { message, hint }) => {
                let all = format!("{message} {}", hint.unwrap_or_default());
                assert!(all.contains(expected) && all.contains("`bad`"), "{name}: {all}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let options =
        "model = \"./model\"\nsets = [{ name = \"a\", input = \"./test.parquet\", label = \"class\" }]";
    let model = bench.path("model");
    let clip = Clip::load(&model).unwrap();
    let projection = &clip.variables()["visual.proj"];
    projection.set(&(projection.as_tensor() * f64::NAN).unwrap()).unwrap();
    clip.save(&model).unwrap();
    let error = bench.evaluate("diverged", options).await.unwrap_err();
    let RunError::User { message, .. } = error else { panic!("{error:?}") };
    assert!(message.contains("`visual.proj` holds NaN") && message.contains("diverged"), "{message}");
    std::fs::write(model.join("model.safetensors"), b"no weights").unwrap();
    let error = bench.evaluate("broken", options).await.unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn all_faults_of_the_options_are_found_without_io() {
    let schema = examples().schema();
    let faults = |options: &str| {
        let found = support::plan::<ZeroShot>(options, |input| known(input, Some(&schema)));
        found
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|fault| {
                let place = options.get(fault.span.clone()).unwrap_or_default().to_string();
                (place, format!("{} {} {}", fault.message, fault.label, fault.hint.unwrap_or_default()))
            })
            .collect::<Vec<_>>()
    };
    let set =
        |rest: &str| format!("model = \"clip\"\nsets = [{{ name = \"a\", input = \"held_out\", {rest} }}]");
    assert_eq!(faults(&set("label = \"class\"")), []);
    let cases = [
        (set("label = \"clss\""), "\"clss\"", "did you mean `class`?"),
        (set("label = \"image\""), "\"image\"", "not strings or integers"),
        (set("label = \"number\""), "\"number\"", "class names are unknown"),
        (set("label = \"class\", image = \"imag\""), "\"imag\"", "did you mean `image`?"),
        (
            set("label = \"class\", classes = [\"a\", \"a\"]"),
            "[\"a\", \"a\"]",
            "evaluation set `a`: the class name `a` occurs twice",
        ),
        (set("label = \"class\", templates = [\"a photo\"]"), "[\"a photo\"]", "`a photo` has no `{}`"),
        (
            "model = \"held_out\"\nsets = [{ name = \"a\", input = \"held_out\", label = \"class\" }]".into(),
            "\"held_out\"",
            "which makes no model",
        ),
        (
            "model = \"clip.train_log\"\nsets = [{ name = \"a\", input = \"held_out\", label = \"class\" }]"
                .into(),
            "\"clip.train_log\"",
            "write `clip`",
        ),
        ("model = \"clip\"\nsets = []".into(), "[]", "no evaluation sets"),
        (
            format!("{}\nprompts = [\"ensembel\"]", set("label = \"class\"")),
            "\"ensembel\"",
            "did you mean `ensemble`?",
        ),
        (format!("{}\nprompts = [\"{{}}\", \"{{}}\"]", set("label = \"class\"")), "\"{}\"", "two prompts"),
        (format!("{}\nprompts = []", set("label = \"class\"")), "[]", "no prompts"),
        (format!("{}\nbatch_size = 0", set("label = \"class\"")), "0", "at least 1"),
        (
            format!("{}\nlimits = {{ max_pixels = 0 }}", set("label = \"class\"")),
            "{ max_pixels = 0 }",
            "max_pixels",
        ),
    ];
    for (options, place, expected) in cases {
        let found = faults(&options);
        assert!(
            matches!(&found[..], [(at, message)] if at == place && message.contains(expected)),
            "{options}\n{found:?}"
        );
    }
    let many = "model = \"held_out\"\nbatch_size = 0\nsets = [{ name = \"a\", input = \"held_out\", label = \"x\" }, { name = \"a\", input = \"held_out\", label = \"class\" }]";
    assert_eq!(faults(many).len(), 4, "{:?}", faults(many));
    let refused =
        toml::from_str::<ZeroShot>("model = \"clip\"\nsets = []\nprompts = [3]").unwrap_err().to_string();
    assert!(refused.contains("a template"), "{refused}");
    let refused = toml::from_str::<ZeroShot>(
        "model = \"clip\"\nsets = []\nprompts = [{ name = \"x\", template = [] }]",
    )
    .unwrap_err()
    .to_string();
    assert!(refused.contains("unknown field `template`"), "{refused}");
}

#[test]
fn the_example_parses_and_the_kind_is_registered() {
    let mut registry = twinlens_pipeline::Registry::default();
    twinlens_eval::register(&mut registry);
    let kind = registry.kind("zero-shot").unwrap();
    let document: toml::Table = toml::from_str(kind.example).unwrap();
    let mut table = document["stages"]["zero_shot"].as_table().unwrap().clone();
    assert_eq!(table.remove("kind").unwrap().as_str(), Some(ZeroShot::NAME));
    let (plan, _) =
        support::plan::<ZeroShot>(&toml::to_string(&table).unwrap(), |input| known(input, None)).unwrap();
    assert_eq!(
        plan.inputs.iter().map(|port| port.input.name()).collect::<Vec<_>>(),
        ["held_out", "digits/test.parquet", "clip"]
    );
}
