//! The formats of exports.

use serde::{Deserialize, Serialize};

/// The stage kind in the manifest of an export.
pub const KIND: &str = "export";

/// The format of the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Parquet, as in datasets.
    Parquet,
    /// Arrow IPC files.
    Arrow,
    /// Tar files of images and texts, as img2dataset writes them.
    WebDataset,
}

impl Format {
    /// The glob pattern of the shards.
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Parquet => "data/*.parquet",
            Self::Arrow => "data/*.arrow",
            Self::WebDataset => "*.tar",
        }
    }

    /// The name of the format in the Hugging Face `datasets` package.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
            Self::WebDataset => "webdataset",
        }
    }
}
