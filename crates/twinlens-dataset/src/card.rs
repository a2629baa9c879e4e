//! The card of an export: a README.md with the front matter of the Hugging Face hub, and what a
//! reader asks of a dataset: how much there is, under which licences, from where, how it was made
//! and what was left out, and how to know that it is whole.
//!
//! All of it is counted from the dataset and its manifests: the card says nothing that they do not.

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

use crate::error::DatasetError;
use crate::export::Format;
use crate::protocol::{Begin, State};
use crate::storage::hex;
use crate::types;

/// The card's name.
pub const FILE: &str = "README.md";
/// Licences, domains and files that are listed.
const LISTED: usize = 20;
/// Licences that the hub knows by the name that is written here.
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

/// What a stage did, for people: one line of a card's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The stage's name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Its options, as its recipe keeps them.
    pub options: Value,
    /// Rows that came in, where they are counted.
    pub rows_in: Option<u64>,
    /// Rows that it passed on.
    pub kept: Option<u64>,
    /// Rows that it refused, by code.
    pub rejects: BTreeMap<String, u64>,
}

impl Made {
    /// The stages of one dataset: those that are fused into its plan, and its own.
    pub fn of(state: &State) -> Vec<Self> {
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

    /// An export itself.
    pub fn export(state: &State) -> Self {
        let option = |name: &str| state.begin.recipe.pointer(&format!("/options/{name}")).cloned();
        let options = ["format", "where", "shard_bytes"]
            .map(|name| (name.to_string(), option(name).unwrap_or_default()));
        let rejects = state.rejects().into_values().next().unwrap_or_default();
        let rows_in = state.rows_in();
        Self {
            stage: "export".into(),
            kind: crate::export::KIND.into(),
            options: Value::Object(options.into_iter().collect()),
            rows_in,
            kept: rows_in.map(|rows| rows - rejects.values().sum::<u64>()),
            rejects,
        }
    }

    /// The stages that led to an export, and itself: for the card of an export of it.
    pub fn before(state: &State) -> Vec<Self> {
        let before = state.begin.recipe.get("made_by").cloned().unwrap_or_default();
        let mut made: Vec<Self> = serde_json::from_value(before).unwrap_or_default();
        made.push(Self::export(state));
        made
    }
}

/// What is counted of the rows themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pairs by licence, most first; `None` where there is no such column.
    pub licences: Option<Vec<(Option<String>, u64)>>,
    /// Pairs by the host of their page, most first: the first of them.
    pub domains: Vec<(Option<String>, u64)>,
    /// How many hosts there are.
    pub hosts: u64,
}

/// Counts licences and page domains, in the memory of the session.
pub async fn counts(rows: DataFrame) -> Result<Counts, DatasetError> {
    let schema = rows.schema().clone();
    let has = |name: &str| {
        schema.field_with_unqualified_name(name).is_ok_and(|field| field.data_type() == &DataType::Utf8)
    };
    let mut counts = Counts::default();
    if has("license") {
        let groups = grouped(&rows, "license")?;
        counts.licences = Some(top(groups, usize::MAX).await?);
    }
    let pages: Vec<&str> = ["page_url", "url"].into_iter().filter(|name| has(name)).collect();
    if !pages.is_empty() {
        let host = format!(
            "regexp_match(lower(coalesce({}, null)), '^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?([^/:?#]+)')[1]",
            pages.join(", ")
        );
        let groups = grouped(&rows, &host)?;
        counts.hosts = groups.clone().filter(col("value").is_not_null())?.count().await? as u64;
        counts.domains = top(groups, LISTED).await?;
    }
    Ok(counts)
}

/// The values of an expression, each with the number of its rows.
fn grouped(rows: &DataFrame, value: &str) -> Result<DataFrame, DatasetError> {
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

/// All that a card says.
pub struct Card<'a> {
    /// The name of the pipeline.
    pub pipeline: Option<&'a str>,
    /// The dataset that was exported.
    pub source: &'a Begin,
    /// Its columns.
    pub schema: &'a Schema,
    /// What the shards are.
    pub format: Format,
    /// The stages that made the dataset.
    pub made_by: &'a [Made],
    /// The export, all of whose files are committed.
    pub export: &'a State,
    /// What is counted of the rows.
    pub counts: &'a Counts,
}

impl Card<'_> {
    /// The whole README.md.
    pub fn text(&self) -> String {
        let parts = [
            self.front_matter(),
            self.summary(),
            self.columns(),
            self.stages(),
            self.licences(),
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

    /// What the hub reads. A string of JSON is one of YAML too.
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
            number(kept(self.export)),
            amount(self.export),
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
            "## How it was made\n\nEvery row that came into a stage was kept, or rejected with a code.\n\n\
                        | stage | kind | rows in | rejected | kept |\n|---|---|--:|---|--:|\n"
                .to_string();
        let export = Made::export(self.export);
        for made in self.made_by.iter().chain([&export]) {
            text += &line(made);
        }
        text += "\nTheir options:\n\n```json\n";
        for made in self.made_by.iter().chain([&export]) {
            let name = Value::from(made.stage.as_str());
            // A fence ends at three backticks, wherever they stand at the start of a line: one line
            // cannot.
            let _ = writeln!(text, "{{{name}: {}}}", made.options);
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
                text += &listed(licences, "no licence is known", licences.len());
            }
        }
        text
    }

    fn domains(&self) -> String {
        if self.counts.domains.is_empty() {
            return String::new();
        }
        let mut text = "## Page domains with most pairs\n\n| domain | pairs |\n|---|--:|\n".to_string();
        let unknown = self.counts.domains.iter().filter(|(host, _)| host.is_none()).count();
        text += &listed(&self.counts.domains, "no domain", self.counts.hosts as usize + unknown);
        text
    }

    fn hashes(&self) -> String {
        let mut text = format!(
            "## Hashes\n\nThe SHA-256 of every file is in `manifest.jsonl`; of the list of all files in its order, each as a line of \
             `sha256sum`, it is\n{}. `twinlens check` compares them.\n",
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
        for file in self.export.files().take(LISTED) {
            let _ = writeln!(text, "| {} | {} | `{}` |", code(&file.path), number(file.bytes), file.sha256);
        }
        if let Some(more) = self.export.files().count().checked_sub(LISTED).filter(|more| *more > 0) {
            let _ = writeln!(text, "| and {} more | | |", number(more as u64));
        }
        text
    }
}

/// What a card says of an export that its manifest says too; those parts that `text` does not have.
pub fn unclaimed(text: &str, export: &State) -> Vec<String> {
    let claims = [amount(export), line(&Made::export(export)), digest(export)];
    claims.into_iter().filter(|claim| !text.contains(claim)).collect()
}

/// Rows of an export.
fn kept(export: &State) -> u64 {
    Made::export(export).kept.unwrap_or(0)
}

/// How much there is in an export.
fn amount(export: &State) -> String {
    let files = export.files().count() as u64;
    let bytes: u64 = export.files().map(|file| file.bytes).sum();
    format!("in {} file{} of {} bytes", number(files), if files == 1 { "" } else { "s" }, number(bytes))
}

/// The hash of the list of an export's files.
fn digest(export: &State) -> String {
    let mut all = Sha256::new();
    for file in export.files() {
        all.update(format!("{}  {}\n", file.sha256, file.path));
    }
    code(&hex(&all.finalize()))
}

/// A stage as a line of the table.
fn line(made: &Made) -> String {
    let shown = |rows: Option<u64>| rows.map_or("-".into(), number);
    let rejects: Vec<String> =
        made.rejects.iter().map(|(code, rows)| format!("{} {}", number(*rows), self::code(code))).collect();
    let (stage, kind, rejects) = (code(&made.stage), cell(&made.kind), rejects.join(", "));
    format!("| {stage} | {kind} | {} | {rejects} | {} |\n", shown(made.rows_in), shown(made.kept))
}

/// Lines of a table of values and their rows, at most [`LISTED`] of `all`.
fn listed(values: &[(Option<String>, u64)], none: &str, all: usize) -> String {
    let mut text = String::new();
    for (value, rows) in values.iter().take(LISTED) {
        let _ = writeln!(text, "| {} | {} |", value.as_deref().map_or(none.into(), cell), number(*rows));
    }
    if let Some(more) = all.checked_sub(LISTED).filter(|more| *more > 0) {
        let _ = writeln!(text, "| and {} more | |", number(more as u64));
    }
    text
}

/// The hub's word for the licence of all pairs.
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

/// The hub's word for a number of rows.
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

/// Text off the web in a cell of a table: on one line, and no markup.
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

/// A name as code.
fn code(name: &str) -> String {
    let plain = |c: char| !c.is_control() && c != '`' && c != '|';
    if !name.is_empty() && name.chars().all(plain) { format!("`{name}`") } else { cell(name) }
}

/// `12,345`.
fn number(number: u64) -> String {
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
    fn the_hub_is_told_one_licence_if_there_is_one() {
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
    fn text_off_the_web_is_no_markup() {
        assert_eq!(cell("a|b\n<img src=x> [x](y)"), "a\\|b \\<img src=x\\> \\[x\\](y)");
        assert_eq!(code("a`b"), "a\\`b");
        assert_eq!(code("a_b"), "`a_b`");
    }

    #[test]
    fn sizes_are_the_hubs() {
        let cases = [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (400_000_000, "100M<n<1B")];
        for (rows, expected) in cases {
            assert_eq!(size_category(rows), expected);
        }
    }
}
