//! Every kind of stage that takes a table, over tables of any schema: right, or refused by the name
//! of a column. The kinds of `twinlens-curate` have their cases in that crate.

use twinlens_testkit::contract::{ContractCase, Values};
use twinlens_testkit::stage::StageTest;

/// The configuration of a model, which gives embeddings their width.
const CONFIG: &str = r#"{ "embed": 4, "vision": { "image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2 },
"text": { "vocab": 300, "context": 8, "width": 16, "layers": 1, "heads": 2 } }"#;

/// The files of a model. Nothing opens its weights and its tokenizer before a run.
fn model(test: StageTest) -> StageTest {
    let files = [("config.json", CONFIG), ("model.safetensors", "{}"), ("tokenizer.json", "{}")];
    files.iter().fold(test, |test, (name, text)| test.file(&format!("model/{name}"), text))
}

const CASES: [ContractCase; 7] = [
    // No URL of these rows leaves the machine.
    ContractCase::new("fetch", "input = \"rows.parquet\"", &[("url", Values::Urls)]),
    ContractCase {
        runs: false,
        files: |test| test.file("words/tokenizer.json", "{}"),
        ..ContractCase::new(
            "train",
            "input = \"rows.parquet\"\ntokenizer = \"./words\"\nmodel = \"vit-tiny-64\"\nepochs = 1",
            &[("caption", Values::Text), ("image", Values::Image)],
        )
    },
    ContractCase {
        runs: false,
        ..ContractCase::new(
            "tokenizer",
            "input = \"rows.parquet\"\nvocab_size = 300",
            &[("caption", Values::Text)],
        )
    },
    ContractCase {
        runs: false,
        files: model,
        ..ContractCase::new(
            "embed",
            "input = \"rows.parquet\"\nmodel = \"./model\"\ncaptions = \"caption\"\nwidth = 4",
            &[("caption", Values::Text), ("image", Values::Image)],
        )
    },
    ContractCase {
        runs: false,
        files: model,
        ..ContractCase::new(
            "retrieval",
            "model = \"./model\"\nsets = [{ name = \"s\", input = \"rows.parquet\", captions = \"caption\" }]",
            &[("caption", Values::Text), ("image", Values::Image)],
        )
    },
    ContractCase {
        runs: false,
        files: model,
        ..ContractCase::new(
            "zero-shot",
            "model = \"./model\"\nsets = [{ name = \"s\", input = \"rows.parquet\", label = \"label\" }]",
            &[("label", Values::Text), ("image", Values::Image)],
        )
    },
    ContractCase {
        runs: false,
        ..ContractCase::new(
            "probe",
            "sets = [{ name = \"s\", train = \"rows.parquet\", test = \"rows.parquet\", label = \"label\" }]",
            &[("label", Values::Text), ("embedding", Values::Embeddings)],
        )
    },
];

/// Kinds that read files of their own, or the tables of evaluations.
const WITHOUT_TABLES: [&str; 7] =
    ["crawl", "evaluation-set", "folder", "scaling", "table", "warc", "webdataset"];

#[test]
fn a_table_of_any_schema_is_right_or_refused() {
    for case in CASES {
        case.hold(twinlens::registry, 32);
    }
}

#[test]
fn every_kind_that_takes_a_table_is_listed() {
    let mut curation = twinlens::Registry::default();
    twinlens_curate::register(&mut curation);
    let registry = twinlens::registry();
    let listed = |kind: &str| {
        WITHOUT_TABLES.contains(&kind)
            || CASES.iter().any(|case| case.kind == kind)
            || curation.kind(kind).is_some()
    };
    let missing: Vec<_> = registry.kinds().map(|kind| kind.name).filter(|kind| !listed(kind)).collect();
    assert!(missing.is_empty(), "without a contract case: {missing:?}");
}
