//! Models: embeddings and classes of images and texts.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use twinlens::api::{Clip, Error, ForeignFormat, ImageInput, Rgb, read_image};

use crate::array::Array;
use crate::errors::detached;
use crate::own::Own;

/// An image: the path of a file, the bytes of one, or height, width and bytes of RGB pixels.
#[derive(FromPyObject)]
pub(crate) enum Image {
    Encoded(PyBackedBytes),
    Pixels(u32, u32, PyBackedBytes),
    Path(PathBuf),
}

impl Image {
    fn open(self) -> Result<ImageInput, Error> {
        match self {
            Self::Encoded(bytes) => Ok(ImageInput::Encoded(bytes.to_vec())),
            Self::Pixels(height, width, pixels) => Rgb::new(width, height, pixels.to_vec())
                .map(ImageInput::Rgb)
                .map_err(|error| Error::user(error.to_string())),
            Self::Path(path) => read_image(&path),
        }
    }
}

/// A loaded model.
#[pyclass(module = "twinlens._twinlens", frozen)]
pub(crate) struct Model {
    clip: Own<Clip>,
}

impl Model {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Clip) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let clip = self.clip.get("a model")?;
        detached(py, || work(clip))
    }
}

#[pymethods]
impl Model {
    #[staticmethod]
    fn load(py: Python<'_>, name: String) -> PyResult<Self> {
        let clip = detached(py, || Clip::load(&name))?;
        Ok(Self { clip: Own::new(clip) })
    }

    /// Configuration and hashes, as JSON.
    fn description(&self) -> PyResult<String> {
        Ok(self.clip.get("a model")?.description().to_string())
    }

    fn encode_images(&self, py: Python<'_>, images: Vec<Image>) -> PyResult<Array> {
        let matrix = self.with(py, |clip| {
            let images = images.into_iter().map(Image::open).collect::<Result<Vec<_>, _>>()?;
            clip.encode_images(&images)
        })?;
        Ok(Array::matrix(matrix.values, matrix.width))
    }

    fn encode_texts(&self, py: Python<'_>, texts: Vec<String>) -> PyResult<Array> {
        let matrix = self.with(py, |clip| clip.encode_texts(&texts))?;
        Ok(Array::matrix(matrix.values, matrix.width))
    }

    fn zero_shot(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        classes: Vec<String>,
        templates: Vec<String>,
    ) -> PyResult<Array> {
        let matrix = self.with(py, |clip| {
            let images = images.into_iter().map(Image::open).collect::<Result<Vec<_>, _>>()?;
            clip.zero_shot(&images, &classes, templates)
        })?;
        Ok(Array::matrix(matrix.values, matrix.width))
    }

    fn save(&self, py: Python<'_>, dir: PathBuf, format: &str) -> PyResult<()> {
        let to = match format {
            "hugging-face" => ForeignFormat::HuggingFace,
            "open-clip" => ForeignFormat::OpenClip,
            other => {
                let message = format!("format is {other:?}; expected \"hugging-face\" or \"open-clip\"");
                return Err(PyValueError::new_err(message));
            }
        };
        self.with(py, |clip| clip.save(&dir, to))
    }
}

/// Images as CLIP's image tower sees them: `[images, 3, size, size]`.
#[pyfunction]
pub(crate) fn pixels(
    py: Python<'_>,
    images: Vec<PyBackedBytes>,
    size: u32,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
) -> PyResult<Array> {
    let rows = images.len();
    let matrix = detached(py, || {
        let images: Vec<ImageInput> =
            images.iter().map(|bytes| ImageInput::Encoded(bytes.to_vec())).collect();
        twinlens::api::pixels(&images, size, mean, std)
    })?;
    let side = size as usize;
    Ok(Array::own(matrix.values, "<f4", vec![rows, 3, side, side]))
}
