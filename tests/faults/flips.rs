//! One bit of one file is flipped, and the file is read: the answer is as before, or an error names
//! the file. Never another answer.

use std::collections::BTreeMap;
use std::fs;

use super::campaign::differences;
use super::scenario::{Content, Scenario, copy, files, flipped};
use crate::support::{Place, stderr, stdout};

/// Whose file is flipped, how it is read, and what came of it.
#[derive(Default)]
struct Tally {
    flips: usize,
    same: usize,
    named: usize,
}

/// Flips `tries` bits, or 1,000 if it is 0.
pub(super) fn run(tries: usize) {
    let tries = if tries == 0 { 1000 } else { tries };
    let site = Site::new();
    let mut random = 20_261_130;
    let (mut tallies, mut problems) = (BTreeMap::<&str, Tally>::new(), Vec::new());
    for number in 0..tries {
        let name = &site.names[below(&mut random, site.names.len())];
        let kind = site.kind(name);
        let mut bytes = fs::read(site.place.path("sound").join(name)).unwrap();
        if bytes.is_empty() {
            continue;
        }
        let (at, bit) = (below(&mut random, bytes.len()), below(&mut random, 8));
        bytes[at] ^= 1 << bit;
        site.restore();
        fs::write(site.place.path("work").join(name), bytes).unwrap();
        let tally = tallies.entry(kind).or_default();
        tally.flips += 1;
        match site.read(name) {
            Outcome::Same => tally.same += 1,
            Outcome::Named => tally.named += 1,
            Outcome::Wrong(why) => problems.push(format!("{number}: {name}, byte {at}, bit {bit}: {why}")),
        }
    }
    println!("| file | flips | error that names it | same answer |");
    for (kind, tally) in &tallies {
        println!("| {kind} | {} | {} | {} |", tally.flips, tally.named, tally.same);
    }
    assert!(problems.is_empty(), "{} of {tries}:\n{}", problems.len(), problems.join("\n"));
}

enum Outcome {
    Same,
    Named,
    Wrong(String),
}

/// Runs and their readers, in a folder that is restored for each flip.
struct Site {
    place: Place,
    names: Vec<String>,
    /// What each reader answers when nothing is damaged.
    sound: BTreeMap<String, (String, Content)>,
}

type Call = Vec<String>;

fn call(text: &str) -> Call {
    text.split_whitespace().map(String::from).collect()
}

fn sql(query: &str) -> Call {
    ["sql", "run", "--format", "json", query].map(String::from).to_vec()
}

impl Site {
    fn new() -> Self {
        let place = flipped();
        let names: Vec<String> = files(&place.path("sound"))
            .into_iter()
            .filter(|name| {
                !name.ends_with("/lock") && !name.ends_with(".toml") && !name.starts_with("photos/")
            })
            .collect();
        let mut site = Self { place, names, sound: BTreeMap::new() };
        for name in site.names.clone() {
            for call in site.calls(&name) {
                site.restore();
                let answer = site.answer(&call);
                assert!(answer.is_ok(), "{call:?}: {answer:?}");
                site.sound.insert(call.join(" "), answer.unwrap());
            }
        }
        site
    }

    fn restore(&self) {
        let _ = fs::remove_dir_all(self.place.path("work"));
        copy(&self.place.path("sound"), &self.place.path("work"));
    }

    fn kind(&self, name: &str) -> &'static str {
        let parts: [(&str, &'static str); 9] = [
            (".matcher", "query automaton"),
            (".embeddings", "text embeddings"),
            ("manifest.jsonl", "manifest"),
            ("out/", "export"),
            ("run.json", "run.json"),
            (".safetensors", "weights"),
            (".json", "tokenizer, configuration"),
            (".parquet", "shard"),
            ("", "other"),
        ];
        if name.split('/').any(|part| part == "work") {
            return "checkpoint";
        }
        parts.iter().find(|(part, _)| name.contains(part)).map_or("other", |(_, kind)| kind)
    }

    /// How a file is read, one command after another.
    fn calls(&self, name: &str) -> Vec<Call> {
        let resume = call("run training.toml --progress never --dir interrupted");
        let again = call("run flips.toml --progress never --dir run");
        let matching = call("run matching.toml --progress never --dir other");
        let embed = call("run embed.toml --progress never --dir other");
        let parts: Vec<&str> = name.split('/').collect();
        match parts[..] {
            _ if name.ends_with(".matcher") => vec![matching],
            [".cache", ..] => vec![call("run zero.toml --progress never --dir other")],
            ["interrupted", ..] => vec![resume],
            ["out", ..] => vec![call("check out")],
            ["run", dataset, "manifest.jsonl"] => vec![sql(&format!("select * from \"{dataset}\"")), again],
            ["run", "words", "tokenizer.json"] => {
                vec![call("run flips.toml --progress never --dir run --set stages.clip.steps=3")]
            }
            ["run", "few", "data", _] => vec![
                sql("select * from few"),
                call("export run/few again --to webdataset --progress never"),
                embed,
            ],
            ["run", dataset, "data", _] => vec![sql(&format!("select * from \"{dataset}\""))],
            ["run", dataset, "rejects", _] => vec![sql(&format!("select * from \"{dataset}\".rejects"))],
            ["run", "clip", _] => vec![embed],
            ["run", ..] => vec![call("status run"), call("report run --output -"), again],
            _ => vec![again],
        }
    }

    /// What a command prints, and the datasets that it leaves.
    fn answer(&self, call: &[String]) -> Result<(String, Content), String> {
        let args: Vec<&str> = call.iter().map(String::as_str).collect();
        let mut command = self.place.command(&args);
        command.current_dir(self.place.path("work")).env("HOME", self.place.path("work"));
        let output = command.output().unwrap();
        let text = stderr(&output);
        if output.status.success() {
            let folders = ["run", "other", "interrupted", "again"].into_iter();
            let made = folders.filter(|folder| args.contains(folder) && args[0] != "sql");
            let content = made.flat_map(|folder| self.content(folder)).collect();
            return Ok((stdout(&output), content));
        }
        if output.status.code() != Some(1) || text.contains("panicked") {
            return Err(format!("CRASH {}: {text}", output.status));
        }
        Err(text)
    }

    /// The shards and artifacts of a run, but for measured speeds.
    fn content(&self, folder: &str) -> Content {
        let work = self.place.path("work");
        let names = files(&work.join(folder)).into_iter().map(|name| format!("{folder}/{name}"));
        let counts = names.filter(|name| !name.contains("/clip/data/") && Scenario::is_content(name));
        counts.map(|name| (name.clone(), fs::read(work.join(&name)).unwrap())).collect()
    }

    /// Reads a damaged file.
    fn read(&self, name: &str) -> Outcome {
        let mut outcome = Outcome::Same;
        for call in self.calls(name) {
            let (output, content) = &self.sound[&call.join(" ")];
            match self.answer(&call) {
                Err(text) => {
                    let file = name.rsplit('/').next().unwrap();
                    if text.starts_with("CRASH") || !text.contains(file) {
                        return Outcome::Wrong(format!("{call:?}: {text}"));
                    }
                    outcome = Outcome::Named;
                }
                Ok((found_output, found)) => {
                    let content = content.iter().filter(|(known, _)| *known != name);
                    let found = found.into_iter().filter(|(known, _)| known != name).collect();
                    let differ = differences(&content.map(|(n, b)| (n.clone(), b.clone())).collect(), &found);
                    if *output != found_output || !differ.is_empty() {
                        return Outcome::Wrong(format!(
                            "{call:?}: another answer {differ:?}: {found_output:.300}"
                        ));
                    }
                }
            }
        }
        outcome
    }
}

/// Splitmix64, below `end`.
fn below(state: &mut u64, end: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) % end as u64) as usize
}
