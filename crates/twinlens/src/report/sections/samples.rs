//! Sample images with correct and wrong predictions, chosen by their hashes.

use serde_json::Value;
use twinlens_dataset::{Dataset, MAIN, contracts};
use twinlens_image::{Encode, Encoding, Limits, Resize, ResizeMode, process};

use super::super::model::{Block, Picture, Section};
use super::super::query::{ReportData, Row, fetch_rows};
use crate::errors::Failure;
use crate::syntax::literal;
use crate::views::Table;

/// Images per set, both correct and wrong.
const EACH: usize = 6;
const MAX_SETS: usize = 4;
/// Pixels of the shorter side.
const SIDE: u32 = 96;

pub(super) async fn samples(data: &ReportData<'_>) -> Result<Section, Failure> {
    let (id, title) = ("samples", "Sample predictions");
    let mut blocks = Vec::new();
    for dataset in data.datasets {
        if dataset.schema("predictions").is_err() || dataset.schema("per_class").is_err() {
            continue;
        }
        for (set, input) in sets(dataset) {
            if blocks.len() >= 2 * MAX_SETS {
                break;
            }
            let Some(images) = images(data.datasets, &input) else { continue };
            let pictures = pictures(data, dataset, &set, &images).await?;
            if !pictures.is_empty() {
                blocks.push(Block::Text(format!("Set {set}, stage {}:", dataset.state().begin.stage)));
                blocks.push(Block::Pictures(pictures));
            }
        }
    }
    if blocks.is_empty() {
        return Ok(Section::empty(id, title, "This run has no images with predictions."));
    }
    Ok(Section { id, title, blocks })
}

/// Name and input of each evaluation set of a stage.
fn sets(dataset: &Dataset) -> Vec<(String, String)> {
    let sets =
        dataset.state().begin.recipe.get("options").and_then(|options| options.get("sets")?.as_array());
    let text = |set: &Value, key: &str| set.get(key).and_then(Value::as_str).map(String::from);
    sets.into_iter().flatten().filter_map(|set| Some((text(set, "name")?, text(set, "input")?))).collect()
}

/// The main table of a stage of this run, if it has images.
fn images(datasets: &[Dataset], input: &str) -> Option<String> {
    let found = datasets.iter().find(|dataset| dataset.state().begin.stage == input)?;
    let schema = found.schema(MAIN).ok()?;
    (contracts::has_images(&schema) && schema.field_with_name("uid").is_ok())
        .then(|| Table { dataset: found, table: MAIN }.sql())
}

async fn pictures(
    data: &ReportData<'_>,
    dataset: &Dataset,
    set: &str,
    images: &str,
) -> Result<Vec<Picture>, Failure> {
    let set = literal(set);
    let [predictions, classes] = ["predictions", "per_class"].map(|table| Table { dataset, table }.sql());
    let query = format!(
        "with best as (
            select prompts from {predictions} where set = {set} group by prompts
            order by avg(case when label = predicted then 1.0 else 0.0 end) desc, prompts limit 1
        ), drawn as (
            select example, label, predicted, score, p.prompts,
                row_number() over (partition by label = predicted order by example) as place
            from {predictions} p where set = {set} and prompts in (select prompts from best)
        )
        select drawn.*, c.class_name, d.class_name as predicted_name, i.image['bytes'] as bytes
        from drawn join {images} i on i.uid = drawn.example
        join {classes} c on c.set = {set} and c.prompts = drawn.prompts and c.class_id = drawn.label
        join {classes} d on d.set = {set} and d.prompts = drawn.prompts and d.class_id = drawn.predicted
        where drawn.place <= {EACH} order by drawn.label <> drawn.predicted, drawn.place"
    );
    let rows = fetch_rows(data.session, &query).await?;
    Ok(rows.iter().filter_map(|row| picture(&row)).collect())
}

/// A thumbnail with its prediction; `None` if the image cannot be decoded.
fn picture(row: &Row<'_>) -> Option<Picture> {
    let resize = Resize { size: SIDE, mode: ResizeMode::Shortest, ..Resize::default() };
    let encode = Encode { format: Encoding::Png, quality: None };
    let thumbnail = process(&row.bytes("bytes")?, &Limits::default(), &resize, &encode).ok()?;
    let (label, predicted) = (row.text("class_name"), row.text("predicted_name"));
    let is_correct = label == predicted;
    Some(Picture {
        png: thumbnail.bytes,
        alt: format!("An image of the class {label}"),
        label,
        predicted,
        is_correct,
    })
}
