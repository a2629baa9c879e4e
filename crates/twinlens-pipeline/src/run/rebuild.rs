//! Builds a unit of another process's run.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::split_records::SplitRecords;
use twinlens_dataset::writer::SplitStarter;
use twinlens_dataset::{Dataset, blocking};

use crate::context::Clock;
use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use crate::run::events::{Observer, Progress};
use crate::run::pass::OpenPass;
use crate::run::picked::Picked;
use crate::run::recipe::{UnitRecipe, host_name};
use crate::run::sent_inputs;
use crate::run::settings::Settings;
use crate::run::splits::Prepared;
use crate::run::unit_inputs::UnitInputs;
use crate::secrets::Secrets;

/// What a process builds units with.
#[derive(Clone)]
pub struct Builder<'a> {
    /// Its kinds of stages.
    pub registry: &'a Registry,
    /// The run directory, limits and folders of this process; clock and hosts are the run's.
    pub settings: &'a Settings,
    /// The environment variables of this process.
    pub env: &'a BTreeMap<String, String>,
    /// The memory and spill folder of all its units.
    pub runtime: Arc<RuntimeEnv>,
    /// Observes the splits.
    pub observer: Arc<dyn Observer>,
    /// Is told what the messages of this process must not tell.
    pub learn: fn(&Arc<Secrets>),
}

impl Builder<'_> {
    /// Builds the unit of a recipe.
    ///
    /// # Errors
    /// The user's, among others: this process would make splits otherwise than the run; an input is
    /// not on this machine.
    pub async fn prepare(
        &self,
        recipe: &UnitRecipe,
        cancel: &CancellationToken,
    ) -> Result<Prepared, RunError> {
        let own = host_name();
        if !recipe.hosts.is_empty() && recipe.host != own {
            let sites: Vec<&str> = recipe.hosts.keys().map(String::as_str).collect();
            let (sites, host) = (sites.join(", "), &recipe.host);
            return Err(RunError::user_with_hint(
                format!("{sites} is served on the loopback of {host}: it cannot be fetched from {own}"),
                format!("run workers on {host} alone, or without `sites`"),
            ));
        }
        recipe.check_process(self.env)?;
        let (scratch, hub) = (self.settings.scratch.clone(), self.settings.hub.clone());
        let base = match recipe.sent.clone() {
            None => recipe.base().into(),
            Some(sent) => {
                let (dir, scratch) = (self.settings.dir.clone(), scratch.clone());
                blocking(move || sent_inputs::receive(&sent, &dir, &scratch)).await??
            }
        };
        let files = Files { base, scratch, hub };
        let (pipeline, nodes) = recipe.rebuild(self.registry, self.env, &files)?;
        (self.learn)(&pipeline.secrets);
        let settings = Settings {
            clock: recipe.clock(),
            hosts: Arc::new(recipe.hosts.clone()),
            ..self.settings.clone()
        };
        let began = Clock::at_micros(recipe.began);
        let (registry, runtime) = (self.registry, self.runtime.clone());
        let inputs = UnitInputs { pipeline: &pipeline, registry, settings: &settings, files, runtime, began };
        let progress = Progress::new(recipe.stage(), self.observer.clone());
        let steps = inputs.steps(&nodes, &progress, cancel).await?;
        let dataset = settings.dir.join(recipe.folder());
        let retry = recipe.retry.as_ref().map_or(0, |retry| retry.number);
        let starter = SplitStarter::elsewhere(&dataset, recipe.tables.clone(), retry);
        let records = SplitRecords::new(&dataset, &recipe.fingerprint);
        let mut prepared = Prepared::new(steps, starter, Some(records));
        if let Some(earlier) = &recipe.earlier {
            prepared.take_over(settings.dir.join(earlier))?;
        }
        if let Some(pass) = &recipe.pass {
            prepared = prepared.in_pass(OpenPass::new(&settings.dir, pass));
        }
        if let (Some(retry), Some(last)) = (&recipe.retry, nodes.last()) {
            let made = blocking(move || Dataset::open(dataset)).await??;
            prepared = prepared.in_retry(Picked::new(made, &pipeline.nodes[*last], retry)?);
        }
        Ok(prepared)
    }
}
