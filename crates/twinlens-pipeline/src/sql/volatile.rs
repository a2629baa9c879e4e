//! Functions whose values differ between equal runs: refused in pipeline files.

use std::ops::Range;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility, WindowFunctionDefinition};

use crate::error::Fault;
use crate::located::Located;
use crate::sql::words::find_word;

/// The function that gives the time of the run.
pub(crate) const RUN_TIME: &str = "run_time";

/// A function that is called by one of some names.
struct Call {
    name: String,
    aliases: Vec<String>,
}

/// The first call in an expression of a function that is not a function of its arguments alone.
fn volatile_call(expr: &Expr) -> Result<Option<Call>, DataFusionError> {
    let mut found = None;
    expr.apply(|part| {
        let called = match part {
            Expr::ScalarFunction(call) => {
                Some((call.func.name(), call.func.signature().volatility, call.func.aliases()))
            }
            Expr::AggregateFunction(call) => {
                Some((call.func.name(), call.func.signature().volatility, call.func.aliases()))
            }
            Expr::WindowFunction(call) => match &call.fun {
                WindowFunctionDefinition::AggregateUDF(function) => {
                    Some((function.name(), function.signature().volatility, function.aliases()))
                }
                WindowFunctionDefinition::WindowUDF(function) => {
                    Some((function.name(), function.signature().volatility, function.aliases()))
                }
            },
            _ => None,
        };
        let Some((name, _, aliases)) = called.filter(|called| called.1 != Volatility::Immutable) else {
            return Ok(TreeNodeRecursion::Continue);
        };
        found = Some(Call { name: name.into(), aliases: aliases.to_vec() });
        Ok(TreeNodeRecursion::Stop)
    })?;
    Ok(found)
}

fn volatile_call_of_plan(plan: &LogicalPlan) -> Result<Option<Call>, DataFusionError> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found = volatile_call(expr)?;
            Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// The fault of a row expression that gives another value in each run.
pub(super) fn of_expression(text: &Located<String>, expr: &Expr) -> Result<Option<Fault>, DataFusionError> {
    Ok(volatile_call(expr)?.map(|call| fault(text, &call)))
}

/// The fault of a query that gives another result in each run.
pub(super) fn of_query(text: &Located<String>, plan: &LogicalPlan) -> Result<Option<Fault>, DataFusionError> {
    Ok(volatile_call_of_plan(plan)?.map(|call| fault(text, &call)))
}

fn fault(text: &Located<String>, call: &Call) -> Fault {
    let names = || [&call.name].into_iter().chain(&call.aliases);
    let written: Option<(&String, Range<usize>)> =
        names().find_map(|name| find_word(text, name).map(|place| (name, place)));
    let (name, place) = written.map_or((&call.name, None), |(name, place)| (name, Some(place)));
    let fault = Fault::at(text.span(), format!("`{name}` gives another value in each run"));
    let fault = place.map_or(fault.clone(), |place| fault.within(place));
    let hint = match call.name.as_str() {
        "random" => Some("write `hash_fraction(uid, 'some text')`: a number in [0, 1) for each row".into()),
        "uuid" => Some("make an identifier of the row's own columns".into()),
        "now" | "current_date" | "current_time" => {
            Some(format!("write `{RUN_TIME}()`: the time of the run, which SOURCE_DATE_EPOCH pins"))
        }
        _ => None,
    };
    hint.into_iter()
        .fold(fault.label("equal runs must give equal data"), |fault: Fault, hint: String| fault.hint(hint))
}
