//! The stage `zero-shot`: classification by class names that the model was not trained on.
//!
//! Sets that share an input are evaluated in one pass over it, so that each image is decoded and
//! encoded once. A set is one split; a killed evaluation resumes with the sets that are not
//! committed. A set that cannot be evaluated, or whose data are missing, is skipped with a warning.

mod check;
mod declared;
mod group;
mod job;
mod options;
mod overlap;
mod select;
mod set_results;
mod task;
mod thumbnails;

use twinlens_dataset::contracts;
use twinlens_pipeline::{Located, Ports, SortKey, StageKind, Work};

use crate::classify::set_inputs;
use crate::inputs::NamedInputs;
use crate::results::{CALIBRATION, EXAMPLES, PER_CLASS, PREDICTIONS, WARNINGS};
use crate::set::SetOptions;
use crate::sets::DataFiles;
use job::ZeroShotJob;
pub use options::ZeroShot;

impl StageKind for ZeroShot {
    type Options = Self;
    const NAME: &'static str = "zero-shot";
    const EXAMPLE: &'static str = r#"[stages.zero_shot]
kind = "zero-shot"
model = "clip"
data = "sets"
sets = [
    "cifar10",
    "./my-classes/",
    { name = "groups", input = "held_out", label = "group", main_metric = "mean_per_class" },
    { name = "digits", input = "digits/test.parquet", label = "label", templates = ["a photo of the number: \"{}\"."] },
]
prompts = ["{}", "a photo of a {}.", "ensemble"]
"#;
    const VERSION: u32 = 4;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let described: Vec<&SetOptions> = options.described().collect();
        let inputs = NamedInputs::declare(ports, set_inputs(described.into_iter()));
        let model = ports.model(&options.model);
        let data = options.data.as_ref().map(|data| data.as_str());
        for entry in options.sets.iter().filter(|set| set.described().is_none()) {
            let set = Located::new(entry.name().to_string(), entry.span());
            DataFiles { set: &set, data }.declare(ports);
        }
        let faults = check::faults(&options, &inputs.schemas(ports));
        faults.into_iter().for_each(|fault| ports.fault(fault));
        ports.output(contracts::accuracy(), SortKey::AsGiven);
        ports.side_table(PER_CLASS, contracts::per_class());
        ports.side_table(PREDICTIONS, contracts::predictions());
        ports.side_table(CALIBRATION, contracts::calibration());
        ports.side_table(WARNINGS, contracts::warnings());
        ports.side_table(EXAMPLES, contracts::examples());
        ports.rejects(contracts::pair_texts());
        Some(Work::job(ZeroShotJob { options, inputs, model }))
    }
}
