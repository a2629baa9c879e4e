//! Swept stages and their readers.

use serde_json::json;

use super::{checked, inputs, options};
use crate::config::Resolved;

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
