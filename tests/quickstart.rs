//! The quickstart with one epoch: every stage, the tables at the end, a second run, and a changed
//! option.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::docs::{pages, snippets};
use crate::support::{page, program, stdout};

fn pipeline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/quickstart.toml")
}

fn twinlens(args: &[&str]) -> Output {
    let output = Command::new(program()).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The decision of the plan for each stage.
fn decisions(dir: &str, more: &[&str]) -> Vec<(String, String)> {
    let file = pipeline().display().to_string();
    let args = [&["plan", &file, "--dir", dir, "--set", "epochs=1", "--format", "json"], more].concat();
    let plan: serde_json::Value = serde_json::from_str(&stdout(&twinlens(&args))).unwrap();
    let stages = plan.as_array().unwrap();
    let text = |stage: &serde_json::Value, key: &str| stage[key].as_str().unwrap_or_default().to_string();
    stages.iter().map(|stage| (text(stage, "stage"), text(stage, "decision"))).collect()
}

#[test]
fn the_quickstart_prints_its_tables_and_is_then_reused() {
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
    let log = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(log.contains("(reused)"), "{log}");
    let rebuilt = |decisions: &[(String, String)]| -> Vec<String> {
        decisions.iter().filter(|(_, decision)| decision == "run").map(|(stage, _)| stage.clone()).collect()
    };
    assert_eq!(rebuilt(&decisions(&dir, &[])), Vec::<String>::new());

    // A changed option rebuilds its stage and those after it.
    let changed = ["--set", "stages.zero_shot.batch_size=64"];
    assert_eq!(rebuilt(&decisions(&dir, &changed)), ["zero_shot", "accuracy", "funnel_of_rows", "support"]);

    the_queries_of_the_guide_have_answers(&dir);
    views_have_their_documented_columns(&dir);
    the_report_is_self_contained(&dir);
}

/// The queries of the guide work, and each of the ten questions has an answer.
fn the_queries_of_the_guide_have_answers(dir: &str) {
    for (name, page) in pages() {
        let (before, section) = page.split_once("## Ten questions\n").unwrap_or((&page, ""));
        let (section, after) = section.split_once("\n## ").unwrap_or((section, ""));
        for query in snippets(before, "sql").into_iter().chain(snippets(after, "sql")) {
            twinlens(&["sql", dir, &query]);
        }
        let questions = snippets(section, "sql");
        assert_eq!(questions.len(), if name == "sql.md" { 10 } else { 0 }, "{name}");
        for query in questions {
            let rows = stdout(&twinlens(&["sql", dir, "--format", "csv", &query]));
            assert!(rows.lines().count() > 1, "{query}\n{rows}");
        }
    }
}

fn views_have_their_documented_columns(dir: &str) {
    let help = stdout(&twinlens(&["sql", dir, "--views"]));
    assert!(!help.contains("not available"), "{help}");
    for view in help.split("\n\n").filter(|view| !view.trim().is_empty()) {
        let (head, columns) = view.trim().split_once('\n').unwrap();
        let name = head.split(':').next().unwrap();
        let documented: Vec<&str> =
            columns.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        let query = format!("select * from views.{name} limit 1");
        let rows = stdout(&twinlens(&["sql", dir, "--format", "csv", &query]));
        assert_eq!(rows.lines().next().unwrap().split(',').collect::<Vec<_>>(), documented, "{name}");
        assert!(rows.lines().count() > 1, "the view {name} has no rows");
    }
}

fn the_report_is_self_contained(dir: &str) {
    let once = stdout(&twinlens(&["report", dir, "-o", "-"]));
    page::check(&once);
    for part in [
        "accuracy",
        "prompts",
        "samples",
        "confusions",
        "support",
        "training",
        "images",
        "captions",
        "hosts",
        "funnel",
        "balance",
        "hashes",
    ] {
        let (_, section) = once.split_once(&format!("<h2 id=\"{part}\">")).unwrap();
        let section = section.split("</section>").next().unwrap();
        assert!(
            section.contains("<table>") || section.contains("<img "),
            "the section {part} is empty:\n{section}"
        );
    }
    assert!(!once.contains("id=\"scaling\""), "a section without data");
    let compared = stdout(&twinlens(&["report", dir, "-o", "-", "--with", dir]));
    page::check(&compared);
    assert!(compared.contains("The options of both runs are the same."), "{compared}");

    twinlens(&["report", dir]);
    let file = Path::new(dir).join("report.html");
    assert_eq!(fs::read_to_string(&file).unwrap(), once, "the same run gives the same bytes");
    match page::browser() {
        Some(browser) => page::open(&browser, &file, &Path::new(dir).join("../profile")),
        None => eprintln!("no browser found: the page was not opened"),
    }
    let terminal = stdout(&twinlens(&["report", dir, "--terminal"]));
    assert!(
        terminal.contains("Accuracy") && terminal.contains('█') && !terminal.contains('\u{1b}'),
        "{terminal}"
    );
}
