//! What the commands do, as functions over values: for a program that is not a command line, such
//! as the Python module.
//!
//! Nothing here prints (but progress, if asked for), reads arguments, or handles signals: a run
//! tells its events to an observer, and ends when its token is cancelled. Errors are values that
//! know their place in a pipeline.

mod clip;
mod error;
mod evaluation;
mod pairs;
mod query;
mod run;

pub use clip::{Clip, ForeignFormat, ImageInput, Matrix, Rgb, pixels, read_image};
pub use error::{Error, ErrorKind, Place};
pub use evaluation::{evaluation, model_folder};
pub use pairs::{Batches, PairOptions, Pairs, Pixels, RawBatch};
pub use query::{RowStream, Scan, TableInfo, scan, sql, tables};
pub use run::{PipelineSource, RunOptions, RunSummary, check, plan, run};
pub use twinlens_pipeline::run::events::Event;
pub use twinlens_train::Part;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use serde_json::Value;
use twinlens_pipeline::Registry;

/// Prepares the process: panics that become errors print nothing. Call it once.
pub fn init() {
    crate::silence_panics();
}

/// Says how a process like this one is started, with one more argument that [`serve_child`] is
/// given there. Images can then be decoded in processes of their own. Only the first call counts.
pub fn start_children_by(program: PathBuf, arguments: Vec<OsString>) {
    crate::children::start_by(program, arguments);
}

/// Does what a process was started for, and gives its exit code; `None` if that is unknown.
pub fn serve_child(argument: &OsStr) -> Option<u8> {
    crate::serve_child(argument)
}

/// The datasets of a run directory with their rows and rejects, as JSON.
///
/// # Errors
/// It is not a run directory, or a manifest is damaged.
pub fn status(dir: &str) -> Result<Value, Error> {
    let status = crate::status::Status::read(dir)?;
    serde_json::to_value(status).map_err(Error::internal)
}

/// The report of a run as an HTML page; beside other runs, given by name and directory.
///
/// # Errors
/// It is not a run directory, or its data cannot be read.
pub fn report(registry: &Registry, dir: &str, with: &[(String, String)]) -> Result<String, Error> {
    error::catch(|| Ok(crate::report::page(registry, dir, with)?))
}

/// An event as JSON, without secrets.
pub fn event_json(event: &Event) -> String {
    let text = serde_json::to_string(event).unwrap_or_default();
    crate::secrets::hide(&text).into_owned()
}

/// A small JPEG of an encoded image; `None` if it cannot be decoded.
pub fn thumbnail(bytes: &[u8]) -> Option<Vec<u8>> {
    crate::report::thumbnail(bytes)
}
