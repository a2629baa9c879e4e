//! The tables that the sets of an evaluation name.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::SchemaRef;
use twinlens_pipeline::{Input, InputData, Inputs, Ports, RunError, TableInput};

/// Columns by the name of the input; an input whose columns are not known is left out.
pub(crate) type Schemas = BTreeMap<String, SchemaRef>;

/// The handles of the inputs that sets name, by name.
pub(crate) struct NamedInputs(BTreeMap<String, TableInput>);

impl NamedInputs {
    pub(crate) fn declare(ports: &mut Ports<'_>, inputs: impl IntoIterator<Item = Input>) -> Self {
        Self(inputs.into_iter().map(|input| (input.name().to_string(), ports.table(&input))).collect())
    }

    pub(crate) fn schemas(&self, ports: &Ports<'_>) -> Schemas {
        self.0.iter().filter_map(|(name, table)| Some((name.clone(), ports.schema(table)?))).collect()
    }

    /// The tables as they are opened for the run.
    pub(crate) fn open(&self, inputs: &Inputs) -> Vec<InputData> {
        self.0.values().map(|table| inputs.get(table).clone()).collect()
    }
}

/// The dataset of the input that an option names.
pub(crate) fn input<'a>(inputs: &'a [InputData], name: &Input) -> Result<&'a InputData, RunError> {
    let input = inputs.iter().find(|input| input.name == name.name());
    let input =
        input.ok_or_else(|| RunError::Internal(format!("the input `{}` was not declared", name.name())))?;
    match input.view {
        None => Ok(input),
        Some(_) => Err(RunError::user(format!(
            "`{}` is a view over the run's statistics: it holds neither images nor a model",
            name.name()
        ))),
    }
}
