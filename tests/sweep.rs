//! Sweeps: one dataset per variant, one table in SQL, and only changed variants are rebuilt.

use crate::support::{Place, stderr, stdout};

const PIPELINE: &str = r#"
name = "swept"

[stages.list]
kind = "table"
files = ["pairs.csv"]

[stages.long]
kind = "filter"
input = "list"

[stages.long.sweep]
where = ["char_length(caption) >= 4", "char_length(caption) >= 9"]

[stages.shown]
kind = "select"
input = "long"
columns = { size = "char_length(caption)" }

[stages.counts]
kind = "sql"
query = "select sweep_where, count(*) as rows, min(size) as shortest from shown group by 1 order by 2 desc"

[[tests]]
that = "all variants are one table"
sql = "select count(distinct sweep_where) = 2 from long"
expect = "true"
"#;

fn place() -> Place {
    let place = Place::new();
    let rows = ["cat", "a dog", "a red bicycle", "tree house"]
        .map(|text| format!("http://x.test/{},{text}\n", text.len()));
    place.write("pairs.csv", &format!("url,caption\n{}", rows.concat()));
    place.write("p.toml", PIPELINE);
    place
}

#[test]
fn variants_are_datasets_and_one_table() {
    let place = place();
    let log = place.done(&["run", "p.toml", "--dir", "run", "--progress", "never"]);
    assert!(log.contains("6 datasets") && log.contains("1/1 tests passed"), "{log}");
    let counts = place.ask("run", "select rows, shortest from counts");
    assert_eq!(counts, ["3,5", "2,10"]);
    let all = place
        .ask("run", "select caption, sweep_where from shown where size > 9 order by caption, sweep_where");
    assert_eq!(all.len(), 4);
    assert_eq!(
        place.ask("run", "select caption from shown_char_length_caption_9 order by caption"),
        ["a red bicycle", "tree house"]
    );
    assert_eq!(place.ask("run", "select count(*) from long.rejects where sweep_where like '%9'"), ["2"]);
    let plan = stdout(&place.output(&["plan", "p.toml", "--dir", "run", "--columns"]));
    insta::assert_snapshot!(plan);

    // Another value: its variants, and the stages that read all variants, are rebuilt.
    let more = PIPELINE.replace(
        "\"char_length(caption) >= 9\"",
        "\"char_length(caption) >= 9\", \"char_length(caption) >= 12\"",
    );
    place.write("p.toml", &more);
    let plan = place.output(&["plan", "p.toml", "--dir", "run"]);
    assert!(stdout(&plan).contains("3 to build"), "{}", stdout(&plan));
    place.write("p.toml", &more.replace("= 2 from long", "= 3 from long"));
    let log = place.done(&["run", "p.toml", "--dir", "run", "--progress", "never"]);
    assert_eq!(log.matches("(reused)").count(), 5, "{log}");
    assert_eq!(place.ask("run", "select rows from counts"), ["3", "2", "1"]);
}

#[test]
fn a_run_can_stop_after_all_variants_of_a_stage() {
    let place = place();
    let log = place.done(&["run", "p.toml", "--dir", "run", "--progress", "never", "--until", "long"]);
    assert!(log.contains("3 datasets") && !log.contains("shown"), "{log}");
    let log = place.done(&[
        "run",
        "p.toml",
        "--dir",
        "one",
        "--progress",
        "never",
        "--until",
        "shown_char_length_caption_4",
    ]);
    assert!(log.contains("long_char_length_caption_4") && !log.contains("caption_9"), "{log}");
}

#[test]
fn several_runs_can_be_queried_together() {
    let place = place();
    place.done(&["run", "p.toml", "--dir", "run", "--progress", "never"]);
    place.write("p.toml", &PIPELINE.replace(">= 4", ">= 1"));
    place.done(&["run", "p.toml", "--dir", "later", "--progress", "never"]);
    let ask = |query: &str| {
        stdout(&place.output(&["sql", "run", "--with", "later=later", "--format", "csv", query]))
    };
    assert_eq!(
        ask("select a.rows, b.rows from counts a, later.counts b where a.shortest = 5 and b.shortest = 3"),
        "rows,rows\n3,4\n"
    );
    assert_eq!(ask("select count(*) as n from later.long.rejects"), "n\n2\n");
    assert_eq!(
        ask(
            "select run, max(rows) as n from runs.funnel where stage like 'long_%' and stage not like '%_9' and outcome = 'kept' group by run order by run"
        ),
        "run,n\nlater,4\nswept,3\n"
    );
    let failed = place.output(&["sql", "run", "--with", "long=later", "select 1"]);
    assert!(
        !failed.status.success() && stderr(&failed).contains("already has a table `long`"),
        "{}",
        stderr(&failed)
    );
    let missing = place.output(&["sql", "run", "select * from class_support"]);
    assert!(stderr(&missing).contains("hint: the view `class_support` needs"), "{}", stderr(&missing));
    let views = stdout(&place.output(&["sql", "run", "--views"]));
    assert!(views.contains("leaderboard: ") && views.contains("not available in this run: needs"), "{views}");
}
