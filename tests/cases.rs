//! Inputs that failed in this field's tools, and what each must give: one table, one run each.
//!
//! The files in `cases/` were made for this project after public bug reports.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support::{Place, stderr};

/// What a run of `stages` must give.
struct Case {
    name: &'static str,
    /// Stages in TOML. `rows` is the one that is looked at.
    stages: &'static str,
    expected: Expected,
}

enum Expected {
    /// Exit 0 (3 where rows are refused); the answer of the query as CSV lines.
    Rows { query: &'static str, lines: &'static [&'static str] },
    /// Exit 1, and each of these in the message.
    Error(&'static [&'static str]),
}

use Expected::{Error, Rows};

const COUNTS: &str =
    "select (select count(*) from rows) as kept, (select count(*) from rows.rejects) as rejected";

fn place() -> Place {
    let place = Place::new();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases");
    std::os::unix::fs::symlink(cases, place.path("cases")).unwrap();
    place
}

fn run(place: &Place, stages: &str) -> Output {
    place.write("pipeline.toml", &format!("name = \"case\"\nseed = 1\n{stages}"));
    place.output(&["run", "pipeline.toml", "--progress", "never", "--dir", "run"])
}

/// Runs each case; all failures are shown at once.
fn check(cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        let place = place();
        let output = run(&place, case.stages);
        let (code, text) = (output.status.code(), stderr(&output));
        match &case.expected {
            Rows { query, lines } => {
                let table = place.output(&["sql", "run", "--format", "csv", query]);
                let answer = String::from_utf8_lossy(&table.stdout).into_owned();
                let answer: Vec<&str> = answer.lines().skip(1).collect();
                if !matches!(code, Some(0 | 3)) || answer != *lines {
                    let (name, sql) = (case.name, stderr(&table));
                    failures.push(format!("{name}: {code:?} {answer:?}, not {lines:?}\n{text}{sql}"));
                }
            }
            Error(messages) => {
                let missing: Vec<_> = messages.iter().filter(|message| !text.contains(**message)).collect();
                if code != Some(1) || !missing.is_empty() {
                    failures.push(format!("{}: {code:?}, without {missing:?} in\n{text}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

macro_rules! table {
    ($file:literal $(, $more:literal)*) => {
        concat!("[stages.rows]\nkind = \"table\"\nfiles = [\"cases/tables/", $file, "\"]\n" $(, $more, "\n")*)
    };
}

#[test]
fn tables() {
    check(&[
        Case {
            name: "10-quotes.tsv: ten lines as they stand",
            stages: table!("10-quotes.tsv", "header = [\"caption\", \"url\"]"),
            expected: Rows {
                query: "select count(*), count(distinct url), \
                        max(caption) filter (where url like '%/4.jpg') from rows",
                lines: &["10,10,\"\"\"unfinished business poster\""],
            },
        },
        Case {
            name: "11-quotes-header.tsv",
            stages: table!("11-quotes-header.tsv"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "cc3m.tsv: one stray quote in 200 lines",
            stages: table!("cc3m.tsv"),
            expected: Rows { query: COUNTS, lines: &["200,0"] },
        },
        Case {
            name: "13-quotes.csv",
            stages: table!("13-quotes.csv"),
            expected: Rows { query: COUNTS, lines: &["7,0"] },
        },
        Case {
            name: "15-ragged.csv: two records of another length",
            stages: table!("15-ragged.csv"),
            expected: Rows { query: COUNTS, lines: &["2,2"] },
        },
        Case {
            name: "28-list-caption.jsonl without `captions`",
            stages: table!("28-list-caption.jsonl"),
            expected: Error(&["28-list-caption.jsonl", "captions"]),
        },
        Case {
            name: "28-list-caption.jsonl, each",
            stages: table!("28-list-caption.jsonl", "captions = \"each\""),
            expected: Rows { query: COUNTS, lines: &["20,0"] },
        },
        Case {
            name: "28-list-caption.jsonl, first",
            stages: table!("28-list-caption.jsonl", "captions = \"first\""),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "54-list-caption.parquet without `captions`",
            stages: table!("54-list-caption.parquet"),
            expected: Error(&["54-list-caption.parquet", "caption", "captions"]),
        },
        Case {
            name: "54-list-caption.parquet, each",
            stages: table!("54-list-caption.parquet", "captions = \"each\""),
            expected: Rows { query: COUNTS, lines: &["20,0"] },
        },
        Case {
            name: "53-hf-image.parquet: a struct is not a URL",
            stages: table!("53-hf-image.parquet", "columns = { url = \"image\" }"),
            expected: Error(&["53-hf-image.parquet", "image"]),
        },
        Case {
            name: "58-types.parquet: NaN stays NaN",
            stages: table!("58-types.parquet", "keep = [\"f\"]"),
            expected: Rows {
                query: "select count(*) filter (where isnan(f)), count(*) filter (where f <> 1.5) from rows",
                lines: &["5,5"],
            },
        },
        Case {
            name: "26-nan.jsonl",
            stages: table!("26-nan.jsonl", "keep = [\"similarity\"]"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "30-surrogate.jsonl",
            stages: table!("30-surrogate.jsonl"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "27-null-first.jsonl: the next name is tried",
            stages: table!("27-null-first.jsonl"),
            expected: Rows {
                query: "select count(*) from rows where caption like 'a red bicycle number %'",
                lines: &["10"],
            },
        },
        Case {
            name: "16.csv.gz",
            stages: table!("16.csv.gz"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "17.jsonl.gz",
            stages: table!("17.jsonl.gz"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "18.csv.zst",
            stages: table!("18.csv.zst"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "really-gz.csv",
            stages: table!("really-gz.csv"),
            expected: Rows { query: COUNTS, lines: &["1,0"] },
        },
        Case {
            name: "header-only-wrong.csv: the header is checked though there are no rows",
            stages: table!("header-only-wrong.csv"),
            expected: Error(&["header-only-wrong.csv", "url"]),
        },
        Case {
            name: "20-array.json",
            stages: table!("20-array.json"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "21-urls.txt: captions are null",
            stages: table!("21-urls.txt"),
            expected: Rows { query: "select count(*), count(caption) from rows", lines: &["10,0"] },
        },
        Case {
            name: "23-urls-only.csv: captions are null",
            stages: table!("23-urls-only.csv"),
            expected: Rows { query: "select count(*), count(caption) from rows", lines: &["10,0"] },
        },
        Case {
            name: "04-utf16.csv: by its mark",
            stages: table!("04-utf16.csv"),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "05-latin1.csv with an encoding",
            stages: table!("05-latin1.csv", "encoding = \"latin1\""),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "06-semicolon.csv with a delimiter",
            stages: table!("06-semicolon.csv", "delimiter = \";\""),
            expected: Rows { query: COUNTS, lines: &["10,0"] },
        },
        Case {
            name: "14-backslash.csv with an escape",
            stages: table!("14-backslash.csv", "escape = \"\\\\\""),
            expected: Rows {
                query: "select caption from rows order by caption",
                lines: &["\"he said \"\"hi\"\", and left\"", "plain"],
            },
        },
    ]);
}

const DOWNSTREAM: [(&str, &str); 3] = [
    ("laion", "kind = \"filter\"\nwhere = \"char_length(caption) > 3\""),
    ("datacomp", "kind = \"dedup\"\nby = [\"url\", \"caption\"]"),
    ("laion", "kind = \"fetch\""),
];

/// A file whose columns have other names: an error with the name of what is missing.
#[test]
fn a_missing_column_is_named() {
    for (file, options) in DOWNSTREAM {
        let place = place();
        let stages = format!("[stages.rows]\ninput = \"cases/tables/{file}.parquet\"\n{options}\n");
        let output = run(&place, &stages);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{options}: {text}");
        assert!(text.contains("the columns are `"), "{options}: {text}");
    }
}

const CAPTIONS: &str = "[stages.pairs]\nkind = \"table\"\nfiles = [\"cases/tables/caps.parquet\"]\n";

/// Query lists in each form, through `match` and `balance`.
#[test]
fn query_lists() {
    for list in ["int32.parquet", "int64.parquet", "origin.parquet", "list.txt", "metadata.json"] {
        let place = place();
        let stages = format!(
            "{CAPTIONS}[stages.matched]\nkind = \"match\"\ninput = \"pairs\"\nqueries = \"cases/queries/{list}\"\n\
             [stages.balanced]\nkind = \"balance\"\ninput = \"matched\"\nqueries = \"cases/queries/{list}\"\n\
             cap = 3\n"
        );
        let output = run(&place, &stages);
        assert!(output.status.success(), "{list}: {}", stderr(&output));
        let texts = place.ask("run", "select count(*) from balanced");
        assert_ne!(texts, ["0"], "{list}");
    }
}

#[test]
fn archives_and_folders() {
    check(&[
        Case {
            name: "01-dots.tar: each key is a row or a reject",
            stages: "[stages.rows]\nkind = \"webdataset\"\nfiles = [\"cases/tars/01-dots.tar\"]\n",
            expected: Rows { query: COUNTS, lines: &["4,0"] },
        },
        Case {
            name: "05-other-text.tar: nine samples",
            stages: "[stages.rows]\nkind = \"webdataset\"\nfiles = [\"cases/tars/05-other-text.tar\"]\n\
                     captions = \"first\"\n",
            expected: Rows {
                query: "select (select count(*) from rows) + (select count(*) from rows.rejects) >= 9",
                lines: &["true"],
            },
        },
        Case {
            name: "11-gz-named.tar: read through gzip",
            stages: "[stages.rows]\nkind = \"webdataset\"\nfiles = [\"cases/tars/11-gz-named.tar\"]\n",
            expected: Rows { query: COUNTS, lines: &["1,0"] },
        },
        Case {
            name: "imagefolder-metadata: captions of metadata.jsonl",
            stages: "[stages.rows]\nkind = \"folder\"\nfolders = [\"cases/folders/imagefolder-metadata\"]\n",
            expected: Rows {
                query: "select caption from rows order by caption",
                lines: &["caption 0", "caption 1", "caption 2"],
            },
        },
        Case {
            name: "seven.arrow: 108 bytes that claim gigabytes",
            stages: "[stages.rows]\nkind = \"table\"\nfiles = [\"cases/arrow/seven.arrow\"]\n",
            expected: Error(&["seven.arrow"]),
        },
        Case {
            name: "text.arrow: no Arrow file",
            stages: "[stages.rows]\nkind = \"table\"\nfiles = [\"cases/arrow/text.arrow\"]\n",
            expected: Error(&["text.arrow"]),
        },
        Case {
            name: "082.parquet: a panic inside the library is an error of the file",
            stages: "[stages.rows]\nkind = \"table\"\nfiles = [\"cases/hostile/082.parquet\"]\n",
            expected: Error(&["082.parquet"]),
        },
        Case {
            name: "dict_bomb.parquet: 85 KB that claim gigabytes",
            stages: "[stages.rows]\nkind = \"table\"\nfiles = [\"cases/hostile/dict_bomb.parquet\"]\n",
            expected: Error(&["dict_bomb.parquet", "column `caption`"]),
        },
        Case {
            name: "big_zstd.parquet: 49 KB that decompress to gigabytes",
            stages: "[stages.rows]\nkind = \"table\"\nfiles = [\"cases/hostile/big_zstd.parquet\"]\n",
            expected: Error(&["big_zstd.parquet", "column `caption`"]),
        },
    ]);
}

#[test]
fn pages_of_archives() {
    check(&[
        Case {
            name: "20-charsets.warc: as a browser decodes them",
            stages: "[stages.rows]\nkind = \"warc\"\nfiles = [\"cases/warc/20-charsets.warc\"]\n",
            expected: Rows { query: "select url, caption, charset from rows order by url", lines: CHARSETS },
        },
        Case {
            name: "01-encodings.warc.gz: br, zstd, raw deflate, `none`",
            stages: "[stages.rows]\nkind = \"warc\"\nfiles = [\"cases/warc/01-encodings.warc.gz\"]\n",
            expected: Rows { query: COUNTS, lines: &["20,0"] },
        },
        Case {
            name: "31-srcset.warc: the largest candidate",
            stages: "[stages.rows]\nkind = \"warc\"\nfiles = [\"cases/warc/31-srcset.warc\"]\n",
            expected: Rows { query: "select caption, url from rows order by caption", lines: SRCSETS },
        },
    ]);
}

const CHARSETS: &[&str] = &[
    "http://site.test/1.jpg,日本の花,Shift_JIS",
    "http://site.test/10.jpg,café crème,UTF-8",
    "http://site.test/11.jpg,café,UTF-16LE",
    "http://site.test/12.jpg,café noir,UTF-16LE",
    "http://site.test/13.jpg,caf\u{fffd} noir,UTF-8",
    "http://site.test/2.jpg,красный кот,windows-1251",
    "http://site.test/3.jpg,красный кот,windows-1251",
    "http://site.test/4.jpg,красный кот,windows-1251",
    "http://site.test/5.jpg,网站地图,GBK",
    "http://site.test/6.jpg,日本の花と空と海,Shift_JIS",
    "http://site.test/7.jpg,cafÃ© crÃ¨me,windows-1252",
    "http://site.test/8.jpg,café,UTF-8",
    "http://site.test/9.jpg,镕金属,GBK",
];
const SRCSETS: &[&str] = &[
    "amp,http://site.test/b.jpg",
    "data,http://site.test/real.jpg",
    "datalast,http://site.test/real.jpg",
    "half,http://site.test/a.jpg",
    "hdesc,http://site.test/l.jpg",
    "upper,http://site.test/l.jpg",
];

/// Candidates of `30-extract.warc` for which there are several.
#[test]
fn the_best_candidate_that_can_be_decoded() {
    let place = place();
    let output = run(&place, "[stages.rows]\nkind = \"warc\"\nfiles = [\"cases/warc/30-extract.warc\"]\n");
    assert!(output.status.success(), "{}", stderr(&output));
    for (caption, expected) in [
        ("hdesc", "l.jpg"),
        ("srcset larger", "big.jpg"),
        ("spacer", "real2.jpg"),
        ("pic no src", "a-l.avif"),
    ] {
        let query = format!("select url from rows where caption = '{caption}'");
        assert_eq!(place.ask("run", &query), [format!("http://site.test/dir/{expected}")], "{caption}");
    }
}

/// Images with a caption each: all are rows or rejects, within seconds.
#[test]
fn images() {
    let place = place();
    for folder in ["jpeg", "hostile"] {
        for entry in fs::read_dir(place.path("cases").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension != "parquet") {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                place.write(&format!("images/{name}.txt"), "a caption");
                fs::copy(&path, place.path("images").join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    let started = Instant::now();
    let stage = "[stages.rows]\nkind = \"folder\"\nfolders = [\"images\"]\nresize = { size = 8 }\n";
    let output = run(&place, stage);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", stderr(&output));
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let codes = place.ask("run", "select reject_code from rows.rejects order by reject_code");
    assert_eq!(codes, ["too_many_scans", "unsupported_format", "unsupported_format"]);
    assert_eq!(place.ask("run", "select count(*) from rows"), ["4"]);
}

/// Puts the archive where three of the sets have it.
fn set_place() -> Place {
    let place = place();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/sets");
    for set in ["notemplate", "blanktemplate", "bomnames"] {
        let folder = place.path("data").join(set);
        fs::create_dir_all(folder.join("test")).unwrap();
        for file in ["classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt"] {
            fs::copy(cases.join(set).join(file), folder.join(file)).unwrap();
        }
        fs::copy(cases.join("four-classes.tar"), folder.join("test/0.tar")).unwrap();
    }
    for file in ["fold_missing", "p_bool.parquet", "p_float.parquet"] {
        std::os::unix::fs::symlink(cases.join(file), place.path("data").join(file)).unwrap();
    }
    place
}

/// Evaluation sets whose names do not fit their labels, or whose templates are none.
#[test]
fn evaluation_sets() {
    for (set, expected) in [
        ("notemplate", Err("zeroshot_classification_templates.txt")),
        ("blanktemplate", Err("zeroshot_classification_templates.txt:2: this line is blank")),
        ("bomnames", Ok("select count(*) from rows where class_name like '%\u{feff}%'")),
        ("fold_missing", Err("n004       gamma")),
        ("p_bool", Err("label column `label` is of type Boolean")),
        ("p_float", Err("label column `label` is of type Float64")),
    ] {
        let place = set_place();
        let stages = format!(
            "[stages.rows]\nkind = \"evaluation-set\"\nset = \"cases/sets/{set}.toml\"\ndata = \"data\"\n"
        );
        let output = run(&place, &stages);
        let text = stderr(&output);
        match expected {
            Ok(query) => {
                assert!(output.status.success(), "{set}: {text}");
                assert_eq!(place.ask("run", query), ["0"], "{set}");
            }
            Err(message) => {
                assert_eq!(output.status.code(), Some(1), "{set}: {text}");
                assert!(text.contains(message), "{set}: {text}");
            }
        }
    }
}
