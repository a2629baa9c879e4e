//! The stage `retrieval`: retrieves images by captions and captions by images, among all those of a
//! set.
//!
//! A set is one split. Embeddings are written to files in the stage's work directory and compared
//! block by block, so that memory holds two blocks and a few bytes per image and caption.
//! [`crate::metrics::retrieval`] defines the metrics.

mod captions;
mod options;
mod pass;
mod ranks;

use async_trait::async_trait;
use twinlens_dataset::contracts;
use twinlens_pipeline::{
    ArtifactInput, ColumnName, ColumnType, Fault, Inputs, Job, Located, Output, Ports, Required, RunContext,
    RunError, SortKey, StageKind, Work,
};

use crate::images::ImageSource;
use crate::inputs::{NamedInputs, input};
use crate::model::{self, Model};
use crate::options::{check_limits, check_positive};
use crate::prompts::check_templates;
use crate::set::check_set_names;

pub use options::Retrieval;
pub(crate) use options::RetrievalSet;

impl StageKind for Retrieval {
    type Options = Self;
    const NAME: &'static str = "retrieval";
    const EXAMPLE: &'static str = r#"[stages.found]
kind = "retrieval"
model = "clip"
sets = [{ name = "flickr30k", input = "flickr30k_test", captions = "captions" }]
"#;
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let inputs = NamedInputs::declare(ports, options.sets.iter().map(|set| set.input.clone()));
        let model = ports.model(&options.model);
        let names = options.sets.iter().map(|set| (set.name.as_str(), set.name.span()));
        let mut faults = check_set_names(options.sets.span(), names);
        if let Err(why) = check_templates(std::slice::from_ref(&options.template)) {
            faults.push(Fault::at(options.template.span(), why));
        }
        faults.extend(model::check_compute(&options.device, &options.precision));
        faults.extend(check_positive("batch_size", &options.batch_size));
        if options.ks.iter().min().is_none_or(|least| *least == 0) {
            let fault = Fault::at(options.ks.span(), "the values of `ks` must be at least 1");
            faults.push(fault.label("for example [1, 5, 10]"));
        }
        faults.extend(check_limits(options.limits.as_ref()));
        faults.into_iter().for_each(|fault| ports.fault(fault));
        options.sets.iter().for_each(|set| check_set(set, ports));
        ports.output(contracts::accuracy(), SortKey::AsGiven);
        ports.rejects(contracts::pair_texts());
        Some(Work::job(RetrievalJob { options, inputs, model }))
    }
}

/// The job of a `retrieval` stage.
struct RetrievalJob {
    options: Retrieval,
    inputs: NamedInputs,
    model: ArtifactInput,
}

/// Checks the columns of a set.
fn check_set(set: &RetrievalSet, ports: &mut Ports<'_>) {
    let table = ports.table(&set.input);
    let Some(schema) = ports.schema(&table) else { return };
    let named = set.image.as_ref().map(|column| column.as_str());
    let span = set.image.as_ref().map_or(set.input.0.span(), Located::span);
    if let Err(found) = ImageSource::resolve(&schema, named) {
        ports.fault(found.at(span));
    }
    let at = if set.captions.span().is_empty() { set.input.0.span() } else { set.captions.span() };
    let texts = ColumnType::Other("text, or a list of texts", captions::holds);
    let captions = ColumnName::at(set.captions.value(), at).of_option("captions");
    ports.column(&table, captions, texts, Required::Yes);
}

#[async_trait]
impl Job for RetrievalJob {
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError> {
        let (options, opened) = (&self.options, self.inputs.open(inputs));
        let pending: Vec<usize> =
            (0..options.sets.len()).filter(|set| !output.is_done(*set as u64)).collect();
        if pending.is_empty() {
            return Ok(());
        }
        let mut rows = 0;
        for set in &pending {
            rows += input(&opened, &options.sets[*set].input)?.rows();
        }
        cx.progress.total(rows);
        let compute = (*options.device, *options.precision);
        let mut model = Model::open(&self.model, compute, cx, inputs).await?;
        if !model.clip.config().objective.embeds_texts() {
            return Err(RunError::user(format!(
                "`{}` does not embed texts, which `retrieval` needs",
                model.name
            )));
        }
        let work = output.work_dir()?;
        for set in pending {
            let split = output.split(set as u64, options.sets[set].name.value());
            let (options, cx, inputs, work) = (options.clone(), cx.clone(), opened.clone(), work.clone());
            let done = twinlens_pipeline::blocking(move || {
                let split = pass::run(&options, &cx, &inputs, &model, &options.sets[set], &work, split)?;
                Ok::<_, RunError>((model, split))
            });
            let (back, split) = done.await??;
            model = back;
            output.commit(split).await?;
        }
        Ok(())
    }
}
