//! All that a process needs to make any split of a unit, and the proof that it would make it in the
//! same way.
//!
//! A stage cannot be sent: its options are not all readable again (a preset is kept as its rules,
//! a decoder is not an option of the file). So the text of the pipeline file is sent. The process
//! that gets it checks it with its own registry, and compares what comes out with what came out at
//! the driver: version, features, environment and registry are in that one comparison.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use datafusion::arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::{self, InputSchemas, Node, Overrides, Pipeline};
use crate::context::Clock;
use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use crate::run::fingerprint::difference;
use crate::run::pass::PassRecipe;
use crate::run::picked::RetryRecipe;
use crate::run::plan::Unit;
use crate::run::sent_inputs::SentFile;

/// What to do about a process that is not the driver's build.
const SAME_BUILD: &str = "run the same build on all machines, built with the same --features";

/// All that a process needs to make any split of a unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnitRecipe {
    /// The driver's build: compared first.
    pub build: Build,
    /// The text of the pipeline file.
    pub pipeline: String,
    /// The pipeline file, from the root: relative paths of options start at its folder.
    pub path: PathBuf,
    /// The values of `--set`.
    pub set: Vec<String>,
    /// Salted hashes of the environment variables that the file lists.
    pub env: BTreeMap<String, String>,
    /// The salt.
    pub salt: String,
    /// The stages of the unit, first to last, with what the file made of them at the driver.
    pub stages: Vec<(String, Value)>,
    /// The fingerprint of the unit's dataset.
    pub fingerprint: String,
    /// The folder of an earlier dataset with rows to take over.
    #[serde(default)]
    pub earlier: Option<String>,
    /// The pass over the rows, of a stage that looks at them before it decides.
    #[serde(default)]
    pub pass: Option<PassRecipe>,
    /// The rejects of the unit that are tried again, instead of making the unit.
    #[serde(default)]
    pub retry: Option<RetryRecipe>,
    /// The tables of the dataset.
    pub tables: BTreeMap<String, SchemaRef>,
    /// When the run began, in microseconds since 1970.
    pub began: i64,
    /// The time of day, if it is pinned, in microseconds since 1970.
    pub clock: Option<i64>,
    /// Hosts that the driver serves on its own loopback.
    pub hosts: BTreeMap<String, SocketAddr>,
    /// The machine of the driver.
    pub host: String,
    /// The local inputs, where they are in the run directory; otherwise each machine must have
    /// them.
    pub sent: Option<Vec<SentFile>>,
}

/// A build of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The version.
    pub version: String,
    /// The architecture: vectors of another one may round otherwise.
    pub arch: String,
}

impl Build {
    /// That of this process. In debug builds, `TWINLENS_PRETEND` changes its version, for tests.
    pub fn this() -> Self {
        let pretended = if cfg!(debug_assertions) { std::env::var("TWINLENS_PRETEND").ok() } else { None };
        let version = pretended.unwrap_or_else(|| env!("CARGO_PKG_VERSION").into());
        Self { version, arch: std::env::consts::ARCH.into() }
    }
}

/// What a run tells beside the unit.
pub(super) struct RunFacts<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) tables: BTreeMap<String, SchemaRef>,
    pub(super) earlier: Option<String>,
    pub(super) began: Clock,
    pub(super) clock: Clock,
    pub(super) hosts: &'a BTreeMap<String, SocketAddr>,
    pub(super) sent: Option<Vec<SentFile>>,
}

impl UnitRecipe {
    /// The recipe of a unit of a run.
    ///
    /// # Errors
    /// The user's: the pipeline is not one of a file.
    pub(super) fn new(unit: &Unit, run: RunFacts<'_>) -> Result<Self, RunError> {
        let pipeline = run.pipeline;
        let (Some(written), Some(path)) = (&pipeline.written, &pipeline.file) else {
            return Err(RunError::user("only the splits of a pipeline file can be made by other processes"));
        };
        let secrets = &pipeline.secrets;
        if secrets.unnamed_are_in(&written.text) || written.set.iter().any(|set| secrets.are_in(set)) {
            return Err(RunError::user_with_hint(
                "the pipeline file or --set holds a secret (a header, or a part of a URL), and workers \
                 would read it in the run directory",
                "put it into an environment variable on all machines: env = [\"TOKEN\"], then \"${TOKEN}\"",
            ));
        }
        let salt = hex::encode(rand::random::<[u8; 16]>());
        let stage = |&node: &usize| {
            let node = &pipeline.nodes[node];
            (node.name.clone(), facts(node, pipeline))
        };
        Ok(Self {
            build: Build::this(),
            pipeline: written.text.clone(),
            path: std::path::absolute(path).map_err(|error| RunError::io(path, error))?,
            set: written.set.clone(),
            env: written.env.iter().map(|(name, value)| (name.clone(), hashed(&salt, value))).collect(),
            salt,
            stages: unit.nodes.iter().map(stage).collect(),
            fingerprint: unit.recipe.fingerprint.clone(),
            earlier: run.earlier,
            pass: None,
            retry: None,
            tables: run.tables,
            began: run.began.micros(),
            clock: if let Clock::Fixed(_) = run.clock { Some(run.clock.micros()) } else { None },
            hosts: run.hosts.clone(),
            host: host_name(),
            sent: run.sent,
        })
    }

    /// The name of the unit: that of its last stage.
    pub fn stage(&self) -> &str {
        self.stages.last().map_or("", |(name, _)| name)
    }

    /// The folder in the run directory of the dataset whose splits are made.
    pub fn folder(&self) -> &str {
        self.pass.as_ref().and_then(|pass| pass.answers.as_deref()).unwrap_or_else(|| self.stage())
    }

    /// The folder of the pipeline file.
    pub fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The pipeline as this process understands it, and the indices of the unit's stages in it.
    ///
    /// # Errors
    /// The user's: this process would make the splits otherwise than the driver. The difference is
    /// named.
    pub fn rebuild(
        &self,
        registry: &Registry,
        env: &BTreeMap<String, String>,
        files: &Files,
    ) -> Result<(Pipeline, Vec<usize>), RunError> {
        let overrides = Overrides { set: self.set.clone(), env: env.clone() };
        let schemas = InputSchemas::of_present(files);
        let checked = config::check(&self.path, &self.pipeline, registry, &overrides, &schemas);
        let pipeline = checked.map_err(|report| {
            let fault = report.faults().first().map(|fault| fault.message.clone()).unwrap_or_default();
            let message = format!("the pipeline of the run is not valid for this build: {fault}");
            RunError::user_with_hint(message, SAME_BUILD)
        })?;
        let mut nodes = Vec::new();
        for (name, expected) in &self.stages {
            let (index, node) = pipeline
                .node(name)
                .ok_or_else(|| RunError::Internal(format!("the recipe of a unit has no stage `{name}`")))?;
            let found = facts(node, &pipeline);
            if found != *expected {
                let what = difference(expected, &found);
                let message = format!("this build would make stage `{name}` otherwise: {what}");
                return Err(RunError::user_with_hint(message, SAME_BUILD));
            }
            check_files(node, files)?;
            nodes.push(index);
        }
        Ok((pipeline, nodes))
    }

    /// Checks that this process is of the driver's build and has its environment.
    pub(super) fn check_process(&self, env: &BTreeMap<String, String>) -> Result<(), RunError> {
        self.check_build(&Build::this())?;
        self.check_env(env)
    }

    fn check_build(&self, own: &Build) -> Result<(), RunError> {
        let other = &self.build;
        if own == other {
            return Ok(());
        }
        let message = if own.version == other.version {
            format!("the run is on {}, this machine is {}", other.arch, own.arch)
        } else {
            format!("the run is by twinlens {}, this is {}", other.version, own.version)
        };
        Err(RunError::user_with_hint(message, SAME_BUILD))
    }

    fn check_env(&self, env: &BTreeMap<String, String>) -> Result<(), RunError> {
        for (name, expected) in &self.env {
            let what = match env.get(name) {
                None => "is not set here",
                Some(value) if hashed(&self.salt, value) != *expected => "has another value here",
                Some(_) => continue,
            };
            let message = format!("the pipeline reads the environment variable {name}, which {what}");
            return Err(RunError::user_with_hint(message, "set it as it is set for `twinlens run`"));
        }
        Ok(())
    }

    /// The clock of the splits.
    pub fn clock(&self) -> Clock {
        self.clock.map_or(Clock::System, Clock::at_micros)
    }
}

/// What determines how a stage makes rows, beside its inputs.
fn facts(node: &Node, pipeline: &Pipeline) -> Value {
    json!({
        "kind": node.kind,
        "version": node.version,
        "seed": node.seed.unwrap_or(pipeline.seed),
        "keep_rejects": node.keep_rejects,
        "options": node.options,
    })
}

/// Checks that the files that a stage declared are there.
fn check_files(node: &Node, files: &Files) -> Result<(), RunError> {
    for file in &node.plan.files {
        files.check(file).map_err(|error| {
            RunError::user_with_hint(
                format!(
                    "stage `{}` reads {}, which is not on this machine: {error}",
                    node.name,
                    file.value()
                ),
                "put the inputs into the store, or at the same place on all machines; a run sends files along that \
                 are in the folder of the pipeline file, up to 1 GiB",
            )
        })?;
    }
    Ok(())
}

fn hashed(salt: &str, value: &str) -> String {
    hex::encode(&Sha256::digest(format!("{salt}/{value}"))[..16])
}

/// The name of this machine.
pub fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name =
        kernel.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok());
    let name = name.map(|name| name.trim().to_string()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| "unknown".into())
}
