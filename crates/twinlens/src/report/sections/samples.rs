//! Random images of each evaluation set, with what the best prompts predict for them.
//!
//! They come from the tables `examples`, which evaluations keep, wherever the images of a set are;
//! where an evaluation read embeddings, from the dataset that was embedded.

use serde_json::Value;
use twinlens_dataset::{Dataset, MAIN, contracts};

use super::super::model::{Block, Picture, Section};
use super::super::query::{ReportData, Row, fetch_rows, random_uids};
use super::super::thumbnail::thumbnail;
use crate::errors::Failure;
use crate::syntax::literal;
use crate::views::Table;

/// At most this many images per set, correct and wrong ones each.
const EACH: usize = 12;
/// Images that are looked up where an evaluation kept none.
const EMBEDDED: usize = 48;
/// At most this many sets.
const MAX_SETS: usize = 60;

pub(super) async fn samples(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let mut blocks = Vec::new();
    let mut sets = 0;
    for dataset in data.datasets {
        if ["predictions", "per_class"].iter().any(|table| dataset.schema(table).is_err()) {
            continue;
        }
        let stage = &dataset.state().begin.stage;
        let predictions = Table { dataset, table: "predictions" }.sql();
        let query = format!("select distinct set from {predictions} order by set");
        for row in fetch_rows(data.session, &query).await?.iter() {
            let set = row.text("set");
            let Some(images) = images(data, dataset, &set).await? else { continue };
            let pictures = pictures(data, dataset, &set, &images).await?;
            if pictures.is_empty() || sets == MAX_SETS {
                continue;
            }
            sets += 1;
            blocks.push(Block::Text(format!("Set {set}, stage {stage}:")));
            blocks.push(Block::Pictures(pictures));
        }
    }
    Ok(Section::new("samples", "Predictions for random images", blocks))
}

/// A query for the images of a set, with the names of their examples.
async fn images(data: &ReportData<'_>, dataset: &Dataset, set: &str) -> Result<Option<String>, Failure> {
    if dataset.schema("examples").is_ok() {
        let examples = Table { dataset, table: "examples" }.sql();
        let kept = format!("select example, image from {examples} where set = {}", literal(set));
        if !fetch_rows(data.session, &format!("select example from ({kept}) limit 1")).await?.is_empty() {
            return Ok(Some(kept));
        }
    }
    let Some(dataset) = embedded_images(data.datasets, dataset, set) else { return Ok(None) };
    let table = Table { dataset, table: MAIN }.sql();
    let uids = random_uids(data, &table, EMBEDDED).await?;
    Ok(Some(format!("select uid as example, image from {table} where uid in ({uids})")))
}

/// The dataset with the images whose embeddings a set was read from.
fn embedded_images<'a>(datasets: &'a [Dataset], evaluation: &'a Dataset, set: &str) -> Option<&'a Dataset> {
    let options = |dataset: &'a Dataset| dataset.state().begin.recipe.get("options");
    let sets = options(evaluation)?.get("sets")?.as_array()?;
    let entry = sets.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(set))?;
    let mut name = entry.get("input")?.as_str()?;
    // A chain of stages is no longer than the run.
    for _ in 0..datasets.len() {
        let dataset = datasets.iter().find(|dataset| dataset.state().begin.stage == name)?;
        let schema = dataset.schema(MAIN).ok()?;
        if contracts::has_images(&schema) && schema.field_with_name("uid").is_ok() {
            return Some(dataset);
        }
        name = options(dataset)?.get("input")?.as_str()?;
    }
    None
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
            select p.example, p.label, p.predicted, p.prompts, e.image,
                row_number() over (partition by p.label = p.predicted order by p.example) as place
            from {predictions} p join ({images}) e on e.example = p.example
            where p.set = {set} and p.prompts in (select prompts from best)
        )
        select drawn.*, c.class_name, d.class_name as predicted_name, drawn.image['bytes'] as bytes
        from drawn
        join {classes} c on c.set = {set} and c.prompts = drawn.prompts and c.class_id = drawn.label
        join {classes} d on d.set = {set} and d.prompts = drawn.prompts and d.class_id = drawn.predicted
        where drawn.place <= {EACH} order by drawn.label <> drawn.predicted, drawn.place"
    );
    let rows = fetch_rows(data.session, &query).await?;
    Ok(rows.iter().filter_map(|row| picture(&row)).collect())
}

/// A thumbnail with its prediction; `None` if the image cannot be decoded.
fn picture(row: &Row<'_>) -> Option<Picture> {
    let (label, predicted) = (row.text("class_name"), row.text("predicted_name"));
    let is_correct = label == predicted;
    Some(Picture {
        jpeg: thumbnail(&row.bytes("bytes")?)?,
        alt: format!("An image of the class {label}"),
        text: if is_correct { label } else { format!("{label}, predicted {predicted}") },
        is_correct: Some(is_correct),
    })
}
