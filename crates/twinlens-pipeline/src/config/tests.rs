//! The meaning of pipeline files, and the report for every kind of mistake.

mod toys;

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use serde_json::json;

use super::*;
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
    assert_eq!((pipeline.name.as_str(), pipeline.seed, pipeline.max_reject_share), ("toy", 17, 1.0));
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
        "root=x'y",
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

/// Mistakes: the name of the snapshot, the file, and the `--set` arguments.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("typo_in_an_option", "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwher = 'width > 3'", &[]),
    ("typo_at_the_top", "sede = 3\n[stage.kept]\nkind = 'keep'", &[]),
    (
        "unknown_kind",
        "[stages.kept]\nkind = 'kep'\n[stages.other]\ninput = 'pages'\n[stages.third]\nkind = 3",
        &[],
    ),
    (
        "unknown_input",
        "[stages.kept]\nkind = 'keep'\ninput = 'page'\nwhere = 'true'\n[stages.more]\nkind = 'keep'\ninput = 'clip.per_clas'\nwhere = 'true'\n[stages.clip]\nkind = 'learn'\ninput = 'rejects'",
        &[],
    ),
    (
        "ambiguous_input",
        "[stages.one]\nkind = 'learn'\ninput = 'pages'\n[stages.two]\nkind = 'learn'\ninput = 'pages'\n[stages.kept]\nkind = 'keep'\ninput = 'per_class'\nwhere = 'good'",
        &[],
    ),
    (
        "cycle",
        "[stages.a]\nkind = 'keep'\ninput = 'c'\nwhere = 'true'\n\n[stages.b]\nkind = 'keep'\ninput = 'a'\nwhere = 'true'\n\n[stages.c]\nkind = 'keep'\ninput = 'b'\nwhere = 'true'\n\n[stages.after]\nkind = 'keep'\ninput = 'c'\nwhere = 'nonsense'\n\n[stages.self]\nkind = 'learn'\ninput = 'self'",
        &[],
    ),
    (
        "undefined_variable",
        "[vars]\nepochs = 3\n[stages.clip]\nkind = 'learn'\ninput = 'pages'\nepochs = \"${epohcs}\"\nmodel = \"a\\t${HOME}-${TWIN_UNSET}-${\"",
        &[],
    ),
    (
        "variable_of_the_wrong_type",
        "[vars]\nepochs = 'many'\nlist = [1]\n[stages.clip]\nkind = 'learn'\ninput = 'pages'\nepochs = '${epochs}'\n[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'\nverbose = '${share}'",
        &["share=0.5"],
    ),
    (
        "unknown_column",
        "[vars]\nlong = 'a longer word'\n[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = \"width >= 64 and \\\"caption\\\" <> '${long}' and captoin <> ''\"",
        &[],
    ),
    (
        "unknown_column_in_a_long_string",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = '''\nwidth > 3\n  and widht < 9\n'''",
        &[],
    ),
    (
        "predicate_of_another_type",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'width + 1'\n[stages.more]\nkind = 'keep'\ninput = 'kept'\nwhere = 'not reported, since its input failed'",
        &[],
    ),
    (
        "sql_syntax",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'width > > 3'\n[stages.more]\nkind = 'keep'\ninput = 'pages'\nwhere = \"caption = 'open\"",
        &[],
    ),
    (
        "wrong_types",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 3\nshare = 'half'\nwidths = [1, 'two', 70000, -1]\nresize = { size = -3, mode = 'shortset' }\nverbose = 1",
        &[],
    ),
    (
        "missing_options",
        "[stages.kept]\nkind = 'keep'\n[stages.more]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'\nresize = {}\n[stages.clip]\nkind = 'learn'\nepochs = 'x'",
        &[],
    ),
    (
        "several_at_once",
        "sites = ['galery']\nmax_reject_share = 2\n[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwher = 'true'\nshar = 0.5\nverbos = true\nresize = { siez = 3 }\nreject = 'keep'\n[stages.More-Of]\nkind = 'keep'\ninput = 'pages'\nwhere = 'height > 3'\nrejects = 'drop'\n[stages.rejects]\nkind = 'learn'\ninput = 'pages'\n[stages.flat]\n",
        &[],
    ),
    ("toml_syntax", "[stages.kept\nkind = \ninput = 'pages\nwhere = 'a'\nwhere = 'b'", &[]),
    (
        "toml_syntax_on_several_lines",
        "[stages.kept]\nkind = \ninput = 'pages\nwhere = 'a'\nwhere = 'b'\n[stages.kept]\nx = 1__0",
        &[],
    ),
    (
        "rejects_that_are_not_kept",
        "[stages.one]\nkind = 'learn'\ninput = 'two.rejects'\n[stages.two]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'\nrejects = 'count'\n[stages.three]\nkind = 'keep'\ninput = 'pages.rejects'\nwhere = \"reject_code = 'x'\"\n[stages.top]\nkind = 'report'\ntables = ['pages']\nquery = 'select 1'\n[stages.four]\nkind = 'keep'\ninput = 'top.rejects'\nwhere = 'true'",
        &[],
    ),
    (
        "bad_tests",
        "[[tests]]\nthat = 'a column'\nsql = 'select widht from pages'\nexpect = 'empty'\n\n[[tests]]\nthat = 'a table'\nsql = 'select * from pagse'\nexpect = 'non-empty'\n\n[[tests]]\nthat = 'syntax'\nsql = 'selekt 1'\nexpect = 'true'\n\n[[tests]]\nthat = 'a boolean'\nsql = 'select caption from pages'\nexpect = 'true'\n\n[[tests]]\nsql = 'drop table pages'\nexpect = 'nothing'",
        &[],
    ),
    (
        "bad_set",
        "[vars]\nepochs = 3\n[stages.clip]\nkind = 'learn'\ninput = 'pages'\nepochs = '${epochs}'",
        &[
            "epoch=4",
            "clip.epoch=4",
            "clp.epochs=4",
            "clip.model=[1]",
            "stages.clip=3",
            "nonsense",
            "clip.input=pagse",
        ],
    ),
    (
        "set_points_into_a_predicate",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'",
        &["kept.where=width > 3 and captoin = ''"],
    ),
    ("no_stages", "seed = -1", &[]),
];

#[test]
fn every_mistake_is_reported_with_its_position() {
    for (name, text, set) in MISTAKES {
        let head = if text.starts_with("[stages.kept\n") || *name == "no_stages" {
            String::new()
        } else {
            // Top-level keys first, then the source that the cases read.
            "name = 'toy'\nenv = ['TWIN_UNSET']\n".into()
        };
        let pages = if *name == "no_stages" { "" } else { "\n[stages.pages]\nkind = 'list'\nfiles = []\n" };
        let file = format!("{head}{text}{pages}");
        let report = match checked(&file, set) {
            Ok(_) => panic!("{name} passed"),
            Err(report) => report,
        };
        assert!(!report.faults().is_empty());
        insta::assert_snapshot!(*name, report.render(false));
    }
}

#[test]
fn colour_is_optional_and_control_characters_are_removed() {
    let report = checked("name = 'toy'\n\"\\u001b[31m\" = 1", &[]).unwrap_err();
    assert!(!report.render(false).contains('\u{1b}'));
    assert!(report.render(true).contains('\u{1b}') && !report.render(true).contains("\u{1b}[31m`"));
}

#[test]
fn unreadable_files_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let loaded = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        load(&path, &registry(), &overrides(&[]), &InputSchemas::none()).map(|pipeline| pipeline.path)
    };
    assert_eq!(loaded(GOOD.as_bytes()).unwrap(), path);
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

/// A valid file with random edits.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (
        0..GOOD.len(),
        0..40_usize,
        prop_oneof![
            Just(""),
            Just("'"),
            Just("\""),
            Just("${"),
            Just("}"),
            Just("="),
            Just("\n["),
            Just("é"),
            Just("3"),
            Just("#")
        ],
    );
    proptest::collection::vec(edit, 1..4).prop_map(|edits| {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (at, length, put) in edits {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            drop(text.splice(at..end, put.chars()));
        }
        text.into_iter().collect()
    })
}

fn assert_valid_positions(text: &str, set: &[&str]) {
    if let Err(report) = checked(text, set) {
        let end = text.len() + set.iter().map(|argument| argument.len() + 1).sum::<usize>();
        for fault in report.faults() {
            assert!(fault.span.start <= fault.span.end && fault.span.end <= end, "{fault:?}");
        }
        assert!(
            !report.faults().is_empty()
                && !report.render(false).is_empty()
                && !report.render(true).is_empty()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_text_causes_a_panic(text in "\\PC{0,200}", set in "\\PC{0,30}") {
        assert_valid_positions(&text, &[&set]);
    }

    #[test]
    fn no_broken_file_causes_a_panic(text in mutated(), set in "(clip|kept|seed|epochs|a)[.=]?(epochs|where|resize.size)?=?[\\[{'\"a-z0-9>= ]{0,12}") {
        assert_valid_positions(&text, &[&set]);
    }

    #[test]
    fn external_values_never_become_syntax(value in "[\\PC\n\"'\\[\\]=#${}]{0,40}") {
        let mut outside = overrides(&[]);
        outside.env.insert("TWIN_NOTE".into(), value.clone());
        let argument = format!("quoted={value}");
        outside.set.push(argument);
        let pipeline = check(Path::new("toy.toml"), GOOD, &registry(), &outside, &InputSchemas::none()).unwrap();
        let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
        prop_assert_eq!(names, ["pages", "kept", "outside", "clip", "top", "late"]);
        let model = options(&pipeline, "clip")["model"].as_str().unwrap();
        let note = options(&pipeline, "kept")["note"].as_str().unwrap();
        // Numbers and quoted strings are parsed; anything else is kept as is.
        let parsed = toml::de::DeValue::parse(&value).is_ok() || toml::de::DeValue::parse(value.trim()).is_ok();
        let kept = model.strip_suffix("-5") == Some(value.as_str()) && note == value.trim();
        prop_assert!(parsed || kept, "{} became {} and {}", value, model, note);
    }
}

const SWEPT: &str = r#"
name = "swept"

[vars]
many = 9

[stages.pages]
kind = "list"
files = ["a.csv"]

[stages.clip]
kind = "learn"
input = "pages"

[stages.clip.sweep]
model = ["RN-50", "vit/b"]
epochs = [1, "${many}"]

[stages.kept]
kind = "keep"
input = "clip"
where = "width > 3"

[stages.again]
kind = "keep"
input = "kept"
where = "width > 4"
sweep = { seed = [5, 6], share = [0.5] }

[stages.top]
kind = "report"
tables = ["clip", "kept", "per_class", "again.rejects", "clip_rn_50_epochs_9"]
query = """
select c.caption, c.sweep_model, c.sweep_epochs + 1 as e, p.sweep_model as m, r.sweep_share * r.sweep_seed as s, k.reject
from clip c join per_class p on c.sweep_model = p.sweep_model, again.rejects r, (select sweep_model as reject from kept) k
"""

[[tests]]
that = "all variants are one table"
sql = "select * from clip where sweep_epochs > 9 union all select * from clip_vit_b_epochs_1, (values ('x', 1)) as t(a, b)"
expect = "empty"

[[tests]]
that = "the side table of all is plain"
sql = "select class from per_class where sweep_model = 'RN-50' and good"
expect = "empty"
"#;

#[test]
fn a_sweep_gives_variants_of_the_stage_and_its_readers() {
    let pipeline = checked(SWEPT, &[]).unwrap();
    let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
    let clips = ["clip_rn_50_epochs_1", "clip_rn_50_epochs_9", "clip_vit_b_epochs_1", "clip_vit_b_epochs_9"];
    assert_eq!(names[..5], [&["pages"], &clips[..]].concat());
    assert_eq!(names[5..9], clips.map(|name| name.replace("clip", "kept")));
    assert_eq!(
        names[9..11],
        ["again_rn_50_epochs_1_seed_5_share_0_5", "again_rn_50_epochs_9_seed_5_share_0_5"]
    );
    assert_eq!((names.len(), names[17]), (18, "top"));

    let data = |node| Resolved::Stage { node, table: "data".into() };
    let node = |name: &str| pipeline.node(name).unwrap().1;
    assert_eq!(
        options(&pipeline, "clip_vit_b_epochs_9"),
        &json!({ "input": "pages", "epochs": 9, "model": "vit/b" })
    );
    assert_eq!(
        (inputs(node("kept_vit_b_epochs_1"))[0].clone(), node("kept_vit_b_epochs_9").family()),
        (data(3), "kept")
    );
    assert_eq!(inputs(node("again_vit_b_epochs_9_seed_6_share_0_5")), [data(8)]);
    assert_eq!(node("again_vit_b_epochs_9_seed_6_share_0_5").seed, Some(6));
    let all = |nodes: std::ops::Range<usize>, table: &str| Resolved::Variants {
        nodes: nodes.collect(),
        table: table.into(),
    };
    let read = [all(1..5, "data"), all(5..9, "data"), all(1..5, "per_class"), all(9..17, "rejects"), data(2)];
    assert_eq!(inputs(node("top")), read);
    let main = node("top").plan.main.as_ref().unwrap();
    let columns: Vec<String> =
        main.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    assert_eq!(columns[..4], ["caption Utf8", "sweep_model Utf8", "e Int64", "m Utf8"]);
    assert_eq!(columns[4..], ["s Float64", "reject Utf8"]);
}

#[test]
fn variants_of_one_sweep_are_matched() {
    let joined = r#"
name = "t"
stages.pages = { kind = "list", sweep = { files = [["a"], ["b"]], max_rows = [1] } }
stages.one = { kind = "keep", input = "pages", where = "true" }
stages.clip = { kind = "learn", input = "one" }
stages.both = { kind = "pair", left = "one", right = "clip.per_class" }
stages.other = { kind = "learn", input = "one_files_2_max_rows_1" }
"#;
    let pipeline = checked(joined, &[]).unwrap();
    let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names[6..], ["both_files_1_max_rows_1", "both_files_2_max_rows_1", "other"]);
    let of = |node, table: &str| Resolved::Stage { node, table: table.into() };
    assert_eq!(inputs(&pipeline.nodes[7]), [of(3, "data"), of(5, "per_class")]);
    assert_eq!(inputs(&pipeline.nodes[8]), [of(3, "data")]);
    assert!(pipeline.nodes[8].variant.is_none());
}

#[test]
fn mistakes_in_a_sweep_are_reported_with_their_position() {
    let report = |sweep: &str| {
        let text = format!(
            "name = \"t\"\n[stages.pages]\nkind = \"list\"\nfiles = [\"a\"]\n[stages.clip]\nkind = \"learn\"\ninput = \"pages\"\nepochs = 4\n{sweep}\n"
        );
        checked(&text, &[]).unwrap_err().to_string()
    };
    let mistakes = [
        "sweep = 3",
        "sweep = {}",
        "[stages.clip.sweep]\nmodle = [1]\nepochs = [1, 2]\nmodel = \"a\"\nseed = []",
        "[stages.clip.sweep]\nmodel = [\"a\", 3, \"A\"]\nseed = [-1]",
    ];
    insta::assert_snapshot!(mistakes.map(report).join("\n"));
}

#[test]
fn values_with_equal_names_are_numbered() {
    let text = "name = \"t\"\n[stages.pages]\nkind = \"list\"\nfiles = [\"a\"]\n[stages.wide]\nkind = \"keep\"\ninput = \"pages\"\n\
                [stages.wide.sweep]\nwhere = [\"width > 3\", \"width < 3\", \"width > 4\"]\n";
    let pipeline = checked(text, &[]).unwrap();
    let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["pages", "wide_where_1", "wide_where_2", "wide_width_4"]);
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
