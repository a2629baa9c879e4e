//! `select`: computes, keeps and drops columns.

use std::collections::BTreeMap;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{col, ident, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::rejects::{CODE, RESERVED};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, Rows, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use crate::columns::column;

/// Computes, replaces, keeps or drops columns; keeps every row.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The input rows.
    input: Input,
    /// Columns to compute, as SQL expressions over the input's columns: `{ caption =
    /// "trim(caption)" }`. Existing columns are replaced; new ones come after the input's, sorted
    /// by name.
    #[serde(default)]
    columns: BTreeMap<String, Located<String>>,
    /// The columns of the input to keep, in the input's order. All by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<Vec<Located<String>>>,
    /// Columns of the input to drop.
    #[serde(default)]
    drop: Vec<Located<String>>,
}

impl Select {
    fn keeps(&self, name: &str) -> bool {
        let listed = |names: &[Located<String>]| names.iter().any(|listed| listed.value() == name);
        self.columns.contains_key(name)
            || (self.keep.as_ref().is_none_or(|keep| listed(keep)) && !listed(&self.drop))
    }
}

impl StageKind for Select {
    const KIND: &'static str = "select";
    const ABOUT: &'static str = "Computes, replaces, keeps or drops columns; keeps every row";
    const EXAMPLE: &'static str = r#"[stages.slim]
kind = "select"
input = "pages"
columns = { caption = "trim(caption)", words = "word_count(caption)" }
drop = ["page_url"]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Select {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }

    fn tables(&self, cx: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let schema = super::known_schema(&inputs[0]);
        let mut faults = Vec::new();
        for name in self.keep.iter().flatten().chain(&self.drop) {
            faults.extend(column(&schema, name, name.span()).err());
        }
        let mut computed = BTreeMap::new();
        for (name, sql) in &self.columns {
            if RESERVED.contains(&name.as_str()) {
                faults.push(Fault::at(sql.span(), format!("`{name}` is the name of a reserved column")));
            }
            match cx.expression(sql, &schema) {
                Ok((_, kind)) => drop(computed.insert(name.as_str(), Field::new(name, kind, true))),
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut fields: Vec<Field> = (schema.fields().iter())
            .filter(|field| self.keeps(field.name()))
            .map(|field| computed.remove(field.name().as_str()).unwrap_or_else(|| field.as_ref().clone()))
            .collect();
        fields.extend(computed.into_values());
        if fields.is_empty() {
            return Err(vec![inputs[0].fault("no column is left").hint("keep or compute at least one")]);
        }
        Ok(Tables::main(Schema::new_with_metadata(fields, schema.metadata().clone()).into()))
    }

    fn work(&self) -> Work<'_> {
        Work::Rows(self)
    }
}

#[async_trait]
impl Rows for Select {
    fn computes(&self) -> Vec<String> {
        self.columns.keys().cloned().collect()
    }

    async fn plan(&self, cx: &RunContext, input: DataFrame, _: &[InputData]) -> Result<DataFrame, RunError> {
        let mut selection = Vec::new();
        for field in input.schema().fields() {
            let (name, old) = (field.name(), ident(field.name()));
            match self.columns.get(name) {
                None if self.keeps(name) || RESERVED.contains(&name.as_str()) => selection.push(old),
                None => {}
                Some(sql) => {
                    let new = input.parse_sql_expr(sql.value())?;
                    let physical = cx.session.create_physical_expr(new.clone(), input.schema())?;
                    let new = if physical.data_type(input.schema().as_arrow())? == *field.data_type() {
                        // A rejected row goes to the ledger with the values it had then.
                        when(col(CODE).is_null(), new).otherwise(old)?
                    } else {
                        new
                    };
                    selection.push(new.alias(name));
                }
            }
        }
        let known = |name: &str| input.schema().has_column_with_unqualified_name(name);
        for (name, sql) in self.columns.iter().filter(|(name, _)| !known(name)) {
            selection.push(input.parse_sql_expr(sql.value())?.alias(name));
        }
        Ok(input.select(selection)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Filter;
    use super::super::testing::*;
    use super::*;
    use twinlens_dataset::contracts;

    #[test]
    fn the_output_schema_is_known_at_check() {
        let toml = r#"input = "pages"
            columns = { caption = "trim(caption)", words = "word_count(caption)" }
            drop = ["page_url"]"#;
        let tables =
            parse::<Select>(toml).tables(&check(), &[input("pages", contracts::pair_texts())]).unwrap();
        let fields: Vec<String> =
            tables.main.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
        assert_eq!(fields, ["uid Utf8", "url Utf8", "caption Utf8", "text_source Utf8", "words Int64"]);

        let toml = r#"input = "pages"
            columns = { reject_code = "caption", x = "no_such(caption)" }
            keep = ["cation"]"#;
        let faults =
            parse::<Select>(toml).tables(&check(), &[input("pages", contracts::pair_texts())]).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(faults[0].hint.as_deref(), Some("did you mean `caption`?"));
    }

    #[tokio::test]
    async fn rejected_rows_keep_their_values() {
        let select: Select =
            parse("input = \"pages\"\ncolumns = { caption = \"upper(caption)\" }\nkeep = [\"uid\", \"url\"]");
        let filter: Filter = parse("input = \"pages\"\nwhere = \"caption <> 'cat'\"");
        let cx = context();
        let frame = reserved(&cx, &pairs(&[("a", "dog"), ("b", "cat")]));
        let frame = filter.plan(&cx, frame, &[]).await.unwrap();
        let frame = select.plan(&cx, frame, &[]).await.unwrap();
        let found = lines(frame.clone(), &["uid", "caption", "url", "reject_code"]).await;
        assert!(!frame.schema().has_column_with_unqualified_name("page_url"));
        assert_eq!(found, ["a|DOG|http://example.com/a|", "b|cat|http://example.com/b|filtered"]);
    }
}
