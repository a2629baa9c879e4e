//! Tar files in the layout of CLIP_benchmark: `SPLIT/nshards.txt`, `SPLIT/0.tar` ..., and beside
//! them `classnames.txt`, `zeroshot_classification_templates.txt` and `dataset_type.txt`. A sample
//! is an image with `cls` (a label id), `npy` (a vector over the classes) or `txt` (one caption per
//! line) of the same key.

use std::fs;
use std::path::{Path, PathBuf};

use twinlens_dataset::samples::TRUNCATED;
use twinlens_dataset::samples::{self, Index, Role, TarSamples, Unread};
use twinlens_image::Limits;
use twinlens_pipeline::RunError;

use super::example::{Example, MALFORMED, SetFiles, Take, Truth};
use super::files::{files_beside, io, lines_of};
use super::npy;
use crate::error::EvalError;
use crate::images::{NO_IMAGE, NO_LABEL, Reject};
use crate::prompts::check_templates;

/// The file with the number of shards.
pub(super) const SHARDS: &str = "nshards.txt";
/// The class names, by label id.
const NAMES: &str = "classnames.txt";
/// The prompt templates.
const TEMPLATES: &str = "zeroshot_classification_templates.txt";
/// The members of samples. (JSON has nothing that an evaluation needs.)
const ROLES: &[Role] = &[Role::Image, Role::Class, Role::Vector, Role::Text, Role::Json];

/// The shards of one split.
#[derive(Debug)]
pub(super) struct WebDataset {
    root: PathBuf,
    split: String,
    shards: usize,
    /// Files beside the shards, with the directory of the split.
    unread: Vec<String>,
    names: Option<Vec<String>>,
    templates: Option<Vec<String>>,
}

impl WebDataset {
    /// Reads the number of shards, class names and templates.
    pub(super) fn open(root: &Path, split: &str) -> Result<Self, EvalError> {
        let path = root.join(split).join(SHARDS);
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let shards: usize = text.trim().parse().map_err(|_| {
            EvalError::set(
                split,
                format!("{} does not contain a number: {:?}", path.display(), text.trim()),
                None,
            )
        })?;
        let names = lines_of(&root.join(NAMES))?;
        let path = root.join(TEMPLATES);
        let templates = lines_of(&path)?;
        for (line, template) in templates.iter().flatten().enumerate() {
            if let Err(why) = check_templates(std::slice::from_ref(template)) {
                let message = format!("{}:{}: {why}", path.display(), line + 1);
                return Err(RunError::user(message).into());
            }
        }
        let is_shard = |name: &String| {
            let number = name.strip_suffix(".tar").and_then(|number| number.parse().ok());
            number.is_some_and(|number: usize| number < shards && *name == format!("{number}.tar"))
        };
        let beside = files_beside(&root.join(split), &[SHARDS])?.into_iter();
        let unread = beside.filter(|name| !is_shard(name)).map(|name| format!("{split}/{name}")).collect();
        Ok(Self { root: root.to_path_buf(), split: split.into(), shards, unread, names, templates })
    }

    fn shard(&self, part: usize) -> String {
        format!("{}/{part}.tar", self.split)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Class,
    Vector,
    Captions,
}

impl SetFiles for WebDataset {
    fn parts(&self) -> Vec<String> {
        (0..self.shards).map(|part| self.shard(part)).collect()
    }

    fn names(&self) -> Option<Vec<String>> {
        self.names.clone()
    }

    fn templates(&self) -> Option<Vec<String>> {
        self.templates.clone()
    }

    fn unread(&self) -> Vec<String> {
        self.unread.clone()
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        let shard = self.shard(part);
        let path = self.root.join(&shard);
        let refused = |place: String, code: &'static str, detail: String| Example {
            path: place.clone(),
            place,
            image: Err(Reject { code, detail: detail.clone() }),
            truth: Err(Reject { code, detail }),
        };
        if !path.exists() {
            let why = format!("the shard is not there, although {SHARDS} says so");
            return take(refused(shard, TRUNCATED, why));
        }
        let mut file = TarSamples::open(&path, Some(&std::env::temp_dir()))?;
        let Index { entries, unread } = file.index(limits.max_bytes, ROLES)?;
        for entry in entries {
            let place = format!("{shard}/{}", entry.key);
            let image = match file.part(entry.image)? {
                Some(bytes) => bytes.map_err(reject),
                None => Err(Reject { code: NO_IMAGE, detail: "the sample has no image".into() }),
            };
            let label =
                [(Kind::Class, entry.class), (Kind::Vector, entry.vector), (Kind::Captions, entry.text)];
            let truth = match label.into_iter().find(|(_, span)| span.is_some()) {
                Some((kind, span)) => {
                    let bytes = file.part(span)?.unwrap_or(Ok(Vec::new()));
                    bytes.map_err(reject).and_then(|bytes| truth(kind, &bytes))
                }
                None => {
                    Err(Reject { code: NO_LABEL, detail: "the sample has neither cls, npy nor txt".into() })
                }
            };
            let path = if entry.path.is_empty() { place.clone() } else { entry.path };
            take(Example { place, path, image, truth })?;
        }
        for Unread { place, refusal: (code, detail) } in unread {
            take(refused(format!("{shard}{place}"), code, detail))?;
        }
        Ok(())
    }
}

fn reject((code, detail): samples::Refusal) -> Reject {
    Reject { code, detail }
}

fn truth(kind: Kind, bytes: &[u8]) -> Result<Truth, Reject> {
    let text = || -> Result<&str, Reject> {
        let text = std::str::from_utf8(bytes).map_err(|_| Reject {
            code: MALFORMED,
            detail: "the text of its label or captions is not UTF-8".into(),
        })?;
        Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
    };
    match kind {
        Kind::Class => {
            let text = text()?.trim();
            text.parse().map(Truth::Id).map_err(|_| {
                let start: String = text.chars().take(40).collect();
                Reject { code: MALFORMED, detail: format!("the label is not a whole number: {start:?}") }
            })
        }
        Kind::Vector => match npy::nonzero(bytes) {
            Ok((present, of)) => Ok(Truth::Ids { present, ignored: Vec::new(), of: Some(of) }),
            Err(why) => {
                Err(Reject { code: MALFORMED, detail: format!("the labels are not a NumPy array: {why}") })
            }
        },
        Kind::Captions => {
            let lines = text()?.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(Truth::Captions(lines.map(String::from).collect()))
        }
    }
}
