use arrow::array::{ListBuilder, StringBuilder};
use twinlens_eval::metrics::retrieval::{image_to_text, text_to_image};
use twinlens_eval::{Embed, Retrieval};

use super::*;

/// 30 images with two captions each, except number 4, which has none; number 3 again in a row of
/// its own with a third caption; and a damaged image.
fn captioned() -> RecordBatch {
    let order: Vec<u32> = (0..30).chain([3]).collect();
    let mut bytes: Vec<Option<Vec<u8>>> = order.iter().map(|seed| Some(png(*seed))).collect();
    bytes.push(Some(png(99)[..60].to_vec()));
    let mut captions = ListBuilder::new(StringBuilder::new());
    for row in 0..bytes.len() {
        match row {
            4 => captions.append_null(),
            30 => captions.append_value([Some("once more")]),
            row => captions
                .append_value([Some(format!("{} {row}", CLASSES[row % 4])), Some(format!("number {row}"))]),
        }
    }
    RecordBatch::try_from_iter([
        ("uid", texts((0..bytes.len()).map(|row| Some(format!("{row:032x}"))).collect())),
        ("image", images(&bytes)),
        ("captions", Arc::new(captions.finish()) as ArrayRef),
    ])
    .unwrap()
}

const OPTIONS: &str = r#"
model = "./model"
sets = [{ name = "pairs", input = "INPUT", captions = "captions" }]
template = "a photo of {}"
batch_size = 8
"#;

#[tokio::test]
async fn recalls_match_those_of_all_similarities() {
    let place = Place::new();
    write_parquet(&place.path("pairs.parquet"), &captioned());
    let dataset = place.done::<Retrieval>("found", &OPTIONS.replace("INPUT", "pairs.parquet")).await.unwrap();
    let rows =
        sql(&dataset, "select metric, value, ci_low, ci_high, chance, n, task, prompts from data").await;
    let (clip, tokenizer) = place.clip();
    let mut image_of_text = Vec::new();
    let mut text = Vec::new();
    for row in (0..30).filter(|row| *row != 4) {
        text.push(format!("{} {row}", CLASSES[row % 4]));
        text.push(format!("number {row}"));
        image_of_text.extend([row, row]);
    }
    text.push("once more".into());
    image_of_text.push(3);
    let vector = |text: &String| text_vector(&clip, &tokenizer, &format!("a photo of {text}"));
    let (texts, images): (Vec<_>, Vec<_>) =
        (text.iter().map(vector).collect(), (0..30).map(|seed| image_vector(&clip, &png(seed))).collect());
    let dot = |a: &Vec<f32>, b: &Vec<f32>| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let by_text: Vec<Vec<f32>> =
        texts.iter().map(|text| images.iter().map(|image| dot(text, image)).collect()).collect();
    let by_image: Vec<Vec<f32>> =
        images.iter().map(|image| texts.iter().map(|text| dot(text, image)).collect()).collect();
    let ks = [1, 5, 10];
    let found = [
        text_to_image(by_text.iter().map(|row| &row[..]), &image_of_text, &ks),
        image_to_text(by_image.iter().map(|row| &row[..]), &image_of_text, &ks),
    ];
    let expected: Vec<f64> =
        found.iter().flat_map(|recall| recall.values()).map(|(_, value, _)| value).collect();
    let (value, low, high) = (floats(&rows, 1), floats(&rows, 2), floats(&rows, 3));
    assert_eq!(value, expected);
    assert!((0..6).all(|row| low[row] <= value[row] && value[row] <= high[row]));
    let names = |from: &str| ks.map(|k| format!("{from}_retrieval_recall@{k}"));
    assert_eq!(strings(&rows, 0), [names("image"), names("text")].concat());
    assert_eq!(floats(&rows, 5), [59.0, 59.0, 59.0, 29.0, 29.0, 29.0]);
    let chance = floats(&rows, 4);
    assert!((chance[1] - 5.0 / 30.0).abs() < 1e-12);
    // 28 images have two of 59 captions, one has three.
    assert!((chance[3] - (28.0 * 2.0 + 3.0) / 59.0 / 29.0).abs() < 1e-12);
    assert_eq!(
        (strings(&rows, 6)[0].as_str(), strings(&rows, 7)[0].as_str()),
        ("retrieval", "a photo of {}")
    );
    assert_eq!(strings(&sql(&dataset, "select reject_code from rejects").await, 0), ["truncated"]);
}

#[tokio::test]
async fn embeddings_give_the_same_results_as_images() {
    let place = Place::new();
    write_parquet(&place.path("pairs.parquet"), &captioned().slice(0, 31));
    let embed = "input = \"pairs.parquet\"\nmodel = \"./model\"\nwidth = 12\nbatch_size = 8";
    place.done::<Embed>("vectors", embed).await.unwrap();
    let direct = place.done::<Retrieval>("direct", &OPTIONS.replace("INPUT", "pairs.parquet")).await.unwrap();
    let stored = place.done::<Retrieval>("stored", &OPTIONS.replace("INPUT", "vectors")).await.unwrap();
    let numbers = "select metric, value, ci_low, ci_high, n, set_hash, classes_hash from data";
    assert_eq!(sql(&direct, numbers).await, sql(&stored, numbers).await);
}

#[tokio::test]
async fn sets_without_captions_are_reported() {
    let place = Place::new();
    let mut batch = captioned().slice(4, 1);
    write_parquet(&place.path("none.parquet"), &batch);
    let none = said(place.done::<Retrieval>("none", &OPTIONS.replace("INPUT", "none.parquet")).await);
    assert!(none.contains("`pairs`: it has no image with a caption"), "{none}");
    batch = captioned();
    let wrong = OPTIONS.replace("INPUT", "a").replace("\"captions\"", "\"caption\"");
    let found = faults::<Retrieval>(&wrong, Some(batch.schema().as_ref().clone()));
    assert!(found.len() == 1 && found[0].contains("did you mean `captions`?"), "{found:?}");
    let found = faults::<Retrieval>(&OPTIONS.replace("a photo of {}", "a photo"), None);
    assert!(found.len() == 1 && found[0].contains("has no `{}`"), "{found:?}");
    let found = faults::<Retrieval>(&format!("{OPTIONS}ks = [0, 1]"), None);
    assert!(found.len() == 1 && found[0].contains("at least 1"), "{found:?}");
}
