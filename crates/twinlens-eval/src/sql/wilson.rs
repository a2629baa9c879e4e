//! `wilson_low(correct, n)` and `wilson_high(correct, n)`: the bounds of Wilson's interval for a
//! proportion.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::exec_err;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::scalar::ScalarValue;

use crate::metrics::{Interval, wilson};

/// Both functions, to be registered in a session.
pub(super) fn functions() -> [ScalarUDF; 2] {
    [bound("wilson_low", |interval| interval.low), bound("wilson_high", |interval| interval.high)]
}

/// One bound of Wilson's 95 % interval for `correct` of `n`: null if either is null or `n` is 0, an
/// error if `correct` is not within 0..=n.
fn bound(name: &'static str, end: fn(Interval) -> f64) -> ScalarUDF {
    let body = move |arguments: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let ends: ArrayRef = Arc::new(ends(name, &arrays, end)?);
        let constant = arguments.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        Ok(if constant {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&ends, 0)?)
        } else {
            ColumnarValue::Array(ends)
        })
    };
    create_udf(name, vec![DataType::Float64; 2], DataType::Float64, Volatility::Immutable, Arc::new(body))
}

fn ends(name: &str, arrays: &[ArrayRef], end: fn(Interval) -> f64) -> Result<Float64Array, DataFusionError> {
    let [correct, n] = arrays else { return exec_err!("{name} takes two arguments: correct, n") };
    let (correct, n) = (correct.as_primitive::<Float64Type>(), n.as_primitive::<Float64Type>());
    let one = |row: usize| {
        if correct.is_null(row) || n.is_null(row) || n.value(row) == 0.0 {
            return Ok(None);
        }
        match wilson(correct.value(row), n.value(row)) {
            Some(interval) => Ok(Some(end(interval))),
            None => {
                exec_err!("{name}({}, {}): correct must be between 0 and n", correct.value(row), n.value(row))
            }
        }
    };
    (0..correct.len()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;

    #[tokio::test]
    async fn intervals_in_sql() {
        let rows = "(values (81, 263), (0, 0), (null, 5)) as t(c, n)";
        let ends = "cast(wilson_low(c, n) * 1e4 + 0.5 as int) as low, cast(wilson_high(c, n) * 1e4 + 0.5 as int) as high";
        let table = run(&format!("select {ends} from {rows}")).await.unwrap();
        assert!(table.contains("| 2553 | 3662 |"), "{table}");
        assert_eq!(table.matches("|      |      |").count(), 2, "{table}");
        assert!(run("select wilson_low(1, 29) < 0.01 as small").await.unwrap().contains("true"));
        let error = run("select wilson_high(6, 5)").await.unwrap_err().to_string();
        assert!(error.contains("between 0 and n"), "{error}");
    }
}
