//! The `table` stage on what people call tables: each kind of file with what it gives, and each
//! kind of damage with its error.

mod text;

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, Int64Array, ListArray, MapBuilder, NullArray, StringArray,
    StringBuilder, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Float64Type};

use crate::support::{Lab, faults, gzip, parquet, stage};

/// URL, caption and kept column.
const ROWS: &str = "select url, caption, k from pairs order by url, caption";
const PAIRS: &str = "select url, caption from pairs order by url, caption";
const REJECTS: &str = "select reject_code, reject_detail from pairs.rejects order by reject_detail";

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn utf16(text: &str, big: bool) -> Vec<u8> {
    let units = ["\u{feff}", text].concat();
    let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
    units.encode_utf16().flat_map(bytes).collect()
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// Name, content, further options, a query and its rows, and the rejects: code and start of the
/// detail behind the file's name.
type Case =
    (&'static str, Vec<u8>, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

fn json_cases() -> Vec<Case> {
    let array = "[ {\"url\": \"http://a/1\", \"caption\": \"a ] }\"},\n{\"url\": \"http://a/2\", \"caption\": \"two\"}\n]\n";
    let both: &[&str] = &["http://a/1 | a ] }", "http://a/2 | two"];
    let lists = "{\"url\": \"http://a/1\", \"caption\": [\"a\", null, \" \", \"b\"]}\n{\"url\": \"http://a/2\", \"caption\": \"c\"}\n{\"url\": \"http://a/3\", \"caption\": []}\n";
    vec![
        ("array.json", array.into(), "", PAIRS, both, &[]),
        ("array.jsonl", array.into(), "", PAIRS, both, &[]),
        ("array.json.gz", gzip(array.as_bytes()), "", PAIRS, both, &[]),
        (
            "cut.json",
            array[..array.len() - 12].into(),
            "",
            PAIRS,
            &["http://a/1 | a ] }"],
            &["malformed_json | cut.json row 1, line 2: the file ends within this value"],
        ),
        (
            "lines.json",
            "{\"url\": \"http://a/1\", \"caption\": \"one\"}\n".into(),
            "",
            PAIRS,
            &["http://a/1 | one"],
            &[],
        ),
        (
            "nan.jsonl",
            "{\"url\": \"http://a/1\", \"caption\": \"NaN\", \"k\": 0.5}\n{\"url\": \"http://a/2\", \"caption\": \"x\", \"k\": NaN}\n".into(),
            "keep = [\"k\"]",
            "select url, caption, k + 1 from pairs order by url",
            &["http://a/1 | NaN | 1.5", "http://a/2 | x | -"],
            &[],
        ),
        (
            "half.jsonl",
            "{\"url\": \"http://a/1\", \"caption\": \"one \\ud83d\"}\n".into(),
            "",
            PAIRS,
            &["http://a/1 | one \u{fffd}"],
            &[],
        ),
        (
            "null.jsonl",
            "{\"url\": \"http://a/1\", \"caption\": null, \"TEXT\": \"one\"}\n".into(),
            "",
            PAIRS,
            &["http://a/1 | one"],
            &[],
        ),
        ("lists.jsonl", lists.into(), "captions = \"each\"", PAIRS, &["http://a/1 | a", "http://a/1 | b", "http://a/2 | c"], &["no_caption | lists.jsonl row 2, line 3: no caption"]),
        ("lists.jsonl", lists.into(), "captions = \"random\"", "select caption, captions from pairs order by url", &["a | [a, b]", "c | [c]"], &["no_caption | lists.jsonl row 2"]),
        ("lists.jsonl", lists.into(), "captions = \"first\"", PAIRS, &["http://a/1 | a", "http://a/2 | c"], &["no_caption | lists.jsonl row 2"]),
        (
            "nested.jsonl",
            "{\"image\": {\"url\": \"http://a/1\"}, \"caption\": \"one\", \"k\": {\"a\": [1]}}\n".into(),
            "columns = { url = \"image.url\" }\nkeep = [\"k\"]",
            ROWS,
            &["http://a/1 | one | {\"a\":[1]}"],
            &[],
        ),
        (
            "types.jsonl",
            "{\"url\": \"http://a/1\", \"caption\": \"one\", \"k\": 7}\n{\"url\": \"http://a/2\", \"caption\": 5, \"k\": 7}\n".into(),
            "keep = [\"k\"]",
            "select url, k * 2 from pairs",
            &["http://a/1 | 14"],
            &["wrong_type | types.jsonl row 1, line 2: `caption` is a number, not text"],
        ),
        ("urls.jsonl", "{\"url\": \"http://a/1\"}\n".into(), "", PAIRS, &["http://a/1 | -"], &[]),
    ]
}

fn parquet_cases() -> Vec<Case> {
    let urls = || texts(&["http://a/1", "http://a/2"]);
    let lists = || -> ArrayRef {
        let mut builder = arrow::array::ListBuilder::new(StringBuilder::new());
        builder.append_value([Some("a"), None, Some("b")]);
        builder.append_value([Some("c")]);
        Arc::new(builder.finish())
    };
    let field = |name: &str, kind: DataType| Arc::new(Field::new(name, kind, true));
    let image: ArrayRef = Arc::new(StructArray::from(vec![
        (
            field("bytes", DataType::Binary),
            Arc::new(BinaryArray::from(vec![b"x".as_slice(), b"y"])) as ArrayRef,
        ),
        (field("path", DataType::Utf8), urls()),
    ]));
    let numbers: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 0.25]));
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for key in ["p", "q"] {
        map.keys().append_value(key);
        map.values().append_value("v");
        map.append(true).unwrap();
    }
    let map: ArrayRef = Arc::new(map.finish());
    let when: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, 1_000_000]).with_timezone("UTC"));
    let nested: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>([
        Some(vec![Some(1.0)]),
        Some(vec![Some(2.0), None]),
    ]));
    let dictionary: ArrayRef = Arc::new(
        ["x", "x"].into_iter().collect::<arrow::array::DictionaryArray<arrow::datatypes::Int32Type>>(),
    );
    let null: ArrayRef = Arc::new(NullArray::new(2));
    let captions = || texts(&["one", "two"]);
    let both: &[&str] = &["http://a/1 | one | 1.5", "http://a/2 | two | 1.25"];
    vec![
        (
            "floats.parquet",
            parquet(vec![("url", urls()), ("caption", captions()), ("k", numbers)]),
            "keep = [\"k\"]",
            "select url, caption, k + 1 from pairs order by url",
            both,
            &[],
        ),
        (
            "exact.parquet",
            parquet(vec![
                ("url", urls()),
                ("caption", captions()),
                ("k", Arc::new(Int64Array::from(vec![9_007_199_254_740_993, -7]))),
            ]),
            "keep = [\"k\"]\ntypes = { k = \"float64\" }",
            ROWS,
            &["http://a/2 | two | -7.0"],
            &["wrong_type | exact.parquet row 0: the value of `k` is not float64"],
        ),
        (
            "lists.parquet",
            parquet(vec![("url", urls()), ("caption", lists()), ("k", texts(&["x", "y"]))]),
            "captions = \"each\"\nkeep = [\"k\"]",
            ROWS,
            &["http://a/1 | a | x", "http://a/1 | b | x", "http://a/2 | c | y"],
            &[],
        ),
        (
            "lists.parquet",
            parquet(vec![("url", urls()), ("caption", lists()), ("k", texts(&["x", "y"]))]),
            "captions = \"random\"\nkeep = [\"k\"]",
            "select caption, captions, k from pairs order by url",
            &["a | [a, b] | x", "c | [c] | y"],
            &[],
        ),
        (
            "lists.parquet",
            parquet(vec![("url", urls()), ("caption", lists())]),
            "captions = \"first\"",
            PAIRS,
            &["http://a/1 | a", "http://a/2 | c"],
            &[],
        ),
        (
            "image.parquet",
            parquet(vec![("image", image), ("caption", captions())]),
            "columns = { url = \"image.path\" }\nkeep = { k = \"image\" }",
            "select url, k['path'] from pairs order by url",
            &["http://a/1 | http://a/1", "http://a/2 | http://a/2"],
            &[],
        ),
        (
            "rich.parquet",
            parquet(vec![
                ("url", urls()),
                ("caption", captions()),
                ("k", map),
                ("when", when),
                ("nested", nested),
                ("word", dictionary),
                ("none", null),
            ]),
            "keep = [\"k\", \"when\", \"nested\", \"word\", \"none\"]",
            "select k, \"when\", nested, word, \"none\" from pairs order by url",
            &[
                "{p: v} | 1970-01-01T00:00:00Z | [1.0] | x | -",
                "{q: v} | 1970-01-01T00:00:01Z | [2.0, -] | x | -",
            ],
            &[],
        ),
        (
            "int.parquet",
            parquet(vec![
                ("url", urls()),
                ("caption", captions()),
                ("k", Arc::new(Int64Array::from(vec![1, 1 << 40]))),
            ]),
            "keep = [\"k\"]\ntypes = { k = \"int32\" }",
            ROWS,
            &["http://a/1 | one | 1"],
            &["wrong_type | int.parquet row 1: the value of `k` is not int32"],
        ),
        (
            "urls.parquet",
            parquet(vec![("url", urls())]),
            "",
            PAIRS,
            &["http://a/1 | -", "http://a/2 | -"],
            &[],
        ),
    ]
}

#[tokio::test]
async fn each_kind_of_table_gives_its_rows() {
    for (name, bytes, options, sql, expected, refused) in
        text::cases().into_iter().chain(json_cases()).chain(parquet_cases())
    {
        for split_rows in [1, 1000] {
            let lab = Lab::new();
            lab.write(name, &bytes);
            let options = format!("files = [\"{name}\"]\nsplit_rows = {split_rows}\n{options}");
            let done = lab.run(&stage("pairs", "table", &options)).await;
            assert_eq!(done.rows(sql).await, expected, "{name} {options}");
            let rejects = done.rows(REJECTS).await;
            assert_eq!(rejects.len(), refused.len(), "{name}: {rejects:#?}");
            for (reject, start) in rejects.iter().zip(refused) {
                assert!(reject.starts_with(start), "{name}: {reject}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_table_is_refused_by_name() {
    let lists = || {
        parquet(vec![
            ("url", texts(&["http://a/1"])),
            ("caption", {
                let mut builder = arrow::array::ListBuilder::new(StringBuilder::new());
                builder.append_value([Some("a")]);
                Arc::new(builder.finish()) as ArrayRef
            }),
        ])
    };
    let image = || -> ArrayRef {
        let path = Arc::new(Field::new("path", DataType::Utf8, true));
        Arc::new(StructArray::from(vec![(path, texts(&["http://a/1"]))]))
    };
    let html = b"<!DOCTYPE html><html>log in".to_vec();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
    let csv = b"url,caption\nhttp://a/1,x\n".to_vec();
    let cases: Vec<(&str, Vec<u8>, &str, &[&str])> = vec![
        ("page.csv", html.clone(), "", &["page.csv is an HTML page, not CSV"]),
        ("page.jsonl", html.clone(), "", &["is an HTML page"]),
        ("page.parquet", html, "", &["is an HTML page, not Parquet"]),
        ("lfs.parquet", pointer.clone(), "", &["is a Git LFS pointer", "git lfs pull"]),
        ("lfs.csv", pointer, "", &["is a Git LFS pointer"]),
        ("csv.parquet", csv.clone(), "", &["is plain text, not Parquet"]),
        ("parquet.csv", lists(), "", &["is a Parquet file, not CSV", "format = \"parquet\""]),
        ("zipped.parquet", gzip(&lists()), "", &["zipped.parquet is compressed"]),
        ("csv.jsonl", csv, "", &["its first 2 rows are not JSON objects; line 1"]),
        ("empty.csv", Vec::new(), "", &["empty.csv is an empty file"]),
        ("none.csv", b"url,caption\n".to_vec(), "", &["there are no rows"]),
        ("none.json", b"[]".to_vec(), "", &["there are no rows"]),
        ("header.csv", b"nothing,here\n".to_vec(), "", &["header.csv: no column `url`", "nothing, here"]),
        ("semicolon.csv", b"url;caption\n".to_vec(), "", &["no column `url`", "set `delimiter`"]),
        ("cut.csv.gz", gzip(&b"url,caption\nhttp://a/1,x\n".repeat(999))[..60].to_vec(), "", &["cut.csv.gz"]),
        ("lists.parquet", lists(), "", &["`caption` is of type list<", "captions = \"each\""]),
        (
            "lists.jsonl",
            b"{\"url\": \"http://a/1\", \"caption\": [\"a\"]}\n".to_vec(),
            "",
            &["the captions are lists", "captions = \"each\""],
        ),
        (
            "image.parquet",
            parquet(vec![("image", image()), ("caption", texts(&["one"]))]),
            "",
            &["the column `image` is of type struct<path: string>, not text", "url = \"image.path\""],
        ),
        (
            "image.jsonl",
            b"{\"image\": {\"url\": \"http://a/1\"}, \"caption\": \"x\"}\n".to_vec(),
            "",
            &["`image` is an object, not text", "url = \"image.url\""],
        ),
        (
            "number.parquet",
            parquet(vec![("url", texts(&["http://a/1"])), ("caption", Arc::new(Int64Array::from(vec![5])))]),
            "",
            &["the column `caption` is of type int64, not text"],
        ),
        (
            "caption.csv",
            b"url,sentence\nhttp://a/1,x\n".to_vec(),
            "",
            &["no column `caption`", "captions = \"none\""],
        ),
    ];
    for (name, bytes, options, expected) in cases {
        let lab = Lab::new();
        lab.write(name, &bytes);
        let pipeline = stage("pairs", "table", &format!("files = [\"{name}\"]\n{options}"));
        let error = lab.run_error(&pipeline).await;
        let shown = match &error {
            twinlens_pipeline::RunError::User { message, hint } => {
                format!("{message} {}", hint.as_deref().unwrap_or_default())
            }
            // Found while the rows were read.
            other => other.to_string(),
        };
        for part in expected {
            assert!(shown.contains(part), "{name}: {part}: {shown}");
        }
        // Beside a good file, it is one reject where that is asked for.
        lab.write("a.csv", "url,caption\nhttp://a/0,zero\n");
        if name.starts_with("none") || name == "cut.csv.gz" {
            continue;
        }
        let files = format!("files = [\"a.csv\", \"{name}\"]\non_bad_file = \"reject\"");
        let done = lab.run(&stage("pairs", "table", &files)).await;
        assert_eq!(done.rows(PAIRS).await, ["http://a/0 | zero"], "{name}");
        let rejects = done.rows(REJECTS).await;
        assert!(rejects.len() == 1 && rejects[0].starts_with(&format!("bad_file | {name}")), "{rejects:?}");
    }
}

#[tokio::test]
async fn patterns_directories_and_several_files() {
    let lab = Lab::new();
    let csv = |n: u32| format!("url,caption,k\nhttp://a/{n},c,{n}\n");
    for (n, name) in ["list/00.csv", "list/01.csv", "list/deep/02.csv", "list/_SUCCESS"].iter().enumerate() {
        lab.write(name, csv(n as u32));
    }
    let cases = [
        ("list/*.csv", "2"),
        ("list/**/*.csv", "3"),
        ("list/{00..01}.csv", "2"),
        ("list", "3"),
        ("list/", "3"),
    ];
    for (pattern, expected) in cases {
        let done = lab.run(&stage("pairs", "table", &format!("files = [\"{pattern}\"]"))).await;
        assert_eq!(done.rows("select count(*) from pairs").await, [expected], "{pattern}");
    }
    let error = lab.run_error(&stage("pairs", "table", "files = [\"list/{00..09}.csv\"]")).await;
    assert!(error.to_string().contains("02.csv does not exist"), "{error}");
    // A column must be of one type in all files.
    let float = |value: f64| Arc::new(Float64Array::from(vec![value])) as ArrayRef;
    let int = |value: i64| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let file =
        |k: ArrayRef| parquet(vec![("url", texts(&["http://a/1"])), ("caption", texts(&["c"])), ("k", k)]);
    lab.write("p/0.parquet", file(float(0.5)));
    lab.write("p/1.parquet", file(int(2)));
    let error = lab.run_error(&stage("pairs", "table", "files = [\"p\"]\nkeep = [\"k\"]")).await.to_string();
    assert!(error.contains("1.parquet: the column `k` is of type int64, not float64"), "{error}");
    let typed = "files = [\"p\"]\nkeep = [\"k\"]\ntypes = { k = \"float64\" }";
    let done = lab.run(&stage("pairs", "table", typed)).await;
    assert_eq!(done.rows("select k from pairs order by k").await, ["0.5", "2.0"]);
}

#[test]
fn faults_of_options_have_their_places() {
    let cases = [
        ("files = [\"x.csv\"]\ndelimiter = \"ab\"", "`delimiter` must be one ASCII character"),
        ("files = [\"x.csv\"]\nquote = \"\"\nescape = \"\"", "`escape` must be one ASCII character"),
        ("files = [\"x.csv\"]\nescape = '\"'\nquote = '\"'", "must differ"),
        ("files = [\"x.csv\"]\nencoding = \"klingon\"", "unknown encoding `klingon`"),
        ("files = [\"x.csv\"]\nkeep = [\"k\"]\ntypes = { j = \"int64\" }", "`j` is not a kept column"),
        ("files = [\"x.csv\"]\nkeep = { uid = \"uid\" }", "there is already a column `uid`"),
        ("files = [\"x.csv\"]\nkeep = [\"a\", \"a\"]", "there is already a column `a`"),
        ("files = [\"x.csv\"]\ncaptions = \"all\"", "captions"),
        ("files = [\"x.csv\"]\non_bad_file = \"skip\"", "on_bad_file"),
        ("files = [\"x.csv\"]\nheader = \"yes\"", "header"),
        ("files = [\"x.csv\"]\nkeep = [1]", "keep"),
        ("files = [\"x.dat\"]", "cannot be inferred"),
    ];
    for (options, expected) in cases {
        let report = faults(&stage("pairs", "table", options)).unwrap_or_default();
        assert!(report.contains(expected), "{options}: {report}");
    }
}
