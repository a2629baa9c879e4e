//! `filter`: keeps the rows for which SQL predicates are true.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::StringArray;
use datafusion::arrow::datatypes::DataType;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, ident, lit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::rejects::reject_where;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, Rows, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use super::presets::{self, Preset};
use crate::columns::{is_text, require};
use crate::error::CurateError;
use crate::functions::{call, strings};
use crate::matcher::{Matcher, Scratch};
use crate::text::Normalizer;

/// Keeps the rows that satisfy SQL predicates; the others become rejects.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
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
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The code of the rows that it refuses: lower-case letters, digits and `_`.
    code: Located<String>,
    /// The SQL predicate that a row must satisfy.
    #[serde(rename = "where")]
    predicate: Located<String>,
}

/// The code of rows that `where` refuses.
const FILTERED: &str = "filtered";
/// The code of rows with a blocked word.
const BLOCKED: &str = "blocked_word";
/// The column that blocked words are looked for in.
const CAPTION: &str = "caption";
/// A column that lives within the plan.
const FOUND: &str = "__blocked_word";

impl Filter {
    /// The predicates that the file has, with their codes, in the order in which they apply.
    fn predicates(&self) -> impl Iterator<Item = (&str, &Located<String>)> {
        let rules = self.rules.iter().map(|rule| (rule.code.as_str(), &rule.predicate));
        rules.chain(self.predicate.iter().map(|predicate| (FILTERED, predicate)))
    }
}

impl StageKind for Filter {
    const KIND: &'static str = "filter";
    const ABOUT: &'static str = "Keeps the rows that satisfy SQL predicates; the others become rejects";
    const EXAMPLE: &'static str = r#"[stages.candidates]
kind = "filter"
input = "pages"
where = "not is_boilerplate(caption) and language(caption) = 'en'"
rules = [{ code = "too_short", where = "char_length(caption) >= 5" }]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Filter {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }

    fn files(&self) -> Vec<Located<String>> {
        self.blocked_words.iter().cloned().collect()
    }

    fn stands_for(&self) -> Vec<String> {
        self.preset.iter().flat_map(|preset| preset.value().conditions()).collect()
    }

    fn tables(&self, cx: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let schema = super::known_schema(&inputs[0]);
        let mut faults = Vec::new();
        for code in self.rules.iter().map(|rule| &rule.code) {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if code.is_empty() || !code.chars().all(plain) {
                faults.push(
                    Fault::at(code.span(), format!("`{}` cannot be a reject's code", code.value()))
                        .label("expected lower-case letters, digits and `_`"),
                );
            }
        }
        if self.predicates().next().is_none() && self.preset.is_none() && self.blocked_words.is_none() {
            faults.push(
                inputs[0].fault("this filter has no predicate").hint("add `where = \"...\"` or `rules`"),
            );
        }
        if let Some(preset) = &self.preset {
            faults.extend(preset.value().faults(&schema, preset.span()));
        }
        if let Some(words) = &self.blocked_words {
            faults.extend(require(&schema, CAPTION, "text", is_text, words.span()).err());
        }
        let checks = self.predicates().map(|(_, predicate)| cx.predicate(predicate, &schema));
        faults.extend(checks.filter_map(Result::err));
        if faults.is_empty() { Ok(Tables::main(schema)) } else { Err(faults) }
    }

    fn work(&self) -> Work<'_> {
        Work::Rows(self)
    }
}

#[async_trait]
impl Rows for Filter {
    async fn plan(&self, cx: &RunContext, input: DataFrame, _: &[InputData]) -> Result<DataFrame, RunError> {
        let mut frame = input;
        if let Some(words) = &self.blocked_words {
            let found = blocked_word(cx, words)?;
            frame = frame.with_column(FOUND, found)?;
            let refused = ident(FOUND).is_not_null();
            frame = reject_where(frame, &cx.stage, refused, BLOCKED, ident(FOUND))?.drop_columns(&[FOUND])?;
        }
        let preset = self.preset.as_ref().map(|preset| preset.value().rules(frame.schema().as_arrow()));
        let preset = preset.unwrap_or_default();
        let preset = preset.iter().map(|(code, predicate)| (*code, predicate.as_str()));
        let written = self.predicates().map(|(code, predicate)| (code, predicate.as_str()));
        for (code, predicate) in preset.chain(written) {
            let kept = frame.parse_sql_expr(predicate)?;
            frame = reject_where(frame, &cx.stage, kept.is_not_true(), code, lit(predicate))?;
        }
        Ok(frame)
    }
}

/// The first blocked word of a caption; null where there is none.
fn blocked_word(cx: &RunContext, file: &Located<String>) -> Result<Expr, RunError> {
    let mut words: Vec<String> = Vec::new();
    for path in cx.local_files(file)? {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| RunError::user(CurateError::Read { path, source }.to_string()))?;
        words.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from));
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn rows_end_kept_or_rejected() {
        let filter: Filter = parse(
            r#"input = "pages"
            where = "not regexp_like(caption, '^image', 'i')"
            rules = [{ code = "too_short", where = "char_length(caption) >= 5" }, { code = "no_word", where = "word_count(caption) > 1" }]"#,
        );
        let pairs =
            pairs(&[("a", "Image one"), ("b", "dog"), ("c", "a white dog"), ("d", "elephant"), ("e", "\0")]);
        let found = rows(&filter, &pairs, &[]).await;
        assert_eq!(
            found,
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
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("words.txt"), "nude\n\ntop secret\n").unwrap();
        let filter: Filter = parse("input = \"pages\"\nblocked_words = \"words.txt\"");
        let cx = at(folder.path());
        let pairs =
            pairs(&[("a", "Top  SECRET plans"), ("b", "denuded hills"), ("c", "\0"), ("d", "a nude")]);
        let frame = filter.plan(&cx, reserved(&cx, &pairs), &[]).await.unwrap();
        let mut found = lines(frame, &["uid", "reject_code", "reject_detail"]).await;
        found.sort();
        assert_eq!(found, ["a|blocked_word|top secret", "b||", "c||", "d|blocked_word|nude"]);
        let nowhere = at(&folder.path().join("x"));
        let error = filter.plan(&nowhere, reserved(&nowhere, &pairs), &[]).await.err().unwrap();
        assert!(error.to_string().contains("words.txt"), "{error}");
    }

    #[test]
    fn mistakes_are_found_before_it_runs() {
        let pages = [input("pages", twinlens_dataset::contracts::pair_texts())];
        let faults = |toml: &str| parse::<Filter>(toml).tables(&check(), &pages).map(|_| ()).unwrap_err();
        let text = "input = \"pages\"\nwhere = \"captoin = ''\"\nrules = [{ code = \"Bad\", where = \"width > 3\" }]";
        let found = faults(text);
        let at = |fault: &Fault| &text[fault.span.clone()];
        assert_eq!(
            found.iter().map(at).collect::<Vec<_>>(),
            ["\"Bad\"", "\"width > 3\"", "\"captoin = ''\""]
        );
        assert_eq!(found[2].hint.as_deref(), Some("did you mean `caption`?"));
        assert!(faults("input = \"pages\"")[0].message.contains("no predicate"));
    }
}
