//! The top level of a pipeline file: its keys, `--set`, and the order in which the parts are
//! checked.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::config::graph;
use crate::config::inputs::InputSchemas;
use crate::config::options::{Shape, build};
use crate::config::pipeline::{Cluster, Node, Pipeline, Written};
use crate::config::secrets;
use crate::config::source::{Source, Strings, shifted};
use crate::config::stages;
use crate::config::tables;
use crate::config::variants;
use crate::config::vars::{Expander, Overrides, SetVar, Vars, is_name};
use crate::error::Fault;
use crate::located::Located;
use crate::registry::Registry;
use crate::run::session;
use crate::secrets::Secrets;
use crate::sql::SqlPlanner;
use crate::suggest::{did_you_mean, list_names};

/// Keys at the top level that are not part of [`Head`].
const PARTS: [&str; 4] = ["vars", "env", "stages", "tests"];
/// Keys at the top level that `--set` may change.
const SETTABLE: [&str; 3] = ["name", "seed", "max_reject_share"];

/// The scalar keys at the top level of a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// The pipeline's name: its runs go to `runs/NAME` unless told otherwise.
    pub(crate) name: Located<String>,
    /// Where everything drawn at random comes from.
    #[serde(default)]
    pub(crate) seed: u64,
    /// Web sites of the program's own, served on loopback during a run.
    #[serde(default)]
    pub(crate) sites: Vec<Located<String>>,
    /// The most rejected rows, as a share of the rows in (0 to 1), before a finished run exits with
    /// 3. Without it, a stage of which all rows are rejected ends the run with 3.
    #[serde(default)]
    pub(crate) max_reject_share: Option<Located<f64>>,
    /// Whether images are decoded in processes that can do nothing else and have limits on memory
    /// and time. It changes no result.
    #[serde(default)]
    pub(crate) isolate: bool,
    /// Names of parameters of URLs whose values are secret, beside the usual ones (`token`, `sig`,
    /// `X-Amz-Signature`).
    #[serde(default)]
    pub(crate) secret_parameters: Vec<Located<String>>,
    /// Where the splits of its runs are made. No part of any dataset's recipe.
    #[serde(default)]
    pub(crate) cluster: ClusterTable,
}

/// The table `cluster`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterTable {
    /// The scheduler whose executors make the splits: `df://HOST:PORT`. `--on` and `TWINLENS_ON` go
    /// before it.
    #[serde(default)]
    on: Option<String>,
    /// Stages whose splits the run makes itself.
    #[serde(default)]
    here: Vec<Located<String>>,
}

/// What a pipeline is checked with.
pub(crate) struct Check<'a> {
    pub(crate) source: &'a Source,
    pub(crate) registry: &'a Registry,
    pub(crate) schemas: &'a InputSchemas<'a>,
}

impl Check<'_> {
    /// Turns the text of a file into the checked pipeline, without the place of the file.
    pub(crate) fn file(&self, strings: &mut Strings, overrides: &Overrides) -> Result<Pipeline, Vec<Fault>> {
        let source = self.source;
        let mut root = parse(source, strings)?;
        let mut faults = Vec::new();
        let vars = root.remove("vars");
        let set = apply_set(&mut root, vars.as_ref(), source, strings, &mut faults);
        let env = root.remove("env").map_or(vec![], |env| names(env, &mut faults));
        let vars = Vars::collect(vars.as_ref(), &env, &overrides.env, &set, &mut faults);
        let mut expander =
            Expander { source, vars: &vars, strings, faults: &mut faults, used: Default::default() };
        expander.table(&mut root);
        let used = expander.used;
        for var in set.iter().filter(|var| !used.contains(var.name)) {
            faults.push(unused(var, used.iter().map(String::as_str)));
        }
        let value = |name: &Spanned<String>| {
            let name = name.get_ref();
            Some((name.clone(), overrides.env.get(name)?.clone()))
        };
        strings.secrets = secrets(&root, &env, &overrides.env, &set);
        let env = env.iter().filter_map(value).collect();
        let written = Written { text: source.file().into(), set: overrides.set.clone(), env };
        match self.table(root, strings) {
            Ok(pipeline) if faults.is_empty() => Ok(Pipeline { written: Some(written), ..pipeline }),
            Ok(_) => Err(faults),
            Err(found) => Err(found.into_iter().chain(faults).collect()),
        }
    }

    /// Turns the table into the checked pipeline, once variables are filled in.
    pub(crate) fn table(&self, mut root: DeTable<'_>, strings: &Strings) -> Result<Pipeline, Vec<Fault>> {
        let Self { source, registry, schemas } = *self;
        let mut faults = Vec::new();
        let stages = root.remove("stages");
        let tests = root.remove("tests");
        let head = head(root, strings, registry, &mut faults);
        let sql = SqlPlanner { session: session::plain(registry, 1) };
        let cx = stages::Context { registry, strings, sql: &sql };
        let drafts = stages::drafts(stages, &cx, &mut faults);
        let drafts = variants::expand(drafts, &sql, &mut faults);
        let graph = graph::resolve(&drafts, source, &sql, &mut faults);
        let cx = tables::Context { source, strings, sql: &sql, schemas };
        let (nodes, tests) = cx.check(drafts, graph, tests, &mut faults);
        if faults.is_empty() {
            check_here(head.as_ref(), &nodes, &mut faults);
        }
        faults.retain(|fault| !strings.broken.contains(&fault.span.start));
        match head {
            Some(head) if faults.is_empty() => Ok(Pipeline {
                name: head.name.value().clone(),
                seed: head.seed,
                file: None,
                base: PathBuf::new(),
                sites: head.sites.iter().map(|site| site.value().clone()).collect(),
                nodes: nodes.into_iter().map(Arc::new).collect(),
                tests,
                max_reject_share: head.max_reject_share.map(|share| *share.value()),
                isolate: head.isolate,
                cluster: Cluster {
                    on: head.cluster.on,
                    here: head.cluster.here.iter().map(|stage| stage.value().clone()).collect(),
                },
                written: None,
                secrets: Arc::new(strings.secrets.clone()),
            }),
            _ => Err(faults),
        }
    }
}

/// The secrets of a pipeline whose variables are filled in: the environment variables that it
/// lists, and what its values give away.
fn secrets(
    root: &DeTable<'_>,
    listed: &[Spanned<String>],
    env: &BTreeMap<String, String>,
    set: &[SetVar<'_>],
) -> Secrets {
    let mut secrets = secrets::none(root);
    let listed = listed.iter().map(|name| name.get_ref().as_str());
    for name in listed.chain(secrets::passed_on(root)) {
        let set = set.iter().filter(|var| var.name == name).map(|var| var.value);
        env.get(name).map(String::as_str).into_iter().chain(set).for_each(|value| secrets.add(name, value));
    }
    secrets::add_table(root, &mut secrets);
    secrets
}

/// Checks the stages that `cluster` names.
fn check_here(head: Option<&Head>, nodes: &[Node], faults: &mut Vec<Fault>) {
    for stage in head.iter().flat_map(|head| &head.cluster.here) {
        let names = || nodes.iter().map(Node::family);
        if names().any(|name| name == stage.as_str()) {
            continue;
        }
        let fault = Fault::at(stage.span(), format!("unknown stage `{}`", stage.value()))
            .label(format!("known: {}", list_names(names())));
        faults.push(did_you_mean(stage, names()).into_iter().fold(fault, Fault::hint));
    }
}

fn parse<'i>(source: &'i Source, strings: &mut Strings) -> Result<DeTable<'i>, Vec<Fault>> {
    let (table, errors) = DeTable::parse_recoverable(source.file());
    if errors.is_empty() {
        return Ok(table.into_inner());
    }
    // The message shows these lines.
    strings.secrets = secrets::of_values(table.get_ref());
    for line in
        errors.iter().filter_map(|error| source.file().lines().nth(source.line(error.span()?.start) - 1))
    {
        secrets::add_broken_line(line, &mut strings.secrets);
    }
    // Further errors on the same line are usually consequences of the first.
    let (mut faults, mut seen) = (Vec::new(), HashSet::new());
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if seen.insert(source.line(span.start)) {
            let (message, expected) =
                error.message().split_once(", expected ").unwrap_or((error.message(), ""));
            let label = if matches!(expected, "" | "nothing") {
                String::new()
            } else {
                format!("expected {expected}")
            };
            faults.push(Fault::at(span, message).label(label));
        }
    }
    Err(faults)
}

/// The names listed under `env`.
fn names(env: Spanned<DeValue<'_>>, faults: &mut Vec<Fault>) -> Vec<Spanned<String>> {
    let span = env.span();
    match Vec::<Spanned<String>>::deserialize(ValueDeserializer::from(env)) {
        Ok(names) => {
            for name in names.iter().filter(|name| !is_name(name.get_ref())) {
                faults
                    .push(Fault::at(name.span(), "the name of a variable has only letters, digits and `_`"));
            }
            names
        }
        Err(error) => {
            let fault =
                Fault::at(error.span().unwrap_or(span), "`env` must list names of environment variables");
            faults.push(fault.label("expected an array of strings, such as `[\"HOME\"]`"));
            vec![]
        }
    }
}

/// Inserts the values of `--set` into the tree; returns those that set variables.
fn apply_set<'i>(
    root: &mut DeTable<'i>,
    vars: Option<&Spanned<DeValue<'i>>>,
    source: &'i Source,
    strings: &mut Strings,
    faults: &mut Vec<Fault>,
) -> Vec<SetVar<'i>> {
    let declared = |name: &str| vars.and_then(|vars| vars.get_ref().get(name)).is_some();
    let mut set = Vec::new();
    for (start, argument) in source.arguments() {
        let Some((key, value)) = argument.split_once('=') else {
            let fault = Fault::at(start..start + argument.len(), "`--set` needs a name and a value");
            faults.push(fault.label("expected `name=value`"));
            continue;
        };
        let (mut key_start, mut key) = (start + key.len() - key.trim_start().len(), key.trim());
        let variable = key.strip_prefix("vars.").filter(|_| !has_stage(root, "vars"));
        if let Some(name) = variable {
            (key_start, key) = (key_start + key.len() - name.len(), name);
        }
        let value_start = start + argument.len() - value.len() + (value.len() - value.trim_start().len());
        let value = value.trim();
        let is_plain = !key.contains('.') && (declared(key) || !SETTABLE.contains(&key));
        if variable.is_some() || is_plain {
            set.push(SetVar { name: key, place: key_start..key_start + key.len(), value });
            continue;
        }
        let mut at = key_start;
        let mut keys: Vec<(Range<usize>, &str)> = Vec::new();
        for part in key.split('.') {
            keys.push((at..at + part.len(), part));
            at += part.len() + 1;
        }
        let value = argument_value(value, value_start, strings);
        if let Err(fault) = set_path(root, &keys, value) {
            faults.push(*fault);
        }
    }
    set
}

fn has_stage(root: &DeTable<'_>, name: &str) -> bool {
    root.get("stages").and_then(|stages| stages.get_ref().get(name)).is_some()
}

/// Parses a TOML value; any other text is a string.
fn argument_value<'i>(text: &'i str, start: usize, strings: &mut Strings) -> Spanned<DeValue<'i>> {
    match DeValue::parse(text) {
        Ok(value) => {
            let scalar =
                !value.get_ref().is_str() && !value.get_ref().is_array() && !value.get_ref().is_table();
            let value = shifted(value, start);
            if scalar {
                strings.texts.insert(value.span().start, text.into());
            }
            value
        }
        Err(_) => {
            strings.unquoted.insert(start);
            Spanned::new(start..start + text.len(), DeValue::String(text.into()))
        }
    }
}

fn set_path<'i>(
    root: &mut DeTable<'i>,
    keys: &[(Range<usize>, &'i str)],
    value: Spanned<DeValue<'i>>,
) -> Result<(), Box<Fault>> {
    if let [(place, name)] = keys {
        put(root, place, name, value);
        return Ok(());
    }
    let keys = if keys[0].1 == "stages" { &keys[1..] } else { keys };
    let stages = root.get_mut("stages").and_then(|stages| match stages.get_mut() {
        DeValue::Table(stages) => Some(stages),
        _ => None,
    });
    // Missing stages are reported elsewhere.
    let (Some(stages), [(place, stage), options @ ..]) = (stages, keys) else { return Ok(()) };
    if !stages.contains_key(*stage) {
        let names = || stages.keys().map(|key| key.get_ref().as_ref());
        let fault = Fault::at(place.clone(), format!("unknown stage `{stage}`"))
            .label(format!("known: {}", list_names(names())));
        return Err(Box::new(did_you_mean(stage, names()).into_iter().fold(fault, Fault::hint)));
    }
    let Some(((place, last), between)) = options.split_last() else {
        let fault =
            Fault::at(place.clone(), "`--set` cannot replace a stage").label("expected `stage.option`");
        return Err(Box::new(fault));
    };
    let mut table = stages;
    for (place, key) in keys.iter().take(1).chain(between) {
        let inner = table.entry(Spanned::new(place.clone(), (*key).into()));
        let inner = inner.or_insert_with(|| Spanned::new(place.clone(), DeValue::Table(DeTable::new())));
        table = match inner.get_mut() {
            DeValue::Table(inner) => inner,
            _ => return Err(Box::new(Fault::at(place.clone(), format!("`{key}` is not a table")))),
        };
    }
    put(table, place, last, value);
    Ok(())
}

/// Replaces an entry; its key gets the span in the argument.
fn put<'i>(table: &mut DeTable<'i>, place: &Range<usize>, key: &'i str, value: Spanned<DeValue<'i>>) {
    table.remove(key);
    table.insert(Spanned::new(place.clone(), key.into()), value);
}

fn unused<'a>(var: &SetVar<'_>, used: impl Iterator<Item = &'a str> + Clone) -> Fault {
    let fault = Fault::at(var.place.clone(), format!("the pipeline does not use `${{{}}}`", var.name));
    let known = used.clone().chain(SETTABLE);
    let fault = fault.label(format!("used variables: {}", list_names(used)));
    fault.hint(
        did_you_mean(var.name, known)
            .unwrap_or_else(|| "to set a stage's option, write `stage.option=value`".into()),
    )
}

fn head(root: DeTable<'_>, strings: &Strings, registry: &Registry, faults: &mut Vec<Fault>) -> Option<Head> {
    let schema = schemars::schema_for!(Head).to_value();
    let shape = Shape { what: "the pipeline", header: 0..0, schema: &schema, swept: &[], taken: &PARTS };
    let head = match build(root, &shape, strings, Head::deserialize) {
        Ok(head) => head,
        Err(found) => {
            faults.extend(found);
            return None;
        }
    };
    let folder = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if head.name.is_empty() || head.name.starts_with(['.', '-']) || !head.name.chars().all(folder) {
        let fault = Fault::at(head.name.span(), "the name of the pipeline must be usable as a folder name");
        faults.push(fault.label("expected letters, digits, `_`, `-` and `.`"));
    }
    if let Some(share) = head.max_reject_share.as_ref().filter(|share| !(0.0..=1.0).contains(share.value())) {
        let fault = Fault::at(share.span(), "`max_reject_share` is a fraction of the rows");
        faults.push(fault.label("expected a number from 0 to 1"));
    }
    for name in head.secret_parameters.iter().filter(|name| name.trim().is_empty()) {
        faults.push(Fault::at(name.span(), "the name of a parameter is empty"));
    }
    let known = registry.sites();
    for site in head.sites.iter().filter(|site| !known.contains(&site.as_str())) {
        let fault = Fault::at(site.span(), format!("unknown site `{}`", site.value()))
            .label(format!("known: {}", list_names(known.iter().copied())));
        faults.push(did_you_mean(site, known.iter().copied()).into_iter().fold(fault, Fault::hint));
    }
    Some(head)
}
