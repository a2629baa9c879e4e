//! Multi-label sets, sets of two classes, and overlap with the training images.

use arrow::array::ListArray;
use sha2::{Digest, Sha256};
use twinlens_image::{decode, phash};

use super::*;

#[tokio::test]
async fn multi_label_sets_are_scored_by_ranking() {
    let bench = Bench::new();
    let bytes: Vec<Option<Vec<u8>>> = (0..30).map(|seed| Some(png(seed))).collect();
    let labels = |of: &dyn Fn(u32) -> Option<Vec<Option<i64>>>| -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>((0..30).map(of)))
    };
    let present = labels(&|row| match row {
        7 => None,
        8 => Some(vec![Some(5)]),
        row => {
            Some((0..3).filter(|class| row % (class + 2) == 0).map(|class| Some(i64::from(class))).collect())
        }
    });
    let ignored = labels(&|row| Some(if row == 1 { vec![Some(0)] } else { vec![] }));
    let batch = RecordBatch::try_from_iter([
        ("image", images(&bytes)),
        ("labels", present),
        ("ignored_labels", ignored),
    ]);
    write_parquet(&bench.path("several.parquet"), &batch.unwrap());
    let options = "model = \"./model\"\nprompts = [\"{}\"]\nsets = [{ name = \"s\", input = \"./several.parquet\", label = \"labels\", class_names = [\"apple\", \"boat\", \"cloud\"], main_metric = \"map_11_point\" }]";
    let dataset = bench.evaluate("out", options).await.unwrap();
    let rows = sql(&dataset, "select value, ci_low, ci_high, chance, metric, n from accuracy").await;
    let metrics: Vec<&str> = rows.column(4).as_string::<i32>().iter().flatten().collect();
    assert_eq!(metrics, ["map_11_point", "map"]);
    for row in 0..2 {
        let [value, low, high, chance] = [0, 1, 2, 3].map(|column| floats(&rows, column)[row]);
        assert!(0.0 < low && low <= value && value <= high && high <= 1.0, "{value} [{low}, {high}]");
        // About a third of the images have a class; the labels are unrelated to the model.
        assert!((0.25..0.6).contains(&chance) && low <= chance && chance <= high, "{chance}");
        assert_eq!(rows.column(5).as_primitive::<Int64Type>().value(row), 28);
    }
    let ledger = sql(&dataset, "select reject_code from rejects order by 1").await;
    assert_eq!(
        ledger.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(),
        ["no_label", "unknown_label"]
    );
    let classes = sql(&dataset, "select n, correct from per_class order by class_id").await;
    assert_eq!(classes.column(0).as_primitive::<Int64Type>().values(), &[14, 10, 7]);
    let predictions = sql(&dataset, "select label from predictions").await;
    assert_eq!(predictions.column(0).null_count(), 28);
}

#[tokio::test]
async fn two_classes_have_an_area_under_the_curve() {
    let bench = Bench::new();
    let options = "model = \"./model\"\nprompts = [\"{}\"]\nsets = [{ name = \"s\", input = \"./test.parquet\", label = \"class\", classes = [\"fox\", \"egg\"], main_metric = \"roc_auc\" }]";
    let dataset = bench.evaluate("out", options).await.unwrap();
    let rows =
        sql(&dataset, "select value, chance, metric, n, part, program, preprocess_hash from accuracy").await;
    let text = |column: usize| rows.column(column).as_string::<i32>().value(0).to_string();
    assert_eq!((text(2), text(4), floats(&rows, 1)[0]), ("roc_auc".into(), "all".into(), 0.5));
    assert!(text(5).starts_with("twinlens ") && text(6).len() == 64);
    assert!((0.0..=1.0).contains(&floats(&rows, 0)[0]) && rows.num_rows() == 3);
}

#[tokio::test]
async fn training_images_are_reported_separately() {
    let bench = Bench::new();
    // The first seven match by SHA-256, the next three by perceptual hash, the others not at all.
    let bytes = |seed: u32| png(seed);
    let hashes = (0..7)
        .map(|seed| hex::encode(Sha256::digest(bytes(seed))))
        .chain(std::iter::repeat_n("0".repeat(64), 5));
    let phash = |seed: u32| phash(&decode(&bytes(seed), &Limits::default()).unwrap().rgb).unwrap();
    let phashes = (200..207).map(phash).chain((7..10).map(phash)).chain([phash(207), phash(208)]);
    let batch = RecordBatch::try_from_iter([
        ("sha256", Arc::new(StringArray::from_iter_values(hashes)) as ArrayRef),
        ("phash", Arc::new(Int64Array::from_iter_values(phashes)) as ArrayRef),
    ]);
    write_parquet(&bench.path("train.parquet"), &batch.unwrap());
    let options = "model = \"./model\"\nprompts = [\"{}\"]\nsets = [{ name = \"s\", input = \"./test.parquet\", label = \"class\", overlap_with = \"./train.parquet\" }]";
    let dataset = bench.evaluate("out", options).await.unwrap();
    let rows =
        sql(&dataset, "select part, n, value * n from accuracy where metric = 'top1' order by part").await;
    let parts: Vec<&str> = rows.column(0).as_string::<i32>().iter().flatten().collect();
    assert_eq!(parts, ["all", "clean", "overlap"]);
    let n = rows.column(1).as_primitive::<Int64Type>().values().to_vec();
    // At least those ten: others may have similar perceptual hashes by chance.
    assert!(n[0] == 70 && n[1] + n[2] == 70 && (10..40).contains(&n[2]), "{n:?}");
    let correct = floats(&rows, 2);
    assert!((correct[0] - correct[1] - correct[2]).abs() < 1e-9, "{correct:?}");
    let warned = sql(&dataset, "select detail, value from warnings where code = 'trained_on'").await;
    assert!(warned.column(0).as_string::<i32>().value(0).contains("7 by SHA-256"));
    assert!((floats(&warned, 1)[0] - n[2] as f64 / 70.0).abs() < 1e-12);
}
