//! What a dataset contains: images with their captions, sizes, lengths and languages of captions,
//! and hosts.

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use twinlens_dataset::MAIN;

use super::super::model::{Bar, Bars, Block, Chart, Picture, Plot, Section, Table};
use super::super::query::{ReportData, fetch_rows, random_uids};
use super::super::thumbnail::thumbnail;
use crate::errors::Failure;
use crate::text::{count, truncated};

/// Images of the contact sheet.
const IMAGES: usize = 24;
/// Captions are cut to this many characters.
const CAPTION_CHARS: usize = 90;
/// Statistics of captions are those of the rows with the first uids, at most this many.
const CAPTIONS: usize = 100_000;
/// Bars of hosts and languages.
const MOST: usize = 15;

/// Ranges of pixels, of words: lower ends.
const SIDES: [u64; 7] = [0, 64, 128, 224, 336, 512, 1024];
const WORDS: [u64; 8] = [0, 1, 3, 5, 9, 17, 33, 65];

/// The last dataset of pairs that has these columns: the stage and its table in SQL.
fn pairs(data: &ReportData<'_>, columns: &[&str]) -> Option<(String, String)> {
    let texts_are_text = |stage: &str| {
        let dataset = data.datasets.iter().find(|dataset| dataset.state().begin.stage == stage);
        let schema = dataset.and_then(|dataset| dataset.schema(MAIN).ok());
        schema.is_some_and(|schema| {
            let fields = ["uid", "caption", "url"].map(|name| schema.field_with_name(name));
            fields.into_iter().flatten().all(|field| {
                matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
            })
        })
    };
    let mut tables = data.tables_with(columns).into_iter();
    tables.rfind(|(stage, table)| !table.contains("rejects") && texts_are_text(stage))
}

/// A contact sheet, and the sizes of the images.
pub(super) async fn images(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let Some((stage, table)) = pairs(data, &["uid", "caption", "image"]) else { return Ok(None) };
    let mut blocks = contact_sheet(data, &stage, &table).await?;
    if let Some((stage, table)) = pairs(data, &["uid", "original_width", "original_height"]) {
        let side = "least(original_width, original_height)";
        let bars = histogram(data, &table, side, &SIDES, "px").await?;
        let title = format!("Shorter side of the original images ({stage})");
        blocks.extend(chart(title, "images", bars, ("shorter side", "images")));
    }
    Ok(Section::new("images", "Images", blocks))
}

/// SQL for the bytes of the images of a stage: `struct<bytes, path>`, or binary.
fn image_bytes(data: &ReportData<'_>, stage: &str) -> &'static str {
    let dataset = data.datasets.iter().find(|dataset| dataset.state().begin.stage == stage);
    let schema = dataset.and_then(|dataset| dataset.schema(MAIN).ok());
    let is_binary =
        |schema: SchemaRef| schema.field_with_name("image").is_ok_and(|image| image.data_type().is_binary());
    if schema.is_some_and(is_binary) { "image" } else { "image['bytes']" }
}

/// Random images.
async fn contact_sheet(data: &ReportData<'_>, stage: &str, table: &str) -> Result<Vec<Block>, Failure> {
    let uids = random_uids(data, table, IMAGES).await?;
    let bytes = image_bytes(data, stage);
    let query = format!(
        "select uid, caption, {bytes} as bytes from {table} where uid in ({uids}) order by uid limit {IMAGES}"
    );
    let rows = fetch_rows(data.session, &query).await?;
    let pictures = rows.iter().filter_map(|row| {
        let caption = row.text("caption");
        Some(Picture {
            jpeg: thumbnail(&row.bytes("bytes")?)?,
            alt: if caption.is_empty() { "An image without a caption".into() } else { caption.clone() },
            is_correct: None,
            text: truncated(&caption, CAPTION_CHARS),
        })
    });
    let pictures: Vec<Picture> = pictures.collect();
    let what = Block::Text(format!("{} random images of {stage} with their captions:", pictures.len()));
    Ok(if pictures.is_empty() { Vec::new() } else { vec![what, Block::Pictures(pictures)] })
}

/// Lengths and languages of the captions.
pub(super) async fn captions(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let Some((stage, table)) = pairs(data, &["uid", "caption"]) else { return Ok(None) };
    let sample =
        format!("(select caption from {table} where caption is not null order by uid limit {CAPTIONS})");
    let words = histogram(data, &sample, "word_count(caption)", &WORDS, "words").await?;
    let mut blocks = chart(format!("Words per caption ({stage})"), "captions", words, ("words", "captions"));
    let query = format!(
        "select coalesce(nullif(language(caption), ''), 'unknown') as name, count(*) as n from {sample}
         group by 1 order by 2 desc, 1 limit {MOST}"
    );
    let languages = named_bars(data, &query).await?;
    blocks.extend(chart(
        format!("Languages of the captions ({stage})"),
        "captions",
        languages,
        ("language", "captions"),
    ));
    Ok(Section::new("captions", "Captions", blocks))
}

/// The hosts of most pairs.
pub(super) async fn hosts(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let Some((stage, table)) = pairs(data, &["uid", "url"]) else { return Ok(None) };
    let query = format!(
        "select regexp_match(url, '^https?://([^/?#]+)')[1] as name, count(*) as n from {table}
         where url like 'http%' group by 1 order by 2 desc, 1 limit {MOST}"
    );
    let bars = named_bars(data, &query).await?;
    Ok(Section::new(
        "hosts",
        "Hosts",
        chart(format!("Hosts of most images ({stage})"), "pairs", bars, ("host", "pairs")),
    ))
}

async fn named_bars(data: &ReportData<'_>, query: &str) -> Result<Vec<Bar>, Failure> {
    let rows = fetch_rows(data.session, query).await?;
    let bar = |row: super::super::query::Row<'_>| {
        let n = row.count("n");
        Bar::plain(row.text("name"), n as f64, count(n))
    };
    Ok(rows.iter().map(bar).collect())
}

/// Counts of the values of an expression in ranges that begin at `ends`.
async fn histogram(
    data: &ReportData<'_>,
    table: &str,
    value: &str,
    ends: &[u64],
    unit: &str,
) -> Result<Vec<Bar>, Failure> {
    let cases: String = (ends.iter().enumerate().rev())
        .map(|(index, end)| format!("when {value} >= {end} then {index} "))
        .collect();
    let query = format!(
        "select case {cases} end as place, count(*) as n from {table} as measured where {value} is not null group by 1 order by 1"
    );
    let mut counts = vec![0; ends.len()];
    for row in fetch_rows(data.session, &query).await?.iter() {
        if let Some(slot) = counts.get_mut(row.count("place") as usize) {
            *slot = row.count("n");
        }
    }
    let label = |index: usize| match ends.get(index + 1) {
        Some(next) if *next == ends[index] + 1 => format!("{} {unit}", ends[index]),
        Some(next) => format!("{} to {} {unit}", ends[index], next - 1),
        None => format!("{} {unit} and more", ends[index]),
    };
    let bars = counts.iter().enumerate().map(|(index, n)| Bar::plain(label(index), *n as f64, count(*n)));
    Ok(if counts.iter().all(|n| *n == 0) { Vec::new() } else { bars.collect() })
}

/// A chart of bars with the same numbers as a table; nothing without bars.
fn chart(
    title: String,
    unit: &'static str,
    bars: Vec<Bar>,
    head: (&'static str, &'static str),
) -> Vec<Block> {
    let Some(most) = bars.iter().max_by(|a, b| a.value.total_cmp(&b.value)) else { return Vec::new() };
    let alt = format!("Most are {}: {}.", most.label, most.text);
    let mut numbers = Table::new(title.clone(), &[(head.0, false), (head.1, true)]);
    numbers.rows = bars.iter().map(|bar| vec![bar.label.clone(), bar.text.clone()]).collect();
    vec![Block::Chart { chart: Chart { title, alt, plot: Plot::Bars(Bars::new(unit, bars)) }, numbers }]
}
