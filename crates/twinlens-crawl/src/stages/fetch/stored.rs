//! What is stored of a fetched image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::ProcessedImage;

use crate::net::Reservation;

/// What becomes of images in formats that are not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Originals {
    /// Rejected as `unsupported_format`.
    #[default]
    Reject,
    /// Stored as they came, without sizes, perceptual hash and EXIF.
    Keep,
}

/// What is stored of a body.
#[derive(Debug)]
pub(super) enum Stored {
    /// An image, and what was wrong with it if it was repaired.
    Image(ProcessedImage, Option<String>),
    /// The body, in a format that is not decoded.
    Original { bytes: Vec<u8>, sha256: String },
}

impl Stored {
    pub(super) fn image(&self) -> Option<&ProcessedImage> {
        match self {
            Self::Image(image, _) => Some(image),
            Self::Original { .. } => None,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Image(image, _) => &image.bytes,
            Self::Original { bytes, .. } => bytes,
        }
    }

    /// SHA-256 of the body.
    pub(super) fn sha256(&self) -> &str {
        match self {
            Self::Image(image, _) => &image.sha256,
            Self::Original { sha256, .. } => sha256,
        }
    }

    pub(super) fn damage(&self) -> Option<&str> {
        match self {
            Self::Image(_, damage) => damage.as_deref(),
            Self::Original { .. } => None,
        }
    }
}

/// What is stored of a body, and its time, in microseconds.
#[derive(Debug)]
pub(super) struct FetchedImage {
    pub(super) stored: Stored,
    pub(super) fetched_at: i64,
    /// The bytes of `stored` in the budget, until it is in a batch.
    pub(super) reservation: Reservation,
}
