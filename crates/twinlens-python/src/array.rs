//! Numbers that NumPy and PyTorch use without a copy.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use twinlens::api::Pixels;
use twinlens::datafusion::arrow::array::{Array as _, ArrayRef, AsArray};
use twinlens::datafusion::arrow::buffer::Buffer;
use twinlens::datafusion::arrow::compute::concat;
use twinlens::datafusion::arrow::datatypes::{ArrowNativeType, DataType};

/// A block of numbers with NumPy's `__array_interface__`: `numpy.asarray` refers to its memory, and
/// keeps it alive.
#[pyclass(module = "twinlens._twinlens", frozen)]
pub(crate) struct Array {
    memory: Memory,
    kind: &'static str,
    shape: Vec<usize>,
    /// Whether others use the memory too, so that it is read-only.
    is_shared: bool,
}

/// What holds the numbers.
enum Memory {
    Buffer(Buffer),
    /// The pixels of a batch. Their memory is reused when the array is dropped.
    Pixels(Pixels),
}

impl Memory {
    fn address(&self) -> usize {
        match self {
            Self::Buffer(buffer) => buffer.as_ptr() as usize,
            Self::Pixels(pixels) => pixels.as_ptr() as usize,
        }
    }
}

impl<T: ArrowNativeType> From<Vec<T>> for Memory {
    fn from(values: Vec<T>) -> Self {
        Self::Buffer(Buffer::from_vec(values))
    }
}

#[pymethods]
impl Array {
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", self.kind)?;
        interface.set_item("shape", PyTuple::new(py, &self.shape)?)?;
        interface.set_item("data", (self.memory.address(), self.is_shared))?;
        Ok(interface)
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }
}

impl Array {
    /// An array that has its memory alone, and may be written to.
    pub(crate) fn own<T: ArrowNativeType>(values: Vec<T>, kind: &'static str, shape: Vec<usize>) -> Self {
        Self { memory: values.into(), kind, shape, is_shared: false }
    }

    /// The pixels of a batch, which may be written to.
    pub(crate) fn pixels(pixels: Pixels, shape: Vec<usize>) -> Self {
        Self { memory: Memory::Pixels(pixels), kind: "<f4", shape, is_shared: false }
    }

    /// An array of numbers in rows.
    pub(crate) fn matrix(values: Vec<f32>, width: usize) -> Self {
        let shape = vec![values.len() / width.max(1), width];
        Self { memory: values.into(), kind: "<f4", shape, is_shared: true }
    }

    /// One array of a column's pieces. A single piece is not copied.
    ///
    /// # Errors
    /// Its type is not numbers, or it has nulls.
    pub(crate) fn from_columns(pieces: &[ArrayRef], kind: &DataType) -> Result<Self, String> {
        let (item, width) = match kind {
            DataType::FixedSizeList(item, width) => (item.data_type(), Some(*width as usize)),
            other => (other, None),
        };
        let kind = typestr(item).ok_or_else(|| format!("is of type {kind}, not numbers or vectors"))?;
        let whole = match pieces {
            [] => {
                return Ok(Self {
                    memory: Vec::<u64>::new().into(),
                    kind,
                    shape: shape(0, width),
                    is_shared: true,
                });
            }
            [one] => one.clone(),
            several => {
                let several: Vec<_> = several.iter().map(AsRef::as_ref).collect();
                concat(&several).map_err(|error| error.to_string())?
            }
        };
        let values = match width {
            Some(_) => whole.as_fixed_size_list().values().clone(),
            None => whole.clone(),
        };
        let nulls = whole.null_count() + if width.is_some() { values.null_count() } else { 0 };
        if nulls > 0 {
            return Err(format!("has {nulls} nulls; leave them out with `where`"));
        }
        let data = values.to_data();
        let bytes = item.primitive_width().unwrap_or(1);
        // The values of a list may begin within the buffer.
        let first = data.offset() * bytes;
        let memory = data.buffers()[0].slice_with_length(first, data.len() * bytes);
        Ok(Self { memory: Memory::Buffer(memory), kind, shape: shape(whole.len(), width), is_shared: true })
    }
}

fn shape(rows: usize, width: Option<usize>) -> Vec<usize> {
    [Some(rows), width].into_iter().flatten().collect()
}

/// NumPy's name of a type of numbers.
fn typestr(kind: &DataType) -> Option<&'static str> {
    Some(match kind {
        DataType::Int8 => "|i1",
        DataType::UInt8 => "|u1",
        DataType::Int16 => "<i2",
        DataType::UInt16 => "<u2",
        DataType::Int32 => "<i4",
        DataType::UInt32 => "<u4",
        DataType::Int64 => "<i8",
        DataType::UInt64 => "<u8",
        DataType::Float16 => "<f2",
        DataType::Float32 => "<f4",
        DataType::Float64 => "<f8",
        _ => return None,
    })
}
