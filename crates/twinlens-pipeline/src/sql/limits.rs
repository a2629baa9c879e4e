//! Functions whose results can be far larger than their arguments.
//!
//! The engine allocates what they ask for, outside its memory pool: `repeat('a', 2000000000)` would
//! end the process. Sessions therefore have versions of them that first compute the size of the
//! result. `check` does not evaluate them at all.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, FieldRef, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

/// Most bytes that one call makes of a batch of rows.
const MAX_BYTES: u64 = 256 << 20;

/// How the result of a function grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// The first argument, as often as the second says.
    Repeat,
    /// As many characters or elements as the second argument says.
    Length,
    /// The numbers from the first argument to the second by steps of the third.
    Range,
    /// The third argument in place of each occurrence of the second.
    Replace,
}

/// Every function of the engine that this concerns.
const GROWING: [(&str, Growth); 9] = [
    ("repeat", Growth::Repeat),
    ("array_repeat", Growth::Repeat),
    ("lpad", Growth::Length),
    ("rpad", Growth::Length),
    ("array_resize", Growth::Length),
    ("range", Growth::Range),
    ("generate_series", Growth::Range),
    ("replace", Growth::Replace),
    ("regexp_replace", Growth::Replace),
];

/// Gives a session the versions with limits.
pub(crate) fn install(session: &SessionContext) {
    let state = session.state();
    for (name, growth) in GROWING {
        if let Some(function) = state.scalar_functions().get(name) {
            session.register_udf(ScalarUDF::from(Limited { function: function.clone(), growth }));
        }
    }
}

/// Whether an expression calls such a function.
pub(super) fn grows(expr: &Expr) -> Result<bool> {
    expr.exists(|part| {
        Ok(matches!(part, Expr::ScalarFunction(call)
            if GROWING.iter().any(|(name, _)| *name == call.func.name())))
    })
}

/// Whether a plan calls such a function.
pub(super) fn plan_grows(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found = grows(expr)?;
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// A function that refuses to make too large a result.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Limited {
    function: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Limited {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.function.return_type(arguments)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.function.return_field_from_args(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn simplify(&self, arguments: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.function.simplify(arguments, info)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = arguments.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { arguments.number_rows };
        let bytes = self.bytes(&arguments.args, rows)?;
        if bytes > MAX_BYTES {
            return Err(DataFusionError::Execution(format!(
                "`{}` would make {bytes} bytes of {rows} rows; at most {MAX_BYTES} are allowed",
                self.name()
            )));
        }
        self.function.invoke_with_args(arguments)
    }
}

impl Limited {
    /// At least as many bytes as the result has.
    fn bytes(&self, arguments: &[ColumnarValue], rows: usize) -> Result<u64> {
        let column = |at: usize| arguments.get(at).map(|value| value.to_array(rows)).transpose();
        let (Some(first), Some(second), third) = (column(0)?, column(1)?, column(2)?) else { return Ok(0) };
        match self.growth {
            Growth::Repeat => {
                let times = integers(&second)?;
                sum(rows, |row| Ok(value_bytes(&first, row).saturating_mul(count(&times, row))))
            }
            Growth::Length => {
                let lengths = integers(&second)?;
                // A character has at most four bytes, an element of a list about eight.
                sum(rows, |row| Ok(count(&lengths, row).saturating_mul(8)))
            }
            Growth::Range => {
                sum(rows, |row| Ok(elements(&first, &second, third.as_ref(), row)?.saturating_mul(8)))
            }
            Growth::Replace => {
                let Some(third) = third else { return Ok(0) };
                let [texts, patterns, by] = [texts(&first)?, texts(&second)?, texts(&third)?];
                sum(rows, |row| {
                    let text = texts.value(row);
                    let literal = self.name() == "replace";
                    let places =
                        if literal { text.matches(patterns.value(row)).count() } else { text.len() + 1 };
                    Ok((places as u64).saturating_mul(by.value(row).len() as u64) + text.len() as u64)
                })
            }
        }
    }
}

fn sum(rows: usize, mut bytes: impl FnMut(usize) -> Result<u64>) -> Result<u64> {
    (0..rows).try_fold(0u64, |sum, row| Ok(sum.saturating_add(bytes(row)?)))
}

fn integers(column: &ArrayRef) -> Result<Int64Array> {
    Ok(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn texts(column: &ArrayRef) -> Result<StringArray> {
    Ok(cast(column, &DataType::Utf8)?.as_string::<i32>().clone())
}

/// A number of times; none for a null or negative one.
fn count(column: &Int64Array, row: usize) -> u64 {
    if column.is_valid(row) { u64::try_from(column.value(row)).unwrap_or(0) } else { 0 }
}

/// About how many bytes a value has.
fn value_bytes(column: &ArrayRef, row: usize) -> u64 {
    let length = match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).len(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).len(),
        DataType::Utf8View => column.as_string_view().value(row).len(),
        _ => column.slice(row, 1).to_data().get_slice_memory_size().unwrap_or(0).max(8),
    };
    length as u64
}

/// How many values lie between two.
fn elements(first: &ArrayRef, second: &ArrayRef, step: Option<&ArrayRef>, row: usize) -> Result<u64> {
    let one = |column: &ArrayRef| Ok::<_, DataFusionError>(integers(&column.slice(row, 1))?.value(0));
    let is_null = first.is_null(row) || second.is_null(row) || step.is_some_and(|step| step.is_null(row));
    if is_null {
        return Ok(0);
    }
    let distance = one(second)?.abs_diff(one(first)?);
    let nanoseconds = |kind: &DataType| match kind {
        DataType::Date32 => 86_400_000_000_000,
        DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        _ => 1u64,
    };
    Ok(match step {
        None => distance,
        Some(step) if step.data_type() == &DataType::Interval(IntervalUnit::MonthDayNano) => {
            let step = step.as_primitive::<IntervalMonthDayNanoType>().value(row);
            let days = i64::from(step.months) * 28 + i64::from(step.days);
            let step = days.saturating_mul(86_400_000_000_000).saturating_add(step.nanoseconds);
            distance.saturating_mul(nanoseconds(first.data_type())) / step.unsigned_abs().max(1)
        }
        Some(step) => distance / one(step)?.unsigned_abs().max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_are_bounded_and_small_ones_are_those_of_the_engine() {
        let (plain, limited) = (SessionContext::new(), SessionContext::new());
        install(&limited);
        for expression in [
            "repeat('a', 2000000000)",
            "lpad('a', 2000000000)",
            "rpad('a', 2000000000, 'xy')",
            "array_repeat(1, 2000000000)",
            "array_resize([1], 2000000000, 0)",
            "range(0, 2000000000)",
            "generate_series(0, -2000000000, -1)",
            "range(date '2020-01-01', date '2021-01-01', interval '1 microsecond')",
            "replace(repeat('a', 60000), 'a', repeat('b', 60000))",
        ] {
            let made = match limited.sql(&format!("select {expression}")).await {
                Ok(frame) => frame.collect().await,
                Err(error) => Err(error),
            };
            let error = made.unwrap_err().to_string();
            assert!(error.contains("at most 268435456 are allowed"), "{expression}: {error}");
        }
        for expression in [
            "repeat('ab', 3)",
            "lpad('a', 3, 'x')",
            "rpad('a', 3)",
            "array_repeat(1, 3)",
            "array_resize([1], 2, 0)",
            "range(0, 9, 2)",
            "generate_series(3)",
            "range(date '2020-01-01', date '2020-03-01', interval '1 month')",
            "replace('banana', 'an', 'x')",
            "regexp_replace('banana', '(a)', '<\\1>', 'g')",
            "repeat(cast(null as varchar), 3)",
        ] {
            let value = async |session: &SessionContext| {
                let rows = session.sql(&format!("select {expression}")).await.unwrap().collect().await;
                rows.unwrap()[0].column(0).to_data()
            };
            assert_eq!(value(&limited).await, value(&plain).await, "{expression}");
        }
    }
}
