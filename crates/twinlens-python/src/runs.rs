//! Runs: the functions of `twinlens::api` on pipelines and run directories.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio_util::sync::CancellationToken;
use twinlens::api::{self, Error, PipelineSource, RunOptions, RunSummary};

use crate::errors::{STACK_BYTES, TICK, detached, exception, panicked};

/// `file`, or `name` and `text`.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Source {
    file: Option<PathBuf>,
    name: Option<String>,
    text: Option<String>,
}

impl From<Source> for PipelineSource {
    fn from(source: Source) -> Self {
        match source.file {
            Some(file) => Self::File(file),
            None => {
                Self::Text { name: source.name.unwrap_or_default(), text: source.text.unwrap_or_default() }
            }
        }
    }
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    dir: Option<String>,
    set: Vec<String>,
    until: Option<String>,
    max_rows: Option<u64>,
    fresh: bool,
    threads: Option<u16>,
    memory: Option<usize>,
    progress: bool,
    tensorboard: Option<PathBuf>,
    on: Option<String>,
}

impl From<Options> for RunOptions {
    fn from(options: Options) -> Self {
        let Options { dir, set, until, max_rows, fresh, threads, memory, progress, tensorboard, on } =
            options;
        Self { dir, set, until, max_rows, fresh, threads, memory, progress, tensorboard, on }
    }
}

/// Runs a pipeline; returns its directory and datasets. Events are given to `on_event` as JSON, in
/// this thread. Ctrl-C, and an exception of `on_event`, end the run after a clean commit.
#[pyfunction]
pub(crate) fn run(
    py: Python<'_>,
    source: Source,
    options: Options,
    on_event: Option<Py<PyAny>>,
) -> PyResult<(String, Vec<String>)> {
    let (source, options) = (PipelineSource::from(source), RunOptions::from(options));
    let cancel = CancellationToken::new();
    let (send, mut events) = channel();
    let stop = cancel.clone();
    let work = move || {
        // The receiver is gone only once the run has ended.
        let tell = move |event: &api::Event| {
            let _ = send.send(api::event_json(event));
        };
        api::run(&twinlens::registry(), &source, &options, tell, stop)
    };
    let worker = std::thread::Builder::new().name("run".into()).stack_size(STACK_BYTES).spawn(work)?;
    let failed = listen(py, &mut events, &worker, on_event.as_ref(), &cancel);
    let done = py.detach(|| worker.join());
    if let Some(failed) = failed {
        return Err(failed);
    }
    let done = done.unwrap_or_else(|payload| Err(panicked(&*payload)));
    let RunSummary { dir, datasets, .. } = done.map_err(|error| exception(py, &error))?;
    Ok((dir, datasets))
}

/// Passes events on until the worker has ended. Gives the exception that stopped it.
fn listen(
    py: Python<'_>,
    events: &mut Receiver<String>,
    worker: &JoinHandle<Result<RunSummary, Error>>,
    on_event: Option<&Py<PyAny>>,
    cancel: &CancellationToken,
) -> Option<PyErr> {
    let mut failed: Option<PyErr> = None;
    loop {
        let waiting = &mut *events;
        let received = py.detach(move || waiting.recv_timeout(TICK));
        let heard = match (&received, on_event) {
            (Ok(event), Some(on_event)) if failed.is_none() => on_event.call1(py, (event,)).map(|_| ()),
            _ => Ok(()),
        };
        let heard = if failed.is_none() { heard.and_then(|()| py.check_signals()) } else { heard };
        if let Err(error) = heard {
            failed = Some(error);
            cancel.cancel();
        }
        match received {
            Err(RecvTimeoutError::Disconnected) => return failed,
            Err(RecvTimeoutError::Timeout) if worker.is_finished() => return failed,
            _ => {}
        }
    }
}

/// Checks a pipeline.
#[pyfunction]
pub(crate) fn check(py: Python<'_>, source: Source, set: Vec<String>) -> PyResult<()> {
    let source = PipelineSource::from(source);
    detached(py, || api::check(&twinlens::registry(), &source, &set))
}

/// What a run would do, as JSON.
#[pyfunction]
pub(crate) fn plan(py: Python<'_>, source: Source, options: Options) -> PyResult<String> {
    let (source, options) = (PipelineSource::from(source), RunOptions::from(options));
    detached(py, || Ok(api::plan(&twinlens::registry(), &source, &options)?.to_string()))
}

/// The datasets of a run directory, as JSON.
#[pyfunction]
pub(crate) fn status(py: Python<'_>, dir: String) -> PyResult<String> {
    detached(py, || Ok(api::status(&dir)?.to_string()))
}

/// The report of a run as an HTML page.
#[pyfunction]
pub(crate) fn report(py: Python<'_>, dir: String, with: Vec<(String, String)>) -> PyResult<String> {
    detached(py, || api::report(&twinlens::registry(), &dir, &with))
}

/// The sets of an evaluation and the texts of its prompts, as JSON.
#[pyfunction]
pub(crate) fn evaluation(
    py: Python<'_>,
    sets: Vec<String>,
    data: Option<String>,
    prompts: Vec<String>,
) -> PyResult<String> {
    detached(py, || Ok(api::evaluation(&sets, data.as_deref(), &prompts)?.to_string()))
}

/// The directory of a model.
#[pyfunction]
pub(crate) fn model_folder(py: Python<'_>, name: String) -> PyResult<PathBuf> {
    detached(py, || api::model_folder(&name))
}

/// A small JPEG of an image; `None` if it cannot be decoded.
#[pyfunction]
pub(crate) fn thumbnail<'py>(py: Python<'py>, image: &[u8]) -> Option<Bound<'py, PyBytes>> {
    py.detach(|| api::thumbnail(image)).map(|bytes| PyBytes::new(py, &bytes))
}

/// Says how an interpreter with this module is started.
#[pyfunction]
pub(crate) fn start_children_by(program: PathBuf, arguments: Vec<OsString>) {
    api::start_children_by(program, arguments);
}

/// Does what a process was started for, and ends it.
#[pyfunction]
pub(crate) fn serve_child(py: Python<'_>, argument: OsString) {
    // The system may refuse by then what an interpreter does at its end.
    std::process::exit(py.detach(|| api::serve_child(&argument)).unwrap_or(1).into());
}

/// Runs a command line and returns its exit code.
#[pyfunction]
pub(crate) fn command_line(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| twinlens::command_line(twinlens::registry(), words))
}
