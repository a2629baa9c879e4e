use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use twinlens_eval::vectors::Dtype;
use twinlens_eval::{Embed, Probe};

use super::*;

/// Vectors around the centres of four classes, in the schema of an `embed` stage.
fn vectors(rows: usize, seed: u64, noise: f32, model: &str) -> RecordBatch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let centre = |class: usize, place: usize| if place % 4 == class { 1.0 } else { 0.0 };
    let mut values = Vec::new();
    for row in 0..rows {
        let vector: Vec<f32> =
            (0..WIDTH).map(|place| centre(row % 4, place) + noise * rng.random_range(-1.0..1.0f32)).collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        values.extend(vector.iter().map(|x| x / length));
    }
    RecordBatch::try_from_iter([
        ("uid", texts((0..rows).map(|row| Some(format!("{row:032x}"))).collect())),
        ("class", texts((0..rows).map(|row| (row != 5).then(|| CLASSES[row % 4].into())).collect())),
        ("embedding", Dtype::F32.column(values, WIDTH, None).unwrap()),
        ("embedding_model", texts(vec![Some(model.into()); rows])),
    ])
    .unwrap()
}

fn place(noise: f32) -> Place {
    let place = Place::new();
    write_parquet(&place.path("train.parquet"), &vectors(240, 1, noise, "abc, clip"));
    write_parquet(&place.path("test.parquet"), &vectors(120, 2, noise, "abc, clip"));
    place
}

const OPTIONS: &str = r#"
sets = [{ name = "things", train = "train.parquet", test = "test.parquet", label = "class" }]
repeats = 3
"#;

#[tokio::test]
async fn probes_learn_separable_classes() {
    let place = place(0.9);
    let dataset = place.done::<Probe>("probes", OPTIONS).await.unwrap();
    let top1 = sql(&dataset, "select task, prompts, value, ci_low, ci_high, chance, n, weights_hash from data where metric = 'top1'").await;
    let tasks = ["linear-probe", "knn", "few-shot", "few-shot", "few-shot", "few-shot", "few-shot"];
    assert_eq!(strings(&top1, 0), tasks);
    assert_eq!(strings(&top1, 1)[1..], ["k = 20", "1 shot", "2 shots", "4 shots", "8 shots", "16 shots"]);
    let (value, low, high) = (floats(&top1, 2), floats(&top1, 3), floats(&top1, 4));
    assert!(value[0] > 0.8 && value[1] > 0.8, "{value:?}");
    assert!(value[2] > 0.3 && value[2] < value[4] && value[4] < value[6], "a curve rises: {value:?}");
    assert!((0..7).all(|row| low[row] <= value[row] && value[row] <= high[row]));
    assert_eq!(
        (floats(&top1, 5)[0], floats(&top1, 6)[0], strings(&top1, 7)[0].as_str()),
        (0.25, 119.0, "abc")
    );
    let counted =
        sql(&dataset, "select prompts, sum(n), sum(correct) from per_class group by 1 order by 1 desc").await;
    assert_eq!(floats(&counted, 1), [119.0, 119.0]);
    let right = sql(&dataset, "select prompts, count(*), sum(cast(label = predicted as int)) from predictions group by 1 order by 1 desc").await;
    assert_eq!((floats(&right, 1), floats(&right, 2)), (floats(&counted, 1), floats(&counted, 2)));
    let ledger = sql(&dataset, "select reject_code, reject_detail from rejects").await;
    assert_eq!(strings(&ledger, 0), ["no_label"; 3]);
    assert!(strings(&ledger, 1)[0].contains("test.parquet row 5"));
}

#[tokio::test]
async fn an_interrupted_probe_resumes_to_the_same_bytes() {
    let place = place(0.9);
    let options = format!("{OPTIONS}tasks = [\"few-shot\", \"linear-probe\"]\nshots = [1, 3]");
    let whole = place.done::<Probe>("whole", &options).await.unwrap();
    let stopped = place.run::<Probe>(&interrupted(place.cx()), "parts", &options).await;
    assert!(matches!(stopped, Err(RunError::Interrupted)), "{stopped:?}");
    let parts = place.done::<Probe>("parts", &options).await.unwrap();
    assert_eq!(content(&parts), content(&whole));
    assert_eq!(whole.state().commits.len(), 2);
}

#[tokio::test]
async fn validation_examples_and_max_examples_are_used() {
    let place = place(0.3);
    write_parquet(&place.path("held.parquet"), &vectors(40, 3, 0.3, "abc, clip"));
    let options = OPTIONS.replace("label =", "validation = \"held.parquet\", label =");
    let options = format!("{options}tasks = [\"linear-probe\", \"knn\"]\nmax_examples = 60");
    let dataset = place.done::<Probe>("probes", &options).await.unwrap();
    let value = floats(&sql(&dataset, "select value from data where metric = 'top1'").await, 0);
    assert!(value.iter().all(|value| *value > 0.95), "{value:?}");
}

#[tokio::test]
async fn incompatible_parts_are_reported() {
    let place = place(0.5);
    write_parquet(&place.path("other.parquet"), &vectors(40, 3, 0.5, "def, clip"));
    let other = said(place.done::<Probe>("a", &OPTIONS.replace("test.parquet", "other.parquet")).await);
    assert!(other.contains("another model (def") && other.contains("same model"), "{other}");
    let plain = RecordBatch::try_from_iter([("class", texts(vec![Some("apple".into())]))]).unwrap();
    let found = faults::<Probe>(OPTIONS, Some(plain.schema().as_ref().clone()));
    assert!(
        found.len() == 2 && found[0].contains("no column `embedding`") && found[0].contains("`embed` stage"),
        "{found:?}"
    );
    for (options, expected) in [
        ("neighbours = 0", "`neighbours` is 0"),
        ("shots = [4, 0]", "`shots` is 0"),
        ("validation_share = 1.0", "must be between 0 and 1"),
    ] {
        let found = faults::<Probe>(&format!("{OPTIONS}{options}"), None);
        assert!(found.len() == 1 && found[0].contains(expected), "{options}: {found:?}");
    }
}

/// A user's own labelled file: its label column passes through `embed`.
#[tokio::test]
async fn labels_of_a_file_reach_the_probe() {
    let place = Place::new();
    let embed = "input = \"test.parquet\"\nmodel = \"./model\"\nwidth = 12\n";
    place.done::<Embed>("vectors", embed).await.unwrap();
    let options = r#"
sets = [{ name = "things", train = "vectors", test = "vectors", label = "class" }]
tasks = ["knn"]
"#;
    let dataset = place.done::<Probe>("probes", options).await.unwrap();
    let found = sql(&dataset, "select value, n from data where metric = 'top1'").await;
    assert!(floats(&found, 0)[0] > 0.25 && floats(&found, 1)[0] == 50.0, "{found:?}");
}
