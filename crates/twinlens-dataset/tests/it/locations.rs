//! Datasets are the same in a local folder and in an object store.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::storage::Location;
use twinlens_dataset::writer::PublishedSplit;
use twinlens_dataset::{Begin, Dataset, DatasetError, DatasetWriter, MAIN, manifest, protocol};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("uid", DataType::Utf8, false),
        Field::new("number", DataType::Int64, true),
    ]))
}

fn begin(fingerprint: &str) -> Begin {
    Begin {
        format: protocol::FORMAT,
        position: 0,
        stage: "pairs".into(),
        kind: "table".into(),
        fingerprint: fingerprint.into(),
        recipe: serde_json::Value::Null,
        fused: vec![],
        variant: None,
        tables: [(MAIN.to_string(), schema())].into(),
    }
}

fn rows(split: u64) -> RecordBatch {
    let numbers: Vec<i64> = (0..10).map(|row| (split * 10 + row) as i64).collect();
    let uids = StringArray::from_iter_values(numbers.iter().map(|number| format!("{number:04}")));
    RecordBatch::try_new(schema(), vec![Arc::new(uids), Arc::new(Int64Array::from(numbers))]).unwrap()
}

fn writer(place: &Location, fingerprint: &str) -> DatasetWriter {
    DatasetWriter::open(place, begin(fingerprint), ShardLimits::default()).unwrap()
}

fn add(writer: &mut DatasetWriter, split: u64) -> Result<(), DatasetError> {
    let mut open = writer.split(split, format!("split {split}"));
    open.write(MAIN, &rows(split)).unwrap();
    std::fs::write(open.artifact(&format!("note-{split}.txt")), format!("note {split}")).unwrap();
    writer.commit(open.publish().unwrap())
}

/// A local folder and a folder of an in-memory store, each with its temporary folder.
fn places() -> Vec<(Location, TempDir)> {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = "memory:///".parse().unwrap();
    let store = Arc::new(InMemory::new());
    let remote = Location::remote(store, root, "runs/toy", two.path()).unwrap();
    vec![(Location::from(one.path()), one), (remote, two)]
}

#[tokio::test]
async fn local_and_remote_datasets_are_equal() {
    let mut logs = Vec::new();
    for (place, _folder) in places() {
        let place = place.join("pairs");
        assert!(!manifest::exists(&place).unwrap());
        let mut first = writer(&place, "f");
        add(&mut first, 1).unwrap();
        // Killed here, with a split that is published but not recorded.
        let mut lost = first.split(0, "split 0");
        lost.write(MAIN, &rows(7)).unwrap();
        lost.publish().unwrap();
        drop(first);

        let mut second = writer(&place, "f");
        assert!(second.is_done(1) && !second.is_done(0));
        assert_eq!(place.files("work").unwrap().keys().filter(|name| name.ends_with(".parquet")).count(), 1);
        add(&mut second, 0).unwrap();
        second.complete().unwrap();
        let dataset = Dataset::open(&place).unwrap();

        let session = SessionContext::new();
        let frame = dataset.frame(&session, MAIN).await.unwrap();
        assert_eq!(frame.count().await.unwrap(), 20);
        let range = dataset.range(&session, MAIN, 5, 15).unwrap().collect().await.unwrap();
        assert_eq!(range.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
        let read: Vec<RecordBatch> =
            ShardReader::new(&dataset, MAIN, &["uid", "number"], 100).map(Result::unwrap).collect();
        assert_eq!(read, [rows(0), rows(1)]);
        let note = dataset.artifact("note-1.txt").unwrap();
        assert_eq!(std::fs::read_to_string(note).unwrap(), "note 1");
        logs.push(place.join(manifest::FILE).read_log().unwrap().unwrap().bytes);

        // Another fingerprint: everything is deleted.
        let third = writer(&place, "g");
        assert!(third.state().commits.is_empty());
        assert_eq!(place.files("work").unwrap().keys().filter(|name| name.ends_with(".parquet")).count(), 0);
    }
    assert_eq!(logs[0], logs[1], "the manifest is the same, byte for byte");
}

#[test]
fn the_columns_of_a_remote_parquet_file_are_in_its_footer() {
    let (local, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = "memory:///".parse().unwrap();
    let place = Location::remote(Arc::new(InMemory::new()), root, "in", scratch.path()).unwrap();
    let path = local.path().join("numbers.parquet");
    let file = std::fs::File::create(&path).unwrap();
    let mut parquet = ArrowWriter::try_new(file, schema(), None).unwrap();
    (0..500).for_each(|split| parquet.write(&rows(split)).unwrap());
    parquet.close().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // What is between the ends is not read.
    let middle = bytes.len() / 2;
    bytes[2000..middle].fill(0);
    let remote = place.join("numbers.parquet");
    remote.write(&bytes).unwrap();

    assert_eq!(Dataset::parquet_schema(&remote).unwrap(), schema());
    assert!(!remote.local_path().exists(), "no copy is made");
    assert!(Dataset::from_parquet(remote).is_err(), "its pages are damaged");
    for (name, bytes) in [("short", &b"PAR1"[..]), ("empty", b""), ("text", b"no,parquet\n1,2\n3,4\n")] {
        place.join(name).write(bytes).unwrap();
        assert!(Dataset::parquet_schema(&place.join(name)).is_err(), "{name}");
    }
    let missing = Dataset::parquet_schema(&place.join("none.parquet")).unwrap_err().to_string();
    assert_eq!(missing, "memory:///in/none.parquet: damaged: it is missing");
}

#[test]
fn a_second_writer_fails() {
    for (place, _folder) in places() {
        let (mut first, mut second) = (writer(&place, "f"), writer(&place, "f"));
        add(&mut first, 0).unwrap();
        let refused = add(&mut second, 1).unwrap_err();
        assert!(matches!(refused, DatasetError::Locked { .. }), "{refused}");
        assert!(refused.hint().unwrap().contains("--dir"));
        assert_eq!(Dataset::open(&place).unwrap().state().commits.len(), 1);
    }
}

/// What a writer did not write stays, and no link is followed.
#[cfg(unix)]
#[test]
fn files_of_others_are_not_deleted() {
    let (folder, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = Location::from(folder.path().join("pairs"));
    add(&mut writer(&place, "f"), 0).unwrap();
    let path = |name: &str| folder.path().join("pairs").join(name);
    let theirs = ["notes.txt", "data/notes.parquet", "other/000009-000.parquet", "data/000009.parquet"];
    let ours = ["x.unfinished", "data/000009-000.parquet", "data/000009-001-r12.parquet"];
    std::fs::create_dir(path("other")).unwrap();
    theirs.iter().chain(&ours).for_each(|name| std::fs::write(path(name), "x").unwrap());
    std::fs::write(others.path().join("000009-000.parquet"), "x").unwrap();
    std::os::unix::fs::symlink(others.path(), path("rejects")).unwrap();

    let reopened = writer(&place, "f");
    assert_eq!(theirs.map(|name| path(name).exists()), [true; 4]);
    assert_eq!(ours.map(|name| path(name).exists()), [false; 3]);
    assert!(path("rejects/000009-000.parquet").exists());
    let foreign = reopened.dataset().foreign_file().unwrap();
    assert_eq!(foreign.as_deref(), Some("data/000009.parquet"));
}

fn writer_of_run(place: &Location) -> DatasetWriter {
    DatasetWriter::open_of_run(place, begin("f"), ShardLimits::default()).unwrap()
}

/// Makes a split with the rows of another number: what a fetch of changed images does.
fn attempt(writer: &DatasetWriter, split: u64, content: u64) -> protocol::Commit {
    let mut open = writer.split(split, format!("split {split}"));
    open.write(MAIN, &rows(content)).unwrap();
    open.publish().unwrap().commit().clone()
}

#[test]
fn of_two_attempts_at_a_split_in_a_store_the_first_counts() {
    let (place, _folder) = places().remove(1);
    let place = place.join("pairs");
    let mut driver = writer_of_run(&place);
    let records = driver.records().unwrap();
    let (first, second) = (attempt(&driver, 0, 0), attempt(&driver, 0, 5));
    let name = &first.files[0].path;
    assert_eq!(*name, format!("data/000000-000-{}.parquet", &first.files[0].sha256[..8]));
    assert_ne!(*name, second.files[0].path, "both have their own files");
    assert_eq!(records.put(first.clone()).unwrap(), first);
    assert_eq!(records.put(first.clone()).unwrap(), first, "the same attempt again");
    assert_eq!(records.put(second).unwrap(), first, "the loser learns who won");
    let third = attempt(&driver, 7, 7);
    records.put(third.clone()).unwrap();
    assert_eq!(records.splits_from(0).unwrap(), [0, 7]);
    assert_eq!(records.splits_from(1).unwrap(), [7]);

    // A killed driver: the next one keeps what others have made, unless its files are gone.
    drop(driver);
    driver = writer_of_run(&place);
    place.join(&third.files[0].path).delete().unwrap();
    let usable = driver.records().unwrap().usable(|split| driver.is_done(split)).unwrap();
    assert_eq!(usable.into_iter().collect::<Vec<_>>(), [(0, first.clone())]);
    assert_eq!(records.splits_from(0).unwrap(), [0], "split 7 is to be made again");
    driver.commit_all(vec![PublishedSplit::made_elsewhere(first.clone())]).unwrap();
    driver.complete().unwrap();
    let left: Vec<String> = place.files(manifest::FILE).unwrap().into_keys().collect();
    assert_eq!(left, [first.files[0].path.clone()], "neither records nor files of losers");
    Dataset::open(&place).unwrap();

    // Damage takes the record back, too, so that the split is made again.
    records.put(first).unwrap();
    DatasetWriter::take_back(&place, vec![0]).unwrap();
    assert_eq!(records.get(0).unwrap(), None);
}

#[test]
fn a_long_log_in_a_store_is_read_by_segments() {
    const SPLITS: u64 = 1100;
    let (place, _folder) = places().remove(1);
    let place = place.join("pairs");
    let commit = |split| protocol::Commit { split, rows_in: Some(split), ..protocol::Commit::default() };
    let published = |split| PublishedSplit::made_elsewhere(commit(split));
    let mut driver = writer_of_run(&place);
    for split in 0..SPLITS - 10 {
        // A second writer that saw less is refused at whatever place.
        if split == 600 {
            driver = writer_of_run(&place);
        }
        driver.commit(published(split)).unwrap();
    }
    let mut late = writer_of_run(&place);
    driver.commit_all((SPLITS - 10..SPLITS).map(published).collect()).unwrap();
    driver.complete().unwrap();
    assert!(matches!(late.commit(published(SPLITS)), Err(DatasetError::Locked { .. })));
    let log = place.join(manifest::FILE);
    assert_eq!(log.join("segments").list().unwrap().files, ["000000.jsonl", "000001.jsonl"]);
    let state = manifest::read(&place).unwrap().unwrap();
    assert_eq!(state.rows_in(), Some(SPLITS * (SPLITS - 1) / 2));

    // The segments alone say what their objects say, and a log from before there were segments
    // gets them when it is appended to.
    let bytes = log.read_log().unwrap().unwrap().bytes;
    log.join("segments").delete_folder("").unwrap();
    assert_eq!(log.read_log().unwrap().unwrap().bytes, bytes);
    DatasetWriter::take_back(&place, vec![3]).unwrap();
    assert_eq!(log.join("segments").list().unwrap().files.len(), 2);
    assert!(!manifest::read(&place).unwrap().unwrap().complete);
}

#[tokio::test]
async fn damage_in_a_store_is_reported_by_name() {
    let (two, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let root = "memory:///".parse().unwrap();
    let place = Location::remote(store.clone(), root, "toy", two.path()).unwrap();
    let mut whole = writer(&place, "f");
    add(&mut whole, 0).unwrap();
    add(&mut whole, 1).unwrap();
    let put = |name: &str| {
        let key = object_store::path::Path::from(format!("toy/{name}"));
        let store = store.clone();
        async move { store.put_opts(&key, "short".into(), Default::default()).await.unwrap() }
    };
    put("data/000000-000.parquet").await;
    let error = Dataset::open(&place).unwrap_err().to_string();
    assert!(error.starts_with("memory:///toy/data/000000-000.parquet: damaged: 5 bytes, but"), "{error}");

    place.join("manifest.jsonl/00000001.json").delete().unwrap();
    let error = Dataset::open(&place).unwrap_err().to_string();
    let expected = "memory:///toy/manifest.jsonl:2: damaged manifest line: 00000001.json is missing";
    assert_eq!(error, expected);
}

#[test]
fn invalid_urls_are_explained() {
    let scratch = Path::new("scratch");
    let error = |url: &str| Location::parse(url, Path::new(""), scratch).unwrap_err().to_string();
    assert!(error("ftp://host/x").contains("starts with one of s3, gs, az"), "{}", error("ftp://host/x"));
    if cfg!(not(feature = "s3")) {
        assert_eq!(
            error("s3://bucket/x"),
            "s3://bucket/x: this program was built without `s3`; build it with `--features s3`"
        );
    }
    assert!(Location::parse("C:/x", Path::new("base"), scratch).unwrap().as_local().is_some());
}
