//! The Python module `twinlens._twinlens`: the program's functions with Python's values. What users
//! see is written in Python, in `python/twinlens`.

mod array;
mod arrow_c;
mod errors;
mod model;
mod own;
mod pairs;
mod rows;
mod runs;
mod values;

use pyo3::prelude::*;

/// Training and fetching are faster with it than with the system's allocator.
#[global_allocator]
static ALLOCATOR: twinlens::Allocator = twinlens::Allocator;

#[pymodule]
mod _twinlens {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::array::Array;
    #[pymodule_export]
    use crate::model::{Model, pixels};
    #[pymodule_export]
    use crate::pairs::{BatchStream, PairSet};
    #[pymodule_export]
    use crate::rows::{Rows, scan, sql, tables};
    #[pymodule_export]
    use crate::runs::{
        check, command_line, evaluation, model_folder, plan, report, run, serve_child, start_children_by,
        status, thumbnail,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        twinlens::api::init();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
