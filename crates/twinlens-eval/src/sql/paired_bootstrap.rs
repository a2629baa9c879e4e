//! `paired_bootstrap(correct_a, correct_b)`: whether one model, or prompt set, is better than
//! another on the same examples.
//!
//! ```sql
//! select paired_bootstrap(a.label = a.predicted, b.label = b.predicted) as gain
//! from predictions a join predictions b on a.set = b.set and a.example = b.example
//! where a.prompts = 'ensemble' and b.prompts = '{}' group by a.set
//! ```

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StructArray};
use datafusion::arrow::datatypes::{DataType, Field, Fields, UInt64Type};
use datafusion::common::exec_err;
use datafusion::error::Result;
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, Volatility, create_udaf};
use datafusion::scalar::ScalarValue;

use crate::metrics::paired::{Comparison, PairedCounts};

const NAME: &str = "paired_bootstrap";

/// The aggregate, to be registered in a session: a struct with the fields of [`Comparison`]. Pairs
/// with a null are ignored; null if there are no pairs.
///
/// The state is the four counts of [`PairedCounts`], which are additive: the result depends neither
/// on the order nor on the partitions of the rows, and memory is constant.
pub(super) fn function() -> AggregateUDF {
    let accumulator = |args: AccumulatorArgs<'_>| -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return exec_err!(
                "{NAME}(distinct ...) is not supported: it would drop examples with equal outcomes"
            );
        }
        Ok(Box::<PairedCounts>::default())
    };
    let result = Arc::new(DataType::Struct(fields()));
    let state = Arc::new(vec![DataType::UInt64; 4]);
    create_udaf(NAME, vec![DataType::Boolean; 2], result, Volatility::Immutable, Arc::new(accumulator), state)
}

fn fields() -> Fields {
    let float = |name: &str| Field::new(name, DataType::Float64, true);
    let n = Field::new("n", DataType::Int64, true);
    vec![float("difference"), float("low"), float("high"), float("p"), n].into()
}

fn columns<const N: usize>(arrays: &[ArrayRef]) -> Result<&[ArrayRef; N]> {
    match arrays.try_into() {
        Ok(columns) => Ok(columns),
        Err(_) => exec_err!("{NAME} got {} columns, expected {N}", arrays.len()),
    }
}

impl Accumulator for PairedCounts {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [a, b]: [&BooleanArray; 2] = columns::<2>(values)?.each_ref().map(|column| column.as_boolean());
        for (a, b) in a.iter().zip(b) {
            if let (Some(a), Some(b)) = (a, b) {
                self.add(a, b);
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let counts = columns::<4>(states)?.each_ref().map(|column| column.as_primitive::<UInt64Type>());
        for row in 0..counts[0].len() {
            let [both, a_only, b_only, neither] = counts.map(|count| count.value(row));
            self.merge(&PairedCounts { both, a_only, b_only, neither });
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let counts = [self.both, self.a_only, self.b_only, self.neither];
        Ok(counts.into_iter().map(|count| ScalarValue::UInt64(Some(count))).collect())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let Some(Comparison { difference, interval, p, n }) = self.compare() else {
            return ScalarValue::try_from(&DataType::Struct(fields()));
        };
        let float = |value: f64| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
        let n: ArrayRef = Arc::new(Int64Array::from(vec![n as i64]));
        let values = vec![float(difference), float(interval.low), float(interval.high), float(p), n];
        Ok(ScalarValue::Struct(Arc::new(StructArray::try_new(fields(), values, None)?)))
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;

    use super::super::tests::{run, session};

    #[tokio::test]
    async fn the_result_does_not_depend_on_order_or_partitions() {
        let mut results = Vec::new();
        for (partitions, order) in [(1, "i"), (4, "i"), (4, "i % 7, -i")] {
            let sql = format!(
                "select i % 2 as g, paired_bootstrap(i % 3 = 0, i % 5 = 0) as r
                 from (select value as i from generate_series(1, 900) order by {order}) group by 1 order by 1"
            );
            let batches = session(partitions).sql(&sql).await.unwrap().collect().await.unwrap();
            results.push(pretty_format_batches(&batches).unwrap().to_string());
        }
        assert!(
            results[0].contains("difference: 0.13333333333333333") && results[0].contains("n: 450"),
            "{}",
            results[0]
        );
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }

    #[tokio::test]
    async fn pairs_with_a_null_are_ignored() {
        let rows = "(values (true, false), (true, null), (null, false), (false, false)) as t(a, b)";
        let table =
            run(&format!("select r.difference, r.n from (select paired_bootstrap(a, b) as r from {rows})"))
                .await;
        assert!(table.as_ref().unwrap().contains("| 0.5           | 2"), "{table:?}");
        let none =
            run(&format!("select paired_bootstrap(a, b) is null as r from {rows} where b")).await.unwrap();
        assert!(none.contains("true"), "{none}");
        let error = run(&format!("select paired_bootstrap(distinct a, b) from {rows}")).await.unwrap_err();
        assert!(error.to_string().contains("distinct"), "{error}");
    }
}
