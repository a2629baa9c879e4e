//! The stage `evaluation-set`: reads the data of a declared set, in any layout, into a dataset.

use std::ops::Range;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_image::Limits;
use twinlens_pipeline::{
    Fault, Inputs, Job, Located, Output, Ports, RunContext, RunError, SortKey, StageKind, Work,
};

use super::locate::{DataFiles, LocatedSet, locate, needs_data, unknown};
use super::write::{CLASSES, classes_schema, open, schema, write};
use crate::options::{check_limits, limits_or_default};
use crate::results::{ResultWriter, WARNINGS};
use crate::trust::{SET_MISSING, Warning};

/// Reads a declared evaluation set, in any supported layout, as a dataset of images and labels.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSet {
    /// The name of a set (`twinlens sets` lists them), the path of a `.toml` file that declares
    /// one, or data without a declaration: a directory with a directory of images per class
    /// (`./my-classes/`), or a Parquet file (`./pets.parquet`). A value with a `/` is a path.
    set: Located<String>,
    /// The directory with the data of declared sets: those of `cifar10` are expected in
    /// `cifar10.parquet` or in the directory `cifar10`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Located<String>>,
    /// The split to read. [default: the one declared by the set, usually `test`; of a directory
    /// without a declaration the first of `test`, `validation`, `val`, `train` that it has]
    #[serde(default)]
    split: Option<String>,
    /// If the data are missing, write an empty dataset with a warning instead of failing.
    #[serde(default)]
    optional: bool,
    /// Limits on the images: an image beyond them is rejected before it is decoded.
    #[serde(default)]
    limits: Option<Located<Limits>>,
}

impl StageKind for EvaluationSet {
    type Options = Self;
    const NAME: &'static str = "evaluation-set";
    const EXAMPLE: &'static str = r#"
[stages.digits]
kind = "evaluation-set"
set = "mnist"
data = "sets"
"#;
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let data = options.data.as_ref().map(|data| data.as_str());
        DataFiles { set: &options.set, data }.declare(ports);
        if let Some((why, hint)) = unknown(&options.set) {
            ports.fault(Fault::at(options.set.span(), why).hint(hint));
        } else if data.is_none() && needs_data(&options.set) {
            ports.fault(without_data(&options.set, options.set.span()));
        }
        check_limits(options.limits.as_ref()).into_iter().for_each(|fault| ports.fault(fault));
        ports.output(schema(), SortKey::AsGiven);
        ports.side_table(CLASSES, classes_schema());
        ports.side_table(WARNINGS, contracts::warnings());
        Some(Work::job(EvaluationSetJob { options }))
    }
}

/// The fault of a declared set without the option `data`.
pub(crate) fn without_data(set: &str, span: Range<usize>) -> Fault {
    let hint = "write `data = \"sets\"`: the data of `cifar10` are then expected in sets/cifar10.parquet or sets/cifar10/";
    Fault::at(span, format!("`{set}` needs the option `data`")).hint(hint)
}

/// The job of an `evaluation-set` stage.
struct EvaluationSetJob {
    options: EvaluationSet,
}

#[async_trait]
impl Job for EvaluationSetJob {
    async fn run(&self, cx: &RunContext, _: &Inputs, output: &mut Output) -> Result<(), RunError> {
        let options = &self.options;
        let data = options.data.as_ref().map(|data| cx.path(data));
        let LocatedSet { set, root } =
            locate(&cx.files, &options.set, data.as_deref(), options.split.as_deref())?;
        let Some(root) = root else {
            let why = format!(
                "the data of the evaluation set `{}` are not in {}",
                set.name,
                data.unwrap_or_default().display()
            );
            if !options.optional {
                return Err(RunError::user_with_hint(why, set.how_to_get));
            }
            cx.progress.note(format!("{why}: {}", set.how_to_get));
            let mut split = output.split(0, "missing");
            split.count_rows_in(0);
            let warning =
                Warning { code: SET_MISSING, detail: format!("{why}: {}", set.how_to_get), value: 0.0 };
            let mut results = ResultWriter::new(&set.name, split);
            results.warnings(None, &[warning])?;
            return output.commit(results.into_split()).await;
        };
        let split = options.split.clone().unwrap_or_else(|| set.split.clone());
        let limits = limits_or_default(options.limits.as_ref());
        let opened = {
            let set = set.clone();
            let work = twinlens_pipeline::blocking(move || open(&set, &split, &root));
            work.await??
        };
        if set.undeclared && options.split.is_none() {
            cx.progress.note(format!("set `{}`: the split `{}` is read", set.name, set.split));
        }
        for warning in &opened.written().bound.warnings {
            cx.progress.note(format!("set `{}`: {}", set.name, warning.detail));
        }
        write(cx, &opened, &limits, output).await
    }
}
