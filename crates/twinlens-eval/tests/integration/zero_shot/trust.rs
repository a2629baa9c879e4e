//! Warnings and calibration.

use std::io::Cursor;
use std::path::Path;

use super::*;

/// Dark and bright images, which even a random model distinguishes.
fn shade(seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(16, 16, |x, y| {
        let noise = (x * 7 + y * 13 + seed * 31).wrapping_mul(2_654_435_761) >> 27;
        image::Rgb([(200 * (seed % 2) + noise) as u8; 3])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn write_set(path: &Path, rows: &[(u32, i32)]) {
    let bytes: Vec<Option<Vec<u8>>> = rows.iter().map(|(seed, _)| Some(shade(*seed))).collect();
    let numbers = Int64Array::from_iter_values(rows.iter().map(|(_, label)| i64::from(*label)));
    let batch =
        RecordBatch::try_from_iter([("image", images(&bytes)), ("number", Arc::new(numbers) as ArrayRef)]);
    write_parquet(path, &batch.unwrap());
}

fn options(names: &[&str], renames: &str) -> String {
    format!(
        "model = \"./model\"\nprompts = [\"{{}}\"]\nsets = [{{ name = \"s\", input = \"./set.parquet\", label = \"number\", class_names = {names:?}, names = {renames} }}]"
    )
}

async fn warnings(dataset: &Dataset) -> Vec<(String, bool, String)> {
    let rows =
        sql(dataset, "select distinct code, prompts is null, detail from warnings order by code, detail")
            .await;
    let text = |column: usize, row: usize| rows.column(column).as_string::<i32>().value(row).to_string();
    (0..rows.num_rows())
        .map(|row| (text(0, row), rows.column(1).as_boolean().value(row), text(2, row)))
        .collect()
}

/// The labels are the model's own predictions, so that it is always correct; then two names in the
/// class list are swapped.
#[tokio::test]
async fn a_permuted_class_list_is_reported() {
    let bench = Bench::new();
    let path = bench.path("set.parquet");
    write_set(&path, &(0..80).map(|seed| (seed, 0)).collect::<Vec<_>>());
    let mut found = None;
    for seed in 0..40 {
        save_model(&bench.path("model"), seed);
        let dataset = bench.evaluate(&format!("predictions {seed}"), &options(&CLASSES, "{}")).await.unwrap();
        let predicted =
            sql(&dataset, "select predicted from predictions order by cast(example as int)").await;
        let predicted = predicted.column(0).as_primitive::<Int32Type>().values().to_vec();
        let mut counts: Vec<(usize, i32)> =
            (0..7).map(|class| (predicted.iter().filter(|id| **id == class).count(), class)).collect();
        counts.sort_unstable();
        if counts[5].0 >= 25 {
            found = Some((predicted, counts[5].1, counts[6].1));
            break;
        }
    }
    let (predicted, a, b) = found.expect("a model that predicts two classes");
    let rows: Vec<(u32, i32)> = (0..80).zip(predicted).filter(|(_, class)| [a, b].contains(class)).collect();
    write_set(&path, &rows);

    let correct = bench.evaluate("correct", &options(&CLASSES, "{}")).await.unwrap();
    let value = sql(&correct, "select value from accuracy where metric = 'top1'").await;
    assert_eq!(floats(&value, 0), [1.0]);
    let found = warnings(&correct).await;
    assert!(matches!(&found[..], [(code, true, _)] if code == "class_without_examples"), "{found:?}");

    let mut list = CLASSES;
    list.swap(a as usize, b as usize);
    let other =
        CLASSES.iter().position(|name| *name != CLASSES[a as usize] && *name != CLASSES[b as usize]).unwrap();
    let renames = format!("{{ \"{}\" = \"{}?\" }}", CLASSES[other], CLASSES[a as usize].to_uppercase());
    let permuted = bench.evaluate("permuted", &options(&list, &renames)).await.unwrap();
    let found = warnings(&permuted).await;
    let mut codes: Vec<(&str, bool)> =
        found.iter().map(|(code, of_set, _)| (code.as_str(), *of_set)).collect();
    codes.dedup();
    let expected = [
        ("below_chance", false),
        ("class_without_examples", true),
        ("duplicate_name", true),
        ("labels_permuted", false),
    ];
    assert_eq!(codes, expected, "{found:?}");
    let detail = &found.last().unwrap().2;
    let pair =
        |label: i32, name: i32| format!("`{}` as `{}`", CLASSES[label as usize], CLASSES[name as usize]);
    assert!(detail.contains(&pair(a, b)) && detail.contains(&pair(b, a)), "{detail}");
    assert!(found.iter().all(|(code, ..)| twinlens_eval::trust::CODES.contains(&code.as_str())));
}

#[tokio::test]
async fn calibration_compares_confidence_with_accuracy() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", TWO_SETS).await.unwrap();
    // A random model is not a sign of wrong labels.
    assert_eq!(warnings(&dataset).await, []);
    let rows = sql(
        &dataset,
        "select c.error, c.ci_low, c.ci_high, c.confidence, c.accuracy, a.value
        from calibration c join accuracy a on a.set = c.set and a.prompts = c.prompts and a.n = c.n where a.metric = 'top1'",
    )
    .await;
    assert_eq!(rows.num_rows(), 8);
    let [error, low, high, confidence, accuracy, value] =
        [0, 1, 2, 3, 4, 5].map(|column| floats(&rows, column));
    for row in 0..8 {
        assert!(low[row] <= error[row] && error[row] <= high[row], "{row}");
        assert!(
            (accuracy[row] - value[row]).abs() < 1e-12 && (0.0..=1.0).contains(&confidence[row]),
            "{row}"
        );
        // Triangle inequality over the bins.
        assert!(error[row] >= (confidence[row] - accuracy[row]).abs() - 1e-9, "{row}");
    }
}
