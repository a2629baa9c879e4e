//! Schemas: each stage checks itself against those of its inputs, and the tests are planned over
//! the tables of all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;
use twinlens_dataset::protocol::Variant;
use twinlens_dataset::variants;
use twinlens_dataset::{MAIN, REJECTS, catalog};

use crate::config::graph::{FUNNEL, Graph, place_of};
use crate::config::options::{Shape, build};
use crate::config::pipeline::{Expect, Node, Resolved, Test, ledger};
use crate::config::source::{Source, Strings};
use crate::config::stages::Draft;
use crate::error::Fault;
use crate::located::Located;
use crate::registry::Registry;
use crate::run::session;
use crate::stage::{CheckContext, InputTables, Tables};
use crate::suggest::list_names;

/// One table `[[tests]]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TestTable {
    /// What must hold, in words.
    that: String,
    /// A query over the tables of the finished run.
    sql: Located<String>,
    /// What the query must give: no row, at least one row, or one row with one column that is true.
    expect: Expect,
}

/// Checks every stage in order, then the tests. What cannot be checked because of an earlier fault
/// is left out.
pub(crate) fn check(
    drafts: Vec<Draft<'_>>,
    graph: Graph,
    tests: Option<Spanned<DeValue<'_>>>,
    source: &Source,
    strings: &Strings,
    registry: &Registry,
    faults: &mut Vec<Fault>,
) -> (Vec<Node>, Vec<Test>) {
    let cx = CheckContext { session: session::plain(registry, 1) };
    let mut tables: Vec<Option<Tables>> = drafts.iter().map(|_| None).collect();
    for &index in &graph.order {
        match check_stage(index, &drafts, &graph, &tables, &cx, source) {
            Ok(found) => tables[index] = Some(found),
            Err(found) => faults.extend(found),
        }
    }
    let nodes = nodes(drafts, &graph, tables);
    let tests = check_tests(tests, &nodes, source, strings, &cx, faults);
    if faults.is_empty() && nodes.iter().any(Result::is_err) {
        // Every way to get here has told why. Should one not have, a pipeline with a hole must
        // still not pass.
        let lost = nodes.iter().filter_map(|node| node.as_ref().err()).map(String::as_str);
        faults.push(Fault::at(0..0, format!("these stages could not be checked: {}", list_names(lost))));
    }
    (nodes.into_iter().filter_map(Result::ok).collect(), tests)
}

fn check_stage(
    index: usize,
    drafts: &[Draft<'_>],
    graph: &Graph,
    tables: &[Option<Tables>],
    cx: &CheckContext,
    source: &Source,
) -> Result<Tables, Vec<Fault>> {
    // What is not there has been told already.
    let (Some(built), Some(resolved)) = (&drafts[index].built, &graph.inputs[index]) else {
        return Err(vec![]);
    };
    let (mut inputs, mut faults) = (Vec::new(), Vec::new());
    for (input, resolved) in built.stage.inputs().into_iter().zip(resolved) {
        let (kind, schema) = match resolved {
            Resolved::Path(_) => (None, None),
            Resolved::System { table, .. } => (None, Some(system_schema(table))),
            Resolved::Stage { table, .. } | Resolved::Variants { table, .. } => {
                let mut found = Vec::new();
                for &node in resolved.nodes() {
                    let Some(tables) = &tables[node] else { return Err(vec![]) };
                    let no_inputs = graph.inputs[node].as_ref().is_some_and(Vec::is_empty);
                    found.push((
                        drafts[node].variant.as_ref(),
                        table_schema(&drafts[node], tables, table, no_inputs),
                    ));
                }
                let draft = &drafts[resolved.nodes()[0]];
                let schema = match resolved {
                    Resolved::Stage { .. } => found.pop().and_then(|(_, schema)| schema),
                    _ => together(found),
                };
                if schema.is_none() {
                    faults.push(no_table(draft, table, place_of(source, &input)));
                }
                (draft.kind.map(|kind| kind.name), schema)
            }
        };
        inputs.push(InputTables { input, kind, schema });
    }
    if faults.is_empty() { built.stage.tables(cx, &inputs) } else { Err(faults) }
}

fn system_schema(table: &str) -> SchemaRef {
    if table == REJECTS { catalog::rejects_schema() } else { catalog::funnel_schema() }
}

/// The schema of a table of a stage that checked out; `None` when it does not have that table after
/// all.
fn table_schema(draft: &Draft<'_>, tables: &Tables, table: &str, no_inputs: bool) -> Option<SchemaRef> {
    match table {
        MAIN => Some(tables.main.clone()),
        REJECTS if !draft.keep_rejects => None,
        REJECTS => ledger(draft.built.as_ref()?.stage.work(), &tables.main, no_inputs),
        side => tables.side.get(side).cloned(),
    }
}

/// The schema of a table of all variants; `None` where one of them does not have it.
fn together(found: Vec<(Option<&Variant>, Option<SchemaRef>)>) -> Option<SchemaRef> {
    let found = found.into_iter().map(|(variant, schema)| Some((variant?, schema?)));
    Some(variants::schema(&found.collect::<Option<Vec<_>>>()?))
}

fn no_table(draft: &Draft<'_>, table: &str, place: Range<usize>) -> Fault {
    let fault = Fault::at(place, format!("the stage `{}` leaves no table `{table}`", draft.family));
    if table == REJECTS && !draft.keep_rejects {
        return fault
            .label("its rejects are only counted")
            .hint(format!("give `{}` `rejects = \"keep\"`", draft.family));
    }
    fault
}

/// The nodes in their order; the name alone of a stage that did not check out.
fn nodes(
    drafts: Vec<Draft<'_>>,
    graph: &Graph,
    mut tables: Vec<Option<Tables>>,
) -> Vec<Result<Node, String>> {
    let places: BTreeMap<usize, usize> =
        graph.order.iter().enumerate().map(|(to, from)| (*from, to)).collect();
    let all =
        |nodes: &[usize]| nodes.iter().map(|node| places.get(node).copied()).collect::<Option<Vec<_>>>();
    let moved = |input: &Resolved| -> Option<Resolved> {
        Some(match input {
            Resolved::Stage { node, table } => {
                Resolved::Stage { node: *places.get(node)?, table: table.clone() }
            }
            Resolved::Variants { table, nodes } => {
                Resolved::Variants { table: table.clone(), nodes: all(nodes)? }
            }
            Resolved::System { table, nodes } => {
                Resolved::System { table: table.clone(), nodes: all(nodes)? }
            }
            Resolved::Path(path) => Resolved::Path(path.clone()),
        })
    };
    let mut drafts: Vec<Option<Draft<'_>>> = drafts.into_iter().map(Some).collect();
    let mut nodes: Vec<Result<Node, String>> = Vec::new();
    for &index in &graph.order {
        let Some(draft) = drafts[index].take() else { continue };
        let inputs = graph.inputs[index]
            .as_ref()
            .and_then(|inputs| inputs.iter().map(moved).collect::<Option<Vec<_>>>());
        nodes.push(match (draft.built, draft.kind, tables[index].take(), inputs) {
            (Some(built), Some(kind), Some(tables), Some(inputs)) => Ok(Node {
                name: draft.name,
                variant: draft.variant,
                seed: draft.seed,
                kind: kind.name,
                version: kind.version,
                stage: built.stage,
                options: built.options,
                inputs,
                tables,
                keep_rejects: draft.keep_rejects,
            }),
            _ => Err(draft.name),
        });
    }
    nodes.extend(drafts.into_iter().flatten().map(|draft| Err(draft.name)));
    nodes
}

fn check_tests(
    tests: Option<Spanned<DeValue<'_>>>,
    nodes: &[Result<Node, String>],
    source: &Source,
    strings: &Strings,
    cx: &CheckContext,
    faults: &mut Vec<Fault>,
) -> Vec<Test> {
    let items = match tests.map(|tests| (tests.span(), tests.into_inner())) {
        None => return vec![],
        Some((_, DeValue::Array(items))) => items,
        Some((span, _)) => {
            faults.push(Fault::at(span, "`tests` is no array of tables").label("expected `[[tests]]`"));
            return vec![];
        }
    };
    let known = run_tables(nodes);
    let complete = nodes.iter().all(Result::is_ok);
    let required: Vec<String> = ["that", "sql", "expect"].map(String::from).into();
    let mut checked = Vec::new();
    for item in items {
        let span = item.span();
        let DeValue::Table(table) = item.into_inner() else {
            faults.push(Fault::at(span, "a test is a table").label("expected `[[tests]]`"));
            continue;
        };
        let shape = Shape { what: "the test", header: span.clone(), required: &required, taken: &[] };
        match build(table, &shape, strings, TestTable::deserialize) {
            Ok(test) => {
                faults.extend(check_test(&test, &known, complete, cx).err());
                let (that, sql, expect) = (test.that, test.sql.value().clone(), test.expect);
                checked.push(Test { that, sql, expect, line: source.line(span.start) });
            }
            Err(found) => faults.extend(found),
        }
    }
    checked
}

fn check_test(
    test: &TestTable,
    known: &[(String, SchemaRef)],
    complete: bool,
    cx: &CheckContext,
) -> Result<(), Fault> {
    let named = cx.tables_in(&test.sql)?;
    if !complete && named.iter().any(|name| !known.iter().any(|(table, _)| table == name)) {
        // It may be a table of a stage that did not check out.
        return Ok(());
    }
    let schema = cx.query(&test.sql, known)?;
    let boolean = schema.fields().len() == 1 && *schema.field(0).data_type() == DataType::Boolean;
    if test.expect == Expect::True && !boolean {
        let columns = schema.fields().iter().map(|field| field.name().as_str());
        return Err(Fault::at(test.sql.span(), "a test that expects `true` needs one boolean column")
            .label(format!("gives {}", list_names(columns))));
    }
    Ok(())
}

/// The tables of a finished run, under the names that SQL has for them.
fn run_tables(nodes: &[Result<Node, String>]) -> Vec<(String, SchemaRef)> {
    let mut tables: BTreeMap<String, SchemaRef> = BTreeMap::new();
    let mut plain: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut families: BTreeMap<String, Vec<(&Variant, SchemaRef)>> = BTreeMap::new();
    for node in nodes.iter().filter_map(|node| node.as_ref().ok()) {
        let own = [(String::new(), node.tables.main.clone())].into_iter();
        let side = node.tables.side.iter().map(|(side, schema)| (format!(".{side}"), schema.clone()));
        let ledger = node.ledger().map(|ledger| (format!(".{REJECTS}"), ledger));
        for (table, schema) in own.chain(side).chain(ledger) {
            tables.insert(format!("{}{table}", node.name), schema.clone());
            if let Some(variant) = &node.variant {
                families.entry(format!("{}{table}", variant.of)).or_default().push((variant, schema));
            }
        }
        for side in node.tables.side.keys() {
            plain.entry(side).or_default().insert(node.family());
        }
    }
    tables.extend(families.iter().map(|(name, found)| (name.clone(), variants::schema(found))));
    for (side, owners) in plain {
        let stage = nodes.iter().any(|node| node.as_ref().map_or_else(String::as_str, Node::family) == side);
        let owner = owners.first().filter(|_| owners.len() == 1 && !stage);
        if let Some(schema) = owner.and_then(|owner| tables.get(&format!("{owner}.{side}"))).cloned() {
            tables.insert(side.into(), schema);
        }
    }
    for system in [REJECTS, FUNNEL] {
        tables.insert(system.into(), system_schema(system));
    }
    tables.into_iter().collect()
}
