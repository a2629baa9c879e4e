//! The stage `retrieval`: finding images by their captions and captions by their images, among all
//! of a set.
//!
//! A set is one split. Vectors go to files of the stage's work folder and are compared block by
//! block, so that memory holds two blocks and a few bytes for each image and caption. What exactly
//! is counted is said in [`crate::metrics::retrieval`].

mod captions;
mod pass;
mod ranks;

use std::collections::BTreeSet;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::suggest::{did_you_mean, list_names};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use crate::images::ImageSource;
use crate::model::{self, Model, input};
use crate::options::{check_limits, check_positive};
use crate::prompts::check_templates;
use crate::set::check_set_names;

/// Finds images by captions, and captions by images. Recall@k of captions that find their image is
/// `image_retrieval_recall@k`; that of images that find at least one of their captions is
/// `text_retrieval_recall@k`, as in CLIP_benchmark. Intervals come of a bootstrap over images, with
/// all captions of each.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retrieval {
    /// A `train` stage, or the path of a folder (`./models/b32`): this program's own, Hugging
    /// Face's or open_clip's; or a model of the Hugging Face hub
    /// (`hf://openai/clip-vit-base-patch32`).
    model: Input,
    /// The sets.
    sets: Located<Vec<RetrievalSet>>,
    /// What is made of a caption before it is encoded: `{}` stands for the caption.
    #[serde(default = "template")]
    template: Located<String>,
    /// The places within which a thing counts as found.
    #[serde(default = "ks")]
    ks: Located<Vec<usize>>,
    /// Images, or captions, in one forward pass.
    #[serde(default = "batch_size")]
    batch_size: Located<usize>,
    /// Bounds on the images: what breaks them is rejected undecoded.
    #[serde(default)]
    limits: Option<Located<Limits>>,
    /// Where it computes: `cpu`, `cuda:0` (a build with `--features cuda`), or `auto`: the first
    /// GPU where there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    device: Located<DeviceOption>,
    /// What matrix products are computed in: `f32`, or on a GPU `bf16` or `f16`.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    precision: Located<Precision>,
}

/// Images and their captions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetrievalSet {
    /// Its name in the results.
    name: Located<String>,
    /// The images, or their embeddings out of an `embed` stage. Rows with the same image (bit for
    /// bit) are one image with the captions of all of them.
    input: Input,
    /// The column of captions: a list of texts, or a text whose lines are captions.
    #[serde(default = "caption")]
    captions: Located<String>,
    /// The column that holds the images. [default: image, or embedding where there are none]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<Located<String>>,
}

fn template() -> Located<String> {
    Located::without_span("{}".into())
}
fn ks() -> Located<Vec<usize>> {
    Located::without_span(vec![1, 5, 10])
}
fn batch_size() -> Located<usize> {
    Located::without_span(128)
}
fn caption() -> Located<String> {
    Located::without_span("caption".into())
}

impl StageKind for Retrieval {
    const KIND: &'static str = "retrieval";
    const ABOUT: &'static str =
        "Finds images by their captions and captions by their images, and reports recall@k.";
    const EXAMPLE: &'static str = r#"[stages.found]
kind = "retrieval"
model = "clip"
sets = [{ name = "flickr30k", input = "flickr30k_test", captions = "captions" }]
"#;
    const VERSION: u32 = 1;
}

impl Retrieval {
    fn set_faults(set: &RetrievalSet, inputs: &[InputTables]) -> Vec<Fault> {
        let known = inputs.iter().find(|input| input.input.name() == set.input.name());
        let Some(schema) = known.and_then(|input| input.schema.clone()) else { return Vec::new() };
        let named = set.image.as_ref().map(|column| column.as_str());
        let span = set.image.as_ref().map_or(set.input.0.span(), Located::span);
        let image = ImageSource::resolve(&schema, named).err();
        let image = image.map(|found| found.hint.into_iter().fold(Fault::at(span, found.why), Fault::hint));
        image.into_iter().chain(Self::caption_fault(set, &schema)).collect()
    }

    fn caption_fault(set: &RetrievalSet, schema: &Schema) -> Option<Fault> {
        let name = set.captions.value();
        let at = if set.captions.span().is_empty() { set.input.0.span() } else { set.captions.span() };
        match schema.field_with_name(name).map(|field| field.data_type()) {
            Ok(kind) if captions::holds(kind) => None,
            Ok(kind) => Some(
                Fault::at(at, format!("the column `{name}` is of type {kind}"))
                    .label("expected text, or a list of texts"),
            ),
            Err(_) => {
                let names = || schema.fields().iter().map(|field| field.name().as_str());
                let fault = Fault::at(at, format!("`{}` has no column `{name}`", set.input.name()));
                let fault = fault.label(format!("the columns are {}", list_names(names())));
                Some(did_you_mean(name, names()).into_iter().fold(fault, Fault::hint))
            }
        }
    }
}

impl Stage for Retrieval {
    fn inputs(&self) -> Vec<Input> {
        let model = (!self.model.is_path()).then(|| self.model.clone());
        let mut seen = BTreeSet::new();
        let all = self.sets.iter().map(|set| set.input.clone()).chain(model);
        all.filter(|input| seen.insert(input.name().to_string())).collect()
    }

    fn files(&self) -> Vec<Located<String>> {
        model::model_files(&self.model)
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = model::check_model(&self.model, inputs);
        let names = self.sets.iter().map(|set| (set.name.as_str(), set.name.span()));
        faults.extend(check_set_names(self.sets.span(), names));
        faults.extend(self.sets.iter().flat_map(|set| Self::set_faults(set, inputs)));
        if let Err(why) = check_templates(std::slice::from_ref(&self.template)) {
            faults.push(Fault::at(self.template.span(), why));
        }
        faults.extend(model::check_compute(&self.device, &self.precision));
        faults.extend(check_positive("batch_size", &self.batch_size));
        if self.ks.iter().min().is_none_or(|least| *least == 0) {
            faults.push(
                Fault::at(self.ks.span(), "`ks` are places from 1 on").label("for instance [1, 5, 10]"),
            );
        }
        faults.extend(check_limits(self.limits.as_ref()));
        if faults.is_empty() { Ok(Tables::main(contracts::accuracy())) } else { Err(faults) }
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

#[async_trait]
impl Job for Retrieval {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let pending: Vec<usize> = (0..self.sets.len()).filter(|set| !output.is_done(*set as u64)).collect();
        if pending.is_empty() {
            return Ok(());
        }
        let mut rows = 0;
        for set in &pending {
            rows += input(inputs, &self.sets[*set].input)?.rows();
        }
        cx.progress.total(rows);
        let mut model = Model::open(&self.model, (*self.device, *self.precision), cx, inputs).await?;
        if !model.clip.config().objective.embeds_texts() {
            return Err(RunError::user(format!(
                "`{}` embeds no texts: it cannot find images by captions",
                model.name
            )));
        }
        let work = output.work_dir()?;
        for set in pending {
            let split = output.split(set as u64, self.sets[set].name.value());
            let (options, cx, inputs, work) = (self.clone(), cx.clone(), inputs.to_vec(), work.clone());
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

/// Whether a type is text.
fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}
