//! Warnings of the evaluations.

use super::super::model::{Section, Table};
use super::super::query::{ReportData, fetch_rows, number};
use crate::errors::Failure;

pub(super) async fn warnings(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    let mut table = Table::new(
        "Warnings of the evaluations",
        &[
            ("stage", false),
            ("set", false),
            ("prompts", false),
            ("code", false),
            ("detail", false),
            ("value", true),
        ],
    );
    for (stage, name) in data.tables_with(&["set", "code", "detail", "value"]) {
        let query = format!("select * from {name} order by set, code, detail");
        for row in fetch_rows(data.session, &query).await?.iter() {
            table.rows.push(vec![
                stage.clone(),
                row.text("set"),
                row.text("prompts"),
                row.text("code"),
                row.text("detail"),
                number(row.number("value")),
            ]);
        }
    }
    let has_rows = !table.rows.is_empty();
    Ok(has_rows.then(|| Section::new("warnings", "Warnings", vec![table.at_most(100).open()])).flatten())
}
