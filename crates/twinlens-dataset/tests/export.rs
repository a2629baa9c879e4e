//! Datasets out: what is written can be read again and is the same, whatever happened on the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    ArrayRef, AsArray, Int32Array, LargeBinaryArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::FileReader;
use datafusion::prelude::SessionContext;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use twinlens_dataset::card::StageSummary;
use twinlens_dataset::export::{Export, Format, Outcome};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Begin, Dataset, DatasetError, DatasetWriter, MAIN, contracts, protocol};

fn schema() -> SchemaRef {
    let pairs = contracts::pairs();
    let names = ["uid", "url", "caption", "page_url", "image", "width", "fetched_at", "license"];
    let mut fields: Vec<Field> = names.map(|name| pairs.field_with_name(name).unwrap().clone()).into();
    fields.push(Field::new("note", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

/// What stands for an image in row `row`: of many lengths, some longer than a page.
fn image(row: i64) -> Vec<u8> {
    let kind: &[u8] = if row % 3 == 0 { b"\x89PNG" } else { b"\xff\xd8\xff" };
    let length = 40 + (row * row * 37 % 3000) as usize;
    [kind, &vec![row as u8; length]].concat()
}

fn rows(first: i64, rows: i64) -> RecordBatch {
    let numbers: Vec<i64> = (first..first + rows).collect();
    let text = |of: &dyn Fn(i64) -> Option<String>| -> ArrayRef {
        Arc::new(numbers.iter().map(|row| of(*row)).collect::<StringArray>())
    };
    let DataType::Struct(parts) = contracts::image() else { unreachable!() };
    // Every hundredth row has no image.
    let valid = NullBuffer::from(numbers.iter().map(|row| row % 100 != 99).collect::<Vec<_>>());
    let bytes = LargeBinaryArray::from_iter_values(numbers.iter().map(|row| image(*row)));
    let images = StructArray::new(parts, vec![Arc::new(bytes), text(&|_| None)], Some(valid));
    let columns: Vec<ArrayRef> = vec![
        text(&|row| Some(format!("{row:032x}"))),
        text(&|row| Some(format!("http://img.test/{row}.jpg"))),
        text(&|row| Some(format!("picture \"{row}\" – ok"))),
        text(&|row| Some(format!("http://host{}.test/page", row % 7))),
        Arc::new(images),
        Arc::new(numbers.iter().map(|row| Some(*row as i32)).collect::<Int32Array>()),
        Arc::new(
            numbers
                .iter()
                .map(|row| Some(1_700_000_000_000_000 + row))
                .collect::<TimestampMicrosecondArray>()
                .with_timezone("UTC"),
        ),
        text(&|row| (row % 2 == 0).then(|| "CC-BY 4.0".into())),
        text(&|row| (row % 5 == 0).then(|| format!("note | {row}"))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// A complete dataset of four splits with several shards and row groups.
fn dataset(folder: &Path) -> Dataset {
    let begin = Begin {
        format: protocol::FORMAT,
        position: 3,
        stage: "images".into(),
        kind: "fetch".into(),
        fingerprint: "f00d".into(),
        recipe: serde_json::json!({ "kind": "fetch", "options": { "resize": 64 } }),
        fused: vec![],
        variant: None,
        tables: [(MAIN.to_string(), contracts::with_hub_features(schema()))].into(),
    };
    let limits = ShardLimits { shard_bytes: 200_000, row_group_rows: 70, ..ShardLimits::default() };
    let mut writer = DatasetWriter::open(folder, begin, limits).unwrap();
    for split in 0..4 {
        let mut open = writer.split(split, "split");
        for part in 0..5 {
            open.write(MAIN, &rows(split as i64 * 250 + part * 50, 50)).unwrap();
        }
        writer.commit(open.publish().unwrap()).unwrap();
    }
    writer.complete().unwrap();
    let dataset = Dataset::open(folder).unwrap();
    assert!(dataset.shards(MAIN).count() > 4);
    dataset
}

fn image_extension(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" }
}

fn export<'a>(dataset: &'a Dataset, format: Format, predicate: Option<&'a str>) -> Export<'a> {
    Export {
        dataset,
        made_by: StageSummary::of_dataset(dataset.state()),
        pipeline: Some("test".into()),
        format,
        predicate,
        shard_bytes: 150_000,
        fresh: false,
        image_extension,
    }
}

/// Runs an export that is stopped after so many pieces.
async fn run(export: &Export<'_>, to: &Path, pieces: u64) -> Result<Outcome, DatasetError> {
    let left = AtomicU64::new(pieces);
    let stop =
        || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
    export.run(&SessionContext::new(), &Location::from(to), Arc::new(|_, _, _| {}), &stop).await
}

async fn written(export: &Export<'_>, to: &Path) -> Dataset {
    match run(export, to, u64::MAX).await.unwrap() {
        Outcome::Written(dataset) => dataset,
        other => panic!("{other:?}"),
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(within) = folders.pop() {
        for entry in fs::read_dir(within).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// All rows of a dataset.
fn read(dataset: &Dataset) -> RecordBatch {
    let schema = dataset.schema(MAIN).unwrap();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let batches: Vec<RecordBatch> =
        ShardReader::new(dataset, MAIN, &columns, 64).map(Result::unwrap).collect();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

const PREDICATE: &str = "width % 3 <> 1 and note is null";

fn expected(predicate: bool) -> RecordBatch {
    let all = rows(0, 1000);
    if !predicate {
        return all;
    }
    let keep: arrow::array::BooleanArray = (0..1000).map(|row| Some(row % 3 != 1 && row % 5 != 0)).collect();
    arrow::compute::filter_record_batch(&all, &keep).unwrap()
}

#[tokio::test]
async fn what_is_exported_is_read_again_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    for (name, predicate) in [("all", None), ("some", Some(PREDICATE))] {
        let parquet = written(&export(&dataset, Format::Parquet, predicate), &folder.path().join(name)).await;
        assert_eq!(read(&parquet), expected(predicate.is_some()));
        assert!(parquet.shards(MAIN).count() > 3);
        assert_eq!(parquet.state().rows_in(), Some(1000));

        let to = folder.path().join(format!("{name}-arrow"));
        let arrow = written(&export(&dataset, Format::Arrow, predicate), &to).await;
        let mut batches = Vec::new();
        for file in arrow.state().files() {
            let reader = FileReader::try_new(File::open(to.join(&file.path)).unwrap(), None).unwrap();
            // What the hub takes for an image.
            assert!(reader.schema().metadata()["huggingface"].contains(r#""image":{"_type":"Image"}"#));
            assert_eq!(reader.schema().fields(), contracts::file_schema(&schema()).fields());
            batches.extend(
                reader
                    .map(|batch| twinlens_dataset::shard::conform("t", &batch.unwrap(), &schema()).unwrap()),
            );
        }
        assert_eq!(concat_batches(&schema(), &batches).unwrap(), expected(predicate.is_some()));

        // An export is a dataset: what is exported from it is the same again.
        let again = folder.path().join(format!("{name}-again"));
        assert_eq!(
            read(&written(&export(&parquet, Format::Parquet, None), &again).await),
            expected(predicate.is_some())
        );
    }
}

/// The hub takes a column for images by its type and its metadata, both; in memory the type is
/// another one.
#[test]
fn shards_say_what_the_hub_takes_for_images() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path());
    for shard in dataset.shards(MAIN) {
        let file = File::open(folder.path().join(&shard.path)).unwrap();
        let said = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert_eq!(said.schema(), &contracts::file_schema(&dataset.schema(MAIN).unwrap()));
        assert!(said.schema().metadata()["huggingface"].contains(r#""image":{"_type":"Image"}"#));
        assert_eq!(contracts::memory_schema(said.schema()), dataset.schema(MAIN).unwrap());
        // Readers that page through images want small row groups, and the index of their pages.
        for group in said.metadata().row_groups() {
            assert!(group.num_rows() <= 100);
            assert!(group.columns().iter().all(|column| column.offset_index_offset().is_some()));
            assert_eq!(
                group.columns().iter().filter(|column| column.column_index_offset().is_none()).count(),
                1
            );
        }
    }
}

#[tokio::test]
async fn tar_files_are_those_of_img2dataset() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    let to = folder.path().join("tars");
    let export = written(&export(&dataset, Format::WebDataset, None), &to).await;
    let names: Vec<&str> = export.state().files().map(|file| file.path.as_str()).take(3).collect();
    assert_eq!(names, ["00000.tar", "00000.parquet", "00000_stats.json"]);

    let tar = fs::read(to.join("00001.tar")).unwrap();
    let name = String::from_utf8_lossy(&tar[..13]).into_owned();
    assert_eq!(tar.len() % 10_240, 0);
    let file = File::open(to.join("00001.parquet")).unwrap();
    let table: Vec<RecordBatch> = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let columns: Vec<String> = table[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    let mut wanted = vec!["uid", "page_url", "fetched_at", "license", "note", "caption", "url"];
    wanted.extend([
        "key",
        "status",
        "error_message",
        "width",
        "height",
        "original_width",
        "original_height",
        "exif",
        "sha256",
    ]);
    assert_eq!(columns, wanted);
    let key = table[0]["key"].as_string::<i32>().value(0);
    assert_eq!((key, &name[..9]), ("000010000", "000010000"));

    // Rows without an image are counted, and stand in the Parquet file alone.
    let (mut count, mut failed) = (0, 0);
    for shard in 0..export.state().commits.len() {
        let text = fs::read_to_string(to.join(format!("{shard:05}_stats.json"))).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(text.starts_with("{\n    \"count\": "), "{text}");
        assert!(stats["start_time"].as_f64().unwrap() >= 1.7e9 && stats["duration"].as_f64().unwrap() < 1.0);
        count += stats["count"].as_u64().unwrap();
        failed += stats["failed_to_download"].as_u64().unwrap();
        assert_eq!(stats["status_dict"]["success"], stats["successes"]);
    }
    assert_eq!((count, failed), (1000, 10));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    /// Stopped wherever, an export goes on and writes the bytes that it would have written.
    #[test]
    fn an_export_that_was_stopped_goes_on(stops in proptest::collection::vec(0u64..14, 1..4), format in 0usize..3, some: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dataset = dataset(&folder.path().join("images"));
        let format = [Format::Parquet, Format::Arrow, Format::WebDataset][format];
        let export = export(&dataset, format, some.then_some(PREDICATE));
        runtime.block_on(async {
            let (calm, stormy) = (folder.path().join("calm"), folder.path().join("stormy"));
            written(&export, &calm).await;
            for pieces in stops {
                if !matches!(run(&export, &stormy, pieces).await.unwrap(), Outcome::Interrupted) {
                    break;
                }
                // What a killed process leaves besides: a shard that was published and not
                // recorded.
                fs::write(stormy.join("09999.tar"), "lost").unwrap();
                fs::write(stormy.join("09999.parquet.unfinished"), "half").unwrap();
            }
            run(&export, &stormy, u64::MAX).await.unwrap();
            let (calm, stormy) = (files(&calm), files(&stormy));
            assert_eq!(calm.keys().collect::<Vec<_>>(), stormy.keys().collect::<Vec<_>>());
            for (name, bytes) in &calm {
                assert!(stormy[name] == *bytes, "{name} differs");
            }
        });
    }
}

#[tokio::test]
async fn a_folder_with_other_things_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    let to = folder.path().join("out");
    let said = |outcome: Result<Outcome, DatasetError>| match outcome {
        Err(error @ DatasetError::Refused { .. }) => {
            let text = error.to_string();
            text.split_once(": ").unwrap().1.to_string()
        }
        other => panic!("{other:?}"),
    };
    let all = export(&dataset, Format::Arrow, None);
    fs::create_dir(&to).unwrap();
    fs::write(to.join("notes.txt"), "mine").unwrap();
    assert_eq!(
        said(run(&all, &to, u64::MAX).await),
        "it contains `notes.txt`, which is not part of an export"
    );
    fs::remove_file(to.join("notes.txt")).unwrap();
    written(&all, &to).await;
    fs::write(to.join("README.md"), "my own words").unwrap();
    assert!(matches!(run(&all, &to, u64::MAX).await.unwrap(), Outcome::Unchanged(_)));
    assert_eq!(fs::read_to_string(to.join("README.md")).unwrap(), "my own words");

    let some = export(&dataset, Format::Arrow, Some(PREDICATE));
    let before = files(&to);
    assert!(said(run(&some, &to, u64::MAX).await).starts_with("it contains an export of other rows"));
    fs::write(to.join("data/mine.arrow"), "mine").unwrap();
    let fresh = Export { fresh: true, ..export(&dataset, Format::Arrow, Some(PREDICATE)) };
    assert!(said(run(&fresh, &to, u64::MAX).await).contains("data/mine.arrow"));
    fs::remove_file(to.join("data/mine.arrow")).unwrap();
    assert_eq!(files(&to), before);
    let done = written(&fresh, &to).await;
    assert_eq!(done.state().rejects()["export"]["filtered"], 1000 - expected(true).num_rows() as u64);

    let own = said(run(&all, &folder.path().join("images"), u64::MAX).await);
    assert_eq!(own, "it contains the dataset of the stage `images`");
    let wrong = export(&dataset, Format::Arrow, Some("widht > 3"));
    assert!(said(run(&wrong, &folder.path().join("new"), u64::MAX).await).contains("No field named widht"));
    let number = export(&dataset, Format::Arrow, Some("width + 3"));
    let said = said(run(&number, &folder.path().join("new"), u64::MAX).await);
    assert_eq!(said, "--where width + 3: expected a condition, but the type is Int64");
    assert!(!folder.path().join("new").exists(), "nothing is made for an export that cannot be");

    // Another process holds the folder.
    let held = File::open(&to).unwrap();
    held.lock().unwrap();
    assert!(matches!(run(&fresh, &to, u64::MAX).await, Err(DatasetError::Locked { .. })));
}

#[tokio::test]
async fn damage_stops_an_export_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    let shard = dataset.shards(MAIN).nth(2).unwrap().path.clone();
    let path = folder.path().join("images").join(&shard);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    fs::write(&path, &bytes).unwrap();
    let to = folder.path().join("out");
    let error = run(&export(&dataset, Format::WebDataset, None), &to, u64::MAX).await.unwrap_err();
    assert!(error.to_string().contains(&shard), "{error}");
    // Nothing of it can be taken for the whole.
    assert!(!Dataset::open(&to).unwrap().state().complete);
    assert!(!to.join("README.md").exists());
}

#[tokio::test]
async fn the_card_says_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    let to = folder.path().join("out");
    let done = written(&export(&dataset, Format::WebDataset, Some("width >= 10 and width < 610")), &to).await;
    let card = fs::read_to_string(to.join("README.md")).unwrap();
    for part in [
        "license: other\n",
        "- n<1K\n",
        "path: \"*.tar\"",
        "600 image-text pairs",
        "| `export` | export | 1,000 | 400 `filtered` | 600 |",
        "| `images` | fetch | - |  | 1,000 |",
        "{\"images\": {\"resize\":64}}",
        "| CC-BY 4.0 | 300 |",
        "| unknown | 300 |",
        "| host3.test | 86 |",
        &done.state().files().next().unwrap().sha256,
    ] {
        assert!(card.contains(part), "`{part}` is not in\n{card}");
    }
}

/// A dataset in an object store is exported to another folder of it, by the same bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_may_lie_in_an_object_store() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    let local = folder.path().join("local");
    written(&export(&dataset, Format::WebDataset, None), &local).await;
    let url = format!("file://{}", folder.path().join("store/export").display());
    let to = Location::parse(&url, Path::new(""), &folder.path().join("scratch")).unwrap();
    let done = export(&dataset, Format::WebDataset, None)
        .run(&SessionContext::new(), &to, Arc::new(|_, _, _| {}), &|| false)
        .await
        .unwrap();
    assert!(matches!(done, Outcome::Written(_)));
    let content = |folder: &Path| {
        let mut files = files(folder);
        files.retain(|name, _| !name.starts_with("manifest.jsonl"));
        files
    };
    assert_eq!(content(&local), content(&folder.path().join("store/export")));
}
