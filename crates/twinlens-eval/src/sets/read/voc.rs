//! PASCAL VOC: `ImageSets/Main/CLASS_SPLIT.txt` lists for each image whether the class is present
//! (1), absent (-1) or difficult (0); `JPEGImages` contains the images.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use twinlens_image::Limits;

use super::example::{Example, SetFiles, Take, Truth};
use super::files::{bytes_of, io, short};
use crate::error::EvalError;
use crate::sets::declaration::Declaration;

/// Images per part.
const PART: usize = 1000;

/// The joined lists of a split.
#[derive(Debug)]
pub(super) struct Voc {
    root: PathBuf,
    names: Vec<String>,
    /// Image, ids of present classes, ids of difficult classes.
    images: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl Voc {
    /// Reads the lists of all classes.
    pub(super) fn open(root: &Path, split: &str, set: &Declaration) -> Result<Self, EvalError> {
        let lists = root.join("ImageSets/Main");
        let names: Vec<String> = (set.listed().unwrap_or_default().iter())
            .map(|class| class.label.clone().unwrap_or_else(|| class.name.clone()))
            .collect();
        let mut images: BTreeMap<String, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
        for (id, name) in names.iter().enumerate() {
            let path = lists.join(format!("{name}_{split}.txt"));
            let text = fs::read_to_string(&path).map_err(io(&path))?;
            for (number, line) in text.lines().enumerate() {
                let mut words = line.split_ascii_whitespace();
                let (Some(image), Some(there)) = (words.next(), words.next()) else { continue };
                let (present, ignored) = images.entry(image.into()).or_default();
                match there {
                    "1" => present.push(id as i64),
                    "0" => ignored.push(id as i64),
                    "-1" => {}
                    other => {
                        let why =
                            format!("{} line {}: `{other}` is not 1, 0 or -1", short(&path), number + 1);
                        return Err(EvalError::set(&set.name, why, None));
                    }
                }
            }
        }
        let images =
            images.into_iter().map(|(image, (present, ignored))| (image, present, ignored)).collect();
        Ok(Self { root: root.to_path_buf(), names, images })
    }
}

impl SetFiles for Voc {
    fn parts(&self) -> Vec<String> {
        let total = self.images.len();
        (0..total).step_by(PART).map(|start| format!("images {start}..{}", total.min(start + PART))).collect()
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.names.clone())
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        for (image, present, ignored) in self.images.iter().skip(part * PART).take(PART) {
            let path = format!("JPEGImages/{image}.jpg");
            let truth = Ok(Truth::Ids { present: present.clone(), ignored: ignored.clone(), of: None });
            take(Example {
                place: path.clone(),
                image: bytes_of(&self.root.join(&path), limits)?,
                path,
                truth,
            })?;
        }
        Ok(())
    }
}
