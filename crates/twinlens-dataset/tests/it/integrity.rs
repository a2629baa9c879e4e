//! A flipped bit in a recorded file is an error that names the file, whoever reads it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{BinaryArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::row_groups::RowGroups;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::{Begin, Dataset, DatasetError, DatasetWriter, MAIN, protocol};

const ROWS: u64 = 300;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("uid", DataType::Utf8, false),
        Field::new("number", DataType::Int64, true),
        Field::new("image", DataType::Binary, true),
    ]))
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

fn rows(split: u64) -> RecordBatch {
    let numbers: Vec<i64> = (0..ROWS).map(|row| (split * ROWS + row) as i64).collect();
    let uids = StringArray::from_iter_values(numbers.iter().map(|number| format!("{number:04}")));
    let images = BinaryArray::from_iter_values(numbers.iter().map(|&number| noise(number as u64, 2000)));
    let columns = vec![Arc::new(uids) as _, Arc::new(Int64Array::from(numbers)) as _, Arc::new(images) as _];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// Two splits, each a shard of several row groups and a file of another kind.
fn dataset(dir: &Path) -> Dataset {
    let begin = Begin {
        format: protocol::FORMAT,
        position: 0,
        stage: "images".into(),
        kind: "fetch".into(),
        fingerprint: "f".into(),
        recipe: serde_json::Value::Null,
        fused: vec![],
        variant: None,
        tables: [(MAIN.to_string(), schema())].into(),
    };
    let limits = ShardLimits { row_group_rows: 100, ..ShardLimits::default() };
    let mut writer = DatasetWriter::open(dir, begin, limits).unwrap();
    for split in 0..2 {
        let mut open = writer.split(split, "split");
        open.write(MAIN, &rows(split)).unwrap();
        fs::write(open.artifact(&format!("model-{split}")), noise(split, 300_000)).unwrap();
        writer.commit(open.publish().unwrap()).unwrap();
    }
    writer.complete().unwrap();
    Dataset::open(dir).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

type Answer = Result<RecordBatch, DatasetError>;

fn by_reader(dataset: &Dataset, columns: &[&str]) -> Answer {
    let batches = ShardReader::new(dataset, MAIN, columns, 70).collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(&batches[0].schema(), &batches).unwrap())
}

fn by_row_groups(dataset: &Dataset, columns: &[&str]) -> Answer {
    let mut batches = Vec::new();
    for shard in dataset.shards(MAIN) {
        let groups = RowGroups::open(&dataset.file(shard))?;
        for (group, (rows, _)) in groups.sizes().enumerate() {
            batches.push(groups.read(group, 0, rows as usize, columns)?);
        }
    }
    Ok(concat_batches(&batches[0].schema(), &batches).unwrap())
}

fn by_query(dataset: &Dataset, columns: &[&str]) -> Answer {
    block_on(async {
        let session = SessionContext::new();
        let frame = dataset.frame(&session, MAIN).await?.select_columns(columns)?;
        let sorted = frame.sort_by(vec![datafusion::prelude::col(columns[0])])?;
        let batches = sorted.collect().await?;
        Ok(concat_batches(&batches[0].schema(), &batches).unwrap())
    })
}

fn by_range(dataset: &Dataset, columns: &[&str]) -> Answer {
    block_on(async {
        let session = SessionContext::new();
        let frame = dataset.range(&session, MAIN, 50, 550)?.select_columns(columns)?;
        let batches = frame.sort_by(vec![datafusion::prelude::col(columns[0])])?.collect().await?;
        Ok(concat_batches(&batches[0].schema(), &batches).unwrap())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_finds_every_flip() {
    type Reader = fn(&Dataset, &[&str]) -> Answer;
    let readers: [(&str, Reader); 4] =
        [("reader", by_reader), ("row groups", by_row_groups), ("query", by_query), ("range", by_range)];
    let folder = tempfile::tempdir().unwrap();
    let sound = dataset(folder.path());
    let all = ["uid", "number", "image"];
    let few = ["uid", "number"];
    let wanted: Vec<_> =
        readers.iter().map(|(_, read)| [read(&sound, &all).unwrap(), read(&sound, &few).unwrap()]).collect();
    let shards: Vec<_> = sound.shards(MAIN).map(|shard| folder.path().join(&shard.path)).collect();
    for path in &shards {
        let bytes = fs::read(path).unwrap();
        for at in (0..60).map(|at| at * bytes.len() / 60 + at % 7).chain(bytes.len() - 12..bytes.len()) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(path, &damaged).unwrap();
            let dataset = Dataset::open(folder.path()).unwrap();
            for ((name, read), wanted) in readers.iter().zip(&wanted) {
                for (columns, wanted) in [&all[..], &few[..]].into_iter().zip(wanted) {
                    match read(&dataset, columns) {
                        Ok(answer) => {
                            // What is not read is not verified.
                            let may_skip = columns.len() == 2 || *name == "range";
                            assert!(may_skip && answer == *wanted, "{name}, byte {at}: no error");
                        }
                        Err(error) => {
                            let text = error.to_string();
                            assert!(text.contains(path.to_str().unwrap()), "{name}, byte {at}: {text}");
                        }
                    }
                }
            }
        }
        fs::write(path, &bytes).unwrap();
    }
}

#[test]
fn a_flip_in_an_artifact_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path());
    assert!(dataset.artifact("model-1").is_ok());
    let path = folder.path().join("model-1");
    let mut bytes = fs::read(&path).unwrap();
    bytes[299_999] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = dataset.artifact("model-1").unwrap_err();
    assert!(matches!(&error, DatasetError::DamagedFile { path: named, .. } if *named == path), "{error}");
    assert!(dataset.artifact("model-0").is_ok());
}
