//! The data of a person, and what was recognised of them.

use std::path::{Path, PathBuf};

use twinlens_pipeline::Registry;
use twinlens_pipeline::files::Files;
use twinlens_pipeline::hub::is_hub_name;

use crate::text::counted;
use crate::{env, hub};

/// The person's data, and where the pipeline file will be.
pub(crate) struct Source<'a> {
    pub registry: &'a Registry,
    /// Resolves paths as the pipeline will.
    pub files: Files,
    /// As given.
    pub data: &'a str,
    pub caption: Option<&'a str>,
    pub image: Option<&'a str>,
    /// Whether all images are wanted as they are, and not a small sample to try a training with.
    pub is_whole: bool,
}

/// Stages that read all images.
pub(crate) struct Images {
    pub stages: String,
    /// The stage with the images.
    pub last: &'static str,
    /// Whether it has a text `caption` for each.
    pub has_captions: bool,
}

/// How many rows there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub rows: u64,
    pub is_exact: bool,
}

impl Count {
    pub(crate) fn exactly(rows: u64) -> Self {
        Self { rows, is_exact: true }
    }

    /// `about 1,200 images`.
    pub(crate) fn of(self, one: &str) -> String {
        let counted = counted(self.rows, one);
        if self.is_exact { counted } else { format!("about {counted}") }
    }
}

/// What was recognised.
pub(crate) struct Found {
    /// What it is, in words.
    pub what: String,
    pub count: Count,
    pub material: Material,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What there is to train with.
pub(crate) enum Material {
    /// Images with captions.
    Pairs(Pairs),
    /// Images with classes.
    Classes(Classes),
    /// Images alone: stages, of which the last is `images`.
    Images(String),
}

/// Images with captions.
pub(crate) struct Pairs {
    /// Stages, of which the last is `pairs`: `uid`, `caption`, `image`, `sha256`.
    pub stages: String,
    /// Stages, of which the last is `test_pairs`, if the data have pairs for the evaluation.
    pub test: Option<String>,
    /// Whether `caption` holds lists of texts.
    pub has_lists: bool,
    /// The share of the rows that is used, which `stages` name `${share}`; all by default.
    pub share: Option<f64>,
}

/// A set of images with classes.
pub(crate) struct Classes {
    /// The value of the option `set`.
    pub path: String,
    /// The split to train on, and whether another one is evaluated; without it, the set has no
    /// splits.
    pub train: Option<String>,
    pub has_test: bool,
    pub classes: usize,
}

impl<'a> Source<'a> {
    /// `base` is the folder of the pipeline file.
    pub(crate) fn new(registry: &'a Registry, base: PathBuf, data: &'a str) -> Self {
        let files = Files { base, scratch: env::cache_dir(), hub: hub::open() };
        Self { registry, files, data, caption: None, image: None, is_whole: false }
    }

    /// All images are wanted, as they are.
    pub(crate) fn whole(registry: &'a Registry, base: PathBuf, data: &'a str) -> Self {
        Self { is_whole: true, ..Self::new(registry, base, data) }
    }

    /// The columns of captions and images, if they are not those with the usual names.
    pub(crate) fn with_columns(self, caption: Option<&'a str>, image: Option<&'a str>) -> Self {
        Self { caption, image, ..self }
    }

    /// The option `resize` of a stage that reads files.
    pub(crate) fn resize(&self) -> &'static str {
        if self.is_whole { "" } else { "resize = { size = 64, mode = \"shortest\" }\n" }
    }

    /// A path as the pipeline names it: relative to its folder if it is below that.
    pub(crate) fn written(&self, path: &Path) -> String {
        let absolute = |path: &Path| std::path::absolute(Path::new(".").join(path)).unwrap_or(path.into());
        let (path, base) = (absolute(path), absolute(&self.files.base));
        match path.strip_prefix(&base) {
            Ok(below) => format!("./{}", below.display()),
            Err(_) => path.display().to_string(),
        }
    }

    /// Whether a path is outside the folder of the pipeline file, below which local images may be
    /// read by default.
    pub(crate) fn is_outside(&self, path: &Path) -> bool {
        !self.written(path).starts_with("./")
    }

    pub(crate) fn is_of_hub(&self) -> bool {
        is_hub_name(self.data)
    }
}

/// A text as a TOML string.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
