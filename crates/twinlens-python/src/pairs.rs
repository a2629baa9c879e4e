//! Batches of pairs.

use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use twinlens::api::{self, Batches, Part};

use crate::array::Array;
use crate::errors::{detached, exception, interruptible, wait};
use crate::own::Own;

/// Opened pairs.
#[pyclass(module = "twinlens._twinlens", frozen)]
pub(crate) struct PairSet {
    pairs: Own<api::Pairs>,
    context: usize,
    size: usize,
}

impl PairSet {
    fn get(&self) -> PyResult<&api::Pairs> {
        self.pairs.get("what was opened")
    }
}

#[pymethods]
impl PairSet {
    /// Opens what options, as JSON, describe.
    #[staticmethod]
    fn open(py: Python<'_>, options: &str) -> PyResult<Self> {
        let options: api::PairOptions =
            serde_json::from_str(options).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let (context, size) = (options.context, options.size as usize);
        let pairs = interruptible(py, move |cancel| api::Pairs::open(options, cancel))?;
        Ok(Self { pairs: Own::new(pairs), context, size })
    }

    /// Pairs per epoch.
    fn pairs(&self) -> PyResult<u64> {
        Ok(self.get()?.pairs())
    }

    /// What the data are, with a checksum.
    fn identity(&self, py: Python<'_>) -> PyResult<String> {
        let pairs = self.get()?;
        detached(py, || pairs.identity())
    }

    /// The part of rank `rank` of `ranks` of the batches from step `first` on, of which every
    /// `every`th.
    fn batches(&self, py: Python<'_>, steps: (u64, u64), part: (usize, usize)) -> PyResult<BatchStream> {
        let ((first, every), (rank, ranks)) = (steps, part);
        let part = Part { steps: first..u64::MAX, rank, ranks };
        let pairs = self.get()?;
        let batches = detached(py, || pairs.batches(part, every))?;
        Ok(BatchStream { batches: Own::new(Mutex::new(batches)), context: self.context, size: self.size })
    }
}

/// Batches, one after another.
#[pyclass(module = "twinlens._twinlens", frozen)]
pub(crate) struct BatchStream {
    batches: Own<Mutex<Batches>>,
    context: usize,
    size: usize,
}

#[pymethods]
impl BatchStream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Pixels `[rows, 3, size, size]` and token ids `[rows, context]`.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(Array, Array)>> {
        let batches = self.batches.get("an iteration")?;
        let poll = |timeout: Duration| -> Poll<_> {
            batches.lock().unwrap_or_else(PoisonError::into_inner).poll(timeout)
        };
        let next = wait(py, poll)?.transpose().map_err(|error| exception(py, &error))?;
        let Some(batch) = next else { return Ok(None) };
        let pixels = Array::pixels(batch.pixels, vec![batch.rows, 3, self.size, self.size]);
        // PyTorch looks embeddings up by numbers of this type.
        let ids: Vec<i64> = batch.ids.into_iter().map(i64::from).collect();
        Ok(Some((pixels, Array::own(ids, "<i8", vec![batch.rows, self.context]))))
    }
}
