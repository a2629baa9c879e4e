//! The law of every stage that reads a table: over a table of any schema it is right, or refused
//! with the name of a column; no value becomes null, and no column disappears.
//!
//! A [`ContractCase`] says what one kind needs. [`ContractCase::hold`] gives it tables whose
//! columns
//! are absent, renamed, or of another type, among columns that it does not know.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
    FixedSizeListArray, Float64Array, Int32Array, Int64Array, LargeBinaryArray, LargeStringArray, ListArray,
    MapBuilder, NullArray, RecordBatch, StringArray, StringBuilder, StructArray, TimestampMicrosecondArray,
    UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Int32Type, Schema};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use twinlens_dataset::{MAIN, REJECTS, contracts, types};
use twinlens_pipeline::Registry;

use crate::stage::{StageOutput, StageTest};

/// Rows of a table.
const ROWS: usize = 5;
/// The column that says which row it is.
const NUMBER: &str = "n";

/// What a kind needs of the table `rows.parquet`.
#[derive(Clone, Copy)]
pub struct ContractCase {
    /// The kind.
    pub kind: &'static str,
    /// Options as in its TOML table. They name `rows.parquet`.
    pub options: &'static str,
    /// The columns that it reads, with values that it accepts.
    pub needs: &'static [(&'static str, Values)],
    /// Whether it can do without one of these columns.
    pub any_of: bool,
    /// Adds the other files that it reads.
    pub files: fn(StageTest) -> StageTest,
    /// Whether it runs without a model or a network.
    pub runs: bool,
    /// Columns that it replaces.
    pub replaces: &'static [&'static str],
}

/// Values of a column, and with them its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Values {
    Text,
    Urls,
    Hashes,
    Int32,
    Int64,
    Unsigned,
    Float,
    Boolean,
    Decimal,
    Date,
    Time,
    Bytes,
    LargeBytes,
    LargeText,
    Words,
    Nothing,
    IntLists,
    FloatLists,
    Embeddings,
    Struct,
    Map,
    Image,
}

const ALL: [Values; 22] = {
    use Values::*;
    [
        Text, Urls, Hashes, Int32, Int64, Unsigned, Float, Boolean, Decimal, Date, Time, Bytes, LargeBytes,
        LargeText, Words, Nothing, IntLists, FloatLists, Embeddings, Struct, Map, Image,
    ]
};

impl Values {
    /// A column of them; one value is null.
    fn column(self) -> ArrayRef {
        let rows = 0..ROWS;
        let known = |row: &usize| *row != 2;
        let text = |row: usize| known(&row).then(|| format!("a photo of a dog, number {row}"));
        match self {
            Self::Text => Arc::new(rows.map(text).collect::<StringArray>()),
            Self::LargeText => Arc::new(rows.map(text).collect::<LargeStringArray>()),
            Self::Words => Arc::new(
                rows.map(|row| known(&row).then_some(["dog", "cat"][row % 2]))
                    .collect::<DictionaryArray<Int32Type>>(),
            ),
            // No network is asked for these.
            Self::Urls => Arc::new(StringArray::from_iter_values(rows.map(|row| format!("no url {row}")))),
            Self::Hashes => Arc::new(StringArray::from_iter_values(rows.map(|row| format!("{row:064x}")))),
            Self::Int32 => {
                Arc::new(rows.map(|row| known(&row).then_some(row as i32)).collect::<Int32Array>())
            }
            Self::Int64 => {
                Arc::new(rows.map(|row| known(&row).then_some(row as i64)).collect::<Int64Array>())
            }
            Self::Unsigned => Arc::new(UInt64Array::from_iter_values(rows.map(|row| u64::MAX - row as u64))),
            Self::Float => {
                Arc::new(rows.map(|row| known(&row).then_some(row as f64)).collect::<Float64Array>())
            }
            Self::Boolean => {
                Arc::new(rows.map(|row| known(&row).then_some(row > 1)).collect::<BooleanArray>())
            }
            Self::Decimal => Arc::new(Decimal128Array::from_iter_values(rows.map(|row| row as i128))),
            Self::Date => Arc::new(Date32Array::from_iter_values(rows.map(|row| row as i32))),
            Self::Time => Arc::new(
                TimestampMicrosecondArray::from_iter_values(rows.map(|row| row as i64))
                    .with_timezone("America/New_York"),
            ),
            Self::Bytes => Arc::new(BinaryArray::from_iter_values(rows.map(|row| vec![row as u8; 3]))),
            Self::LargeBytes => {
                Arc::new(LargeBinaryArray::from_iter_values(rows.map(|row| vec![row as u8; 3])))
            }
            Self::Nothing => Arc::new(NullArray::new(ROWS)),
            Self::IntLists => {
                let lists = rows.map(|row| known(&row).then(|| (0..row as i32).map(Some)));
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))
            }
            Self::FloatLists => {
                let lists = rows.map(|row| Some((0..row).map(|value| Some(value as f64))));
                Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists))
            }
            Self::Embeddings => {
                let vectors = rows.map(|row| Some([Some(row as f32), Some(1.0)]));
                Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vectors, 2))
            }
            Self::Struct => {
                let part = |name, kind, column| (Arc::new(Field::new(name, kind, true)), column);
                let parts = vec![
                    part("a", DataType::Utf8, Self::Text.column()),
                    part("b", DataType::Int32, Self::Int32.column()),
                ];
                Arc::new(StructArray::from(parts))
            }
            Self::Map => {
                let mut maps = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
                for row in rows {
                    maps.keys().append_value("key");
                    maps.values().append_value(format!("value {row}"));
                    maps.append(true).unwrap();
                }
                Arc::new(maps.finish())
            }
            Self::Image => {
                let bytes = Field::new("bytes", DataType::Binary, true);
                let path = Field::new("path", DataType::Utf8, true);
                let png = crate::web::png(8, 8);
                let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(rows.map(|_| &png[..])));
                let paths: ArrayRef = Arc::new(StringArray::new_null(ROWS));
                Arc::new(StructArray::from(vec![(Arc::new(bytes), images), (Arc::new(path), paths)]))
            }
        }
    }
}

/// What happens to a column that a kind needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Absent,
    Renamed,
    Retyped(Values),
}

/// A table.
#[derive(Debug, Clone)]
struct Shape {
    changes: Vec<Change>,
    /// Columns that no kind knows.
    others: Vec<(&'static str, Values)>,
    /// Whether they come first.
    others_first: bool,
}

/// Names that a person may give a column.
const OTHER_NAMES: [&str; 8] =
    ["Caption", "select", "a.b", "with \"quotes\"", "ünï cödé", "Label", "wit 1", "x"];

fn shapes(needs: usize) -> impl Strategy<Value = Shape> {
    let change = prop_oneof![
        4 => Just(Change::None),
        1 => Just(Change::Absent),
        1 => Just(Change::Renamed),
        2 => proptest::sample::select(ALL.to_vec()).prop_map(Change::Retyped),
    ];
    let others = proptest::sample::subsequence(OTHER_NAMES.to_vec(), 0..4)
        .prop_flat_map(|names| {
            let kinds = proptest::collection::vec(proptest::sample::select(ALL.to_vec()), names.len());
            (Just(names), kinds)
        })
        .prop_map(|(names, kinds)| names.into_iter().zip(kinds).collect());
    (proptest::collection::vec(change, needs), others, any::<bool>())
        .prop_map(|(changes, others, others_first)| Shape { changes, others, others_first })
}

impl ContractCase {
    /// A kind that needs these columns, each of them, and runs.
    pub const fn new(
        kind: &'static str,
        options: &'static str,
        needs: &'static [(&'static str, Values)],
    ) -> Self {
        Self { kind, options, needs, any_of: false, files: |test| test, runs: true, replaces: &[] }
    }

    /// Checks the law over `tables` tables.
    ///
    /// # Panics
    /// It does not hold.
    pub fn hold(&self, registry: impl Fn() -> Registry, tables: u32) {
        let config = Config { cases: tables, failure_persistence: None, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = |shape: Shape| runtime.block_on(self.law(registry(), &shape));
        if let Err(error) = runner.run(&shapes(self.needs.len()), test) {
            panic!("{}: {error}", self.kind);
        }
    }

    fn table(&self, shape: &Shape) -> RecordBatch {
        let number: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS as i64));
        let needed = self.needs.iter().zip(&shape.changes).filter_map(|((name, values), change)| {
            Some(match change {
                Change::None => (name.to_string(), values.column()),
                Change::Absent => return None,
                Change::Renamed => (format!("my_{name}"), values.column()),
                Change::Retyped(other) => (name.to_string(), other.column()),
            })
        });
        let others = shape.others.iter().map(|(name, values)| (name.to_string(), values.column()));
        let number = [(NUMBER.to_string(), number)];
        let columns: Vec<(String, ArrayRef)> = if shape.others_first {
            others.chain(number).chain(needed).collect()
        } else {
            needed.chain(number).chain(others).collect()
        };
        RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )
        .unwrap()
    }

    async fn law(&self, registry: Registry, shape: &Shape) -> TestCaseResult {
        let table = self.table(shape);
        let test = (self.files)(StageTest::new(registry, self.kind, self.options));
        let test = test.table("rows", &table);
        if let Err(report) = test.check() {
            return self.is_named(shape, &report.to_string());
        }
        let gone = |change: &Change| matches!(change, Change::Absent | Change::Renamed);
        let absent = shape.changes.iter().filter(|change| gone(change)).count();
        let allowed = if self.any_of { self.needs.len() - 1 } else { 0 };
        prop_assert!(absent <= allowed, "a column that it needs is absent, and `check` says nothing");
        if !self.runs {
            return Ok(());
        }
        match test.run().await {
            Ok(made) => self.nothing_lost(&table, &made),
            Err(error) => Err(TestCaseError::fail(format!("`check` found nothing, but it stopped: {error}"))),
        }
    }

    /// An error names a column that was changed and, if it is of another type, that type.
    fn is_named(&self, shape: &Shape, report: &str) -> TestCaseResult {
        let blamed = self.needs.iter().zip(&shape.changes).any(|((name, _), change)| {
            let kind = match change {
                Change::None => return false,
                Change::Absent | Change::Renamed => None,
                Change::Retyped(values) => {
                    let field = Field::new(*name, values.column().data_type().clone(), true);
                    Some(contracts::memory_schema(&Schema::new(vec![field])).field(0).data_type().clone())
                }
            };
            // Where SQL is written, the engine has names of its own for types.
            let has_type = kind.is_none_or(|kind| {
                let (ours, engine) = (types::name(&kind), kind.to_string());
                report.contains(&ours)
                    || report.contains(&engine)
                    || report.contains("where = ")
                    || report.contains("columns = ")
            });
            report.contains(name) && has_type
        });
        prop_assert!(blamed, "no changed column is named, with its type:\n{report}");
        Ok(())
    }

    /// Every row is there, with every column and value that the file has.
    fn nothing_lost(&self, given: &RecordBatch, made: &StageOutput) -> TestCaseResult {
        let expected = cells(std::slice::from_ref(given));
        let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for table in [MAIN, REJECTS] {
            if made.dataset().tables().any(|known| known == table) {
                found.extend(cells(made.batches(table)));
            }
        }
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "rows");
        let main = made.dataset().schema(MAIN).unwrap();
        for field in given.schema().fields() {
            let replaced = self.replaces.contains(&field.name().as_str());
            prop_assert!(
                replaced || main.index_of(field.name()).is_ok(),
                "the column {} is gone",
                field.name()
            );
        }
        for (row, columns) in &expected {
            for (name, value) in columns.iter().filter(|(name, _)| !self.replaces.contains(&name.as_str())) {
                // A ledger has no images.
                let Some(now) = found[row].get(name) else { continue };
                prop_assert_eq!(now, value, "the column {} of the row {}", name, row);
            }
        }
        for batch in made
            .dataset()
            .tables()
            .any(|table| table == REJECTS)
            .then(|| made.batches(REJECTS))
            .into_iter()
            .flatten()
        {
            for column in ["reject_stage", "reject_code", "reject_detail"] {
                prop_assert_eq!(batch[column].null_count(), 0, "a reject without {}", column);
            }
        }
        Ok(())
    }
}

/// The values of rows as text, by their number; a null is nothing.
fn cells(batches: &[RecordBatch]) -> BTreeMap<String, BTreeMap<String, String>> {
    let options = FormatOptions::default().with_null("<null>");
    let mut rows = BTreeMap::new();
    for batch in batches {
        let schema = batch.schema();
        let columns: Vec<_> = (schema.fields().iter().zip(batch.columns()))
            .map(|(field, column)| (field.name(), ArrayFormatter::try_new(column, &options).unwrap()))
            .collect();
        for row in 0..batch.num_rows() {
            let value = |column: &ArrayFormatter<'_>| column.value(row).to_string();
            let cells: BTreeMap<String, String> =
                columns.iter().map(|(name, column)| (name.to_string(), value(column))).collect();
            rows.insert(cells[NUMBER].clone(), cells);
        }
    }
    rows
}
