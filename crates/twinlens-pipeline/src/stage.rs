//! What a stage is.
//!
//! A kind of stage implements [`StageKind`]. Its options are plain data, read from the stage's TOML
//! table; [`StageKind::plan`] turns them into the object that runs. `plan` does no I/O: it declares
//! inputs, files and tables through [`Ports`], which collect every fault with its place. It is
//! called twice: first without any schema, to learn what the stage reads, then in the order of the
//! graph with the schemas of its inputs.
//!
//! There are seven sorts of [`Work`]: [`Rows`] (each row becomes a row or a reject; fused with its
//! neighbours into one plan), [`Source`] (rows out of files, in splits), [`Splits`] (each row
//! becomes a row or a reject, but not by a plan), [`Passes`] (the same, but only after all rows
//! were looked at), [`Whole`] (the same, where all rows are needed in one place), [`Query`] (tables
//! computed from tables) and [`Job`] (everything else: a crawl, a training, an evaluation; it
//! commits by itself).

use datafusion::prelude::SessionContext;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Fault;
use crate::located::Input;
pub use crate::passes::Passes;
use crate::ports::{KnownInput, Plan, Ports};
pub use crate::product::Product;
pub use crate::run::output::Output;
use crate::sql::SqlPlanner;
pub use crate::work::{
    ErasedSource, Frames, Job, Query, Rows, SortKey, Source, SourceSplit, SplitMaker, Splits, Whole, Work,
    is_sortable,
};

/// A kind of stage.
pub trait StageKind: 'static {
    /// The options in the stage's TOML table: plain data. The doc comment of this type is the help
    /// text of the kind, its first sentence the summary.
    type Options: Clone + DeserializeOwned + Serialize + JsonSchema + Send + Sync + 'static;
    /// The value of `kind` in the TOML table.
    const NAME: &'static str;
    /// The version of the stage's logic: raise it when the same options and inputs give another
    /// output.
    const VERSION: u32;
    /// A TOML table `[stages.NAME]`, which a test checks.
    const EXAMPLE: &'static str;
    /// What the stage makes beside its tables.
    const PRODUCT: Product = Product::Table;
    /// What the progress of the stage counts.
    const UNIT: &'static str = "row";
    /// What to do about reject codes, where it can be said: a code and a hint.
    const REJECT_HINTS: &'static [(&'static str, &'static str)] = &[];

    /// Declares inputs and outputs, checks the options, and makes the object that runs. No I/O.
    /// Returns `None` only after reporting a fault; an unknown schema is not a fault.
    fn plan(options: Self::Options, ports: &mut Ports<'_>) -> Option<Work>;
}

/// Plans one stage apart from a pipeline: for tests of a kind. `known` says what is known of an
/// input.
///
/// # Errors
/// Everything that is wrong with the options.
pub fn plan_alone<K: StageKind>(
    session: SessionContext,
    options: &K::Options,
    known: impl Fn(&Input) -> KnownInput,
) -> Result<(Plan, Work), Vec<Fault>> {
    let sql = &SqlPlanner { session };
    let plan = |ports: &mut Ports<'_>| K::plan(options.clone(), ports);
    let inputs = Ports::plan(sql, None, None, K::NAME, plan).plan.inputs;
    let known: Vec<KnownInput> = inputs.iter().map(|port| known(&port.input)).collect();
    let planned = Ports::plan(sql, Some(&known), None, K::NAME, plan);
    match planned.work {
        Some(work) if planned.faults.is_empty() => Ok((planned.plan, work)),
        _ => Err(planned.faults),
    }
}
