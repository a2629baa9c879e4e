//! What a run says and costs: reserved names, empty inputs, chains of stages, retried splits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{LogicalPlan, ident, lit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_pipeline::rejects::reject_where;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{Settings, retry};
use twinlens_pipeline::{
    Input, Inputs, Ports, Registry, Rows, RunContext, RunError, SortKey, StageKind, Work,
};
use twinlens_testkit::stage::StageTest;

use crate::notes::Notes;

fn stage(kind: &str, options: &str) -> StageTest {
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    StageTest::new(registry, kind, options)
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn captions(values: &[&str]) -> RecordBatch {
    let uids: Vec<String> = (0..values.len()).map(|row| format!("{row:04}")).collect();
    let uids: ArrayRef = Arc::new(StringArray::from(uids));
    RecordBatch::try_from_iter([("uid", uids), ("caption", texts(values))]).unwrap()
}

#[tokio::test]
async fn a_query_may_name_a_column_as_the_ledger_does_and_loses_no_row() {
    let query =
        "query = \"select uid, caption as reject_code, 'x' as reject_stage from \\\"rows.parquet\\\"\"";
    let rows = captions(&["a", "b", "c"]);
    let made = stage("sql", query).table("rows", &rows).run().await.unwrap();
    assert_eq!(made.table("data", &["uid", "reject_code"]), ["0000|a", "0001|b", "0002|c"]);
}

#[test]
fn rows_that_bring_a_reserved_column_are_refused() {
    for name in ["reject_code", "reject_stage", "reject_detail", "attempts", "__twinlens_rule"] {
        let rows = RecordBatch::try_from_iter([("uid", texts(&["a"])), (name, texts(&["b"]))]).unwrap();
        for (kind, options) in [
            ("filter", "where = \"uid = 'a'\""),
            ("select", "columns = { x = \"1\" }"),
            ("dedup", "by = [\"uid\"]"),
            ("command", "command = [\"cat\"]"),
        ] {
            let faults =
                stage(kind, &format!("input = \"rows.parquet\"\n{options}")).table("rows", &rows).faults();
            let expected = format!("`rows.parquet` has a column `{name}`, which is a reserved name");
            assert!(faults[0].contains(&expected), "{kind}: {faults:?}");
        }
        let select = stage("select", &format!("input = \"rows.parquet\"\ncolumns = {{ {name} = \"uid\" }}"));
        assert!(select.table("rows", &captions(&[])).faults()[0].contains("reserved"));
    }
}

#[test]
fn equal_runs_give_equal_data() {
    let rows = captions(&["a"]);
    for (options, hint) in [
        ("where = \"now() > timestamp '2020-01-01'\"", "run_time()"),
        ("where = \"cast(uuid() as varchar) <> caption\"", "of the row's own columns"),
        ("rules = [{ code = \"old\", where = \"current_date > date '2020-01-01'\" }]", "run_time()"),
    ] {
        let filter = stage("filter", &format!("input = \"rows.parquet\"\n{options}")).table("rows", &rows);
        let faults = filter.faults();
        assert!(
            faults[0].contains("gives another value in each run") && faults[0].contains(hint),
            "{faults:?}"
        );
    }
    let select = stage("select", "input = \"rows.parquet\"\ncolumns = { at = \"current_timestamp\" }");
    assert!(select.table("rows", &rows).faults()[0].starts_with("current_timestamp: `current_timestamp`"));
    let sql = stage(
        "sql",
        "query = \"select caption from \\\"rows.parquet\\\" where caption in (select cast(now() as varchar))\"",
    );
    assert!(sql.table("rows", &rows).faults()[0].starts_with("now: `now` gives another value"));
    let test = "[[tests]]\nthat = \"x\"\nsql = \"select 1 from t order by uuid()\"\nexpect = \"empty\"\n";
    let tested =
        stage("filter", "input = \"rows.parquet\"\nwhere = \"true\"").table("rows", &rows).stages(test);
    assert!(tested.faults()[0].starts_with("uuid: `uuid` gives another value"));
}

#[tokio::test]
async fn the_time_of_the_run_is_that_of_its_clock() {
    let select = stage("select", "input = \"rows.parquet\"\ncolumns = { at = \"run_time()\" }");
    let made = select.table("rows", &captions(&["a", "b"])).run().await.unwrap();
    assert_eq!(made.table("data", &["at"]), ["1970-01-01T00:00:00Z"; 2]);
}

#[test]
fn checking_computes_no_large_constant() {
    let rows = captions(&["a"]);
    for large in ["repeat('a', 2000000000)", "lpad('a', 2000000000)", "repeat(repeat('a', 60000), 60000)"] {
        let filter = format!("input = \"rows.parquet\"\nwhere = \"caption = {large}\"");
        stage("filter", &filter).table("rows", &rows).check().unwrap();
        let sql = format!("query = \"select caption, {large} as x from \\\"rows.parquet\\\"\"");
        stage("sql", &sql).table("rows", &rows).check().unwrap();
    }
}

#[tokio::test]
async fn a_large_constant_stops_the_run_and_not_the_process() {
    let filter = stage("filter", "input = \"rows.parquet\"\nwhere = \"caption = repeat('a', 2000000000)\"");
    let error = filter.table("rows", &captions(&["a"])).run().await.err().unwrap().to_string();
    assert!(error.contains("`repeat` would make 2000000000 bytes"), "{error}");
}

#[tokio::test]
async fn a_stage_without_rows_says_which_input_gave_none() {
    let notes = Arc::new(Notes::default());
    let filter = stage("filter", "input = \"rows.parquet\"\nwhere = \"true\"").table("rows", &captions(&[]));
    filter.run_observed(notes.clone(), CancellationToken::new()).await.unwrap();
    assert_eq!(*notes.0.lock().unwrap(), ["`rows.parquet` has no rows"]);
}

/// A row stage that keeps all rows and counts the nodes of the plans that it is given.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
struct Counted {
    input: Input,
}

static NODES: AtomicUsize = AtomicUsize::new(0);

impl StageKind for Counted {
    type Options = Self;
    const NAME: &'static str = "counted";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "[stages.a]\nkind = \"counted\"\ninput = \"b\"";

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        ports.output(ports.schema(&input), SortKey::columns(["uid"]));
        Some(Work::rows(options))
    }
}

#[async_trait]
impl Rows for Counted {
    async fn transform(&self, cx: &RunContext, rows: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        let count = |_: &LogicalPlan| {
            NODES.fetch_add(1, Ordering::Relaxed);
            Ok(TreeNodeRecursion::Continue)
        };
        rows.logical_plan().apply(count)?;
        reject_where(rows, &cx.stage, ident("uid").is_null(), "no_uid", lit("no uid"))
    }
}

#[tokio::test]
async fn what_planning_a_chain_costs_doubles_with_it() {
    let nodes = async |count: usize| {
        NODES.store(0, Ordering::Relaxed);
        let link = |at: usize| {
            let input = if at == 1 { "t".to_string() } else { format!("s{}", at - 1) };
            format!("[stages.s{at}]\nkind = \"counted\"\ninput = \"{input}\"\n")
        };
        let registry = Registry::default().with::<Counted>();
        let chain = StageTest::new(registry, "counted", "input = \"rows.parquet\"");
        let chain =
            chain.stages(&(1..count).map(link).collect::<String>()).table("rows", &captions(&["a", "b"]));
        chain.run_stage(&format!("s{}", count - 1)).await.unwrap();
        NODES.load(Ordering::Relaxed)
    };
    let (once, twice) = (nodes(64).await, nodes(128).await);
    assert!(twice * 10 <= once * 21, "{once} nodes of 64 stages, but {twice} of 128");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_chains_of_row_stages_run() {
    // As many as overflowed the stack of a thread when they were one plan.
    let count = 300;
    let link = |at: usize| {
        let input = if at == 1 { "t".to_string() } else { format!("s{}", at - 1) };
        format!("[stages.s{at}]\nkind = \"filter\"\ninput = \"{input}\"\nwhere = \"caption <> '{at}'\"\n")
    };
    let chain: String = (1..count).map(link).collect();
    let values: Vec<String> = (0..count + 5).map(|at| at.to_string()).collect();
    let rows = captions(&values.iter().map(String::as_str).collect::<Vec<_>>());
    let last = format!(
        "[stages.last]\nkind = \"sql\"\nquery = \"select (select count(*) from s{}) as kept, (select count(*) from s{}) as half\"\n",
        count - 1,
        count / 2
    );
    let first =
        stage("filter", "input = \"rows.parquet\"\nwhere = \"caption <> '0'\"").stages(&chain).stages(&last);
    let first = first.table("rows", &rows);
    let made = first.run_stage("last").await.unwrap();
    assert_eq!(made.table("data", &["kept", "half"]), [format!("5|{}", count + 5 - count / 2 - 1)]);
}

#[tokio::test]
async fn a_filter_takes_a_thousand_rules() {
    let rule = |at: usize| format!("{{ code = \"c{at}\", where = \"caption <> '{at}'\" }}");
    let rules = (0..1000).map(rule).collect::<Vec<_>>().join(", ");
    let values: Vec<String> = (990..1010).map(|at| at.to_string()).collect();
    let rows = captions(&values.iter().map(String::as_str).collect::<Vec<_>>());
    let filter =
        stage("filter", &format!("input = \"rows.parquet\"\nrules = [{rules}]")).table("rows", &rows);
    let made = filter.run().await.unwrap();
    let found = made.rows(&["caption", "reject_code", "reject_detail"]);
    assert_eq!(found.iter().filter(|line| line.ends_with("||")).count(), 10);
    assert!(found.contains(&"999|c999|caption <> '999'".to_string()), "{found:?}");
}

#[tokio::test]
async fn query_lists_come_in_all_forms() {
    let rows = captions(&["a red bicycle", "a dog", "nothing"]);
    let ids = |ids: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(ids)) };
    let list =
        |id: ArrayRef| RecordBatch::try_from_iter([("id", id), ("text", texts(&["red bicycle", "dog"]))]);
    let matched = |queries: &str| {
        let test = stage("match", &format!("input = \"rows.parquet\"\nqueries = \"{queries}\""))
            .table("rows", &rows);
        let test = test.table("wide", &list(ids(vec![0, 1])).unwrap());
        let test = test.table("large", &list(ids(vec![0, 1 << 40])).unwrap());
        let test = test.file("list.txt", "red bicycle\ndog\n").file("list.json", r#"["red bicycle", "dog"]"#);
        test.file("counts.json", r#"{"red bicycle": 7, "dog": 0}"#).file("bad.json", "[1]")
    };
    for queries in ["wide.parquet", "list.txt", "list.json", "./counts.json"] {
        let made = matched(queries).run().await.unwrap();
        let expected = ["0000|[0]|", "0001|[1]|", "0002||no_query"];
        assert_eq!(made.rows(&["uid", "query_ids", "reject_code"]), expected, "{queries}");
    }
    let error = matched("large.parquet").run().await.err().unwrap().to_string();
    assert!(error.contains("large.parquet: the column `id`") && error.contains("1099511627776"), "{error}");
    let faults = matched("bad.json").faults();
    assert!(
        faults[0].starts_with("\"bad.json\": ") && faults[0].contains("expected a string at line 1"),
        "{faults:?}"
    );
    assert!(matched("none.txt").faults()[0].contains("none.txt does not exist"));
}

#[tokio::test]
async fn balance_needs_no_origin() {
    let lists = [Some(vec![Some(0)]), Some(vec![Some(0), Some(1)])];
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
    let rows =
        RecordBatch::try_from_iter([("uid", texts(&["a", "b"])), ("query_ids", Arc::new(lists) as ArrayRef)]);
    let balance = |queries: &str| {
        let options = format!("input = \"rows.parquet\"\ncap = 1\nqueries = \"{queries}\"");
        stage("balance", &options)
            .table("rows", rows.as_ref().unwrap())
            .file("list.txt", "red bicycle\ndog\n")
    };
    let made = balance("list.txt").run().await.unwrap();
    let stats = made.table("query_stats", &["query_id", "query", "origin"]);
    assert_eq!(stats, ["0|red bicycle|", "1|dog|"]);
    let counts = made.batches("query_stats")[0]["matched"].as_primitive::<Int64Type>().clone();
    assert_eq!(counts.values().to_vec(), [2, 1]);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![3, 3]));
    let twice = RecordBatch::try_from_iter([("id", ids), ("text", texts(&["cat", "dog"]))]).unwrap();
    let error = balance("twice.parquet").table("twice", &twice).run().await.err().unwrap().to_string();
    assert!(error.contains("twice.parquet: the id 3 is that of \"cat\" and of \"dog\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_finds_the_picked_rows_of_all_splits_by_one_query() {
    // Three splits; rows with the code `b` are in the first and the last.
    let caption = |row: usize| match row {
        5 | 140_000 => "b",
        6 | 70_000 => "c",
        _ => "a",
    };
    let values: Vec<&str> = (0..140_001).map(caption).collect();
    let rules = ["b", "c"].map(|code| format!("{{ code = \"{code}\", where = \"caption <> '{code}'\" }}"));
    let filter = stage("filter", &format!("input = \"rows.parquet\"\nrules = [{}]", rules.join(", ")));
    let filter = filter.table("rows", &captions(&values));
    filter.run().await.unwrap();
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    let settings = Settings::in_folder(&filter.path(""));
    let (pipeline, silent) = (filter.check().unwrap(), Arc::new(Silent));
    let retry = async |predicate: &str| {
        let cancel = CancellationToken::new();
        let what = ("t", predicate);
        retry::retry(&pipeline, &registry, &settings, silent.clone(), cancel, what).await.unwrap()
    };
    assert_eq!(retry("reject_code = 'x'").await.picked, 0);
    let retried = retry("reject_code = 'b'").await;
    assert_eq!((retried.picked, retried.before, retried.after), (2, 139_997, 139_997));
    let found = filter.output("t").await.unwrap().table("rejects", &["reject_code", "attempts"]);
    let count = |line: &str| found.iter().filter(|found| *found == line).count();
    assert_eq!((count("b|2"), count("c|1"), found.len()), (2, 2, 4));
}
