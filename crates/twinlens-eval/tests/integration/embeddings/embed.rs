use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use twinlens_eval::model::Model;
use twinlens_eval::vectors::{EMBEDDING, TEXT_EMBEDDING, Vectors, cosine};
use twinlens_eval::{Embed, ZeroShot, search};

use super::*;
use crate::support::save_model;

const OPTIONS: &str = r#"
input = "test.parquet"
model = "./model"
width = 12
captions = "caption"
text_embeddings = true
batch_size = 8
split_rows = 20
"#;

async fn rows(dataset: &Dataset) -> RecordBatch {
    sql(dataset, "select * from data order by uid").await
}

#[tokio::test]
async fn embeddings_match_those_of_single_images() {
    let place = Place::new();
    let dataset = place.done::<Embed>("vectors", OPTIONS).await.unwrap();
    let rows = rows(&dataset).await;
    let names: Vec<_> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(
        names,
        [
            "uid",
            "class",
            "caption",
            "embedding",
            "embedding_model",
            "image_sha256",
            "text_embedding",
            "clip_score"
        ]
    );
    assert_eq!(rows.num_rows(), 50);
    let (clip, tokenizer) = place.clip();
    let (image, text) = (
        Vectors::from_column(&rows, EMBEDDING).unwrap(),
        Vectors::from_column(&rows, TEXT_EMBEDDING).unwrap(),
    );
    let scores = rows.column_by_name("clip_score").unwrap().as_primitive::<Float32Type>();
    let captions = rows.column_by_name("caption").unwrap().as_string::<i32>();
    for row in 0..50 {
        let (own, expected) = (image.get(row).unwrap(), image_vector(&clip, &png(row as u32)));
        assert!(own.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "row {row}");
        assert!((own.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        if captions.is_null(row) {
            assert!(text.get(row).is_none() && scores.is_null(row));
            continue;
        }
        let expected = text_vector(&clip, &tokenizer, captions.value(row));
        assert!(text.get(row).unwrap().iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!((f64::from(scores.value(row)) - cosine(own, &expected)).abs() < 1e-5);
    }
    assert_eq!(scores.null_count(), 2);
    let ledger = sql(&dataset, "select uid, reject_code, reject_detail from rejects order by uid").await;
    assert_eq!(strings(&ledger, 1), ["truncated", "no_image"]);
    assert!(strings(&ledger, 2)[0].contains("test.parquet row 50"), "{:?}", strings(&ledger, 2));
    assert_eq!(dataset.state().rows_in(), Some(52));
}

#[tokio::test]
async fn an_interrupted_run_resumes_to_the_same_bytes_with_any_memory() {
    let place = Place::new();
    let whole = place.done::<Embed>("whole", OPTIONS).await.unwrap();
    assert_eq!(whole.state().commits.len(), 3);
    let stopped = place.run::<Embed>(&interrupted(place.cx()), "parts", OPTIONS).await;
    assert!(matches!(stopped, Err(RunError::Interrupted)), "{stopped:?}");
    let little = RunContext { bytes_in_flight: 3000, ..place.cx() };
    let parts = place.run::<Embed>(&little, "parts", OPTIONS).await.unwrap();
    assert_eq!(content(&parts), content(&whole));
}

#[tokio::test]
async fn half_precision_is_close() {
    let place = Place::new();
    let whole = rows(&place.done::<Embed>("whole", OPTIONS).await.unwrap()).await;
    let half = format!("{OPTIONS}dtype = \"f16\"");
    let half = rows(&place.done::<Embed>("half", &half).await.unwrap()).await;
    let kind = half.column_by_name(EMBEDDING).unwrap().data_type().to_string();
    assert!(kind.contains("Float16"), "{kind}");
    let (whole, half) =
        (Vectors::from_column(&whole, EMBEDDING).unwrap(), Vectors::from_column(&half, EMBEDDING).unwrap());
    for row in 0..50 {
        assert!(cosine(whole.get(row).unwrap(), half.get(row).unwrap()) > 0.99999);
    }
}

const SETS: &str = r#"
model = "./model"
sets = [{ name = "things", input = "INPUT", label = "class" }]
prompts = ["{}", "a photo of a {}.", "ensemble"]
batch_size = 8
"#;

#[tokio::test]
async fn zero_shot_gives_the_same_results_on_embeddings_and_images() {
    let place = Place::new();
    // One split, so that the batches are the same as on images.
    let embed = OPTIONS.replace("split_rows = 20", "");
    place.done::<Embed>("vectors", &embed).await.unwrap();
    let direct = place.done::<ZeroShot>("direct", &SETS.replace("INPUT", "test.parquet")).await.unwrap();
    let stored = place.done::<ZeroShot>("stored", &SETS.replace("INPUT", "vectors")).await.unwrap();
    let file = |dataset: &Dataset, table: &str| {
        content(dataset).into_iter().find(|(path, _)| path.starts_with(table))
    };
    for table in ["predictions", "per_class", "calibration"] {
        assert!(file(&direct, table).is_some(), "{table}");
        assert_eq!(file(&direct, table), file(&stored, table), "{table}");
    }
    let numbers = "select set, prompts, metric, value, ci_low, ci_high, n, weights_hash from data";
    assert_eq!(sql(&direct, numbers).await, sql(&stored, numbers).await);
    // The set differs: `embed` rejected two of its images.
    let hash = "select distinct set_hash from data";
    assert_ne!(sql(&direct, hash).await, sql(&stored, hash).await);
}

#[tokio::test]
async fn a_set_has_the_same_hash_on_images_and_embeddings() {
    let place = Place::new();
    write_parquet(&place.path("good.parquet"), &examples().slice(0, 50));
    place.done::<Embed>("vectors", &OPTIONS.replace("test.parquet", "good.parquet")).await.unwrap();
    let direct = place.done::<ZeroShot>("direct", &SETS.replace("INPUT", "good.parquet")).await.unwrap();
    let stored = place.done::<ZeroShot>("stored", &SETS.replace("INPUT", "vectors")).await.unwrap();
    let hash = "select distinct set_hash from data";
    assert_eq!(sql(&direct, hash).await, sql(&stored, hash).await);
}

#[tokio::test]
async fn vectors_of_another_model_are_refused() {
    let place = Place::new();
    place.done::<Embed>("vectors", OPTIONS).await.unwrap();
    save_model(&place.path("model"), 6);
    let refused = said(place.done::<ZeroShot>("stored", &SETS.replace("INPUT", "vectors")).await);
    assert!(refused.contains("were made by another model") && refused.contains("`embed` stage"), "{refused}");
}

#[tokio::test]
async fn search_finds_the_nearest_rows() {
    let place = Place::new();
    let dataset = place.done::<Embed>("vectors", OPTIONS).await.unwrap();
    let model = Model::load("./model".into(), &place.path("model"), Default::default()).unwrap();
    let query = search::image(&model, &png(33)).unwrap();
    let found = search::nearest(&dataset, MAIN, &query, &model.identity(), 5, &["uid", "nothing"]).unwrap();
    assert_eq!(found.num_rows(), 5);
    assert_eq!(strings(&found, 1)[0], format!("{:032x}", 33));
    let own = floats(&found, 0);
    assert!((own[0] - 1.0).abs() < 1e-6 && own.is_sorted_by(|a, b| a >= b), "{own:?}");
    // The reference: all cosines.
    let rows = rows(&dataset).await;
    let vectors = Vectors::from_column(&rows, EMBEDDING).unwrap();
    let mut all: Vec<(f32, usize)> =
        (0..50).map(|row| (cosine(&query, vectors.get(row).unwrap()) as f32, row)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let expected: Vec<String> = all[..5].iter().map(|(_, row)| format!("{row:032x}")).collect();
    assert_eq!(strings(&found, 1), expected);
    assert_eq!(search::text(&model, "a boat").unwrap().len(), WIDTH);
    let other = search::nearest(&dataset, MAIN, &query, "other", 5, &[]).unwrap_err().to_string();
    assert!(other.contains("another model"), "{other}");
}

#[tokio::test]
async fn invalid_options_are_reported() {
    let schema = || Some(examples().schema().as_ref().clone());
    let base = "input = \"./a.parquet\"\nmodel = \"./m\"\n";
    let cases = [
        ("width = 0", "`width` is out of range"),
        ("width = 12\ntext_embeddings = true", "`text_embeddings` needs `captions`"),
        ("width = 12\ncaptions = \"captoin\"", "did you mean `caption`?"),
        ("width = 12\ncaptions = \"image\"", "expected text"),
        ("width = 12\nimage = \"picture\"", "`picture`"),
        ("width = 12\nbatch_size = 0", "`batch_size` is 0"),
        ("width = 12\nsplit_rows = 0", "`split_rows` is 0"),
    ];
    for (options, expected) in cases {
        let found = faults::<Embed>(&format!("{base}{options}"), schema());
        assert!(found.len() == 1 && found[0].contains(expected), "{options}: {found:?}");
    }
    let place = Place::new();
    let wrong = said(place.done::<Embed>("vectors", &OPTIONS.replace("width = 12", "width = 13")).await);
    assert!(wrong.contains("have a width of 12, not 13 / set `width = 12`"), "{wrong}");
}
