//! Stages over tables of any schema: right, or refused by the name of a column.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use twinlens_pipeline::Registry;
use twinlens_testkit::contract::{ContractCase, Values};
use twinlens_testkit::stage::StageTest;

fn registry() -> Registry {
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    registry
}

fn hashes(test: StageTest) -> StageTest {
    let sha256: ArrayRef = Arc::new(StringArray::from(vec!["f".repeat(64)]));
    let phash: ArrayRef = Arc::new(Int64Array::from(vec![-1]));
    test.table("set", &RecordBatch::try_from_iter([("sha256", sha256), ("phash", phash)]).unwrap())
}

const CASES: [ContractCase; 9] = [
    ContractCase::new(
        "filter",
        r#"input = "rows.parquet"
        where = "char_length(caption) > 23""#,
        &[("caption", Values::Text)],
    ),
    ContractCase {
        files: |test| test.file("words.txt", "number 3\n"),
        ..ContractCase::new(
            "filter",
            "input = \"rows.parquet\"\nblocked_words = \"words.txt\"",
            &[("caption", Values::Text)],
        )
    },
    ContractCase {
        replaces: &["caption"],
        ..ContractCase::new(
            "select",
            r#"input = "rows.parquet"
            columns = { caption = "upper(caption)" }"#,
            &[("caption", Values::Text)],
        )
    },
    ContractCase::new(
        "dedup",
        "input = \"rows.parquet\"\nby = [\"url\"]",
        &[("uid", Values::Hashes), ("url", Values::Text)],
    ),
    ContractCase {
        files: |test| test.file("list.json", r#"["dog", "4"]"#),
        replaces: &["query_ids"],
        ..ContractCase::new(
            "match",
            "input = \"rows.parquet\"\nqueries = \"list.json\"",
            &[("caption", Values::Text)],
        )
    },
    ContractCase {
        replaces: &["keep_prob"],
        ..ContractCase::new(
            "balance",
            "input = \"rows.parquet\"\ncap = 1",
            &[("uid", Values::Hashes), ("query_ids", Values::IntLists)],
        )
    },
    ContractCase {
        any_of: true,
        files: hashes,
        ..ContractCase::new(
            "decontaminate",
            "input = \"rows.parquet\"\nagainst = [\"set.parquet\"]",
            &[("sha256", Values::Hashes), ("phash", Values::Int64)],
        )
    },
    ContractCase::new("sql", "query = 'select * from \"rows.parquet\"'", &[]),
    // A program that answers what it is sent.
    ContractCase::new("command", "input = \"rows.parquet\"\ncommand = [\"cat\"]", &[]),
];

#[test]
fn a_table_of_any_schema_is_right_or_refused() {
    for case in CASES {
        case.hold(registry, 48);
    }
}

#[test]
fn every_kind_that_takes_a_table_is_listed() {
    // `queries` reads lists of words.
    let listed = |kind: &str| kind == "queries" || CASES.iter().any(|case| case.kind == kind);
    let registry = registry();
    let missing: Vec<_> = registry.kinds().map(|kind| kind.name).filter(|kind| !listed(kind)).collect();
    assert!(missing.is_empty(), "without a contract case: {missing:?}");
}
