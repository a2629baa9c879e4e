//! The quickstart as a stranger runs it, with one epoch: every stage, the tables at the end, the second run, a changed option.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

mod support;

use support::stdout;

fn pipeline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/quickstart.toml")
}

fn twinlens(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_twinlens")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// What the plan says of each stage: its decision.
fn decisions(dir: &str, more: &[&str]) -> Vec<(String, String)> {
    let file = pipeline().display().to_string();
    let args = [&["plan", &file, "--dir", dir, "--set", "epochs=1", "--format", "json"], more].concat();
    let plan: serde_json::Value = serde_json::from_str(&stdout(&twinlens(&args))).unwrap();
    let stages = plan.as_array().unwrap();
    let text = |stage: &serde_json::Value, key: &str| stage[key].as_str().unwrap_or_default().to_string();
    stages.iter().map(|stage| (text(stage, "stage"), text(stage, "decision"))).collect()
}

#[test]
fn the_quickstart_ends_in_its_tables_and_is_then_reused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run").display().to_string();
    let file = pipeline().display().to_string();
    let run = ["run", &file, "--dir", &dir, "--set", "epochs=1", "--progress", "never"];

    let first = twinlens(&run);
    let tables = stdout(&first);
    for part in
        ["accuracy", "groups", "names", "mean_per_class", "times_chance", "funnel_of_rows", "over_cap"]
    {
        assert!(tables.contains(part), "`{part}` is not in:\n{tables}");
    }
    for reason in ["robots_disallowed", "opted_out", "http_not_found", "duplicate", "no_query", "truncated"] {
        assert!(tables.contains(reason), "no row was rejected as `{reason}`:\n{tables}");
    }

    let second = twinlens(&run);
    assert_eq!(stdout(&second), tables);
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(told.contains("(reused)"), "{told}");
    let again = |decisions: &[(String, String)]| -> Vec<String> {
        decisions.iter().filter(|(_, decision)| decision == "run").map(|(stage, _)| stage.clone()).collect()
    };
    assert_eq!(again(&decisions(&dir, &[])), Vec::<String>::new());

    // One option of one stage: that stage and those after it.
    let changed = ["--set", "stages.zero_shot.batch_size=64"];
    assert_eq!(
        again(&decisions(&dir, &changed)),
        ["zero_shot", "accuracy", "funnel_of_rows", "class_support"]
    );
}
