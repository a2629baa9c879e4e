//! Records of label bytes and planes of pixels: the binary versions of CIFAR-10, CIFAR-100 and
//! STL-10.

use std::path::PathBuf;

use twinlens_image::Limits;

use super::example::{Example, SetFiles, TRUNCATED, Take, Truth};
use super::files::{fill, short, unpacked};
use super::raw::{Layout, png};
use crate::error::EvalError;
use crate::images::Reject;

/// The files of a set; see [`Reader::Planes`](crate::sets::layout::Reader).
#[derive(Debug)]
pub(super) struct Planes {
    pub files: Vec<PathBuf>,
    pub label_bytes: usize,
    pub label: usize,
    pub labels: Option<PathBuf>,
    pub first_label: u8,
    pub side: u32,
    pub by_column: bool,
}

impl SetFiles for Planes {
    fn parts(&self) -> Vec<String> {
        self.files.iter().map(|file| short(file)).collect()
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        let Some(path) = self.files.get(part) else { return Ok(()) };
        let name = short(path);
        let values = u64::from(self.side) * u64::from(self.side) * 3;
        if values == 0
            || values > limits.max_bytes
            || (self.labels.is_none() && self.label >= self.label_bytes)
        {
            return Err(EvalError::set(&name, "its reader has an invalid `side` or `label`", None));
        }
        let mut record = vec![0; self.label_bytes + values as usize];
        let (mut input, mut labels) = (unpacked(path)?, None);
        if let Some(path) = &self.labels {
            labels = Some(unpacked(path)?);
        }
        let layout = if self.by_column { Layout::ColumnPlanes } else { Layout::Planes };
        for at in 0_u64.. {
            let filled = fill(&mut input, &mut record);
            if filled == 0 {
                break;
            }
            let cut = |detail: String| Reject { code: TRUNCATED, detail };
            let whole = filled == record.len();
            let image = if whole {
                png(&record[self.label_bytes..], self.side, self.side, layout)
            } else {
                Err(cut(format!("the file ends within record {at}")))
            };
            let mut byte = [0];
            let label = match &mut labels {
                Some(labels) => match fill(labels, &mut byte) {
                    0 => Err(cut(format!("the file of labels ends before record {at}"))),
                    _ => Ok(byte[0]),
                },
                None => Ok(record[self.label]),
            };
            let truth = label.map(|label| Truth::Id(i64::from(label) - i64::from(self.first_label)));
            let place = format!("{name} record {at}");
            take(Example { path: format!("{name}-{at:05}.png"), place, image, truth })?;
            if !whole {
                break;
            }
        }
        Ok(())
    }
}
