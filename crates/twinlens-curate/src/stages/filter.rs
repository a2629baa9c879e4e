//! `filter`: keeps the rows for which a SQL predicate is true.

use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::lit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::rejects::reject_where;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, Rows, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

/// Keeps the rows that satisfy a SQL predicate; the others become rejects.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The rows to filter.
    input: Input,
    /// A SQL predicate over the input's columns. A row is kept if it is true; false and null refuse it with the code
    /// `filtered`.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    predicate: Option<Located<String>>,
    /// Predicates that have a name: a row is refused by the first that is not true, with the rule's code. They come
    /// before `where`.
    #[serde(default)]
    rules: Vec<Rule>,
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

impl Filter {
    /// The predicates with their codes, in the order in which they apply.
    fn predicates(&self) -> impl Iterator<Item = (&str, &Located<String>)> {
        let rules = self.rules.iter().map(|rule| (rule.code.as_str(), &rule.predicate));
        rules.chain(self.predicate.iter().map(|predicate| (FILTERED, predicate)))
    }
}

impl StageKind for Filter {
    const KIND: &'static str = "filter";
    const ABOUT: &'static str = "Keeps the rows that satisfy a SQL predicate; the others become rejects";
    const EXAMPLE: &'static str = r#"[stages.candidates]
kind = "filter"
input = "pages"
where = "not regexp_like(caption, '^(image|photo|img)[ _-]?[0-9]*$', 'i')"
rules = [{ code = "too_short", where = "char_length(caption) >= 5" }]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Filter {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
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
        if self.predicates().next().is_none() {
            faults.push(
                inputs[0].fault("this filter has no predicate").hint("add `where = \"...\"` or `rules`"),
            );
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
        for (code, predicate) in self.predicates() {
            let kept = frame.parse_sql_expr(predicate.value())?;
            frame = reject_where(frame, &cx.stage, kept.is_not_true(), code, lit(predicate.as_str()))?;
        }
        Ok(frame)
    }
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
