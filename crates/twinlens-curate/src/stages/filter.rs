//! `filter`: keeps the rows for which SQL predicates are true.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::StringArray;
use datafusion::arrow::datatypes::DataType;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::expr::Case;
use datafusion::logical_expr::{Expr, ident, lit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_pipeline::rejects::{reject_where, reject_with};
use twinlens_pipeline::{
    ColumnName, Fault, Input, Inputs, Located, Ports, Required, Rows, RunContext, RunError, SortKey,
    StageKind, Work,
};

use super::columns;
use super::presets::{self, Preset};
use crate::error::CurateError;
use crate::functions::{call, strings};
use crate::matcher::{Matcher, Scratch};
use crate::text::Normalizer;

/// Keeps the rows that satisfy SQL predicates; the others become rejects.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterOptions {
    /// The rows to filter.
    input: Input,
    /// A SQL predicate over the input's columns. A row is kept if it is true; false and null refuse
    /// it with the code `filtered`.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    predicate: Option<Located<String>>,
    /// Predicates that have a name: a row is refused by the first that is not true, with the rule's
    /// code. They come before `where`.
    #[serde(default)]
    rules: Vec<Rule>,
    /// The conditions by which a published data set was filtered, as far as columns hold what they
    /// ask for: they come before `rules`, each with its own code. `plan` lists them.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "presets::listed")]
    preset: Option<Located<Preset>>,
    /// A text file of words and phrases, one a line. A row in whose `caption` one occurs, as whole
    /// words and whatever the case, is refused with the code `blocked_word`, before all other
    /// conditions.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_words: Option<Located<String>>,
}

/// A predicate with a name of its own in the ledger.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// The code of the rows that it refuses: lower-case letters, digits and `_`.
    code: Located<String>,
    /// The SQL predicate that a row must satisfy.
    #[serde(rename = "where")]
    predicate: Located<String>,
}

/// `filter` as it runs.
pub struct Filter {
    blocked_words: Option<Located<String>>,
    preset: Option<Preset>,
    /// Codes and predicates, in the order in which they apply.
    rules: Vec<(String, Located<String>)>,
}

/// The code of rows that `where` refuses.
const FILTERED: &str = "filtered";
/// The code of rows with a blocked word.
const BLOCKED: &str = "blocked_word";
/// The column that blocked words are looked for in.
const CAPTION: &str = "caption";
/// A column that lives within the plan.
const FOUND: &str = "__twinlens_blocked_word";
/// Another: the number of the first rule that a row does not satisfy.
const RULE: &str = "__twinlens_rule";

impl StageKind for Filter {
    type Options = FilterOptions;
    const NAME: &'static str = "filter";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"[stages.candidates]
kind = "filter"
input = "pages"
where = "not is_boilerplate(caption) and language(caption) = 'en'"
rules = [{ code = "too_short", where = "char_length(caption) >= 5" }]
"#;

    fn plan(options: FilterOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        columns::takes_over(ports, &options);
        ports.output(ports.schema(&input), SortKey::columns(ROW_ORDER));
        if options.predicate.is_none()
            && options.rules.is_empty()
            && options.preset.is_none()
            && options.blocked_words.is_none()
        {
            let fault = options.input.fault("this filter has no predicate");
            ports.fault(fault.hint("add `where = \"...\"` or `rules`"));
        }
        if let Some(words) = &options.blocked_words {
            ports.checked_file(words, |file| read_words(file).map(drop));
            ports.text(&input, ColumnName::at(CAPTION, words.span()), Required::Yes);
        }
        if let Some(preset) = &options.preset {
            preset.value().check(ports, &input, preset.span());
            preset.value().conditions().into_iter().for_each(|condition| ports.note(condition));
        }
        for code in options.rules.iter().map(|rule| &rule.code).filter(|code| !is_code(code)) {
            let message = format!("`{}` cannot be a reject code", code.value());
            ports.fault(Fault::at(code.span(), message).label("expected lower-case letters, digits and `_`"));
        }
        let rules = options.rules.into_iter().map(|rule| (rule.code.value().clone(), rule.predicate));
        let last = options.predicate.into_iter().map(|predicate| (FILTERED.to_string(), predicate));
        let rules: Vec<_> = rules.chain(last).collect();
        for (_, predicate) in &rules {
            ports.predicate(predicate, &input);
        }
        let (preset, blocked_words) = (options.preset.map(|preset| *preset.value()), options.blocked_words);
        Some(Work::rows(Filter { blocked_words, preset, rules }))
    }
}

fn is_code(code: &str) -> bool {
    !code.is_empty() && code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[async_trait]
impl Rows for Filter {
    async fn transform(&self, cx: &RunContext, rows: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        let mut frame = rows;
        if let Some(words) = &self.blocked_words {
            frame = frame.with_column(FOUND, blocked_word(cx, words)?)?;
            let refused = ident(FOUND).is_not_null();
            frame = reject_where(frame, &cx.stage, refused, BLOCKED, ident(FOUND))?.drop_columns(&[FOUND])?;
        }
        let preset = self.preset.map(|preset| preset.rules(frame.schema().as_arrow())).unwrap_or_default();
        let preset = preset.iter().map(|(code, predicate)| (*code, predicate.as_str()));
        let rules = self.rules.iter().map(|(code, predicate)| (code.as_str(), predicate.as_str()));
        reject_by_rules(frame, &cx.stage, &preset.chain(rules).collect::<Vec<_>>())
    }
}

/// Rejects each row by the first rule, a code and a predicate, that it does not satisfy. All of
/// them are one expression, so that the depth of the plan does not grow with their number.
fn reject_by_rules(frame: DataFrame, stage: &str, rules: &[(&str, &str)]) -> Result<DataFrame, RunError> {
    let (mut first, mut codes, mut details) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (code, predicate)) in rules.iter().enumerate() {
        let number = Box::new(lit(number as i64));
        let refused = frame.parse_sql_expr(predicate)?.is_not_true();
        first.push((Box::new(refused), number.clone()));
        codes.push((number.clone(), Box::new(lit(*code))));
        details.push((number, Box::new(lit(*predicate))));
    }
    if rules.is_empty() {
        return Ok(frame);
    }
    let frame = frame.with_column(RULE, Expr::Case(Case::new(None, first, None)))?;
    let by_rule = |values| Expr::Case(Case::new(Some(Box::new(ident(RULE))), values, None));
    Ok(reject_with(frame, stage, by_rule(codes), by_rule(details))?.drop_columns(&[RULE])?)
}

/// The first blocked word of a caption; null where there is none.
fn blocked_word(cx: &RunContext, file: &Located<String>) -> Result<Expr, RunError> {
    let mut words: Vec<String> = Vec::new();
    for path in cx.local_files(file)? {
        words.extend(read_words(&path)?);
    }
    let numbered = words.iter().enumerate().map(|(number, word)| (number as i32, word.as_str()));
    let matcher = Matcher::build(numbered, Normalizer::default())
        .map_err(|error| RunError::user(format!("{}: {error}", file.value())))?;
    Ok(call("blocked_word", vec![ident(CAPTION)], DataType::Utf8, move |columns| {
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        let mut first = |text: Option<&str>| {
            matcher.matches_into(text?, &mut scratch, &mut ids);
            ids.first().map(|id| words[*id as usize].as_str())
        };
        let texts = strings(&columns[0])?;
        Ok(Arc::new(texts.iter().map(&mut first).collect::<StringArray>()))
    }))
}

fn read_words(path: &Path) -> Result<Vec<String>, RunError> {
    let read = |source| CurateError::Read { path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[tokio::test]
    async fn rows_end_kept_or_rejected() {
        let pages =
            pairs(&[("a", "Image one"), ("b", "dog"), ("c", "a white dog"), ("d", "elephant"), ("e", "\0")]);
        let filter = stage(
            "filter",
            r#"input = "pages.parquet"
            where = "not regexp_like(caption, '^image', 'i')"
            rules = [{ code = "too_short", where = "char_length(caption) >= 5" }, { code = "no_word", where = "word_count(caption) > 1" }]"#,
        );
        let made = filter.table("pages", &pages).run().await.unwrap();
        assert_eq!(
            made.rows(&["uid", "caption", "reject_code", "reject_detail"]),
            [
                "a|Image one|filtered|not regexp_like(caption, '^image', 'i')",
                "b|dog|too_short|char_length(caption) >= 5",
                "c|a white dog||",
                "d|elephant|no_word|word_count(caption) > 1",
                "e||too_short|char_length(caption) >= 5",
            ]
        );
    }

    #[tokio::test]
    async fn blocked_words_are_whole_words() {
        let pages =
            pairs(&[("a", "Top  SECRET plans"), ("b", "denuded hills"), ("c", "\0"), ("d", "a nude")]);
        let filter = stage("filter", "input = \"pages.parquet\"\nblocked_words = \"words.txt\"");
        let filter = filter.table("pages", &pages);
        let missing = filter.faults();
        assert!(missing[0].contains("words.txt does not exist"), "{missing:?}");
        let made = filter.file("words.txt", "nude\n\ntop secret\n").run().await.unwrap();
        assert_eq!(
            made.rows(&["uid", "reject_code", "reject_detail"]),
            ["a|blocked_word|top secret", "b||", "c||", "d|blocked_word|nude"]
        );
    }

    #[test]
    fn mistakes_are_found_before_it_runs() {
        let faults = |options: &str| stage("filter", options).table("pages", &pairs(&[])).faults();
        let found = faults(
            "input = \"pages.parquet\"\nwhere = \"captoin = ''\"\nrules = [{ code = \"Bad\", where = \"width > 3\" }]",
        );
        assert_eq!(
            found,
            [
                "captoin: unknown column `captoin` (did you mean `caption`?)",
                "\"Bad\": `Bad` cannot be a reject code",
                "width: unknown column `width`",
            ]
        );
        let expected = "\"pages.parquet\": this filter has no predicate (add `where = \"...\"` or `rules`)";
        assert_eq!(faults("input = \"pages.parquet\""), [expected]);
    }
}
