//! Batches of pairs.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use twinlens::api::{self, Batches, Part};

use crate::array::Array;
use crate::errors::{detached, exception};

/// Opened pairs.
#[pyclass(module = "twinlens._twinlens", frozen)]
pub(crate) struct PairSet {
    pairs: api::Pairs,
    context: usize,
    size: usize,
}

#[pymethods]
impl PairSet {
    /// Opens what options, as JSON, describe.
    #[staticmethod]
    fn open(py: Python<'_>, options: String) -> PyResult<Self> {
        let options: api::PairOptions =
            serde_json::from_str(&options).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let (context, size) = (options.context, options.size as usize);
        Ok(Self { pairs: detached(py, || api::Pairs::open(options))?, context, size })
    }

    /// Pairs per epoch.
    fn pairs(&self) -> u64 {
        self.pairs.pairs()
    }

    /// The part of rank `rank` of `ranks` of the batches of steps from `first` to `end`, of which
    /// every `every`th.
    fn batches(
        &self,
        py: Python<'_>,
        (first, end, every): (u64, u64, u64),
        (rank, ranks): (usize, usize),
    ) -> PyResult<BatchStream> {
        let part = Part { steps: first..end, rank, ranks };
        let batches = detached(py, || self.pairs.batches(part, every))?;
        Ok(BatchStream { batches: Mutex::new(batches), context: self.context, size: self.size })
    }
}

/// Batches, one after another.
#[pyclass(module = "twinlens._twinlens", frozen)]
pub(crate) struct BatchStream {
    batches: Mutex<Batches>,
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
        let next = py.detach(|| self.batches.lock().unwrap_or_else(PoisonError::into_inner).next());
        let Some(batch) = next.transpose().map_err(|error| exception(py, &error))? else { return Ok(None) };
        let pixels = Array::own(batch.pixels, "<f4", vec![batch.rows, 3, self.size, self.size]);
        // Ids are below the size of a vocabulary.
        let ids: Vec<i64> = batch.ids.into_iter().map(i64::from).collect();
        Ok(Some((pixels, Array::own(ids, "<i8", vec![batch.rows, self.context]))))
    }
}
