//! The command line as the user sees it: output on stdout and stderr, what is rebuilt and why, and
//! exit codes.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::Place;

/// Ten pairs: one caption is too short, one row has no URL.
const PAIRS: &str = "\
url,caption,lang
http://a.test/1.png,a red apple,en
http://a.test/2.png,x,en
http://a.test/3.png,two green pears,en
http://a.test/4.png,ein Apfel,de
http://a.test/5.png,\"plums, ripe\",en
http://a.test/6.png,a bowl of cherries,en
,no address,en
http://a.test/8.png,une pomme,fr
http://a.test/9.png,a melon,en
http://a.test/10.png,half a lemon,en
";

const FRUIT: &str = r#"name = "fruit"
seed = 3

[vars]
shortest = 5

[stages.pairs]
kind = "table"
files = ["pairs.csv"]
keep = ["lang"]

[stages.long]
kind = "filter"
input = "pairs"
rules = [{ code = "too_short", where = "char_length(caption) >= ${shortest}" }]

[stages.english]
kind = "filter"
input = "long"
where = "lang = 'en'"

[stages.slim]
kind = "select"
input = "english"
columns = { words = "word_count(caption)" }
drop = ["page_url", "text_source"]

[stages.by_words]
kind = "sql"
query = "select words, count(*) as pairs, avg(char_length(caption)) as letters from slim group by words order by words"

[stages.funnel_of_rows]
kind = "sql"
query = "select stage, outcome, rows from funnel order by position"

[[tests]]
that = "every caption is English"
sql = "select uid from slim where lang <> 'en'"
expect = "empty"
"#;

/// A directory with the pipeline of most tests here.
fn fruit() -> Place {
    let place = Place::new();
    place.write("pairs.csv", PAIRS);
    place.write("fruit.toml", FRUIT);
    place
}

/// Exit code, stdout and stderr of a call.
fn call(place: &Place, args: &[&str]) -> String {
    shown(&place.output(args))
}

fn shown(output: &Output) -> String {
    let part = |name: &str, bytes: &[u8]| match String::from_utf8_lossy(bytes) {
        text if text.is_empty() => String::new(),
        text => format!("--- {name}\n{text}"),
    };
    let code = output.status.code().map_or("none".into(), |code| code.to_string());
    format!("exit {code}\n{}{}", part("stdout", &output.stdout), part("stderr", &output.stderr))
}

/// Compares with a snapshot in which volatile parts are replaced.
macro_rules! assert_call {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            filters => vec![
                (r"(/[^ ':]*)?/twinlens(\.exe)?(?P<after> run)", "twinlens$after"),
                (r"\d+\.\d+s\b", "[time]"),
                (r"\d+(\.\d+)? (B|KiB|MiB)\b", "[size]"),
                (r"pid \d+", "pid [pid]"),
                (r#""(time|seconds)":[0-9.e-]+"#, "\"$1\":[number]"),
            ],
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) });
    };
}

#[test]
fn check_reports_all_errors_at_once() {
    let place = fruit();
    assert_call!("check_ok", call(&place, &["check", "fruit.toml"]));
    let wrong = FRUIT
        .replace("lang = 'en'\"", "langg = 'en'\"")
        .replace("input = \"english\"", "input = \"englich\"")
        .replace("kind = \"table\"\nfiles", "kind = \"table\"\nfile");
    place.write("wrong.toml", &wrong);
    assert_call!("check_report", call(&place, &["check", "wrong.toml"]));
    assert_call!(
        "check_set",
        call(&place, &["check", "fruit.toml", "--set", "shortes=3", "--set", "seed=x"])
    );
    assert_call!("check_no_file", call(&place, &["check", "nowhere.toml"]));
}

#[test]
fn models_are_listed_with_their_cost() {
    let place = Place::new();
    assert_call!("model_list", call(&place, &["model", "list"]));
    assert_call!("model_unknown", call(&place, &["model", "show", "vit-b-23"]));
}

#[test]
fn shells_and_man_know_the_commands() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.done(&["completions", shell]);
        assert!(script.contains("max-rows") && script.contains("completions"), "{shell}: {script}");
    }
    place.done(&["man", "--write", "man1"]);
    let page = fs::read_to_string(place.path("man1/twinlens-run.1")).unwrap();
    assert!(page.contains("Runs a pipeline, or resumes it"), "{page}");
    assert!(place.done(&["man"]).contains("twinlens"));
}

#[test]
fn plan_shows_what_a_run_will_do() {
    let place = fruit();
    assert_call!("plan_table", call(&place, &["plan", "fruit.toml"]));
    assert_call!("plan_columns", call(&place, &["plan", "fruit.toml", "--columns"]));
    assert_call!("plan_mermaid", call(&place, &["plan", "fruit.toml", "--format", "mermaid"]));
    assert_call!("plan_dot", call(&place, &["plan", "fruit.toml", "--format", "dot", "--until", "slim"]));
    let json = place.output(&["plan", "fruit.toml", "--format", "json"]).stdout;
    let stages: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(stages[0]["dataset"], "english");
    assert_eq!((&stages[4]["decision"], &stages[4]["why"]), (&"run".into(), &"not made yet".into()));
    assert_call!("plan_unknown_stage", call(&place, &["plan", "fruit.toml", "--until", "slin"]));

    let images = "kind = \"sql\"\nquery = \"select 'a dog' as caption, 10 as width, 20 as height\"";
    let safe = "kind = \"filter\"\ninput = \"images\"\npreset = \"laion\"";
    place.write(
        "preset.toml",
        &format!("name = \"preset\"\n[stages.images]\n{images}\n[stages.safe]\n{safe}\n"),
    );
    assert_call!("plan_preset", call(&place, &["plan", "preset.toml", "--columns"]));
}

#[test]
fn only_changed_stages_are_rebuilt() {
    let place = fruit();
    assert_call!("run_first", call(&place, &["run", "fruit.toml"]));
    assert_call!("run_again", call(&place, &["run", "fruit.toml"]));
    let slim = fs::read(place.path("runs/fruit/slim/manifest.jsonl")).unwrap();

    // `run` does what `plan` announced for a changed option.
    place.write("fruit.toml", &FRUIT.replace("order by words\"", "order by words desc\""));
    assert_call!("plan_query_changed", call(&place, &["plan", "fruit.toml"]));
    assert_call!("run_query_changed", call(&place, &["run", "fruit.toml"]));
    assert_eq!(fs::read(place.path("runs/fruit/slim/manifest.jsonl")).unwrap(), slim);

    assert_call!("plan_set", call(&place, &["plan", "fruit.toml", "--set", "shortest=8"]));
    assert_call!("run_set", call(&place, &["run", "fruit.toml", "--set", "shortest=8"]));
}

#[test]
fn a_touched_file_and_another_spelling_change_nothing() {
    let place = fruit();
    place.done(&["run", "fruit.toml"]);
    let reused = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stderr);
        text.lines().filter(|line| line.ends_with("(reused)")).count()
    };
    let touch = |text: &str| {
        place.write("pairs.csv", text);
        let hour = std::time::Duration::from_secs(3600);
        let file = fs::File::options().write(true).open(place.path("pairs.csv")).unwrap();
        file.set_modified(std::time::SystemTime::now() + hour).unwrap();
    };
    touch(PAIRS);
    assert_eq!(reused(&place.output(&["run", "fruit.toml"])), 4);
    // The file under another name, seen from another folder.
    place.write("fruit.toml", &FRUIT.replace("\"pairs.csv\"", "\"./pairs.csv\""));
    let (file, dir) = (place.path("fruit.toml"), place.path("runs/fruit"));
    let mut elsewhere = place.command(&["run", file.to_str().unwrap(), "--dir", dir.to_str().unwrap()]);
    assert_eq!(reused(&elsewhere.current_dir("/").output().unwrap()), 4);
    // Another content of the same length.
    touch(&PAIRS.replace("a red apple", "a bad apple"));
    assert_eq!(reused(&place.output(&["run", "fruit.toml"])), 0);
}

#[test]
fn a_stage_without_rows_ends_the_run() {
    let place = fruit();
    let none = FRUIT.replace("where = \"lang = 'en'\"", "where = \"lang = 'nl'\"");
    place.write("none.toml", &none);
    assert_call!("run_all_rejected", call(&place, &["run", "none.toml"]));
    assert_call!("run_all_rejected_again", call(&place, &["run", "none.toml"]));
    place.write("none.toml", &none.replace("seed = 3", "seed = 3\nmax_reject_share = 1.0"));
    place.done(&["run", "none.toml"]);
}

#[test]
fn runs_can_be_limited() {
    let place = fruit();
    assert_call!("run_until", call(&place, &["run", "fruit.toml", "--until", "english", "--dir", "here"]));
    assert!(!place.path("here/slim").exists() && !place.path("runs").exists());
    assert_call!("run_unknown_stage", call(&place, &["run", "fruit.toml", "--until", "englisch"]));
    assert_call!("run_max_rows", call(&place, &["run", "fruit.toml", "--max-rows", "4", "--dir", "few"]));
}

#[test]
fn a_failed_test_and_too_many_rejects_have_their_exit_codes() {
    let place = fruit();
    place.write("failing.toml", &FRUIT.replace("where lang <> 'en'", "where words > 3"));
    assert_call!("run_failed_test", call(&place, &["run", "failing.toml"]));
    place.write("strict.toml", &FRUIT.replace("seed = 3", "seed = 3\nmax_reject_share = 0.1"));
    assert_call!("run_too_many_rejects", call(&place, &["run", "strict.toml", "--dir", "strict"]));
}

#[test]
fn errors_of_a_run_have_hints() {
    let place = fruit();
    place.write("division.toml", &FRUIT.replace("avg(char_length(caption))", "1 / (count(*) - count(*))"));
    assert_call!("run_query_fails", call(&place, &["run", "division.toml", "--threads", "1"]));
    fs::remove_file(place.path("pairs.csv")).unwrap();
    assert_call!("run_no_file", call(&place, &["run", "fruit.toml", "--fresh", "--dir", "other"]));
}

#[test]
fn the_log_can_be_json() {
    let place = fruit();
    let output = place.output(&["run", "fruit.toml", "--log-format", "json", "--until", "slim"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    for line in stderr.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    assert_call!("run_json_log", stderr);
}

#[test]
fn log_messages_are_filtered_by_the_environment() {
    let place = fruit();
    let log = |filter: &str, args: &[&str]| {
        let output = place.command(args).env("TWINLENS_LOG", filter).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let run = ["run", "fruit.toml", "--fresh", "--until", "slim"];
    let (code, text) = log("twinlens_pipeline=debug,warn", &run);
    assert_eq!(code, Some(0), "{text}");
    let committed = text.lines().find(|line| line.contains("committed")).unwrap();
    assert!(
        committed.contains("DEBUG run{pipeline=fruit") && committed.contains("stage{name=english"),
        "{text}"
    );
    assert!(text.contains("english         6 rows  4 rejects"), "{text}");
    let (_, json) = log("twinlens=info", &[&run[..], &["--log-format", "json"]].concat());
    for line in json.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let (code, text) = log("twinlens_crawl=loud", &run);
    assert!(code == Some(1) && text.contains("error: TWINLENS_LOG=twinlens_crawl=loud: "), "{text}");
}

#[test]
fn the_run_directory_belongs_to_one_pipeline_and_one_process() {
    let place = fruit();
    place.output(&["run", "fruit.toml", "--dir", "here", "--until", "slim"]);
    place.write("other.toml", &FRUIT.replace("name = \"fruit\"", "name = \"other\""));
    assert_call!("run_other_pipeline", call(&place, &["run", "other.toml", "--dir", "here"]));
    assert_call!("plan_other_pipeline", call(&place, &["plan", "other.toml", "--dir", "here"]));

    // The operating system releases the lock when the process ends.
    let lock = fs::File::options().read(true).write(true).open(place.path("here/lock")).unwrap();
    lock.lock().unwrap();
    assert_call!("run_locked", call(&place, &["run", "fruit.toml", "--dir", "here"]));
    assert_eq!(place.output(&["status", "here"]).status.code(), Some(0));
    drop(lock);
    assert_eq!(place.output(&["run", "fruit.toml", "--dir", "here"]).status.code(), Some(0));

    place.write("mine/notes.txt", "not a run");
    assert_call!("run_foreign_dir", call(&place, &["run", "fruit.toml", "--dir", "mine"]));
}

/// Contents of the Parquet files below a directory, by path.
fn shards(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (std::collections::BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(within) = folders.pop() {
        for entry in fs::read_dir(within).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "parquet") {
                found.insert(path.strip_prefix(folder).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// A `file://` URL uses the same interface as an object store.
#[test]
fn a_run_in_an_object_store_is_the_same() {
    let place = fruit();
    let url = format!("file://{}", place.path("store/fruit").display());
    let local = place.output(&["run", "fruit.toml"]);
    let remote = place.output(&["run", "fruit.toml", "--dir", &url]);
    assert_eq!(shown(&local).replace("runs/fruit", &url).lines().count(), shown(&remote).lines().count());
    assert_eq!(local.stdout, remote.stdout);
    // In a store, the names have digits of the hash.
    let without_hash = |(name, bytes): (PathBuf, Vec<u8>)| {
        let text = name.display().to_string();
        let plain = text.strip_suffix(".parquet").and_then(|name| Some(name.rsplit_once('-')?.0));
        (PathBuf::from(plain.map_or(text.clone(), |plain| format!("{plain}.parquet"))), bytes)
    };
    let stored: std::collections::BTreeMap<_, _> =
        shards(&place.path("store/fruit")).into_iter().map(without_hash).collect();
    assert_eq!(shards(&place.path("runs/fruit")), stored);
    assert_eq!(
        place.output(&["sql", "runs/fruit", "select * from rejects"]).stdout,
        place.output(&["sql", &url, "select * from rejects"]).stdout
    );

    let again = call(&place, &["run", "fruit.toml", "--dir", &url]);
    assert_eq!(again.matches("(reused)").count(), 4, "{again}");
    let lists = place.path("lists").display().to_string();
    for part in ["a.csv", "b.csv"] {
        place.write(&format!("lists/{part}"), PAIRS);
    }
    // Datasets and lists in an object store can be inputs.
    place.write(
        "reader.toml",
        &format!(
            "name = 'reader'\n[stages.list]\nkind = 'table'\nfiles = ['file://{lists}/*.csv']\n\
             [stages.counts]\nkind = 'sql'\nquery = 'select count(*) as pairs from list'\n\
             [stages.outside]\nkind = 'filter'\ninput = '{url}/english'\nwhere = 'char_length(caption) > 4'\n"
        ),
    );
    let read = call(&place, &["run", "reader.toml"]);
    assert!(read.starts_with("exit 0"), "{read}");
    let count = call(&place, &["sql", "runs/reader", "--format", "csv", "select pairs from counts"]);
    assert!(count.contains("18"), "{count}");
}

#[test]
fn status_accounts_for_every_row() {
    let place = fruit();
    place.output(&["run", "fruit.toml"]);
    assert_call!("status", call(&place, &["status", "runs/fruit"]));
    assert_call!("status_no_run", call(&place, &["status", "."]));
    assert_call!("status_nowhere", call(&place, &["status", "nowhere"]));

    let manifest = place.path("runs/fruit/english/manifest.jsonl");
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains("\"rows_in\":10"));
    fs::write(&manifest, text.replacen("\"rows_in\":10", "\"rows_in\":11", 1)).unwrap();
    assert_call!("status_damaged_manifest", call(&place, &["status", "runs/fruit"]));
}

#[test]
fn a_lost_row_is_reported() {
    let place = fruit();
    place.output(&["run", "fruit.toml"]);
    let manifest = place.path("runs/fruit/slim/manifest.jsonl");
    rewrite(&manifest, |entry| {
        if entry["entry"] == "commit" {
            entry["rows_in"] = 11.into();
        }
    });
    assert_call!("status_lost_row", call(&place, &["status", "runs/fruit"]));
}

/// Changes the entries of a manifest and updates their checksums.
fn rewrite(manifest: &Path, change: impl Fn(&mut serde_json::Value)) {
    use twinlens_dataset::manifest::{decode, encode};
    let text = fs::read_to_string(manifest).unwrap();
    let lines = text.lines().map(|line| {
        let mut entry = serde_json::to_value(decode(line).unwrap()).unwrap();
        change(&mut entry);
        encode(&serde_json::from_value(entry).unwrap()).unwrap()
    });
    let lines: String = lines.collect();
    fs::write(manifest, lines).unwrap();
}

#[test]
fn every_dataset_is_a_table() {
    let place = fruit();
    place.output(&["run", "fruit.toml"]);
    let sql = |args: &[&str]| call(&place, &[&["sql", "runs/fruit"], args].concat());
    assert_call!("sql_table", sql(&["select caption, words from slim order by words, caption"]));
    // Fused stages and their rejects are tables, too.
    assert_call!(
        "sql_fused",
        sql(&[
            "select caption from long order by caption; select reject_code, count(*) as n from rejects group by 1 order by 1"
        ])
    );
    assert_call!(
        "sql_csv",
        sql(&["select caption, words, [words, 1] as list from slim order by url", "--format", "csv"])
    );
    assert_call!(
        "sql_json",
        sql(&["select caption, null as nothing from slim order by url limit 2", "--format", "json"])
    );
    assert_call!("sql_unknown_column", sql(&["select captoin from slim"]));
    assert_call!("sql_unknown_table", sql(&["select * from slin"]));
    assert_call!("sql_syntax", sql(&["select (1"]));
    assert_call!("sql_no_writing", sql(&["copy slim to 'out.csv'"]));
    assert_call!("sql_no_run", call(&place, &["sql", "elsewhere", "select 1"]));
}

#[test]
fn queries_are_read_from_stdin_and_written_to_a_file() {
    let place = fruit();
    place.output(&["run", "fruit.toml", "--until", "slim"]);
    let queries = place.path("queries.sql");
    fs::write(
        &queries,
        "create view short as select * from slim where words < 3;\nselect count(*) as n from short;",
    )
    .unwrap();
    let mut command = place.command(&["sql", "runs/fruit", "--format", "csv"]);
    let output = command.stdin(fs::File::open(&queries).unwrap()).output().unwrap();
    assert_call!("sql_stdin", shown(&output));

    let query = "select uid, caption from slim order by uid";
    assert_call!("sql_file", call(&place, &["sql", "runs/fruit", query, "-o", "out.parquet"]));
    place.write("reads.toml", "name = \"reads\"\n[stages.count]\nkind = \"filter\"\ninput = \"out.parquet\"\nwhere = \"caption is not null\"\n");
    let kept = call(&place, &["run", "reads.toml"]);
    assert!(kept.contains("count  6 rows"), "{kept}");
    let piped = place.output(&["sql", "runs/fruit", query, "--format", "parquet"]);
    assert_eq!(piped.stdout, fs::read(place.path("out.parquet")).unwrap());
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let place = fruit();
    place.output(&["run", "fruit.toml", "--until", "slim"]);
    let many = "select a.value, b.value from generate_series(1, 2000) a, generate_series(1, 2000) b";
    for format in ["table", "csv", "json", "parquet"] {
        let mut command = place.command(&["sql", "runs/fruit", many, "--format", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(shown(&output), "exit 0\n", "{format}");
    }
}

#[test]
fn kinds_of_stages_are_documented() {
    let place = fruit();
    let list = place.output(&["stages"]).stdout;
    let list = String::from_utf8(list).unwrap();
    for line in list.lines() {
        let kind = line.split_whitespace().next().unwrap();
        let output = place.output(&["stages", kind]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.contains("options\n") && text.contains("example\n"),
            "{kind}: {text}"
        );
    }
    assert_call!("stages_filter", call(&place, &["stages", "filter"]));
    assert_call!("stages_unknown", call(&place, &["stages", "fliter"]));
}

#[test]
fn evaluation_sets_are_documented() {
    let place = fruit();
    place.write("sets/wds_cifar10/test/nshards.txt", "0");
    assert_call!("sets", call(&place, &["sets", "--data", "sets"]));
    assert_call!("sets_fer2013", call(&place, &["sets", "fer2013"]));
    assert_call!("sets_imagenet_vid", call(&place, &["sets", "imagenet-vid", "--data", "sets"]));
    assert_call!("sets_unknown", call(&place, &["sets", "cifar-10"]));
}

#[test]
fn the_published_schemas_are_current() {
    let place = fruit();
    assert_eq!(place.output(&["schema", "--write", "schemas"]).status.code(), Some(0));
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&published), names(&place.path("schemas")), "run: twinlens schema --write schemas");
    for name in names(&published) {
        let (committed, now) = (published.join(&name), place.path("schemas").join(&name));
        let same = fs::read_to_string(committed).unwrap() == fs::read_to_string(now).unwrap();
        assert!(
            same,
            "schemas/{} is not current: run `twinlens schema --write schemas`",
            name.to_string_lossy()
        );
    }
    assert_call!("schema_queries", call(&place, &["schema", "queries"]));
    assert_call!("schema_list", call(&place, &["schema"]));
    assert_call!("schema_unknown", call(&place, &["schema", "pears"]));
}

#[test]
fn usage_errors_have_suggestions() {
    let place = fruit();
    assert_call!("usage_unknown_verb", call(&place, &["rum", "fruit.toml"]));
    assert_call!("usage_unknown_option", call(&place, &["run", "fruit.toml", "--untli", "slim"]));
    assert_call!("usage_bad_size", call(&place, &["run", "fruit.toml", "--memory", "lots"]));
    assert_call!("help_run", call(&place, &["run", "--help"]));
}

/// The first Ctrl-C stops after a clean commit and prints the command that resumes the run.
#[cfg(unix)]
#[test]
fn an_interrupted_run_resumes() {
    let place = fruit();
    let slow = FRUIT.replace("files = [\"pairs.csv\"]", "files = [\"many.csv\"]\nsplit_rows = 500").replace(
        "sql = \"select uid from slim where lang <> 'en'\"",
        "sql = \"select uid from slim where lang <> 'en' limit 1\"",
    );
    let rows: String =
        (0..200_000).map(|row| format!("http://a.test/{row}.png,caption of picture {row},en\n")).collect();
    place.write("many.csv", &format!("url,caption,lang\n{rows}"));
    place.write("slow.toml", &slow);
    let mut command = place.command(&["run", "slow.toml", "--log-format", "json"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&place.path("runs/fruit/english/data"), 3);
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{log}");
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let resume = last["resume"].as_str().unwrap();
    assert!(resume.ends_with("run slow.toml --log-format json"), "{last}");

    let plan = call(&place, &["plan", "slow.toml"]);
    assert!(plan.contains("resume: "), "{plan}");
    let resumed = Command::new("sh").args(["-c", resume]).current_dir(place.folder()).output().unwrap();
    assert_eq!(resumed.status.code(), Some(0), "{}", shown(&resumed));
    let count = place.output(&[
        "sql",
        "runs/fruit",
        "select count(distinct url) as n, count(*) as rows from slim",
        "--format",
        "csv",
    ]);
    assert_eq!(String::from_utf8(count.stdout).unwrap(), "n,rows\n200000,200000\n");
}

/// Waits until a directory has this many files.
#[cfg(unix)]
fn wait_for(dir: &Path, files: usize) {
    let enough = || fs::read_dir(dir).is_ok_and(|entries| entries.count() >= files);
    for _ in 0..600 {
        if enough() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{} does not get {files} files", dir.display());
}
