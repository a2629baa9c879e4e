//! `dedup`: keeps one row of those that are equal in the given columns.

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::dataframe::DataFrame;
use datafusion::functions::expr_fn::concat;
use datafusion::functions_window::expr_fn::{first_value, row_number};
use datafusion::logical_expr::{Expr, ExprFunctionExt, cast, ident, lit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::rejects::{reject_where, with_reserved};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Located, RunContext, RunError, Stage, StageKind,
    Tables, Whole, Work,
};

use crate::columns::{column, is_text, require};

/// The code of rows that have a twin.
const DUPLICATE: &str = "duplicate";

/// Keeps, of the rows that are equal in the given columns, the one with the smallest uid; the others become rejects.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedup {
    /// The rows to compare.
    input: Input,
    /// The columns that make two rows duplicates when they are all equal: `["url"]`, `["url", "caption"]`, `["sha256"]`.
    /// A row with a null among them is nobody's duplicate.
    by: Vec<Located<String>>,
}

impl StageKind for Dedup {
    const KIND: &'static str = "dedup";
    const ABOUT: &'static str = "Keeps, of rows that are equal in the given columns, the one with the smallest uid; the others become rejects";
    const EXAMPLE: &'static str = r#"[stages.unique]
kind = "dedup"
input = "pages"
by = ["url", "caption"]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Dedup {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let schema = super::known_schema(&inputs[0]);
        let mut faults: Vec<Fault> =
            require(&schema, "uid", "text", is_text, self.input.0.span()).err().into_iter().collect();
        for by in &self.by {
            match column(&schema, by, by.span()) {
                Ok(field) if is_sortable(field.data_type()) => {}
                Ok(field) => faults.push(
                    Fault::at(
                        by.span(),
                        format!("rows cannot be compared by `{}`, of type {}", by.value(), field.data_type()),
                    )
                    .label("expected text, a number, a moment or a truth value"),
                ),
                Err(fault) => faults.push(fault),
            }
        }
        if self.by.is_empty() {
            faults.push(
                inputs[0]
                    .fault("no columns are given by which rows are compared")
                    .hint("add `by = [\"url\"]`"),
            );
        }
        if faults.is_empty() { Ok(Tables::main(schema)) } else { Err(faults) }
    }

    fn work(&self) -> Work<'_> {
        Work::Whole(self)
    }
}

fn is_sortable(kind: &DataType) -> bool {
    kind.is_primitive() || is_text(kind) || kind == &DataType::Boolean
}

#[async_trait]
impl Whole for Dedup {
    async fn plan(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
    ) -> Result<Vec<(&'static str, DataFrame)>, RunError> {
        let input = inputs.first().ok_or_else(|| RunError::Internal("dedup without input".into()))?;
        let frame = input.frame(&cx.session).await?;
        let keys: Vec<Expr> = self.by.iter().map(|by| ident(by.as_str())).collect();
        // Rows with one uid (a pair that two pages show) are told apart by everything else that has an order: which of them
        // stays must not depend on how they are read.
        let others = frame
            .schema()
            .fields()
            .iter()
            .filter(|field| field.name() != "uid" && is_sortable(field.data_type()));
        let order: Vec<_> = ["uid"]
            .into_iter()
            .chain(others.map(|f| f.name().as_str()))
            .map(|name| ident(name).sort(true, true))
            .collect();
        let over = |function: Expr| function.partition_by(keys.clone()).order_by(order.clone()).build();
        let names: Vec<Expr> = frame.schema().fields().iter().map(|field| ident(field.name())).collect();
        let ranked = frame
            .window(vec![over(row_number())?.alias(PLACE), over(first_value(ident("uid")))?.alias(KEPT)])?;
        let complete =
            keys.iter().map(|key| key.clone().is_not_null()).reduce(Expr::and).unwrap_or(lit(true));
        let duplicate = complete.and(ident(PLACE).gt(lit(1u64)));
        let detail = concat(vec![lit("duplicate of "), cast(ident(KEPT), DataType::Utf8)]);
        let decided = reject_where(with_reserved(ranked)?, &cx.stage, duplicate, DUPLICATE, detail)?;
        let reserved = twinlens_pipeline::rejects::RESERVED.map(ident);
        Ok(vec![("data", decided.select(names.into_iter().chain(reserved).collect::<Vec<_>>())?)])
    }
}

/// Columns that live within the plan.
const PLACE: &str = "__dedup_place";
const KEPT: &str = "__dedup_kept";

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::collections::BTreeMap;
    use twinlens_dataset::contracts;

    #[tokio::test]
    async fn the_smallest_uid_stays() {
        let stage: Dedup = parse("input = \"pages\"\nby = [\"caption\"]");
        let columns = BTreeMap::from([("data", vec!["uid", "caption", "reject_code", "reject_detail"])]);
        // "\0" stands for null: nulls are nobody's duplicates.
        let mut rows = vec![
            ("c", "dog"),
            ("a", "cat"),
            ("b", "dog"),
            ("d", "dog"),
            ("e", "\0"),
            ("f", "\0"),
            ("a", "cat"),
        ];
        let expected = [
            "a|cat|duplicate|duplicate of a",
            "a|cat||",
            "b|dog||",
            "c|dog|duplicate|duplicate of b",
            "d|dog|duplicate|duplicate of b",
            "e|||",
            "f|||",
        ];
        for _ in 0..rows.len() {
            rows.rotate_left(1);
            let mut found = whole(&stage, &[("pages", pairs(&rows))], &columns).await.remove("data").unwrap();
            found.sort();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn options_are_checked() {
        let faults = |toml: &str| {
            let faults =
                parse::<Dedup>(toml).tables(&check(), &[input("pages", contracts::pairs())]).unwrap_err();
            faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("; ")
        };
        assert!(faults("input = \"pages\"\nby = []").contains("no columns are given"));
        let found = faults("input = \"pages\"\nby = [\"image\", \"ulr\"]");
        assert!(
            found.contains("cannot be compared by `image`") && found.contains("unknown column `ulr`"),
            "{found}"
        );
    }
}
