//! The stage `scaling`: how the error decreases with the compute of the model (figure 9 of the CLIP
//! paper), and what it will be for a larger one.
//!
//! For each evaluation set, prompt set and metric a line is fitted to ln(1 - value) over
//! ln(compute), without the largest models. The table has a row per model with the prediction of
//! the line and its interval; the models that were held out show how good the prediction is.

mod fit;
mod student;
mod table;

use std::fs;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::{cast, col, ident};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::{Dataset, MAIN, contracts};
use twinlens_model::{CONFIG_FILE, ClipConfig};
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{
    ArtifactInput, Fault, Frames, Input, InputData, Inputs, Located, Ports, Query, RunContext, RunError,
    SortKey, StageKind, TableInput, Work,
};

use table::{Costed, Measured};

/// Fits error = a * compute^-b to trained models, and predicts the error of the largest.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// The `train` stages; all variants of a swept stage are used.
    models: Located<Vec<Input>>,
    /// The accuracies of these models: `zero-shot` stages, or queries that keep their columns.
    accuracy: Located<Vec<Input>>,
    /// Number of largest model sizes to leave out of the fit and predict.
    #[serde(default = "one")]
    hold_out: Located<usize>,
    /// Untrained models to predict: names of presets.
    #[serde(default)]
    predict: Vec<Located<String>>,
    /// The measure of compute that the error is fitted over.
    #[serde(default)]
    compute: Compute,
}

fn one() -> Located<usize> {
    Located::without_span(1)
}

/// A measure of compute, in GFLOP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compute {
    /// The forward pass of one pair, as in figure 9 of the CLIP paper.
    #[default]
    Forward,
    /// The whole training: three forward passes per pair seen (the backward pass costs two). An
    /// untrained model is assumed to see as many pairs as the largest trained one.
    Training,
}

impl Compute {
    fn name(self) -> &'static str {
        match self {
            Compute::Forward => "forward",
            Compute::Training => "training",
        }
    }

    fn of(self, gflops: f64, samples: Option<i64>) -> Option<f64> {
        match self {
            Compute::Forward => Some(gflops),
            Compute::Training => samples.map(|samples| 3.0 * gflops * samples as f64),
        }
    }
}

/// The side table of fits.
const FIT: &str = "scaling_fit";
/// The columns read from tables of accuracies.
const TEXTS: [&str; 4] = ["set", "prompts", "metric", "model"];
const VALUES: [&str; 3] = ["value", "ci_low", "ci_high"];

impl StageKind for Scaling {
    type Options = Self;
    const NAME: &'static str = "scaling";
    const EXAMPLE: &'static str = r#"[stages.scaling]
kind = "scaling"
models = ["clip"]
accuracy = ["zero_shot"]
hold_out = 1
"#;
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        for (list, what) in [(&options.models, "models"), (&options.accuracy, "accuracy")] {
            if list.is_empty() {
                ports.fault(
                    Fault::at(list.span(), format!("`{what}` is empty")).label("expected at least one stage"),
                );
            }
        }
        let mut models = Vec::new();
        for model in options.models.iter() {
            match ports.model(model) {
                ArtifactInput::Dataset(table) => models.push(table),
                ArtifactInput::Folder(_) | ArtifactInput::Step(..) => ports.fault(
                    model
                        .fault(format!("`{}` is not a stage", model.name()))
                        .label("expected a `train` stage: its config gives the cost of the model"),
                ),
            }
        }
        let accuracy: Vec<TableInput> = options.accuracy.iter().map(|table| ports.table(table)).collect();
        for (input, table) in options.accuracy.iter().zip(&accuracy) {
            let Some(schema) = ports.schema(table) else { continue };
            let columns = TEXTS.into_iter().chain(VALUES);
            let missing: Vec<&str> = columns.filter(|name| schema.field_with_name(name).is_err()).collect();
            if !missing.is_empty() {
                let fault = input.fault(format!("`{}` is not a table of accuracies", input.name()));
                ports.fault(fault.label(format!("it has no column {}", missing.join(", "))));
            }
        }
        for name in &options.predict {
            if let Err(error) = ClipConfig::preset(name) {
                let fault = Fault::at(name.span(), error.to_string());
                ports.fault(did_you_mean(name, ClipConfig::presets()).into_iter().fold(fault, Fault::hint));
            }
        }
        models.iter().chain(&accuracy).for_each(|table| ports.reads_all_variants(table));
        ports.output(contracts::scaling(), SortKey::AsGiven);
        ports.side_table(FIT, contracts::scaling_fit());
        Some(Work::query(ScalingQuery { options, models, accuracy }))
    }
}

/// The query of a `scaling` stage.
struct ScalingQuery {
    options: Scaling,
    models: Vec<TableInput>,
    accuracy: Vec<TableInput>,
}

#[async_trait]
impl Query for ScalingQuery {
    async fn tables(&self, cx: &RunContext, inputs: &Inputs) -> Result<Frames, RunError> {
        let options = &self.options;
        let mut models = Vec::new();
        for model in &self.models {
            for dataset in inputs.get(model).datasets() {
                models.push(options.sized(cx, dataset).await?);
            }
        }
        let largest = models.iter().max_by(|a, b| a.gflops.total_cmp(&b.gflops));
        let samples = largest.and_then(|model| model.samples);
        for name in &options.predict {
            models.push(options.preset(name, samples)?);
        }
        let mut measured = Vec::new();
        for table in &self.accuracy {
            measured.extend(accuracies(cx, inputs.get(table)).await?);
        }
        measured.retain(|row| models.iter().any(|model| model.name == row.model));
        if measured.is_empty() {
            let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            return Err(RunError::user_with_hint(
                format!("there are no accuracies of the models {}", names.join(", ")),
                "the column `model` of the accuracies must name the stage that trained the model",
            ));
        }
        let (rows, fits) = table::build(&models, &measured, *options.hold_out, options.compute.name());
        let frame = |batch| Ok::<_, RunError>(cx.session.read_batch(batch)?);
        let internal = |error: arrow::error::ArrowError| RunError::Internal(error.to_string());
        let main = frame(table::rows(&rows).map_err(internal)?)?;
        Ok(Frames::main(main).with(FIT, frame(table::fits(&fits).map_err(internal)?)?))
    }
}

impl Scaling {
    /// The cost of a trained model.
    async fn sized(&self, cx: &RunContext, dataset: &Dataset) -> Result<Costed, RunError> {
        let path = dataset.artifact(CONFIG_FILE)?;
        let text = fs::read(&path).map_err(|error| RunError::io(&path, error))?;
        let config: ClipConfig = serde_json::from_slice(&text)
            .map_err(|error| RunError::user(format!("{}: {error}", path.display())))?;
        let seen = ident("samples_seen");
        let log = dataset.frame(&cx.session, MAIN).await?;
        let seen =
            log.aggregate(vec![], vec![max(cast(seen, DataType::Int64)).alias("seen")])?.collect().await?;
        let samples =
            seen.iter().find_map(|batch| batch.column(0).as_primitive::<Int64Type>().iter().flatten().next());
        self.model(&dataset.state().begin.stage, &config, samples)
    }

    fn preset(&self, name: &str, samples: Option<i64>) -> Result<Costed, RunError> {
        let config = ClipConfig::preset(name).map_err(|error| RunError::user(error.to_string()))?;
        self.model(name, &config, samples)
    }

    fn model(&self, name: &str, config: &ClipConfig, samples: Option<i64>) -> Result<Costed, RunError> {
        let gflops = config.profile().flops() as f64 / 1e9;
        let Some(compute) = self.compute.of(gflops, samples) else {
            return Err(RunError::user(format!(
                "the training log of `{name}` does not record how many pairs it saw"
            )));
        };
        Ok(Costed { name: name.into(), gflops, samples, compute })
    }
}

/// The rows of a table of accuracies.
async fn accuracies(cx: &RunContext, input: &InputData) -> Result<Vec<Measured>, RunError> {
    let mut columns: Vec<_> =
        TEXTS.iter().map(|name| cast(col(*name), DataType::Utf8).alias(*name)).collect();
    columns.extend(VALUES.iter().map(|name| cast(col(*name), DataType::Float64).alias(*name)));
    let mut rows = Vec::new();
    for batch in input.frame(&cx.session).await?.select(columns)?.collect().await? {
        let [set, prompts, metric, model] =
            [0, 1, 2, 3].map(|column| batch.column(column).as_string::<i32>().clone());
        let [value, low, high] =
            [4, 5, 6].map(|column| batch.column(column).as_primitive::<Float64Type>().clone());
        let text = |column: &arrow::array::StringArray, row: usize| {
            if column.is_null(row) { String::new() } else { column.value(row).to_string() }
        };
        let number = |column: &arrow::array::Float64Array, row: usize| {
            (!column.is_null(row)).then(|| column.value(row))
        };
        for row in 0..batch.num_rows() {
            let Some(value) = number(&value, row).filter(|value| value.is_finite()) else { continue };
            rows.push(Measured {
                set: text(&set, row),
                prompts: text(&prompts, row),
                metric: text(&metric, row),
                model: text(&model, row),
                error: 1.0 - value,
                // The lower bound of the accuracy is the upper bound of the error.
                low: number(&high, row).map(|high| 1.0 - high),
                high: number(&low, row).map(|low| 1.0 - low),
            });
        }
    }
    Ok(rows)
}
