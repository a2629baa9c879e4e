//! Synonyms, averages of probabilities, the cache of text embeddings, and the selection of
//! templates.

use super::*;

/// The normalised embedding of a text.
fn text(clip: &Clip, tokenizer: &Tokenizer, prompt: &str) -> Vec<f32> {
    normal(text_vector(clip, tokenizer, prompt))
}

fn normal(mut values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter_mut().for_each(|value| *value /= length);
    values
}

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    (0..rows[0].len()).map(|at| rows.iter().map(|row| row[at]).sum::<f32>() / rows.len() as f32).collect()
}

const OPTIONS: &str = r#"
model = "./model"
sets = [{ name = "s", input = "./test.parquet", label = "class", synonyms = { "egg" = ["oval", "breakfast"] } }]
prompts = [{ name = "mean", templates = ["one {}", "{c}, drawn"] }, { name = "probable", templates = ["one {}", "{c}, drawn"], space = "probability" }]
"#;

/// Reference implementation: one prompt at a time.
#[tokio::test]
async fn names_and_templates_are_averaged_in_both_spaces() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", OPTIONS).await.unwrap();
    let (clip, tokenizer) = load_model(&bench.path("model"));
    let names = |class: &str| match class {
        "egg" => vec!["egg".to_string(), "oval".into(), "breakfast".into()],
        other => vec![other.to_string()],
    };
    let of = |class: &str, template: &str| -> Vec<Vec<f32>> {
        names(class).iter().map(|name| text(&clip, &tokenizer, &template.replace("{}", name))).collect()
    };
    let templates = ["one {}", "{}, drawn"];
    let whole: Vec<Vec<f32>> = (CLASSES.iter())
        .map(|class| normal(mean(&templates.map(|template| of(class, template)).concat())))
        .collect();
    let each: Vec<Vec<Vec<f32>>> = (templates.iter())
        .map(|template| CLASSES.iter().map(|class| normal(mean(&of(class, template)))).collect())
        .collect();
    let scale = clip.logit_scale().exp();
    let rows =
        sql(&dataset, "select prompts, score, predicted from predictions order by prompts, example").await;
    let score = rows.column(1).as_primitive::<arrow::datatypes::Float32Type>().values();
    // Ordered by uid; the fourth has none and is identified by its index.
    let mut order: Vec<(String, u32)> = (0..IMAGES as u32)
        .map(|row| (if row == 3 { "3".into() } else { format!("{row:032x}") }, row))
        .collect();
    order.sort();
    for (at, (_, row)) in order.into_iter().enumerate() {
        let image = image_vector(&clip, &png(row));
        let cosines = |classes: &[Vec<f32>]| -> Vec<f32> {
            classes.iter().map(|class| class.iter().zip(&image).map(|(a, b)| a * b).sum()).collect()
        };
        let best = |scores: &[f32]| scores.iter().copied().fold(f32::MIN, f32::max);
        assert!((score[at] - best(&cosines(&whole))).abs() < 1e-5, "row {row}");
        let softmax = |scores: Vec<f32>| {
            let powers: Vec<f32> =
                scores.iter().map(|score| (scale * (score - best(&scores))).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.iter().map(|power| power / sum).collect::<Vec<f32>>()
        };
        let probable = mean(&each.iter().map(|classes| softmax(cosines(classes))).collect::<Vec<_>>());
        assert!(
            (score[IMAGES + at] - best(&probable)).abs() < 1e-4,
            "row {row}: {} {probable:?}",
            score[IMAGES + at]
        );
    }
    let hashes = sql(&dataset, "select count(distinct prompts_hash) from accuracy").await;
    assert_eq!(hashes.column(0).as_primitive::<Int64Type>().value(0), 2);
    // For probabilities, the confidence is the score itself.
    let calibration = sql(&dataset, "select confidence from calibration where prompts = 'probable'").await;
    let confidence = score[IMAGES..].iter().map(|score| f64::from(*score)).sum::<f64>() / IMAGES as f64;
    assert!((floats(&calibration, 0)[0] - confidence).abs() < 1e-6);
}

#[tokio::test]
async fn text_embeddings_are_cached_and_damaged_files_replaced() {
    let bench = Bench::new();
    let first = bench.evaluate("first", OPTIONS).await.unwrap();
    let files = || {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(bench.path("texts")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let cached = files();
    assert_eq!(cached.len(), 2);
    let bytes: Vec<Vec<u8>> = cached.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(content(&bench.evaluate("second", OPTIONS).await.unwrap()), content(&first));
    std::fs::write(&cached[0], b"damaged").unwrap();
    std::fs::write(&cached[1], &bytes[1][..bytes[1].len() / 2]).unwrap();
    assert_eq!(content(&bench.evaluate("third", OPTIONS).await.unwrap()), content(&first));
    assert_eq!(cached.iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>(), bytes);
    // Another model has other embeddings.
    save_model(&bench.path("model"), 6);
    bench.evaluate("other", OPTIONS).await.unwrap();
    assert_eq!(files().len(), 4);
}

#[tokio::test]
async fn templates_are_selected_on_a_held_out_part() {
    let bench = Bench::new();
    let templates: Vec<String> =
        (0..12).map(|at| format!("\"{} {{}} {}\"", CLASSES[at % 7], CLASSES[(at * 3) % 7])).collect();
    let options = format!(
        "model = \"./model\"\nsets = [{{ name = \"s\", input = \"./test.parquet\", label = \"class\" }}]
prompts = [\"{{}}\", {{ name = \"best\", templates = [{0}], select = {{ most = 3, held_out = 0.4 }} }}, {{ name = \"all\", templates = [{0}] }}]",
        templates.join(", ")
    );
    let dataset = bench.evaluate("out", &options).await.unwrap();
    let n =
        sql(&dataset, "select prompts, n, prompts_hash from accuracy where metric = 'top1' order by prompts")
            .await;
    let counts = n.column(1).as_primitive::<Int64Type>().values().to_vec();
    assert_eq!((counts[0], counts[2]), (70, 70));
    assert!((25..60).contains(&counts[1]), "{counts:?}");
    let hash = |row: usize| n.column(2).as_string::<i32>().value(row).to_string();
    assert_ne!(hash(0), hash(1));
    let predicted = sql(&dataset, "select count(*) from predictions where prompts = 'best'").await;
    assert_eq!(predicted.column(0).as_primitive::<Int64Type>().value(0), counts[1]);
    assert_eq!(content(&bench.evaluate("again", &options).await.unwrap()), content(&dataset));
    let refused =
        "model = \"./model\"\nsets = [{ name = \"s\", input = \"./test.parquet\", label = \"class\" }]
prompts = [{ name = \"best\", templates = [\"{}\"], select = { held_out = 1.5 } }]";
    let faults = support::plan::<ZeroShot>(refused, |input| known(input, None)).err().unwrap();
    assert!(faults[0].message.contains("between 0 and 1"), "{faults:?}");
}
