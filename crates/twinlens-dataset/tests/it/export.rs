//! Exports can be read back unchanged, even after interruptions.

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
use twinlens_dataset::export::{Export, Format, Outcome, StageSummary};
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

/// The bytes of the image in row `row`, of various lengths, some longer than a page.
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

/// Runs an export that stops after `pieces` pieces.
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
async fn exports_can_be_read_back_unchanged() {
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
            // The hub's feature of images.
            assert!(reader.schema().metadata()["huggingface"].contains(r#""image":{"_type":"Image"}"#));
            assert_eq!(reader.schema().fields(), contracts::file_schema(&schema()).fields());
            batches.extend(
                reader.map(|batch| {
                    twinlens_dataset::conform::conform("t", &batch.unwrap(), &schema()).unwrap()
                }),
            );
        }
        assert_eq!(concat_batches(&schema(), &batches).unwrap(), expected(predicate.is_some()));

        // An export is a dataset that can be exported again.
        let again = folder.path().join(format!("{name}-again"));
        assert_eq!(
            read(&written(&export(&parquet, Format::Parquet, None), &again).await),
            expected(predicate.is_some())
        );
    }
}

/// The hub recognises image columns by both type and metadata; in memory the type differs.
#[test]
fn shards_have_the_image_feature_of_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path());
    for shard in dataset.shards(MAIN) {
        let file = File::open(folder.path().join(&shard.path)).unwrap();
        let shard = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert_eq!(shard.schema(), &contracts::file_schema(&dataset.schema(MAIN).unwrap()));
        assert!(shard.schema().metadata()["huggingface"].contains(r#""image":{"_type":"Image"}"#));
        assert_eq!(contracts::memory_schema(shard.schema()), dataset.schema(MAIN).unwrap());
        // Readers that page through images need small row groups and page indexes.
        for group in shard.metadata().row_groups() {
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
async fn tar_files_have_the_layout_of_img2dataset() {
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

    // Rows without an image are counted, and are only in the Parquet file.
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
    /// An export that is stopped anywhere resumes and writes the same bytes.
    #[test]
    fn a_stopped_export_resumes(stops in proptest::collection::vec(0u64..14, 1..4), format in 0usize..3, some: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dataset = dataset(&folder.path().join("images"));
        let format = [Format::Parquet, Format::Arrow, Format::WebDataset][format];
        let export = export(&dataset, format, some.then_some(PREDICATE));
        runtime.block_on(async {
            let (whole, resumed) = (folder.path().join("whole"), folder.path().join("resumed"));
            written(&export, &whole).await;
            for pieces in stops {
                if !matches!(run(&export, &resumed, pieces).await.unwrap(), Outcome::Interrupted) {
                    break;
                }
                // A killed process may also leave an unfinished file, and one that is not recorded.
                fs::write(resumed.join("09999.parquet.unfinished"), "half").unwrap();
                fs::write(resumed.join("09999.tar"), "lost").unwrap();
            }
            run(&export, &resumed, u64::MAX).await.unwrap();
            let (whole, resumed) = (files(&whole), files(&resumed));
            assert_eq!(whole.keys().collect::<Vec<_>>(), resumed.keys().collect::<Vec<_>>());
            for (name, bytes) in &whole {
                assert!(resumed[name] == *bytes, "{name} differs");
            }
        });
    }
}

#[tokio::test]
async fn a_folder_with_other_contents_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(&folder.path().join("images"));
    let to = folder.path().join("out");
    let message = |outcome: Result<Outcome, DatasetError>| match outcome {
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
        message(run(&all, &to, u64::MAX).await),
        "it contains `notes.txt`, which is not part of an export"
    );
    fs::remove_file(to.join("notes.txt")).unwrap();
    written(&all, &to).await;
    fs::write(to.join("README.md"), "my own words").unwrap();
    assert!(matches!(run(&all, &to, u64::MAX).await.unwrap(), Outcome::Unchanged(_)));
    assert_eq!(fs::read_to_string(to.join("README.md")).unwrap(), "my own words");

    let some = export(&dataset, Format::Arrow, Some(PREDICATE));
    let before = files(&to);
    assert!(message(run(&some, &to, u64::MAX).await).starts_with("it contains an export of other rows"));
    fs::write(to.join("data/mine.arrow"), "mine").unwrap();
    let fresh = Export { fresh: true, ..export(&dataset, Format::Arrow, Some(PREDICATE)) };
    assert!(message(run(&fresh, &to, u64::MAX).await).contains("data/mine.arrow"));
    fs::remove_file(to.join("data/mine.arrow")).unwrap();
    assert_eq!(files(&to), before);
    let done = written(&fresh, &to).await;
    assert_eq!(done.state().rejects()["export"]["filtered"], 1000 - expected(true).num_rows() as u64);

    let own = message(run(&all, &folder.path().join("images"), u64::MAX).await);
    assert_eq!(own, "it contains the dataset of the stage `images`");
    let wrong = export(&dataset, Format::Arrow, Some("widht > 3"));
    assert!(
        message(run(&wrong, &folder.path().join("new"), u64::MAX).await).contains("No field named widht")
    );
    let number = export(&dataset, Format::Arrow, Some("width + 3"));
    let message = message(run(&number, &folder.path().join("new"), u64::MAX).await);
    assert_eq!(message, "--where width + 3: expected a condition, but the type is Int64");
    assert!(!folder.path().join("new").exists(), "an invalid export creates nothing");

    // Another process locks the folder.
    let held = File::open(&to).unwrap();
    held.lock().unwrap();
    assert!(matches!(run(&fresh, &to, u64::MAX).await, Err(DatasetError::Locked { .. })));
}

#[tokio::test]
async fn damage_stops_an_export_and_is_named() {
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
    // Nothing looks like a complete export.
    assert!(!Dataset::open(&to).unwrap().state().complete);
    assert!(!to.join("README.md").exists());
}

#[tokio::test]
async fn the_card_describes_the_export() {
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

/// An export to an object store has the same bytes as a local one.
#[tokio::test(flavor = "multi_thread")]
async fn exports_may_be_in_an_object_store() {
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
