//! Handles of declared inputs.

/// The input whose rows the stage transforms.
#[derive(Debug, Clone, Copy)]
pub struct RowsInput {
    pub(crate) port: usize,
}

/// An input that the stage reads as a table. [`crate::Inputs::get`] gives it when the stage runs.
#[derive(Debug, Clone, Copy)]
pub struct TableInput {
    pub(crate) port: usize,
    /// Its number among the tables.
    pub(crate) table: usize,
}

/// An input whose columns can be checked.
pub trait Port {
    /// Its number among the declared inputs.
    fn number(&self) -> usize;
}

impl Port for RowsInput {
    fn number(&self) -> usize {
        self.port
    }
}

impl Port for TableInput {
    fn number(&self) -> usize {
        self.port
    }
}
