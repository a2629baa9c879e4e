//! Schemas: each stage is planned with those of its inputs, and the tests over the tables of all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;
use twinlens_dataset::protocol::Variant;
use twinlens_dataset::variants;
use twinlens_dataset::{MAIN, REJECTS, catalog};

use crate::config::graph::{FUNNEL, Graph, place_of};
use crate::config::inputs::InputSchemas;
use crate::config::options::{Shape, build};
use crate::config::pipeline::{Expect, Node, NodeInput, Resolved, Test, tables};
use crate::config::source::{Source, Strings};
use crate::config::stages::Draft;
use crate::error::{Fault, RunError};
use crate::located::Located;
use crate::ports::{FileCheck, KnownInput, Plan};
use crate::secrets::Secrets;
use crate::sql::SqlPlanner;
use crate::stage::Work;
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
    /// Seconds after which a query that has not ended fails.
    #[serde(default = "test_timeout")]
    timeout: Located<f64>,
}

fn test_timeout() -> Located<f64> {
    Located::without_span(600.0)
}

/// What stages and tests are checked with.
pub(crate) struct Context<'a> {
    pub(crate) source: &'a Source,
    pub(crate) strings: &'a Strings,
    pub(crate) sql: &'a SqlPlanner,
    pub(crate) schemas: &'a InputSchemas<'a>,
}

/// A schema, or `None` if it depends on an input that has not been opened.
type Columns = Option<SchemaRef>;

impl Context<'_> {
    /// Plans every stage in order, then the tests. What cannot be checked because of an earlier
    /// fault is left out.
    pub(crate) fn check(
        &self,
        drafts: Vec<Draft<'_>>,
        graph: Graph,
        tests: Option<Spanned<DeValue<'_>>>,
        faults: &mut Vec<Fault>,
    ) -> (Vec<Node>, Vec<Test>) {
        let mut planned: Vec<Option<(Plan, Work)>> = drafts.iter().map(|_| None).collect();
        for &index in &graph.order {
            planned[index] = self.plan(index, &drafts, &graph, &planned, faults);
        }
        // Stages in or behind a cycle: only their options can be checked.
        for index in (0..drafts.len()).filter(|index| !graph.order.contains(index)) {
            faults.extend(first_faults(&drafts[index]));
        }
        faults.extend(self.swept_secrets(&drafts));
        let nodes = nodes(drafts, &graph, planned, &self.strings.secrets);
        let tests = self.tests(tests, &nodes, faults);
        if faults.is_empty() && nodes.iter().any(Result::is_err) {
            // Every path here has reported a fault; if one has not, an incomplete pipeline must
            // still fail.
            let lost = nodes.iter().filter_map(|node| node.as_ref().err()).map(String::as_str);
            faults.push(Fault::at(0..0, format!("these stages could not be checked: {}", list_names(lost))));
        }
        (nodes.into_iter().filter_map(Result::ok).collect(), tests)
    }

    /// The values of a sweep are in the names of stages, and a column of their tables.
    fn swept_secrets(&self, drafts: &[Draft<'_>]) -> Option<Fault> {
        let is_secret = |draft: &&Draft<'_>| {
            let settings = draft.variant.iter().flat_map(|variant| &variant.settings);
            settings.into_iter().any(|setting| self.strings.secrets.are_in(&setting.value.to_string()))
        };
        let draft = drafts.iter().find(is_secret)?;
        let message =
            format!("the stage `{}` sweeps a secret, and would reveal it in a column", draft.family);
        Some(Fault::at(draft.place.clone(), message))
    }

    /// Plans a stage with the schemas of its inputs; without them, where one of these failed.
    fn plan(
        &self,
        index: usize,
        drafts: &[Draft<'_>],
        graph: &Graph,
        planned: &[Option<(Plan, Work)>],
        faults: &mut Vec<Fault>,
    ) -> Option<(Plan, Work)> {
        let draft = &drafts[index];
        let Some(known) = self.known_inputs(index, drafts, graph, planned, faults) else {
            faults.extend(first_faults(draft));
            return None;
        };
        let planned = draft.options.as_ref()?.built.plan(self.sql, Some(&known), self.schemas.files());
        let missing = planned.plan.files.iter().filter_map(|file| {
            let error = self.schemas.check_file(file).err()?;
            Some(file_fault(file.span(), error))
        });
        let checks = planned.plan.file_checks.iter().filter_map(|check| self.checked(check).err());
        let found: Vec<Fault> = planned.faults.iter().cloned().chain(missing).chain(checks).collect();
        let good = found.is_empty();
        faults.extend(placed(draft, found));
        planned.work.filter(|_| good).map(|work| (planned.plan, work))
    }

    /// What is known of a stage's inputs; `None` if one of them is missing or failed.
    fn known_inputs(
        &self,
        index: usize,
        drafts: &[Draft<'_>],
        graph: &Graph,
        planned: &[Option<(Plan, Work)>],
        faults: &mut Vec<Fault>,
    ) -> Option<Vec<KnownInput>> {
        let inputs = drafts[index].inputs().iter().zip(graph.inputs[index].as_ref()?);
        // All of them, not up to the first that is wrong.
        let known: Vec<Option<KnownInput>> = inputs
            .map(|(port, resolved)| {
                let place = || place_of(self.source, &port.input);
                match resolved {
                    Resolved::Path(path) => self.file(path, place()).map_err(|fault| faults.push(fault)).ok(),
                    // Nothing is known of its tables before a run.
                    Resolved::Earlier { of, .. } => {
                        let kind = drafts[*of].kind;
                        let maker = kind.map(|kind| (kind.name, kind.product));
                        Some(KnownInput { schema: None, maker })
                    }
                    Resolved::System { table, .. } => {
                        Some(KnownInput { schema: Some(system_schema(table)), maker: None })
                    }
                    Resolved::Stage { table, .. } | Resolved::Variants { table, .. } => {
                        let mut found = Vec::new();
                        for &node in resolved.nodes() {
                            let (plan, _) = planned[node].as_ref()?;
                            let columns = tables(plan, drafts[node].keep_rejects)
                                .find_map(|(name, columns)| (name == table).then_some(columns));
                            let Some(columns) = columns else {
                                faults.push(no_table(&drafts[node], table, place()));
                                return None;
                            };
                            found.push((drafts[node].variant.as_ref(), columns));
                        }
                        let schema = match resolved {
                            Resolved::Stage { .. } => found.pop().and_then(|(_, columns)| columns),
                            _ => together(found),
                        };
                        let kind = drafts[resolved.nodes()[0]].kind;
                        Some(KnownInput { schema, maker: kind.map(|kind| (kind.name, kind.product)) })
                    }
                }
            })
            .collect();
        known.into_iter().collect()
    }

    /// What is known of a file or dataset outside the run.
    fn file(&self, path: &str, place: Range<usize>) -> Result<KnownInput, Fault> {
        let schema = self.schemas.get(path).map_err(|error| file_fault(place, error))?;
        Ok(KnownInput { schema, maker: None })
    }

    /// Reads a file whose contents an option depends on.
    fn checked(&self, check: &FileCheck) -> Result<(), Fault> {
        let files = self.schemas.local_files(check.file.value());
        let checked = files.and_then(|files| files.iter().try_for_each(|file| (check.check)(file)));
        checked.map_err(|error| file_fault(check.file.span(), error))
    }
}

/// A file that is missing or cannot be read, at the place that names it.
fn file_fault(place: Range<usize>, error: RunError) -> Fault {
    match error {
        RunError::User { message, hint } => hint.into_iter().fold(Fault::at(place, message), Fault::hint),
        error => Fault::at(place, error.to_string()),
    }
}

/// The faults of a stage's options that do not depend on its inputs.
fn first_faults(draft: &Draft<'_>) -> impl Iterator<Item = Fault> {
    placed(draft, draft.options.iter().flat_map(|options| options.first.faults.clone()))
}

/// Faults without a span (about a default) get that of the stage.
fn placed(draft: &Draft<'_>, faults: impl IntoIterator<Item = Fault>) -> impl Iterator<Item = Fault> {
    faults
        .into_iter()
        .map(|fault| if fault.span.is_empty() { Fault { span: draft.place.clone(), ..fault } } else { fault })
}

fn system_schema(table: &str) -> SchemaRef {
    if table == REJECTS { catalog::rejects_schema() } else { catalog::funnel_schema() }
}

/// The columns of a table of all variants.
fn together(found: Vec<(Option<&Variant>, Columns)>) -> Columns {
    let found = found.into_iter().map(|(variant, schema)| Some((variant?, schema?)));
    Some(variants::schema(&found.collect::<Option<Vec<_>>>()?))
}

fn no_table(draft: &Draft<'_>, table: &str, place: Range<usize>) -> Fault {
    let fault = Fault::at(place, format!("the stage `{}` has no table `{table}`", draft.family));
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
    mut planned: Vec<Option<(Plan, Work)>>,
    secrets: &Secrets,
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
            Resolved::Earlier { name, of } => Resolved::Earlier { name: name.clone(), of: *places.get(of)? },
            Resolved::Path(path) => Resolved::Path(path.clone()),
        })
    };
    let mut drafts: Vec<Option<Draft<'_>>> = drafts.into_iter().map(Some).collect();
    let mut nodes: Vec<Result<Node, String>> = Vec::new();
    for &index in &graph.order {
        let Some(draft) = drafts[index].take() else { continue };
        let inputs = graph.inputs[index].iter().flatten().zip(draft.inputs()).map(|(resolved, port)| {
            Some(NodeInput { input: port.input.clone(), resolved: moved(resolved)? })
        });
        let inputs = inputs.collect::<Option<Vec<_>>>();
        nodes.push(match (draft.options, draft.kind, planned[index].take(), inputs) {
            (Some(options), Some(kind), Some((plan, work)), Some(inputs)) => Ok(Node {
                name: draft.name,
                variant: draft.variant,
                seed: draft.seed,
                kind: kind.name,
                version: kind.version,
                product: kind.product,
                unit: kind.unit,
                options: secrets.hide_value(options.built.options),
                plan,
                work,
                inputs,
                keep_rejects: draft.keep_rejects,
            }),
            _ => Err(draft.name),
        });
    }
    nodes.extend(drafts.into_iter().flatten().map(|draft| Err(draft.name)));
    nodes
}

impl Context<'_> {
    fn tests(
        &self,
        tests: Option<Spanned<DeValue<'_>>>,
        nodes: &[Result<Node, String>],
        faults: &mut Vec<Fault>,
    ) -> Vec<Test> {
        let items = match tests.map(|tests| (tests.span(), tests.into_inner())) {
            None => return vec![],
            Some((_, DeValue::Array(items))) => items,
            Some((span, _)) => {
                faults
                    .push(Fault::at(span, "`tests` is not an array of tables").label("expected `[[tests]]`"));
                return vec![];
            }
        };
        let tables = run_tables(nodes);
        let complete = nodes.iter().all(Result::is_ok);
        let schema = schemars::schema_for!(TestTable).to_value();
        let mut checked = Vec::new();
        for item in items {
            let span = item.span();
            let DeValue::Table(table) = item.into_inner() else {
                faults.push(Fault::at(span, "a test is a table").label("expected `[[tests]]`"));
                continue;
            };
            let shape =
                Shape { what: "the test", header: span.clone(), schema: &schema, swept: &[], taken: &[] };
            match build(table, &shape, self.strings, TestTable::deserialize) {
                Ok(test) => {
                    faults.extend(self.test(&test, &tables, complete).err());
                    let timeout = Duration::try_from_secs_f64(*test.timeout.value()).ok();
                    let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) else {
                        let fault = Fault::at(test.timeout.span(), "`timeout` is out of range");
                        faults.push(fault.label("expected seconds, more than 0"));
                        continue;
                    };
                    let (that, sql, expect) = (test.that, test.sql.value().clone(), test.expect);
                    let line = self.source.line(span.start);
                    checked.push(Test { that, sql, expect, timeout, line });
                }
                Err(found) => faults.extend(found),
            }
        }
        checked
    }

    fn test(&self, test: &TestTable, tables: &[(String, Columns)], complete: bool) -> Result<(), Fault> {
        let named = self.sql.tables_in(&test.sql)?;
        let columns =
            |name: &String| tables.iter().find(|(table, _)| table == name).map(|(_, columns)| columns);
        // A table that does not exist may be one of a stage that failed.
        let unchecked = |name: &String| columns(name).map_or(!complete, Option::is_none);
        if named.iter().any(unchecked) {
            return Ok(());
        }
        let known: Vec<_> =
            tables.iter().filter_map(|(name, columns)| Some((name.clone(), columns.clone()?))).collect();
        let schema = self.sql.query(&test.sql, &known)?;
        let boolean = schema.fields().len() == 1 && *schema.field(0).data_type() == DataType::Boolean;
        if test.expect == Expect::True && !boolean {
            let columns = schema.fields().iter().map(|field| field.name().as_str());
            return Err(Fault::at(test.sql.span(), "a test that expects `true` needs one boolean column")
                .label(format!("gives {}", list_names(columns))));
        }
        Ok(())
    }
}

/// The tables of a finished run, under the names that SQL has for them.
fn run_tables(nodes: &[Result<Node, String>]) -> Vec<(String, Columns)> {
    let mut all: BTreeMap<String, Columns> = BTreeMap::new();
    let mut plain: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut families: BTreeMap<String, Vec<(Option<&Variant>, Columns)>> = BTreeMap::new();
    for node in nodes.iter().filter_map(|node| node.as_ref().ok()) {
        for (name, columns) in node.tables() {
            let table = if name == MAIN { String::new() } else { format!(".{name}") };
            all.insert(format!("{}{table}", node.name), columns.clone());
            if let Some(variant) = &node.variant {
                families.entry(format!("{}{table}", variant.of)).or_default().push((Some(variant), columns));
            }
        }
        for side in node.plan.side.keys() {
            plain.entry(side).or_default().insert(node.family());
        }
    }
    all.extend(families.into_iter().map(|(name, found)| (name, together(found))));
    for (side, owners) in plain {
        let stage = nodes.iter().any(|node| node.as_ref().map_or_else(String::as_str, Node::family) == side);
        let owner = owners.first().filter(|_| owners.len() == 1 && !stage);
        if let Some(schema) = owner.and_then(|owner| all.get(&format!("{owner}.{side}"))).cloned() {
            all.insert(side.into(), schema);
        }
    }
    for system in [REJECTS, FUNNEL] {
        all.insert(system.into(), Some(system_schema(system)));
    }
    all.into_iter().collect()
}
