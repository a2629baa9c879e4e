//! `select`: computes, keeps and drops columns.

use std::collections::BTreeMap;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{col, ident, when};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_pipeline::rejects::{CODE, RESERVED, is_reserved};
use twinlens_pipeline::{
    ColumnType, Fault, Input, Inputs, Located, Ports, Required, Rows, RunContext, RunError, SortKey,
    StageKind, Work,
};

use super::columns;

/// Computes, replaces, keeps or drops columns; keeps every row.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectOptions {
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

/// `select` as it runs.
pub struct Select {
    options: SelectOptions,
}

impl SelectOptions {
    fn keeps(&self, name: &str) -> bool {
        let listed = |names: &[Located<String>]| names.iter().any(|listed| listed.value() == name);
        self.columns.contains_key(name)
            || (self.keep.as_ref().is_none_or(|keep| listed(keep)) && !listed(&self.drop))
    }

    /// The columns of the output. `computed` are those that are computed.
    fn schema(&self, input: &Schema, mut computed: BTreeMap<&str, Field>) -> SchemaRef {
        let kept = input.fields().iter().filter(|field| self.keeps(field.name()));
        let mut fields: Vec<Field> = kept
            .map(|field| computed.remove(field.name().as_str()).unwrap_or_else(|| field.as_ref().clone()))
            .collect();
        fields.extend(computed.into_values());
        Schema::new_with_metadata(fields, input.metadata().clone()).into()
    }
}

impl StageKind for Select {
    type Options = SelectOptions;
    const NAME: &'static str = "select";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"[stages.slim]
kind = "select"
input = "pages"
columns = { caption = "trim(caption)", words = "word_count(caption)" }
drop = ["page_url"]
"#;

    fn plan(options: SelectOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        columns::takes_over(ports, &options);
        for name in options.keep.iter().flatten().chain(&options.drop) {
            ports.column(&input, name, ColumnType::Any, Required::Yes);
        }
        let mut computed = BTreeMap::new();
        for (name, sql) in &options.columns {
            if is_reserved(name) {
                ports.fault(Fault::at(sql.span(), format!("`{name}` is the name of a reserved column")));
            }
            if let Some((_, kind)) = ports.expression(sql, &input) {
                computed.insert(name.as_str(), Field::new(name, kind, true));
            }
            ports.computes(name);
        }
        let schema = ports.schema(&input).map(|schema| options.schema(&schema, computed));
        if schema.as_ref().is_some_and(|schema| schema.fields().is_empty()) {
            let fault = options.input.fault("no column is left").hint("keep or compute at least one");
            ports.fault(fault);
        }
        ports.output(schema, SortKey::columns(ROW_ORDER));
        Some(Work::rows(Select { options }))
    }
}

#[async_trait]
impl Rows for Select {
    async fn transform(&self, cx: &RunContext, rows: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        let options = &self.options;
        let mut selection = Vec::new();
        for field in rows.schema().fields() {
            let (name, old) = (field.name(), ident(field.name()));
            match options.columns.get(name) {
                None if options.keeps(name) || RESERVED.contains(&name.as_str()) => selection.push(old),
                None => {}
                Some(sql) => {
                    let new = rows.parse_sql_expr(sql.value())?;
                    let physical = cx.session.create_physical_expr(new.clone(), rows.schema())?;
                    let new = if physical.data_type(rows.schema().as_arrow())? == *field.data_type() {
                        // A rejected row goes to the ledger with the values it had then.
                        when(col(CODE).is_null(), new).otherwise(old)?
                    } else {
                        new
                    };
                    selection.push(new.alias(name));
                }
            }
        }
        let known = |name: &str| rows.schema().has_column_with_unqualified_name(name);
        for (name, sql) in options.columns.iter().filter(|(name, _)| !known(name)) {
            selection.push(rows.parse_sql_expr(sql.value())?.alias(name));
        }
        Ok(rows.select(selection)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use datafusion::logical_expr::lit;
    use twinlens_pipeline::rejects::{reject_where, with_reserved};

    #[test]
    fn the_output_schema_is_known_at_check() {
        let select = |options: &str| {
            stage("select", &format!("input = \"pages.parquet\"\n{options}")).table("pages", &pairs(&[]))
        };
        let options = "columns = { caption = \"trim(caption)\", words = \"word_count(caption)\" }\ndrop = [\"page_url\"]";
        let pipeline = select(options).check().unwrap();
        let main = pipeline.nodes[0].main().unwrap();
        let fields: Vec<String> =
            main.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
        assert_eq!(fields, ["uid Utf8", "url Utf8", "caption Utf8", "text_source Utf8", "words Int64"]);
        let options =
            "columns = { reject_code = \"caption\", x = \"no_such(caption)\" }\nkeep = [\"cation\"]";
        let faults = select(options).faults();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[2].ends_with("(did you mean `caption`?)"), "{faults:?}");
    }

    #[tokio::test]
    async fn rejected_rows_keep_their_values() {
        let options: SelectOptions = toml::from_str(
            "input = \"pages\"\ncolumns = { caption = \"upper(caption)\" }\nkeep = [\"uid\", \"url\"]",
        )
        .unwrap();
        let cx = context();
        let pages = with_reserved(cx.session.read_batch(pairs(&[("a", "dog"), ("b", "cat")])).unwrap());
        let refused = ident("caption").eq(lit("cat"));
        let pages = reject_where(pages.unwrap(), "t", refused, "filtered", lit("")).unwrap();
        let frame = Select { options }.transform(&cx, pages, &Inputs::new(vec![])).await.unwrap();
        assert!(!frame.schema().has_column_with_unqualified_name("page_url"));
        let found = lines(&frame.collect().await.unwrap(), &["uid", "caption", "url", "reject_code"]);
        assert_eq!(found, ["a|DOG|http://example.com/a|", "b|cat|http://example.com/b|filtered"]);
    }
}
