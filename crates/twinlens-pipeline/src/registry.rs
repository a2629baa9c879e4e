//! The kinds of stages and the SQL functions that a program offers: a value that is passed in,
//! never a global.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::SessionContext;
use schemars::{Schema, SchemaGenerator};

use crate::stage::{Stage, StageKind};

/// A stage built from its table, with what the fingerprint needs of it.
#[derive(Clone)]
pub struct Built {
    /// The stage: one for all variants that differ in their inputs alone.
    pub stage: Arc<dyn Stage>,
    /// Its options with every default filled in.
    pub options: serde_json::Value,
}

type Build = fn(toml::de::ValueDeserializer<'_>) -> Result<Built, toml::de::Error>;

/// One kind of stage.
pub struct Kind {
    /// The value of `kind`.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// A TOML table that shows it.
    pub example: &'static str,
    /// The version of its logic.
    pub version: u32,
    /// Builds one from its table.
    pub build: Build,
    /// The JSON Schema of its options, with the definitions of the types they are made of.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

/// Every kind of stage, every SQL function and every web site of a program.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Kind>,
    scalar: Vec<ScalarUDF>,
    aggregate: Vec<AggregateUDF>,
    sites: Vec<&'static str>,
}

impl Registry {
    /// Adds a kind of stage.
    pub fn add<K: StageKind>(&mut self) {
        let kind = Kind {
            name: K::KIND,
            about: K::ABOUT,
            example: K::EXAMPLE,
            version: K::VERSION,
            build: build::<K>,
            schema: |generator| generator.root_schema_for::<K>(),
        };
        self.kinds.insert(K::KIND, kind);
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
    let stage = K::deserialize(table)?;
    let options =
        serde_json::to_value(&stage).map_err(|error| serde::de::Error::custom(error.to_string()))?;
    Ok(Built { stage: Arc::new(stage), options })
}
