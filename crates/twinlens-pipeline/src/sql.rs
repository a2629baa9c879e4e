//! SQL in pipeline files: planned without I/O, so that `check` finds a wrong column and points at
//! it.
//!
//! Errors of DataFusion become short [`Fault`]s, made from its diagnostics: the span of a
//! diagnostic becomes [`Fault::within`], and the kind of an error is known from what the span
//! covers. Only the positions of syntax errors are read out of messages ([`split_position`]).

pub(crate) mod limits;
mod volatile;
mod words;

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::{MemoryCatalogProviderList, MemorySchemaProvider};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema, SchemaError, Span, TableReference};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use futures::FutureExt;

use crate::error::Fault;
use crate::located::{Input, Located};
use crate::suggest::{did_you_mean, list_names};

pub(crate) use volatile::RUN_TIME;
pub(crate) use words::find_word;
use words::is_word;

/// The longest SQL text of a pipeline file, in bytes.
pub const MAX_SQL_BYTES: usize = 64 * 1024;
/// Most operators (`and`, `=`, `+`, `union`, ...) of one SQL text. The engine recurses into chains
/// of operators when it plans and when it runs: without a limit a generated predicate could
/// overflow the stack, which kills the process without a message.
pub const MAX_SQL_OPERATORS: usize = 150;

/// Plans SQL with the functions of a registry, and without data.
pub(crate) struct SqlPlanner {
    /// A session with the functions and no tables.
    pub(crate) session: SessionContext,
}

impl SqlPlanner {
    /// Checks that a text is one SQL expression. Nothing is known of the columns that it names.
    pub(crate) fn syntax(&self, text: &Located<String>) -> Result<(), Fault> {
        check_size(text)?;
        let state = self.planner();
        let dialect = state.config().options().sql_parser.dialect;
        let parsed = state.sql_to_expr_with_alias(text, &dialect);
        parsed.map(drop).map_err(|error| sql_fault(text, &error, &state, &[]))
    }

    /// Plans a condition on the rows of a table with that schema, without I/O: every column exists,
    /// every function is known, the types match, and the result is boolean.
    pub(crate) fn predicate(&self, text: &Located<String>, schema: &Schema) -> Result<Expr, Fault> {
        let (expr, data_type) = self.expression(text, schema)?;
        if data_type != DataType::Boolean && data_type != DataType::Null {
            return Err(Fault::at(
                text.span(),
                format!("the predicate is {}, not a condition", type_name(&data_type)),
            )
            .label("expected a condition, such as `width >= 64`"));
        }
        Ok(expr)
    }

    /// Plans a value computed from one row of a table with that schema, without I/O; returns it
    /// with its type.
    pub(crate) fn expression(
        &self,
        text: &Located<String>,
        schema: &Schema,
    ) -> Result<(Expr, DataType), Fault> {
        let state = self.planner();
        let fault = |error: &DataFusionError| sql_fault(text, error, &state, &[]);
        check_size(text)?;
        let columns = DFSchema::try_from(schema.clone()).map_err(|error| fault(&error))?;
        let dialect = state.config().options().sql_parser.dialect;
        let parsed = state.sql_to_expr_with_alias(text, &dialect).map_err(|error| fault(&error))?;
        if let Some(alias) = &parsed.alias {
            let fault = Fault::at(text.span(), format!("unexpected `{}` after the expression", alias.value));
            return Err(find_word(text, &alias.value).map_or(fault.clone(), |place| fault.within(place)));
        }
        // DataFusion adds an alias to a function that is called by another name (`length`).
        let expr = state.create_logical_expr_from_sql_expr(parsed, &columns);
        let expr = expr.map_err(|error| fault(&error))?.unalias();
        let needs_all_rows = |part: &Expr| {
            Ok(matches!(part, Expr::AggregateFunction(_) | Expr::WindowFunction(_) | Expr::Exists(_))
                || matches!(part, Expr::InSubquery(_) | Expr::ScalarSubquery(_)))
        };
        if expr.exists(needs_all_rows).map_err(|error| fault(&error))? {
            return Err(Fault::at(text.span(), "an aggregate, window or subquery needs more than one row")
                .label("expected an expression over the columns of a single row")
                .hint("use a stage of kind `sql`"));
        }
        if let Some(refused) = volatile::of_expression(text, &expr).map_err(|error| fault(&error))? {
            return Err(refused);
        }
        let grows = limits::grows(&expr).map_err(|error| fault(&error))?;
        let physical = state.create_physical_expr(expr.clone(), &columns).map_err(|error| fault(&error))?;
        let data_type = physical.data_type(columns.as_arrow()).map_err(|error| fault(&error))?;
        // Some errors, such as a malformed regular expression, appear only in evaluation.
        if !grows {
            catch_panics(|| evaluate_on_nulls(physical.as_ref(), schema)).map_err(|error| fault(&error))?;
        }
        Ok((expr, data_type))
    }

    /// Plans a query over tables with those schemas, without I/O, and returns the schema of its
    /// result. The name of a table may be qualified (`zero_shot.per_class`).
    pub(crate) fn query(
        &self,
        text: &Located<String>,
        tables: &[(String, SchemaRef)],
    ) -> Result<SchemaRef, Fault> {
        check_size(text)?;
        let state = self.planner();
        let fault = |error: &DataFusionError| sql_fault(text, error, &state, tables);
        let session = SessionContext::new_with_state(state.clone());
        register_empty(&session, tables).map_err(|error| fault(&error))?;
        let state_of_tables = session.state();
        let planned = catch_panics(|| plan_query(text, &state_of_tables));
        let Some(plan) = planned.map_err(|error| fault(&error))? else {
            return Err(Fault::at(text.span(), "not a query").label("expected a single `select` statement"));
        };
        if let Some(refused) = volatile::of_query(text, &plan).map_err(|error| fault(&error))? {
            return Err(refused);
        }
        let checked = catch_panics(|| {
            if limits::plan_grows(&plan)? {
                // The optimiser would evaluate constants.
                let analyzer = state_of_tables.analyzer();
                return analyzer.execute_and_check(plan, state_of_tables.config_options(), |_, _| {});
            }
            state_of_tables.optimize(&plan)
        });
        Ok(checked.map_err(|error| fault(&error))?.schema().inner().clone())
    }

    /// The distinct tables that a query reads, as `table` or `stage.table`. The query is only
    /// parsed.
    pub(crate) fn tables_in(&self, text: &Located<String>) -> Result<Vec<String>, Fault> {
        check_size(text)?;
        let state = self.planner();
        let dialect = state.config().options().sql_parser.dialect;
        let found =
            state.sql_to_statement(text, &dialect).and_then(|parsed| state.resolve_table_references(&parsed));
        let tables = found.map_err(|error| sql_fault(text, &error, &state, &[]))?;
        Ok(tables.iter().map(|table| table.to_string().replace('"', "")).collect())
    }

    /// A separate planner that records the positions of names in the text.
    fn planner(&self) -> SessionState {
        let state = self.session.state();
        let mut config = state.config().clone().with_create_default_catalog_and_schema(true);
        config.options_mut().sql_parser.collect_spans = true;
        SessionStateBuilder::new_from_existing(state)
            .with_config(config)
            .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
            .build()
    }
}

/// Refuses texts that could overflow the stack of the engine.
fn check_size(text: &Located<String>) -> Result<(), Fault> {
    let hint = "put long lists of values into a table, and join it in a stage of kind `sql`";
    if text.len() > MAX_SQL_BYTES {
        return Err(
            Fault::at(text.span(), format!("the SQL is longer than {MAX_SQL_BYTES} bytes")).hint(hint)
        );
    }
    // The parser refuses a text without valid tokens before it recurses.
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().unwrap_or_default();
    if tokens.iter().filter(|token| nests(token)).count() > MAX_SQL_OPERATORS {
        return Err(
            Fault::at(text.span(), format!("the SQL has more than {MAX_SQL_OPERATORS} operators")).hint(hint)
        );
    }
    Ok(())
}

/// Whether a token can add a level of nesting without parentheses.
fn nests(token: &Token) -> bool {
    const WORDS: [&str; 16] = [
        "and",
        "or",
        "xor",
        "not",
        "is",
        "in",
        "like",
        "ilike",
        "similar",
        "between",
        "union",
        "except",
        "intersect",
        "join",
        "at",
        "div",
    ];
    match token {
        Token::Word(word) => {
            word.quote_style.is_none() && WORDS.contains(&word.value.to_lowercase().as_str())
        }
        Token::Whitespace(_)
        | Token::Comma
        | Token::LParen
        | Token::RParen
        | Token::Period
        | Token::Number(..) => false,
        Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) => false,
        _ => true,
    }
}

fn evaluate_on_nulls(expr: &dyn PhysicalExpr, schema: &Schema) -> Result<(), DataFusionError> {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let nulls = schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    expr.evaluate(&RecordBatch::try_new_with_options(schema, nulls, &options)?)?;
    Ok(())
}

/// Registers tables without rows, for planning.
fn register_empty(session: &SessionContext, tables: &[(String, SchemaRef)]) -> Result<(), DataFusionError> {
    let defaults = session.copied_config().options().catalog.clone();
    for (name, schema) in tables {
        for table in table_references(name) {
            if let Some(catalog) = session.catalog(&defaults.default_catalog)
                && let Some(stage) = table.schema().filter(|stage| catalog.schema(stage).is_none())
            {
                catalog.register_schema(stage, Arc::new(MemorySchemaProvider::new()))?;
            }
            session.register_table(table, Arc::new(EmptyTable::new(schema.clone())))?;
        }
    }
    Ok(())
}

/// What SQL calls the table of an input: `pages`, `wit.query_stats`. The name of a file has a dot
/// of its own: it may be written with quotes or without.
pub fn table_references(name: &str) -> Vec<TableReference> {
    let mut all = Vec::new();
    if let Some((stage, side)) = name.split_once('.') {
        all.push(TableReference::partial(stage, side));
    }
    if all.is_empty() || Input(Located::without_span(name.into())).is_path() {
        all.push(TableReference::bare(name));
    }
    all
}

/// Calls `plan`, and turns panics into errors: the engine's planner panics on some invalid texts (a
/// scalar subquery without columns, `(select from t)`).
fn catch_panics<T>(plan: impl FnOnce() -> Result<T, DataFusionError>) -> Result<T, DataFusionError> {
    let planned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(plan));
    planned.unwrap_or_else(|_| Err(DataFusionError::Plan("the engine cannot plan this SQL".into())))
}

/// The plan of a `select`; `None` for any other statement.
fn plan_query(text: &str, state: &SessionState) -> Result<Option<LogicalPlan>, DataFusionError> {
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(text, &dialect)?;
    let Statement::Statement(inner) = &statement else { return Ok(None) };
    if !matches!(inner.as_ref(), SqlStatement::Query(_)) {
        return Ok(None);
    }
    // Tables in memory are ready at once: a planner that waits would be doing I/O.
    let plan = state.statement_to_plan(statement).now_or_never();
    let plan = plan.ok_or_else(|| DataFusionError::Internal("planning is waiting for I/O".into()))??;
    let read_only =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    read_only.verify_plan(&plan)?;
    Ok(Some(plan))
}

/// A readable name of a type.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".into(),
        DataType::Boolean => "a boolean".into(),
        other if other.is_integer() => "an integer".into(),
        other if other.is_numeric() => "a number".into(),
        other => format!("a value of type {other}"),
    }
}

/// Turns an error of the planner into a fault that points at the relevant word.
fn sql_fault(
    text: &Located<String>,
    error: &DataFusionError,
    state: &SessionState,
    tables: &[(String, SchemaRef)],
) -> Fault {
    let error = error.iter().next().unwrap_or(error);
    let diagnostic = error.diagnostic();
    let place = diagnostic.and_then(|found| found.span).and_then(|span| bytes_of(text, span));
    let fault = |message: String, place: Option<Range<usize>>| {
        let fault = Fault::at(text.span(), message);
        place.map_or(fault.clone(), |place| fault.within(place))
    };
    let root = error.find_root();
    if let DataFusionError::SchemaError(inner, _) = root
        && let SchemaError::FieldNotFound { field, valid_fields } = inner.as_ref()
    {
        let place = place.or_else(|| find_word(text, &field.name));
        return unknown_column(
            fault(format!("unknown column `{}`", field.flat_name()), place),
            field,
            valid_fields,
        );
    }
    if let DataFusionError::SQL(inner, _) = root {
        let (message, at) = syntax_error(text, inner);
        let place = place.or_else(|| at.and_then(|(line, column)| token_at(text, line, column)));
        return fault(message, place).label("not valid SQL here");
    }
    if let Some(place) = &place
        && let Some(name) = text.get(place.clone())
    {
        if is_unknown_table(name, text, state) {
            let names = || tables.iter().map(|(name, _)| name.as_str());
            let fault = fault(format!("unknown table `{name}`"), Some(place.clone()));
            let fault = fault.label(format!("known: {}", list_names(names())));
            return did_you_mean(name, names()).into_iter().fold(fault, Fault::hint);
        }
        let functions = function_names(state);
        if text[place.end..].trim_start().starts_with('(')
            && !functions.contains(&name.to_lowercase().as_str())
        {
            let fault = fault(format!("unknown function `{name}`"), Some(place.clone()));
            return did_you_mean(name, functions).into_iter().fold(fault, Fault::hint);
        }
    }
    let message = diagnostic.map_or_else(|| first_line(&root.message()), |found| found.message.clone());
    let help = diagnostic.and_then(|found| found.helps.first());
    help.into_iter().fold(fault(message, place), |fault, help| fault.hint(help.message.clone()))
}

/// Whether `name` is a table in the query `text` that the session does not have.
fn is_unknown_table(name: &str, text: &str, state: &SessionState) -> bool {
    let table = TableReference::from(name);
    let exists = state.schema_for_ref(table.clone()).is_ok_and(|schema| schema.table_exist(table.table()));
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(text, &dialect);
    let read = statement.and_then(|statement| state.resolve_table_references(&statement));
    !exists && read.is_ok_and(|read| read.contains(&table))
}

/// The sorted names of all functions.
fn function_names(state: &SessionState) -> Vec<&str> {
    let mut names: Vec<&str> = state.scalar_functions().keys().map(String::as_str).collect();
    names.extend(state.aggregate_functions().keys().map(String::as_str));
    names.extend(state.window_functions().keys().map(String::as_str));
    names.sort_unstable();
    names
}

fn unknown_column(fault: Fault, field: &Column, valid: &[Column]) -> Fault {
    let name = field.name();
    let names = || valid.iter().map(|column| column.name.as_str());
    let fault = fault.label(format!("the columns are {}", list_names(names())));
    if let Some(other) = names().find(|known| *known != name && known.to_lowercase() == name.to_lowercase()) {
        return fault.hint(format!("names without quotes are lower-cased: write `\"{other}\"`"));
    }
    did_you_mean(name, names()).into_iter().fold(fault, Fault::hint)
}

/// The first line of a message, without the full stop.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim_end_matches(['.', ' ']).to_string()
}

/// The message and the position (line and column) of a syntax error.
fn syntax_error(text: &str, error: &ParserError) -> (String, Option<(u64, u64)>) {
    match error {
        ParserError::RecursionLimitExceeded => ("the SQL is nested too deeply".into(), None),
        ParserError::ParserError(message) => split_position(message),
        ParserError::TokenizerError(message) => match Tokenizer::new(&GenericDialect {}, text).tokenize() {
            Err(error) => (error.message, Some((error.location.line, error.location.column))),
            Ok(_) => split_position(message),
        },
    }
}

/// Splits ` at Line: 1, Column: 9` off the end of a message of the parser, which has no other form
/// of its positions.
fn split_position(message: &str) -> (String, Option<(u64, u64)>) {
    let parsed = message.rfind(" at Line: ").and_then(|at| {
        let (line, column) = message[at..].strip_prefix(" at Line: ")?.split_once(", Column: ")?;
        Some((at, line.parse().ok()?, column.trim().parse().ok()?))
    });
    match parsed {
        Some((at, line, column)) => (first_line(&message[..at]), Some((line, column))),
        None => (first_line(message), None),
    }
}

/// Byte offset of a line and column (characters, both from 1).
fn offset(text: &str, line: u64, column: u64) -> Option<usize> {
    let line = usize::try_from(line.checked_sub(1)?).ok()?;
    let column = usize::try_from(column.checked_sub(1)?).ok()?;
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let rest = text.get(start..)?;
    Some(start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at))
}

fn bytes_of(text: &str, span: Span) -> Option<Range<usize>> {
    let start = offset(text, span.start.line, span.start.column)?;
    let end = offset(text, span.end.line, span.end.column)?;
    (start <= end).then_some(start..end)
}

/// The word, or else the character, at a position.
fn token_at(text: &str, line: u64, column: u64) -> Option<Range<usize>> {
    let start = offset(text, line, column)?;
    let rest = text.get(start..)?;
    let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
    let length = if word > 0 { word } else { rest.chars().next().map_or(0, char::len_utf8) };
    Some(start..start + length)
}

#[cfg(test)]
mod tests;
