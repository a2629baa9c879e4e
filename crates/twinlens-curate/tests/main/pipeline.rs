//! The stages of this crate in a real run: every row is accounted for, and the result does not
//! depend on the order of rows or on threads.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::prelude::SessionContext;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{Dataset, catalog};
use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{self, Outcome, Settings, session};

const PIPELINE: &str = r#"
name = "curated"
seed = 17

[stages.candidates]
kind = "filter"
input = "pairs.parquet"
where = "word_count(caption) >= 2"
rules = [{ code = "boilerplate", where = "caption not like 'image %'" }]

[stages.lowered]
kind = "select"
input = "candidates"
columns = { caption = "trim(caption)", held_out = "hash_fraction(caption, 'held-out') < 0.2" }

[stages.matched]
kind = "match"
input = "lowered"
queries = "list.parquet"

[stages.unique]
kind = "dedup"
input = "matched"
by = ["url", "caption"]

[stages.wit]
kind = "balance"
input = "unique"
cap = 25
queries = "list.parquet"

[stages.top]
kind = "sql"
query = "select s.query, s.matched, s.contributed, s.kept from wit.query_stats s join wit.rejects r on r.caption like '%' || s.query || '%' group by 1, 2, 3, 4 order by matched desc"

[[tests]]
that = "no query contributes more than its cap"
sql = "select query from query_stats where contributed > 25"
expect = "empty"

[[tests]]
that = "a kept pair was matched"
sql = "select uid from wit where query_ids is null or keep_prob <= 0 or keep_prob > 1"
expect = "empty"
"#;

/// 1,000 pairs: boilerplate, one-word captions, captions without a query, duplicates, and common
/// and rare words.
fn pairs() -> Vec<[String; 3]> {
    let caption = |i: usize| match i % 10 {
        0 => format!("image {i}"),
        1 => "Single".into(),
        2 => format!(" nothing known here {i}"),
        3 => "the same St. Louis arch ".into(),
        4 => format!("a rare Owl, number {}", i % 70),
        _ => format!("A (dog) on lawn {i}"),
    };
    // Ten duplicates share each URL.
    let url = |i: usize| format!("http://example.com/{}", if i % 10 == 3 { i / 100 } else { i });
    (0..1000).map(|i| [format!("{i:032x}"), url(i), caption(i)]).collect()
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

async fn run(folder: &Path, rows: &[[String; 3]], threads: usize) -> (Outcome, Registry) {
    let column = |at: usize| texts(rows.iter().map(|row| row[at].as_str()));
    let given = vec![("uid", column(0)), ("url", column(1)), ("caption", column(2))];
    write(&folder.join("pairs.parquet"), given);
    let list = vec![
        ("id", Arc::new(Int64Array::from(vec![0, 1, 2, 3])) as ArrayRef),
        ("text", texts(["dog", "st. louis", "owl", "arch"])),
    ];
    write(&folder.join("list.parquet"), list);
    let file = folder.join("curated.toml");
    std::fs::write(&file, PIPELINE).unwrap();
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    let files = Files::in_folder(folder);
    let schemas = InputSchemas::of(&files);
    let pipeline = config::load(&file, &registry, &Overrides::default(), &schemas)
        .unwrap_or_else(|error| panic!("{error}"));
    let settings =
        Settings { threads, memory_bytes: 64 << 20, bytes_in_flight: 1 << 20, ..Settings::in_folder(folder) };
    let outcome =
        run::run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await.unwrap();
    (outcome, registry)
}

async fn query(session: &SessionContext, sql: &str) -> String {
    pretty_format_batches(&session.sql(sql).await.unwrap().collect().await.unwrap()).unwrap().to_string()
}

fn bytes(datasets: &[Dataset]) -> Vec<(String, Vec<u8>)> {
    let shards = datasets.iter().flat_map(|dataset| {
        let tables = ["data", "rejects", "query_stats"];
        tables
            .into_iter()
            .flat_map(move |table| dataset.shards(table).map(move |shard| dataset.dir().join(&shard.path)))
    });
    shards
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_accounted_for_and_order_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, registry) = run(folder.path(), &pairs(), 3).await;
    for test in &outcome.tests {
        assert!(test.failure.is_none(), "{}: {:?}", test.that, test.failure);
    }
    let session = session::plain(&registry, 2);
    catalog::register(&session, &outcome.datasets).await.unwrap();
    let funnel =
        query(&session, "select stage, outcome, rows from funnel where rows > 0 order by position").await;
    for line in [
        "| candidates | in          | 1000 |",
        "| candidates | boilerplate | 100  |",
        "| candidates | filtered    | 100  |",
        "| matched    | no_query    | 100  |",
        "| unique     | in          | 700  |",
        "| unique     | duplicate   | 90   |",
        "| wit        | in          | 610  |",
    ] {
        assert!(funnel.contains(line), "{line} is not in\n{funnel}");
    }
    let sql = "select (select count(*) from wit) + (select count(*) from rejects) = 1000 as all_there, count(*) as n from top";
    let sums = session.sql(sql).await.unwrap().collect().await.unwrap();
    assert!(sums[0].column(0).as_boolean().value(0));
    assert!(sums[0].column(1).as_primitive::<Int64Type>().value(0) > 0);
    let stats = query(&session, "select query, matched, contributed from query_stats order by query").await;
    for line in [
        "| arch      | 10      | 10          |",
        "| dog       | 500     | 25          |",
        "| owl       | 100     | 25          |",
    ] {
        assert!(stats.contains(line), "{line} is not in\n{stats}");
    }

    let turned = tempfile::tempdir().unwrap();
    let mut rows = pairs();
    rows.reverse();
    let (again, _) = run(turned.path(), &rows, 1).await;
    assert!(bytes(&outcome.datasets) == bytes(&again.datasets), "the shards differ");
}
