//! What a kind of stage makes.

use std::fmt::{self, Display, Formatter};

/// What a kind of stage makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Tables.
    Table,
    /// The answer to a question about the run: it may read the tables `funnel` and `rejects`, and
    /// is shown when the run ends.
    Report,
    /// A model.
    Model,
    /// A tokenizer.
    Tokenizer,
}

impl Display for Product {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Product::Table => "table",
            Product::Report => "report",
            Product::Model => "model",
            Product::Tokenizer => "tokenizer",
        })
    }
}
