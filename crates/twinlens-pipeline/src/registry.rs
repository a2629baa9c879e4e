//! The kinds of stages and the SQL functions that a program offers: a value that is passed in,
//! never a global.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::SessionContext;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::files::Files;
use crate::ports::{KnownInput, Planned, Ports};
use crate::sql::SqlPlanner;
use crate::stage::{Product, StageKind, Work};

/// Plans a stage whose options it holds.
type PlanFn = dyn Fn(&mut Ports<'_>) -> Option<Work> + Send + Sync;

/// The options of a stage, read from its table.
#[derive(Clone)]
pub(crate) struct Built {
    /// With every default filled in, for the fingerprint.
    pub(crate) options: Value,
    kind: &'static str,
    plan: Arc<PlanFn>,
}

impl Built {
    /// Plans the stage. `known` are its inputs in the order of their declaration; `None` when only
    /// the declarations are wanted. `files` may be opened.
    pub(crate) fn plan(
        &self,
        sql: &SqlPlanner,
        known: Option<&[KnownInput]>,
        files: Option<&Files>,
    ) -> Planned {
        Ports::plan(sql, known, files, self.kind, &*self.plan)
    }
}

impl Debug for Built {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.options)
    }
}

/// One kind of stage.
#[derive(Clone)]
pub struct Kind {
    /// The value of `kind`.
    pub name: &'static str,
    /// A TOML table that shows it.
    pub example: &'static str,
    /// The version of its logic.
    pub version: u32,
    /// What it makes.
    pub product: Product,
    /// What its progress counts.
    pub unit: &'static str,
    /// What to do about its reject codes.
    pub reject_hints: &'static [(&'static str, &'static str)],
    pub(crate) build: fn(toml::de::ValueDeserializer<'_>) -> Result<Built, toml::de::Error>,
    /// The JSON Schema of its options, with the definitions of their types.
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Kind {
    /// The JSON Schema of its options alone.
    pub(crate) fn own_schema(&self) -> Value {
        (self.schema)(&mut SchemaSettings::draft2020_12().into_generator()).to_value()
    }

    /// The options that a stage of that kind may have.
    pub(crate) fn option_names(&self) -> Vec<String> {
        self.own_schema()["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect()
    }

    /// What it does: the doc comment of its options.
    pub fn about(&self) -> String {
        self.own_schema()["description"].as_str().unwrap_or_default().replace('\n', " ")
    }

    /// What it does, in one sentence.
    pub fn summary(&self) -> String {
        let about = self.about();
        match about.split_once(". ") {
            Some((first, _)) => format!("{first}."),
            None => about,
        }
    }
}

/// Every kind of stage, every SQL function and every web site of a program.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Kind>,
    scalar: Vec<ScalarUDF>,
    aggregate: Vec<AggregateUDF>,
    sites: Vec<&'static str>,
}

impl Registry {
    /// This registry with another kind of stage.
    pub fn with<K: StageKind>(mut self) -> Self {
        self.add::<K>();
        self
    }

    /// Adds a kind of stage.
    pub fn add<K: StageKind>(&mut self) {
        let kind = Kind {
            name: K::NAME,
            example: K::EXAMPLE,
            version: K::VERSION,
            product: K::PRODUCT,
            unit: K::UNIT,
            reject_hints: K::REJECT_HINTS,
            build: build::<K>,
            schema: |generator| generator.root_schema_for::<K::Options>(),
        };
        self.kinds.insert(K::NAME, kind);
    }

    /// What the kind of that name makes. `None` if there is no such kind: a manifest may come from
    /// another program.
    pub fn product(&self, kind: &str) -> Option<Product> {
        self.kind(kind).map(|kind| kind.product)
    }

    /// Adds a scalar SQL function.
    pub fn add_function(&mut self, function: ScalarUDF) {
        self.scalar.push(function);
    }

    /// Adds an aggregate SQL function.
    pub fn add_aggregate(&mut self, function: AggregateUDF) {
        self.aggregate.push(function);
    }

    /// Adds a web site that the program can serve during a run: what `sites` may name.
    pub fn add_site(&mut self, name: &'static str) {
        self.sites.push(name);
    }

    /// The web sites that `sites` may name.
    pub fn sites(&self) -> &[&'static str] {
        &self.sites
    }

    /// The kind of that name.
    pub fn kind(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(name)
    }

    /// All kinds, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.values()
    }

    /// Makes every function known to a session.
    pub fn install(&self, session: &SessionContext) {
        for function in &self.scalar {
            session.register_udf(function.clone());
        }
        for function in &self.aggregate {
            session.register_udaf(function.clone());
        }
    }
}

fn build<K: StageKind>(table: toml::de::ValueDeserializer<'_>) -> Result<Built, toml::de::Error> {
    let options = K::Options::deserialize(table)?;
    let value =
        serde_json::to_value(&options).map_err(|error| serde::de::Error::custom(error.to_string()))?;
    let plan = move |ports: &mut Ports<'_>| K::plan(options.clone(), ports);
    Ok(Built { options: value, kind: K::NAME, plan: Arc::new(plan) })
}
