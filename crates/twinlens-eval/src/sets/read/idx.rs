//! The MNIST format `idx`, as described by Y. LeCun: a magic number, the sizes and the values, all
//! big-endian.

use std::path::PathBuf;

use twinlens_image::Limits;

use super::example::{Example, SetFiles, TRUNCATED, Take, Truth};
use super::files::{fill, short, unpacked};
use super::raw::{Layout, png};
use crate::error::EvalError;
use crate::images::Reject;

/// A file of pixels and a file of labels.
#[derive(Debug)]
pub(super) struct Idx {
    pub images: PathBuf,
    pub labels: PathBuf,
}

/// Reads the sizes in the header of a file of unsigned bytes in one to four dimensions.
fn head(input: &mut dyn std::io::Read, name: &str) -> Result<Vec<u32>, EvalError> {
    let bad = |why: &str| EvalError::set(name, format!("not an idx file of unsigned bytes: {why}"), None);
    let mut magic = [0; 4];
    if fill(input, &mut magic) < 4 || magic[..3] != [0, 0, 8] || !(1..=4).contains(&magic[3]) {
        return Err(bad("its header does not match"));
    }
    let mut sizes = vec![0; usize::from(magic[3]) * 4];
    if fill(input, &mut sizes) < sizes.len() {
        return Err(bad("it ends within its header"));
    }
    Ok(sizes.chunks_exact(4).map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]])).collect())
}

impl SetFiles for Idx {
    fn parts(&self) -> Vec<String> {
        vec![short(&self.images)]
    }

    fn read(&self, _: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        let name = short(&self.images);
        let (mut images, mut labels) = (unpacked(&self.images)?, unpacked(&self.labels)?);
        let sizes = head(&mut images, &name)?;
        let (count, height, width, layout) = match sizes[..] {
            [count, height, width] => (count, height, width, Layout::Grey),
            [count, height, width, 3] => (count, height, width, Layout::Interleaved),
            _ => {
                return Err(EvalError::set(
                    &name,
                    format!("its sizes {sizes:?} are not [n, height, width] or [n, height, width, 3]"),
                    None,
                ));
            }
        };
        let labelled = head(&mut labels, &short(&self.labels))?;
        if labelled != [count] {
            let why = format!("it has {count} images, but {} has {labelled:?} labels", short(&self.labels));
            return Err(EvalError::set(&name, why, None));
        }
        let values = u64::from(width) * u64::from(height) * if layout == Layout::Grey { 1 } else { 3 };
        if values == 0 || values > limits.max_bytes {
            return Err(EvalError::set(
                &name,
                format!("its images have {values} bytes, which is 0 or beyond the limit"),
                None,
            ));
        }
        let mut buffer = vec![0; values as usize];
        for at in 0..count {
            let (mut label, whole) = ([0], fill(&mut images, &mut buffer) == buffer.len());
            let labelled = fill(&mut labels, &mut label) == 1;
            let place = format!("{name} image {at}");
            let cut = |what: &str| Reject {
                code: TRUNCATED,
                detail: format!("the file of {what} ends after {at} of {count}"),
            };
            let image = if whole { png(&buffer, width, height, layout) } else { Err(cut("images")) };
            let truth = if labelled { Ok(Truth::Id(i64::from(label[0]))) } else { Err(cut("labels")) };
            take(Example { path: format!("{at:05}.png"), place, image, truth })?;
            if !whole || !labelled {
                return Ok(());
            }
        }
        Ok(())
    }
}
