//! Every kind of stage that takes a table, over tables of any schema: right, or refused by the name
//! of a column. The kinds of `twinlens-curate` have their cases in that crate.

use std::collections::BTreeSet;

use serde_json::Value;
use twinlens_testkit::contract::{ContractCase, Values};
use twinlens_testkit::stage::StageTest;

use crate::support::{Place, stderr};

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

/// Options for which 0 is a number like any other: none, at once, or everywhere. The width of
/// embeddings is compared with that of the model when it is opened. All others refuse it.
const ZERO_IS_A_NUMBER: [&str; 13] = [
    "balance.min_matched",
    "crawl.max_depth",
    "crawl.max_page_bytes",
    "crawl.max_pages",
    "crawl.max_sitemaps",
    "decontaminate.distance",
    "embed.width",
    "queries.numbers",
    "scaling.hold_out",
    "train.shuffle_bytes",
    "train.warmup",
    "warc.max_record_bytes",
    "zero-shot.examples",
];

/// No value is silently taken for another one.
#[test]
fn an_option_of_0_is_refused_or_a_number_like_any_other() {
    let registry = twinlens::registry();
    let schema = twinlens_pipeline::config::json_schema(&registry);
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for kind in registry.kinds() {
        let options = schema["$defs"][format!("stage-{}", kind.name)]["properties"].as_object().unwrap();
        let integers = options.iter().filter(|(name, option)| *name != "seed" && is_integer(option));
        for name in integers.map(|(name, _)| name) {
            let place = Place::new();
            let line = |line: &str| line.split('=').next().unwrap().trim() == name;
            let example: Vec<&str> = kind.example.lines().filter(|text| !line(text)).collect();
            let kind_line = format!("kind = \"{}\"", kind.name);
            let example = example.join("\n").replacen(&kind_line, &format!("{kind_line}\n{name} = 0"), 1);
            place.write("zero.toml", &format!("name = \"zero\"\n{example}"));
            let errors = stderr(&place.output(&["check", "zero.toml"]));
            let option = format!("{}.{name}", kind.name);
            // An error shows the line that it is about.
            let is_refused = errors.contains(&format!("{name} = 0"));
            if is_refused == ZERO_IS_A_NUMBER.contains(&option.as_str()) {
                wrong.push(format!("{option}: {}", errors.lines().next().unwrap_or("accepted")));
            }
            seen.insert(option);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ZERO_IS_A_NUMBER.iter().all(|option| seen.contains(*option)), "an option that is not there");
}

fn is_integer(schema: &Value) -> bool {
    schema["type"] == "integer"
        || schema["type"].as_array().is_some_and(|types| types.iter().any(|one| one == "integer"))
}
