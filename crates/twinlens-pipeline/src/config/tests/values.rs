//! Pipelines of values.

use serde_json::json;

use super::toys::registry;
use crate::config::{InputSchemas, PipelineValues};

#[test]
fn values_pass_the_checks_of_a_file() {
    let mut values = PipelineValues::new("made");
    let files = values.argument("--files", "a.csv");
    let size = values.argument("--size", "64");
    values.stage("pages", "list", files).items("files", vec![(json!("a.csv"), files)]);
    values
        .stage("kept", "keep", size)
        .option("input", "pages", files)
        .option("where", "width > 3", size)
        .option("share", 0.25, size)
        .option("resize", json!({ "size": 64, "mode": null }), size);
    let pipeline = values.check("base".as_ref(), &registry(), &InputSchemas::none()).unwrap();
    assert_eq!((pipeline.name.as_str(), pipeline.base.to_str(), pipeline.file), ("made", Some("base"), None));
    let kept = &pipeline.nodes[1].options;
    assert_eq!((&kept["share"], &kept["resize"]["size"]), (&json!(0.25), &json!(64)));
}

#[test]
fn errors_point_at_arguments() {
    let mut values = PipelineValues::new("made");
    let files = values.argument("--files", "a.csv");
    let size = values.argument("--size", "wide");
    values.stage("pages", "list", files).items("files", vec![(json!("a.csv"), files), (json!(3), size)]);
    values
        .stage("kept", "keep", files)
        .option("input", "pages", files)
        .option("where", "widht > 3", size)
        .option("resize", json!({ "size": -64 }), size);
    let report = values.check("base".as_ref(), &registry(), &InputSchemas::none()).unwrap_err();
    assert!(report.faults().iter().all(|fault| report.position(fault).is_none()));
    insta::assert_snapshot!(report.render(false));
}
