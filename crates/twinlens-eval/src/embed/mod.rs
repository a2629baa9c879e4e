//! The stage `embed`: computes the embeddings of images once, so that new prompts, probes, searches
//! and filters by `clip_score` need not encode them again.
//!
//! A split is a range of input rows; it is committed as a whole, and recomputed as a whole after a
//! kill. Within a split the model gets full batches, so that the output depends neither on the
//! number of threads nor on memory.

mod earlier;
mod options;
mod pass;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{Dataset, MAIN, SplitWriter, contracts};
use twinlens_model::Clip;
use twinlens_model::weights::FOLDER_FILES;
use twinlens_pipeline::files::Files;
use twinlens_pipeline::{
    ArtifactInput, Fault, Inputs, Located, Ports, Required, RunContext, RunError, SortKey, SplitMaker,
    SplitRows, Splits, StageKind, TakesOver, Work,
};

use crate::images::ImageSource;
use crate::model::{self, Model};
use crate::options::{check_limits, check_positive};
use crate::vectors::{self, CLIP_SCORE, EMBEDDING, EMBEDDING_MODEL, IMAGE_HASH, TEXT_EMBEDDING};
use earlier::Earlier;
pub use options::Embed;
use pass::{Embedder, Pass};

impl StageKind for Embed {
    type Options = Self;
    const NAME: &'static str = "embed";
    const EXAMPLE: &'static str = r#"[stages.vectors]
kind = "embed"
input = "images"
model = "clip"
captions = "caption"

[stages.good]
kind = "filter"
input = "vectors"
where = "clip_score > 0.25"
"#;
    const VERSION: u32 = 2;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        let model = ports.model(&options.model);
        let mut faults: Vec<Fault> =
            model::check_compute(&options.device, &options.precision).into_iter().collect();
        faults.extend(check_positive("batch_size", &options.batch_size));
        faults.extend(check_positive("split_rows", &options.split_rows));
        faults.extend(check_limits(options.limits.as_ref()));
        if options.text_embeddings && options.captions.is_none() {
            let message = "`text_embeddings` needs `captions`, the column of the texts";
            faults.push(Fault::at(options.model.0.span(), message));
        }
        let schema = ports.schema(&input);
        if let Some(schema) = &schema {
            faults.extend(options.image_fault(schema));
        }
        faults.into_iter().for_each(|fault| ports.fault(fault));
        if let Some(captions) = &options.captions {
            ports.text(&input, captions, Required::Yes);
        }
        let width = options.width(ports, &model);
        let main = schema.zip(width).map(|(schema, width)| options.schema(&schema, width));
        ports.output(main, SortKey::AsGiven);
        ports.rejects(contracts::pair_texts());
        ports.split_rows(usize::try_from(*options.split_rows).unwrap_or(usize::MAX));
        ports.takes_over(TakesOver::Costly(&[]));
        Some(Work::splits(EmbedSplits { options, model }))
    }
}

/// `embed` as it runs.
struct EmbedSplits {
    options: Embed,
    model: ArtifactInput,
}

impl Embed {
    /// The embedding width known before the run: that of the training, that of the model's
    /// directory if files may be opened, or the option. `None` after a fault, and before it can be
    /// known.
    fn width(&self, ports: &mut Ports<'_>, model: &ArtifactInput) -> Option<usize> {
        let name = self.model.name();
        let trained = match model {
            ArtifactInput::Dataset(training) | ArtifactInput::Step(training, _) => {
                let schema = ports.schema(training)?;
                Some(contracts::embed_width(&schema))
            }
            ArtifactInput::Folder(written) => match ports.files() {
                Some(files) => match folder_width(files, written) {
                    Ok(width) => Some(Some(width)),
                    Err(error) => {
                        ports.fault(Fault::at(written.span(), error.to_string()));
                        return None;
                    }
                },
                None if self.width.is_none() => return None,
                None => None,
            },
        };
        let fault = match (trained.flatten(), &self.width) {
            (Some(trained), Some(given)) if trained != **given => {
                Fault::at(given.span(), format!("the embeddings of `{name}` have a width of {trained}"))
            }
            (Some(trained), _) => return Some(trained),
            (None, Some(given)) if (1..=1 << 16).contains(given.value()) => return Some(**given),
            (None, Some(given)) => {
                Fault::at(given.span(), "`width` is out of range").label("expected 1 to 65536")
            }
            (None, None) => {
                let message = format!("the width of the embeddings of `{name}` is not known");
                Fault::at(self.model.0.span(), message).hint("set it, as in `width = 512`")
            }
        };
        ports.fault(fault);
        None
    }

    fn image_fault(&self, schema: &Schema) -> Option<Fault> {
        match ImageSource::resolve(schema, self.image.as_ref().map(|column| column.as_str())) {
            Ok(ImageSource::Images(_)) => None,
            Ok(ImageSource::Embeddings) => {
                Some(self.input.fault("the input has embeddings instead of images"))
            }
            Err(found) => Some(found.at(self.image.as_ref().map_or(self.input.0.span(), Located::span))),
        }
    }

    fn schema(&self, from: &Schema, width: usize) -> SchemaRef {
        let mut added = vec![
            self.dtype.field(EMBEDDING, width),
            Field::new(EMBEDDING_MODEL, DataType::Utf8, true),
            Field::new(IMAGE_HASH, DataType::Utf8, true),
        ];
        if self.text_embeddings {
            added.push(self.dtype.field(TEXT_EMBEDDING, width));
        }
        if self.captions.is_some() {
            added.push(Field::new(CLIP_SCORE, DataType::Float32, true));
        }
        let kept = from.fields().iter().filter(|field| {
            !holds_image_bytes(field.data_type()) && !added.iter().any(|added| added.name() == field.name())
        });
        let fields: Vec<_> = kept.cloned().chain(added.iter().cloned().map(Arc::new)).collect();
        Arc::new(Schema::new_with_metadata(fields, from.metadata().clone()))
    }
}

/// The width of the embeddings of a model in a directory or on the hub, of which no more than the
/// configuration is read.
fn folder_width(files: &Files, written: &str) -> Result<usize, RunError> {
    let configurations = FOLDER_FILES.map(|(groups, _)| [groups[0]]);
    let layouts = [0, 1].map(|layout| (&configurations[layout][..], &[][..]));
    let folder = files.model(written, &layouts)?;
    let config = Clip::describe_config(&folder).map_err(|error| RunError::user(error.to_string()))?;
    Ok(config.embed)
}

/// Checks that the model matches the options.
fn check_model(stage: &Embed, model: &Model, width: usize) -> Result<(), RunError> {
    let has = model.clip.config().embed;
    if has != width {
        let message = format!("the embeddings of `{}` have a width of {has}, not {width}", model.name);
        return Err(RunError::user_with_hint(message, format!("set `width = {has}`")));
    }
    if stage.captions.is_some() && !model.clip.config().objective.embeds_texts() {
        let message =
            format!("`{}` does not embed texts, so captions cannot be compared with images", model.name);
        return Err(RunError::user_with_hint(message, "remove `captions`"));
    }
    Ok(())
}

#[async_trait]
impl Splits for EmbedSplits {
    async fn open(
        &self,
        cx: &RunContext,
        inputs: &Inputs,
        earlier: Option<&Dataset>,
    ) -> Result<Box<dyn SplitMaker>, RunError> {
        let options = self.options.clone();
        let model = Model::open(&self.model, (*options.device, *options.precision), cx, inputs).await?;
        let (earlier, budget) = (earlier.cloned(), cx.bytes_in_flight / 4);
        let open = move || {
            let earlier = Earlier::open(earlier.as_ref(), &options, budget)?.map(Mutex::new);
            Ok::<_, RunError>(Embedder { options, model, earlier })
        };
        Ok(Box::new(EmbedMaker(Arc::new(twinlens_pipeline::blocking(open).await??))))
    }
}

/// Embeds the rows of splits.
struct EmbedMaker(Arc<Embedder>);

#[async_trait]
impl SplitMaker for EmbedMaker {
    async fn make(
        &self,
        cx: &RunContext,
        rows: SplitRows<'_>,
        split: SplitWriter,
    ) -> Result<SplitWriter, RunError> {
        let width = split.schema(MAIN).and_then(|main| {
            main.field_with_name(EMBEDDING).ok().and_then(|field| vectors::width(field.data_type()))
        });
        let embedder = &self.0;
        check_model(&embedder.options, &embedder.model, width.unwrap_or_default())?;
        let (embedder, cx, input) = (embedder.clone(), cx.clone(), rows.input().clone());
        let range = rows.start..rows.end;
        // Long computations would block the threads that handle Ctrl-C.
        let work = move || Ok::<_, RunError>(Pass::new(&embedder, &cx, &input, split).run(range)?);
        twinlens_pipeline::blocking(work).await?
    }

    fn taken_over(&self) -> u64 {
        self.0
            .earlier
            .as_ref()
            .map_or(0, |earlier| earlier.lock().unwrap_or_else(PoisonError::into_inner).taken)
    }
}
