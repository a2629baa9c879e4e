//! The card of an export: a README.md with the front matter of the Hugging Face hub, size,
//! licences, origin, processing, rejected rows, and hashes of the files.
//!
//! Everything is computed from the dataset and its manifests.

use std::collections::BTreeMap;
use std::fmt::Write;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{col, lit};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::format::{Format, KIND};
use crate::error::DatasetError;
use crate::protocol::{Begin, State};
use crate::types;

/// File name of the card.
pub const FILE: &str = "README.md";
/// The SQL function that counts the tokens of a text.
const TOKEN_COUNT: &str = "token_count";
/// Most listed licences, domains or files.
const MAX_LISTED: usize = 20;
/// Names of licences on the hub.
const LICENCES: &[&str] = &[
    "apache-2.0",
    "bsd-3-clause",
    "cc",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "cdla-sharing-1.0",
    "gfdl",
    "gpl-3.0",
    "mit",
    "odbl",
    "odc-by",
    "pddl",
];

/// What a stage did: one row in the table of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSummary {
    /// The name of the stage.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Its options, as in the recipe.
    pub options: Value,
    /// Input rows, if counted.
    pub rows_in: Option<u64>,
    /// Output rows.
    pub kept: Option<u64>,
    /// Rejected rows by code.
    pub rejects: BTreeMap<String, u64>,
}

impl StageSummary {
    /// The stages of a dataset: those fused into its plan, and its own.
    pub fn of_dataset(state: &State) -> Vec<Self> {
        let recipe = &state.begin.recipe;
        let stages = state.stages().into_iter().map(|rows| {
            let own = recipe.get("fused").and_then(|fused| fused.get(rows.stage)).unwrap_or(recipe);
            Self {
                stage: rows.stage.into(),
                kind: own.get("kind").and_then(Value::as_str).unwrap_or(&state.begin.kind).into(),
                options: own.get("options").cloned().unwrap_or_default(),
                rows_in: rows.rows_in,
                kept: rows.kept,
                rejects: rows.rejects,
            }
        });
        stages.collect()
    }

    /// The export itself.
    fn of_export(state: &State) -> Self {
        let option = |name: &str| state.begin.recipe.pointer(&format!("/options/{name}")).cloned();
        let options = ["format", "where", "shard_bytes"]
            .map(|name| (name.to_string(), option(name).unwrap_or_default()));
        let rejects = state.rejects().into_values().next().unwrap_or_default();
        let rows_in = state.rows_in();
        Self {
            stage: "export".into(),
            kind: KIND.into(),
            options: Value::Object(options.into_iter().collect()),
            rows_in,
            kept: rows_in.map(|rows| rows - rejects.values().sum::<u64>()),
            rejects,
        }
    }

    /// The stages that led to an export, and the export itself.
    pub fn up_to_export(state: &State) -> Vec<Self> {
        let made_by = state.begin.recipe.get("made_by").cloned().unwrap_or_default();
        let mut stages: Vec<Self> = serde_json::from_value(made_by).unwrap_or_default();
        stages.push(Self::of_export(state));
        stages
    }
}

/// Counts over the rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Pairs by licence, most frequent first; `None` without a `license` column.
    pub licences: Option<Vec<(Option<String>, u64)>>,
    /// Pairs by the host of their page, the most frequent ones.
    pub domains: Vec<(Option<String>, u64)>,
    /// Number of hosts.
    pub hosts: u64,
    /// The lengths of captions in tokens, if the session has the function `token_count`.
    pub tokens: Option<Tokens>,
}

/// Lengths of captions in tokens, with the start and the end token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    pub median: i64,
    /// 95% have at most so many.
    pub most: i64,
    pub longest: i64,
}

/// Counts licences and page domains; `rows` brings the session.
pub(super) async fn counts(rows: DataFrame) -> Result<Counts, DatasetError> {
    let schema = rows.schema().clone();
    let has = |name: &str| {
        schema.field_with_unqualified_name(name).is_ok_and(|field| field.data_type() == &DataType::Utf8)
    };
    let mut counts = Counts::default();
    if has("license") {
        let groups = count_by(&rows, "license")?;
        counts.licences = Some(top(groups, usize::MAX).await?);
    }
    let pages: Vec<&str> = ["page_url", "url"].into_iter().filter(|name| has(name)).collect();
    if !pages.is_empty() {
        let host = format!(
            "regexp_match(lower(coalesce({}, null)), '^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?([^/:?#]+)')[1]",
            pages.join(", ")
        );
        let groups = count_by(&rows, &host)?;
        counts.hosts = groups.clone().filter(col("value").is_not_null())?.count().await? as u64;
        counts.domains = top(groups, MAX_LISTED).await?;
    }
    if has("caption") && rows.task_ctx().scalar_functions().contains_key(TOKEN_COUNT) {
        counts.tokens = tokens(rows).await?;
    }
    Ok(counts)
}

/// The lengths of captions; `None` without captions or without a tokenizer.
async fn tokens(rows: DataFrame) -> Result<Option<Tokens>, DatasetError> {
    // A run need not have a tokenizer.
    let Ok(lengths) = count_by(&rows, &format!("{TOKEN_COUNT}(caption)")) else { return Ok(None) };
    let lengths = lengths.filter(col("value").is_not_null())?.sort(vec![col("value").sort(true, false)])?;
    let Ok(batches) = lengths.collect().await else { return Ok(None) };
    let mut counted: Vec<(i64, i64)> = Vec::new();
    for batch in &batches {
        let [values, rows] = [0, 1].map(|column| batch.column(column).as_primitive::<Int64Type>());
        counted.extend(values.values().iter().copied().zip(rows.values().iter().copied()));
    }
    let all: i64 = counted.iter().map(|(_, rows)| rows).sum();
    // The smallest length that this share of the captions does not exceed.
    let within = |percent: i64| {
        let mut seen = 0;
        counted.iter().find(|(_, rows)| {
            seen += rows;
            100 * seen >= percent * all
        })
    };
    let (Some((median, _)), Some((most, _)), Some((longest, _))) = (within(50), within(95), counted.last())
    else {
        return Ok(None);
    };
    Ok(Some(Tokens { median: *median, most: *most, longest: *longest }))
}

/// Counts the rows by the value of an expression.
fn count_by(rows: &DataFrame, value: &str) -> Result<DataFrame, DatasetError> {
    let value = rows.parse_sql_expr(value)?.alias("value");
    Ok(rows.clone().select(vec![value])?.aggregate(vec![col("value")], vec![count(lit(1)).alias("rows")])?)
}

async fn top(groups: DataFrame, most: usize) -> Result<Vec<(Option<String>, u64)>, DatasetError> {
    let sorted = groups.sort(vec![col("rows").sort(false, false), col("value").sort(true, false)])?;
    let limited = if most == usize::MAX { sorted } else { sorted.limit(0, Some(most))? };
    let mut found = Vec::new();
    for batch in limited.collect().await? {
        let (values, rows) =
            (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
        found.extend((0..batch.num_rows()).map(|row| {
            let value = values.is_valid(row).then(|| values.value(row).to_string());
            (value, rows.value(row) as u64)
        }));
    }
    Ok(found)
}

/// The contents of a card.
pub(super) struct Card<'a> {
    /// The name of the pipeline.
    pub pipeline: Option<&'a str>,
    /// The exported dataset.
    pub source: &'a Begin,
    /// The schema of its main table.
    pub schema: &'a Schema,
    /// The format of the shards.
    pub format: Format,
    /// The stages that made the dataset.
    pub made_by: &'a [StageSummary],
    /// The export; all its files are committed.
    pub export: &'a State,
    /// Counts over the rows.
    pub counts: &'a Counts,
}

impl Card<'_> {
    /// The content of README.md.
    pub(super) fn text(&self) -> String {
        let parts = [
            self.front_matter(),
            self.summary(),
            self.columns(),
            self.stages(),
            self.licences(),
            self.tokens(),
            self.domains(),
            self.hashes(),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn name(&self) -> String {
        match self.pipeline {
            Some(pipeline) => format!("{pipeline}: {}", self.source.stage),
            None => self.source.stage.clone(),
        }
    }

    /// The front matter for the hub. A JSON string is a valid YAML string.
    fn front_matter(&self) -> String {
        let (format, rows) = (self.format, kept(self.export));
        let licence = licence(self.counts);
        let name = Value::from(self.name());
        let mut text = format!("---\nlicense: {licence}\npretty_name: {name}\n");
        if crate::contracts::has_images(self.schema) {
            text += "task_categories:\n- zero-shot-image-classification\n- image-to-text\n- text-to-image\n";
        }
        text += &format!("size_categories:\n- {}\ntags:\n- twinlens\n", size_category(rows));
        if format == Format::WebDataset {
            text += "- webdataset\n";
        }
        text += &format!(
            "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n",
            Value::from(format.pattern())
        );
        text
    }

    fn summary(&self) -> String {
        let what = if crate::contracts::has_images(self.schema) { "image-text pairs" } else { "rows" };
        let from = match self.pipeline {
            Some(pipeline) => format!(
                "the dataset {} of the twinlens pipeline {}",
                code(&self.source.stage),
                code(pipeline)
            ),
            None => format!("the dataset {}", code(&self.source.stage)),
        };
        format!(
            "# {}\n\n{} {what} {}, exported from {from}.\n\n\
             ```python\nfrom datasets import load_dataset\n\npairs = load_dataset({:?}, data_files={:?}, split=\"train\")\n```\n",
            cell(&self.name()),
            thousands(kept(self.export)),
            size(self.export),
            self.format.name(),
            self.format.pattern(),
        )
    }

    fn columns(&self) -> String {
        let mut text = "## Columns\n\n| column | type |\n|---|---|\n".to_string();
        for field in self.schema.fields() {
            let kind = if field.data_type() == &crate::contracts::image() {
                "image (bytes, path)".to_string()
            } else {
                types::name(field.data_type())
            };
            let _ = writeln!(text, "| {} | {} |", code(field.name()), cell(&kind));
        }
        text
    }

    fn stages(&self) -> String {
        let mut text =
            "## How it was made\n\nEvery input row of a stage was kept, or rejected with a code.\n\n\
                        | stage | kind | rows in | rejected | kept |\n|---|---|--:|---|--:|\n"
                .to_string();
        let export = StageSummary::of_export(self.export);
        for stage in self.made_by.iter().chain([&export]) {
            text += &table_row(stage);
        }
        text += "\nTheir options:\n\n```json\n";
        for stage in self.made_by.iter().chain([&export]) {
            let name = Value::from(stage.stage.as_str());
            // On one line, options cannot close the fence.
            let _ = writeln!(text, "{{{name}: {}}}", stage.options);
        }
        text + "```\n"
    }

    fn licences(&self) -> String {
        let mut text = "## Licences\n\n".to_string();
        match self.counts.licences.as_deref() {
            None => {
                text +=
                    "The pairs carry no licence. The images and texts belong to those who published them.\n"
            }
            Some(licences) => {
                text += "| licence | pairs |\n|---|--:|\n";
                text += &list_counts(licences, "unknown", licences.len());
            }
        }
        text
    }

    fn tokens(&self) -> String {
        let Some(Tokens { median, most, longest }) = &self.counts.tokens else { return String::new() };
        format!(
            "## Lengths of captions\n\nIn tokens of the pipeline's tokenizer, with the start and the end token: \
             the median is {median}, 95% have at most {most}, the longest has {longest}.\n"
        )
    }

    fn domains(&self) -> String {
        if self.counts.domains.is_empty() {
            return String::new();
        }
        let mut text = "## Page domains with most pairs\n\n| domain | pairs |\n|---|--:|\n".to_string();
        let without_host = self.counts.domains.iter().filter(|(host, _)| host.is_none()).count();
        text += &list_counts(&self.counts.domains, "none", self.counts.hosts as usize + without_host);
        text
    }

    fn hashes(&self) -> String {
        let mut text = format!(
            "## Hashes\n\nThe SHA-256 of every file is in `manifest.jsonl`. The SHA-256 of the list of all files in that order, \
             in the format of `sha256sum`, is\n{}. `twinlens check` verifies them.\n",
            digest(self.export),
        );
        if !self.source.fingerprint.is_empty() {
            let _ = writeln!(
                text,
                "The fingerprint of the exported dataset is {}.",
                code(&self.source.fingerprint)
            );
        }
        text += "\n| file | bytes | SHA-256 |\n|---|--:|---|\n";
        for file in self.export.files().take(MAX_LISTED) {
            let _ =
                writeln!(text, "| {} | {} | `{}` |", code(&file.path), thousands(file.bytes), file.sha256);
        }
        if let Some(more) = self.export.files().count().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
            let _ = writeln!(text, "| and {} more | | |", thousands(more as u64));
        }
        text
    }
}

/// The facts that a card repeats from the manifest and that `text` lacks.
pub(super) fn missing_facts(text: &str, export: &State) -> Vec<String> {
    let facts = [size(export), table_row(&StageSummary::of_export(export)), digest(export)];
    facts.into_iter().filter(|fact| !text.contains(fact)).collect()
}

/// Rows of an export.
fn kept(export: &State) -> u64 {
    StageSummary::of_export(export).kept.unwrap_or(0)
}

/// The files and bytes of an export.
fn size(export: &State) -> String {
    let files = export.files().count() as u64;
    let bytes: u64 = export.files().map(|file| file.bytes).sum();
    format!("in {} file{} of {} bytes", thousands(files), if files == 1 { "" } else { "s" }, thousands(bytes))
}

/// The hash of the list of files of an export.
fn digest(export: &State) -> String {
    let mut all = Sha256::new();
    for file in export.files() {
        all.update(format!("{}  {}\n", file.sha256, file.path));
    }
    code(&hex::encode(all.finalize()))
}

/// A stage as a row of the table.
fn table_row(stage: &StageSummary) -> String {
    let shown = |rows: Option<u64>| rows.map_or("-".into(), thousands);
    let rejects: Vec<String> = stage
        .rejects
        .iter()
        .map(|(code, rows)| format!("{} {}", thousands(*rows), self::code(code)))
        .collect();
    let (name, kind, rejects) = (code(&stage.stage), cell(&stage.kind), rejects.join(", "));
    format!("| {name} | {kind} | {} | {rejects} | {} |\n", shown(stage.rows_in), shown(stage.kept))
}

/// Table rows of values and their counts, at most [`MAX_LISTED`] of `all`.
fn list_counts(values: &[(Option<String>, u64)], none: &str, all: usize) -> String {
    let mut text = String::new();
    for (value, rows) in values.iter().take(MAX_LISTED) {
        let _ = writeln!(text, "| {} | {} |", value.as_deref().map_or(none.into(), cell), thousands(*rows));
    }
    if let Some(more) = all.checked_sub(MAX_LISTED).filter(|more| *more > 0) {
        let _ = writeln!(text, "| and {} more | |", thousands(more as u64));
    }
    text
}

/// The hub's name for the licence of all pairs.
fn licence(counts: &Counts) -> &'static str {
    match counts.licences.as_deref() {
        None | Some([] | [(None, _)]) => "unknown",
        Some([(Some(one), _)]) => {
            let one = one.trim().to_ascii_lowercase().replace(' ', "-");
            LICENCES.iter().find(|known| **known == one).copied().unwrap_or("other")
        }
        Some(_) => "other",
    }
}

/// The hub's category for a number of rows.
fn size_category(rows: u64) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        10_000_000..100_000_000 => "10M<n<100M",
        100_000_000..1_000_000_000 => "100M<n<1B",
        1_000_000_000..10_000_000_000 => "1B<n<10B",
        10_000_000_000..100_000_000_000 => "10B<n<100B",
        100_000_000_000..1_000_000_000_000 => "100B<n<1T",
        _ => "n>1T",
    }
}

/// Escapes web text for a table cell: one line, no markup.
fn cell(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if "\\`*_{}[]<>#|!&~".contains(c) {
            shown.push('\\');
        }
        shown.push(c);
    }
    shown
}

/// A name formatted as code.
fn code(name: &str) -> String {
    let plain = |c: char| !c.is_control() && c != '`' && c != '|';
    if !name.is_empty() && name.chars().all(plain) { format!("`{name}`") } else { cell(name) }
}

/// A number with thousands separators: `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_matter_names_a_single_licence() {
        let some = |names: &[Option<&str>]| {
            let licences = names.iter().map(|name| (name.map(String::from), 3)).collect();
            let counts = Counts { licences: Some(licences), ..Counts::default() };
            licence(&counts)
        };
        assert_eq!(licence(&Counts::default()), "unknown");
        let cases: [(&[Option<&str>], &str); 7] = [
            (&[], "unknown"),
            (&[None], "unknown"),
            (&[Some("CC BY 4.0")], "cc-by-4.0"),
            (&[Some("cc0-1.0")], "cc0-1.0"),
            (&[Some("all rights reserved")], "other"),
            (&[Some("mit"), Some("cc0-1.0")], "other"),
            (&[Some("mit"), None], "other"),
        ];
        for (names, expected) in cases {
            assert_eq!(some(names), expected, "{names:?}");
        }
    }

    #[test]
    fn web_text_is_escaped() {
        assert_eq!(cell("a|b\n<img src=x> [x](y)"), "a\\|b \\<img src=x\\> \\[x\\](y)");
        assert_eq!(code("a`b"), "a\\`b");
        assert_eq!(code("a_b"), "`a_b`");
    }

    #[test]
    fn size_categories_are_those_of_the_hub() {
        let cases = [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (400_000_000, "100M<n<1B")];
        for (rows, expected) in cases {
            assert_eq!(size_category(rows), expected);
        }
    }
}
