//! NaN in a column survives the engine: Parquet's statistics leave it out.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, Float64Array, RecordBatch};
use arrow::datatypes::Float64Type;
use datafusion::prelude::{SessionConfig, SessionContext};
use parquet::arrow::ArrowWriter;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::{Begin, Dataset, DatasetWriter, MAIN, protocol};

fn rows() -> RecordBatch {
    let column = Arc::new(Float64Array::from(vec![1.5, f64::NAN, 1.5])) as _;
    RecordBatch::try_from_iter_with_nullable([("f", column, true)]).unwrap()
}

fn ours(dir: &Path) -> Dataset {
    let begin = Begin {
        format: protocol::FORMAT,
        position: 0,
        stage: "t".into(),
        kind: "table".into(),
        fingerprint: "f".into(),
        recipe: serde_json::Value::Null,
        fused: vec![],
        variant: None,
        tables: [(MAIN.to_string(), rows().schema())].into(),
    };
    let mut writer = DatasetWriter::open(dir, begin, ShardLimits::default()).unwrap();
    let mut split = writer.split(0, "split");
    split.write(MAIN, &rows()).unwrap();
    writer.commit(split.publish().unwrap()).unwrap();
    Dataset::open(dir).unwrap()
}

fn of_others(path: &Path) -> Dataset {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), rows().schema(), None).unwrap();
    writer.write(&rows()).unwrap();
    writer.close().unwrap();
    Dataset::from_parquet(path.to_path_buf()).unwrap()
}

#[tokio::test]
async fn one_number_and_nan_are_not_a_constant() {
    let folder = tempfile::tempdir().unwrap();
    let plain = SessionContext::new();
    // As sessions of runs are: with it, files of others are not taken for constants.
    let of_runs = SessionContext::new_with_config(SessionConfig::new().with_collect_statistics(false));
    let datasets = [
        ("ours", &plain, ours(&folder.path().join("ours"))),
        ("of others", &of_runs, of_others(&folder.path().join("others.parquet"))),
    ];
    for (name, session, dataset) in datasets {
        session.register_table("t", dataset.provider(session, MAIN).unwrap()).unwrap();
        let batches = session.sql("select f from t").await.unwrap().collect().await.unwrap();
        let values = batches.iter().flat_map(|batch| {
            let column = batch.column(0).as_primitive::<Float64Type>().clone();
            (0..batch.num_rows()).map(move |row| column.value(row)).collect::<Vec<_>>()
        });
        assert_eq!(values.filter(|value| value.is_nan()).count(), 1, "{name}");
        for (condition, expected) in [("f <> 1.5", 1), ("f > 2", 1), ("isnan(f)", 1), ("f = 1.5", 2)] {
            let query = format!("select * from t where {condition}");
            let found = session.sql(&query).await.unwrap().count().await.unwrap();
            assert_eq!(found, expected, "{name}: {condition}");
        }
    }
}
