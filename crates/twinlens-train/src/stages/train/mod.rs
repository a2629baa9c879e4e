//! The stage `train`: trains a CLIP model on pairs.

mod check;
mod options;
mod run;

use crate::stages::inputs;
use async_trait::async_trait;
use run::{EVALUATIONS, Run};
use std::collections::BTreeSet;
use twinlens_dataset::contracts;
use twinlens_model::{Clip, TOKENIZER_FILE};
use twinlens_pipeline::evaluation::Evaluation;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

pub use options::Train;

impl<E: Evaluation<Clip>> StageKind for Train<E> {
    const KIND: &'static str = "train";
    const ABOUT: &'static str = "Trains a CLIP model on image-text pairs";
    const EXAMPLE: &'static str = r#"[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
model = "vit-tiny-64"
epochs = 20
"#;
    const VERSION: u32 = 2;
}

impl<E: Evaluation<Clip>> Stage for Train<E> {
    fn inputs(&self) -> Vec<Input> {
        let pairs = self.pairs().into_iter().map(|(input, _)| input).filter(|input| !inputs::is_files(input));
        let models = self.models().filter(|model| !inputs::is_directory(model)).cloned();
        let evaluated = self.evaluate.iter().flat_map(Evaluation::inputs);
        let mut seen = BTreeSet::new();
        let all = pairs.chain(models).chain(evaluated);
        all.filter(|input| seen.insert(input.name().to_owned())).collect()
    }

    fn files(&self) -> Vec<Located<String>> {
        let files = self.pairs().into_iter().map(|(input, _)| input.0);
        let files = files.filter(|name| inputs::is_files(&Input(name.clone())));
        let directory = |input: &Input, file: &str| {
            let name = format!("{}/{file}", input.name().trim_end_matches('/'));
            inputs::is_directory(input).then(|| Located::new(name, input.0.span()))
        };
        let models = [
            directory(&self.tokenizer, TOKENIZER_FILE),
            self.from.as_ref().and_then(|from| directory(from, "")),
        ];
        // Files of the hub do not change while they are in the cache.
        files.chain(models.into_iter().flatten()).filter(|name| !is_hub_name(name)).collect()
    }

    fn follows(&self) -> bool {
        *self.follow
    }

    fn side_tables(&self) -> &'static [&'static str] {
        if self.evaluate.is_some() { &[EVALUATIONS] } else { &[] }
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let faults = self.faults(inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let width = self.config().map_err(|fault| vec![fault])?.embed;
        let tables = Tables::main(contracts::with_embed_width(contracts::train_log(), width));
        Ok(match self.evaluate {
            Some(_) => tables.with(EVALUATIONS, contracts::evaluations()),
            None => tables,
        })
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

#[async_trait]
impl<E: Evaluation<Clip>> Job for Train<E> {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let work = output.work_dir()?;
        if !output.is_done(0) {
            let run = Run {
                stage: self.clone(),
                config: self.config().map_err(|fault| RunError::Internal(fault.message))?,
                cx: cx.clone(),
                inputs: inputs.to_vec(),
                work: work.clone(),
            };
            let split = output.split(0, "model and log");
            let split = twinlens_pipeline::blocking(move || run.run(split)).await??;
            output.commit(split).await?;
        }
        // Checkpoints and cached images are no longer needed.
        std::fs::remove_dir_all(&work).map_err(|error| RunError::io(work, error))
    }
}
