//! The meaning of pipeline files, and the report for every kind of mistake.

mod mistakes;
mod mutations;
mod sweeps;
mod toys;
mod values;

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use serde_json::json;

use super::*;
use crate::files::Files;
use toys::registry;

const GOOD: &str = r#"
#:schema ../schemas/pipeline.schema.json
name = "toy"
seed = 17
sites = ["gallery"]
env = ["TWIN_NOTE", "TWIN_UNSET"]

[vars]
epochs = 5
share = 0.5
root = "data"
quoted = "a\"]\nkind = \"x"

[stages.top]
kind = "report"
tables = ["kept", "per_class", "funnel", "clip.rejects"]
query = '''
select k.caption, p.class
from kept k join per_class p on k.caption = p.class'''

[stages.pages]   # rows
kind = "list"
files = ["${root}/one.csv", "${root}/two.csv", "$${root}"]

[stages.kept]
kind = "keep"
input = "pages"
where = "width >= 64 and caption <> '${root}'"
share = "${share}"
resize = { size = "${epochs}", mode = "longest" }
note = "${quoted}"
rejects = "count"

[stages.outside]
kind = "keep"
input = "../other/pairs.parquet"
where = "caption like 'photo%'"
note = "${epochs}"

[stages.clip]
kind = "learn"
input = "kept"
epochs = "${epochs}"
model = "${TWIN_NOTE}-${epochs}"

[stages.late]
kind = "report"
tables = ["funnel", "rejects"]
query = "select stage, outcome, rows from funnel where stage not in (select reject_stage from rejects)"

[[tests]]
that = "every class is good"
sql = "select * from per_class where not good"
expect = "empty"

[[tests]]
that = "there are rows"
sql = "select (select count(*) from kept) > 0 and (select count(*) from kept) + (select count(*) from clip.rejects) >= 0"
expect = "true"
"#;

fn overrides(set: &[&str]) -> Overrides {
    let env = [("TWIN_NOTE".to_string(), "vit".to_string()), ("HOME".into(), "/secret".into())];
    Overrides { set: set.iter().map(ToString::to_string).collect(), env: env.into() }
}

fn checked(text: &str, set: &[&str]) -> Result<Pipeline, Report> {
    check(Path::new("pipelines/toy.toml"), text, &registry(), &overrides(set), &InputSchemas::none())
}

fn options<'a>(pipeline: &'a Pipeline, stage: &str) -> &'a serde_json::Value {
    &pipeline.node(stage).unwrap().1.options
}

fn inputs(node: &Node) -> Vec<Resolved> {
    node.inputs.iter().map(|input| input.resolved.clone()).collect()
}

#[test]
fn a_valid_file_becomes_sorted_stages() {
    let pipeline = checked(GOOD, &[]).unwrap();
    let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["pages", "kept", "outside", "clip", "top", "late"]);
    assert_eq!((pipeline.name.as_str(), pipeline.seed, pipeline.max_reject_share), ("toy", 17, None));
    assert_eq!(pipeline.sites, ["gallery"]);
    let data = |node| Resolved::Stage { node, table: "data".into() };
    let side = |table: &str| Resolved::Stage { node: 3, table: table.into() };
    let funnel = |nodes: &[usize]| Resolved::System { table: "funnel".into(), nodes: nodes.into() };
    let read = |stage: &str| inputs(pipeline.node(stage).unwrap().1);
    assert_eq!(read("top"), [data(1), side("per_class"), funnel(&[]), side("rejects")]);
    assert_eq!(read("late")[0], funnel(&[0, 1, 2, 3]));
    assert_eq!(read("outside"), [Resolved::Path("../other/pairs.parquet".into())]);
    assert_eq!(pipeline.node("outside").unwrap().1.plan.main, None, "nothing is assumed about a file");
    assert!(!pipeline.node("kept").unwrap().1.keep_rejects && pipeline.node("pages").unwrap().1.keep_rejects);
    let line = GOOD.lines().position(|line| line == "[[tests]]").unwrap() + 1;
    assert_eq!(
        (pipeline.tests.len(), pipeline.tests[0].line, pipeline.tests[1].expect),
        (2, line, Expect::True)
    );
}

#[test]
fn variables_become_values_and_never_syntax() {
    let pipeline = checked(GOOD, &[]).unwrap();
    assert_eq!(options(&pipeline, "pages")["files"], json!(["data/one.csv", "data/two.csv", "${root}"]));
    let kept = options(&pipeline, "kept");
    assert_eq!((&kept["share"], &kept["resize"]["size"]), (&json!(0.5), &json!(5)));
    assert_eq!(kept["where"], json!("width >= 64 and caption <> 'data'"));
    assert_eq!(kept["note"], json!("a\"]\nkind = \"x"));
    assert_eq!(
        options(&pipeline, "outside")["note"],
        json!("5"),
        "a number where text is wanted is its text"
    );
    assert_eq!(options(&pipeline, "clip"), &json!({ "input": "kept", "epochs": 5, "model": "vit-5" }));

    let set = [
        "epochs=7",
        "vars.root=x'y",
        "clip.model=3",
        "stages.kept.resize.size=9",
        "seed=4",
        "kept.where=width > 1",
        "kept.widths=[1,2]",
    ];
    let pipeline = checked(GOOD, &set).unwrap();
    assert_eq!(options(&pipeline, "clip"), &json!({ "input": "kept", "epochs": 7, "model": "3" }));
    let kept = options(&pipeline, "kept");
    assert_eq!(
        (&kept["resize"]["size"], &kept["where"], &kept["widths"]),
        (&json!(9), &json!("width > 1"), &json!([1, 2]))
    );
    assert_eq!(pipeline.seed, 4);
    assert_eq!(options(&pipeline, "pages")["files"][0], json!("x'y/one.csv"));
}

#[test]
fn unreadable_files_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let loaded = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        load(&path, &registry(), &overrides(&[]), &InputSchemas::none()).map(|pipeline| pipeline.file)
    };
    assert_eq!(loaded(GOOD.as_bytes()).unwrap().as_ref(), Some(&path));
    assert!(matches!(loaded(b"name = 'a'\n\xff"), Err(LoadError::NotText { line: 2, .. })));
    assert!(matches!(loaded(&vec![b'#'; MAX_FILE_BYTES as usize + 1]), Err(LoadError::TooLarge { .. })));
    assert!(matches!(loaded(b"nam = 3"), Err(LoadError::Invalid(_))));
    let folder = load(folder.path(), &registry(), &overrides(&[]), &InputSchemas::none());
    assert!(matches!(folder, Err(LoadError::Io { .. })));
}

#[test]
fn the_schema_describes_every_kind_and_option() {
    insta::assert_snapshot!(
        "pipeline_schema",
        serde_json::to_string_pretty(&json_schema(&registry())).unwrap()
    );
}

#[test]
fn options_are_documented_from_their_struct() {
    let registry = registry();
    let described = |kind: &str| {
        let options = options_doc(registry.kind(kind).unwrap());
        options
            .iter()
            .map(|option| {
                format!(
                    "{} {} {:?} {} | {}",
                    option.name, option.r#type, option.default, option.required, option.description
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        described("learn"),
        [
            "input string None true | The pairs to learn from.",
            "epochs integer Some(Number(3)) false | How often all pairs are seen.",
            "from string None false | The model to begin with.",
            "model string None false | The name of the model.",
        ]
    );
    assert!(
        described("keep")
            .contains(&"widths array of integer Some(Array []) false | Widths that are allowed.".to_string())
    );
    let keep = described("keep");
    let resize = keep.iter().position(|option| option == "resize table None false | A box for the images.");
    assert!(keep[resize.unwrap() + 1].starts_with("resize."), "{keep:?}");
}

#[test]
fn the_columns_of_files_are_checked_when_they_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let words = RecordBatch::try_from_iter([("word", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]);
    let file = std::fs::File::create(folder.path().join("words.parquet")).unwrap();
    let words = words.unwrap();
    let mut writer = ArrowWriter::try_new(file, words.schema(), None).unwrap();
    writer.write(&words).unwrap();
    writer.close().unwrap();
    let text = r#"name = "t"
[stages.kept]
kind = "keep"
input = "words.parquet"
where = "width > 3"
column = "word"
[stages.again]
kind = "keep"
input = "gone.parquet"
where = "true"
[stages.first]
kind = "learn"
input = "again"
[stages.second]
kind = "learn"
input = "first"
from = "again"
[stages.top]
kind = "report"
tables = ["kept"]
query = "select nothing from kept"
[[tests]]
that = "its columns are not known either"
sql = "select nothing from kept"
expect = "empty"
"#;
    let files = Files::in_folder(folder.path());
    let checked = |text: &str, schemas: InputSchemas<'_>| {
        check(&folder.path().join("t.toml"), text, &registry(), &overrides(&[]), &schemas)
    };
    let messages = |report: Report| {
        report.faults().iter().map(|fault| fault.message.clone()).collect::<Vec<_>>().join("\n")
    };
    let found = messages(checked(text, InputSchemas::none()).unwrap_err());
    assert_eq!(found, "`again` is a `keep` stage, which makes no model", "nothing is assumed about files");
    let report = checked(text, InputSchemas::of(&files)).unwrap_err();
    let first = &report.faults()[0];
    assert_eq!(&text[first.span.clone()], "width");
    assert_eq!(report.faults()[1].label, "expected integers");
    let found = messages(report);
    assert!(
        found.starts_with("unknown column `width`\nthe column `word` of `words.parquet` is of type string\n")
    );
    assert!(found.lines().last().unwrap().contains("gone.parquet"), "{found}");

    let listed =
        "name = \"t\"\nstages.a = { kind = \"list\", files = [\"a.csv\", \"words.parquet\", \"b*.csv\"] }";
    checked(listed, InputSchemas::none()).unwrap();
    let report = checked(listed, InputSchemas::of(&files)).unwrap_err();
    let places: Vec<&str> = report.faults().iter().map(|fault| &listed[fault.span.clone()]).collect();
    assert_eq!(places, ["\"a.csv\"", "\"b*.csv\""], "all missing files at once");

    let good =
        "name = \"t\"\nstages.kept = { kind = \"keep\", input = \"words.parquet\", where = \"word = ''\" }";
    let pipeline = checked(good, InputSchemas::of(&files)).unwrap();
    assert_eq!(pipeline.nodes[0].plan.main, Some(words.schema()), "a file keeps its own columns");
    let bad = good.replace("word = ''", "word = ");
    assert_eq!(
        messages(checked(&bad, InputSchemas::none()).unwrap_err()),
        "Expected: an expression, found: EOF"
    );
}
