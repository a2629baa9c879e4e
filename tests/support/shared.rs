//! Runs into `file://` stores, which processes share.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Place;

/// A source in many splits with a fused filter, stages that look at all rows, row stages, and a
/// query.
pub(crate) const PAIRS: &str = r#"
name = "shared"
seed = 3
env = ["WORD"]

[vars]
least = 12

[stages.pairs]
kind = "table"
files = ["pairs.csv"]
split_rows = 50

[stages.long]
kind = "filter"
input = "pairs"
where = "char_length(caption) >= ${least} and caption <> '${WORD}'"

[stages.unique]
kind = "dedup"
input = "long"
by = ["caption"]
group_rows = 1000

[stages.lower]
kind = "select"
input = "unique"
columns = { uid = "uid", caption = "lower(caption)" }

[stages.matched]
kind = "match"
input = "unique"
queries = "queries.txt"

[stages.balanced]
kind = "balance"
input = "matched"
cap = 40
queries = "queries.txt"

[stages.counts]
kind = "sql"
query = "select count(*) as rows, sum(char_length(caption)) as letters from lower"
"#;

/// Writes `pairs.csv` with so many rows: some too short, some twice, and one in forty malformed.
pub(crate) fn write_pairs(place: &Place, rows: usize) {
    let mut text = "url,caption\n".to_string();
    for row in 0..rows {
        match row % 40 {
            7 => text += "no url\n",
            _ => {
                let words = "red bicycle ".repeat(row % 5);
                text += &format!("http://a.example/{row}.jpg,A {words}number {}\n", row % 997);
            }
        }
    }
    place.write("pairs.csv", &text);
    place.write("queries.txt", "red bicycle\nbicycle\nnumber 7\n");
}

/// All files of a run in a `file://` store, by name: shards, and the lines of each manifest,
/// however they were put together.
pub(crate) fn all_files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![run.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(run).unwrap().display().to_string();
            // The store does not see what a kill left unfinished (`NAME#1`).
            if name.ends_with("/segments") || name.starts_with(".workers") || name.contains('#') {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Some((log, _)) = name.split_once("manifest.jsonl/") {
                files.entry(format!("{log}manifest.jsonl")).or_default();
            } else {
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    for (name, lines) in files.iter_mut().filter(|(name, _)| name.ends_with("manifest.jsonl")) {
        let objects = fs::read_dir(run.join(name)).unwrap().map(|entry| entry.unwrap().path());
        let mut objects: Vec<_> = objects.filter(|path| path.is_file()).collect();
        objects.sort();
        objects.iter().for_each(|path| lines.extend(fs::read(path).unwrap()));
    }
    files
}

/// A place with a pipeline that makes pairs, and its input.
pub(crate) fn place() -> Place {
    let place = Place::new();
    write_pairs(&place, 3000);
    place.write("pipeline.toml", PAIRS);
    place
}

/// The URL of a run directory that several processes share.
pub(crate) fn url(place: &Place, dir: &str) -> String {
    format!("file://{}", place.path(dir).display())
}
