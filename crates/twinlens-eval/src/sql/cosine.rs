//! `cosine(a, b)`: the cosine similarity of two vectors, such as embeddings.

use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::error::Result;
use datafusion::functions_nested::cosine_distance::cosine_distance_udf;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

/// The function, to be registered in a session.
pub(super) fn function() -> ScalarUDF {
    Cosine { signature: Signature::user_defined(Volatility::Immutable), distance: cosine_distance_udf() }
        .into()
}

/// `a . b / (|a| |b|)` of two lists of numbers, fixed-size or not, computed in f64 and clamped to
/// -1..=1: 1 minus DataFusion's `cosine_distance`. Null if a list is null, contains a null, is
/// empty or all zeros. Lists of different lengths are an error: they come from different models.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Cosine {
    signature: Signature,
    distance: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for Cosine {
    fn name(&self) -> &str {
        "cosine"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.distance.coerce_types(types).map_err(|error| error.context("cosine"))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let near = |distance: f64| (1.0 - distance).clamp(-1.0, 1.0);
        Ok(match self.distance.invoke_with_args(args).map_err(|error| error.context("cosine"))? {
            ColumnarValue::Array(distances) => ColumnarValue::Array(Arc::new(
                distances.as_primitive::<Float64Type>().unary::<_, Float64Type>(near),
            )),
            ColumnarValue::Scalar(ScalarValue::Float64(distance)) => {
                ColumnarValue::Scalar(ScalarValue::Float64(distance.map(near)))
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;

    #[tokio::test]
    async fn cosines_in_sql() {
        let fixed = |list: &str, kind: &str| format!("arrow_cast({list}, 'FixedSizeList(2 x {kind})')");
        let list = |list: &str, kind: &str| format!("arrow_cast({list}, 'List({kind})')");
        let cases = [
            (fixed("[3, 4]", "Float32"), fixed("[4, 3]", "Float32"), Some("0.96")),
            (list("[3, 4]", "Float64"), fixed("[-3, -4]", "Float32"), Some("-1.0")),
            (list("[1, 0]", "Float32"), "[0.0, 2.0]".into(), Some("0.0")),
            ("[0.1, 0.2, 0.3]".into(), "[0.1, 0.2, 0.3]".into(), Some("1.0")),
            ("[0.0, 0.0]".into(), "[1.0, 0.0]".into(), None),
            ("[1.0, null]".into(), "[1.0, 0.0]".into(), None),
            ("null".into(), "[1.0, 0.0]".into(), None),
        ];
        for (a, b, expected) in cases {
            let constant = format!("select round(cosine({a}, {b}), 9) as c");
            let rows = format!(
                "select round(cosine(a, b), 9) as c from (values ({a}, {b}), (null, {b})) as t(a, b) where b is not null"
            );
            let value = format!("| {:<5}|", expected.map(|value| format!("{value} ")).unwrap_or_default());
            for sql in [constant, rows] {
                let table = run(&sql).await.unwrap().replace(' ', "");
                assert!(table.contains(&value.replace(' ', "")), "{sql}\n{table}");
                assert_eq!(table.matches("NaN").count(), 0, "{sql}\n{table}");
            }
        }
        for (sql, expected) in [
            ("select cosine([1.0, 2.0], [1.0])", "same length, got 2 and 1"),
            ("select cosine('a', [1.0])", "does not support type Utf8"),
        ] {
            let error = run(sql).await.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("cosine"), "{sql}: {error}");
        }
    }
}
