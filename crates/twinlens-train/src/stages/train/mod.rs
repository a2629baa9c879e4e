//! The stage `train`: trains a CLIP model on pairs.

mod check;
mod continued;
mod options;
mod run;

use crate::stages::inputs::PairsInput;
use crate::stages::start;
use async_trait::async_trait;
use options::TrainStageOptions;
use run::{EVALUATIONS, Run, Training};
use std::path::PathBuf;
use std::sync::Arc;
use twinlens_dataset::contracts;
use twinlens_model::Clip;
use twinlens_pipeline::evaluation::{Evaluation, Never};
use twinlens_pipeline::{
    ArtifactInput, Inputs, Job, Output, Ports, Product, RunContext, RunError, SharedJob, SortKey, StageKind,
    Work,
};

/// How many trainings of a stage are kept, the current one included: a model takes hours.
const GENERATIONS: usize = 3;

/// `train` as it runs.
pub struct Train<E = Never>(Arc<Training<E>>);

impl<E: Evaluation<Clip>> StageKind for Train<E> {
    type Options = TrainStageOptions<E>;
    const NAME: &'static str = "train";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = r#"[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
model = "vit-tiny-64"
epochs = 20
"#;
    const PRODUCT: Product = Product::Model;

    fn plan(mut options: TrainStageOptions<E>, ports: &mut Ports<'_>) -> Option<Work> {
        // Plain data, which serialises.
        let written = serde_json::to_value(&options).unwrap_or_default();
        let mut pairs = Vec::new();
        for (input, weight) in options.pairs() {
            let names = (&options.caption, &options.image);
            let input = PairsInput::declare(ports, &input, &options.columns(), names);
            if let (PairsInput::Table(table), true) = (&input, *options.follow) {
                ports.streams_input(table);
            }
            pairs.push((input, weight));
        }
        let tokenizer = options.tokenizer.as_ref().map(|tokenizer| ports.tokenizer(tokenizer));
        let from = options.from.as_ref().map(|from| ports.model(from));
        let evaluation = options.evaluate.take().and_then(|evaluate| evaluate.plan(ports));
        options.check(ports);
        let config = options.config().map_err(|fault| ports.fault(fault)).ok()?;
        for parts in options.from_parts.iter().chain(&options.freeze) {
            config.iter().for_each(|config| start::check(ports, parts, config));
        }
        ports.generations(GENERATIONS);
        ports.ranks(SharedJob { transport: options.ranks.as_ref().and_then(|ranks| ranks.transport()) });
        let width = match (&config, &from) {
            (Some(config), _) => Some(config.embed),
            (None, Some(ArtifactInput::Dataset(table))) => {
                ports.schema(table).and_then(|schema| contracts::embed_width(&schema))
            }
            _ => None,
        };
        let log = contracts::train_log();
        let log = width.map_or(log.clone(), |width| contracts::with_embed_width(log, width));
        ports.output(log, SortKey::AsGiven);
        ports.rejects(contracts::pair_texts());
        if evaluation.is_some() {
            ports.side_table(EVALUATIONS, contracts::evaluations());
        }
        let training = Training { options, written, config, pairs, tokenizer, from, evaluation };
        Some(Work::job(Self(Arc::new(training))))
    }
}

impl<E> Train<E> {
    fn prepare(&self, cx: &RunContext, inputs: &Inputs, work: PathBuf) -> Run<E> {
        Run { training: self.0.clone(), cx: cx.clone(), inputs: inputs.clone(), work }
    }
}

#[async_trait]
impl<E: Evaluation<Clip>> Job for Train<E> {
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError> {
        let work = output.work_dir()?;
        if !output.is_done(0) {
            let run = self.prepare(cx, inputs, work.clone());
            let split = output.split(0, "model and log");
            let split = twinlens_pipeline::blocking(move || run.run(split)).await??;
            output.commit(split).await?;
        }
        // Checkpoints and cached images are no longer needed.
        std::fs::remove_dir_all(&work).map_err(|error| RunError::io(work, error))
    }

    async fn follow(&self, cx: &RunContext, inputs: &Inputs) -> Result<(), RunError> {
        // The work directory of the stage is rank 0's. Nothing here outlives the process.
        let work = cx.files.scratch.join("rank").join(&cx.stage);
        let run = self.prepare(cx, inputs, work.clone());
        let followed = twinlens_pipeline::blocking(move || run.follow()).await?;
        // What failed before there was a folder is more useful than that there is none.
        followed.and(std::fs::remove_dir_all(&work).map_err(|error| RunError::io(work, error)))
    }
}
