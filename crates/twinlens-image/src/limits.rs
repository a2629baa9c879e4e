//! Limits on an image, checked against its header before any pixel is decoded.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// Maximum number of scans of a JPEG. Each is a pass over coefficients, and a small file can have
/// thousands.
pub(crate) const MAX_SCANS: u32 = 100;
/// Maximum number of samples that the scans of a JPEG may visit together: about two seconds of one
/// core at worst. A progressive photograph of 50 megapixels visits 700 million.
pub(crate) const MAX_SAMPLES: u64 = 1_000_000_000;

/// Maximum number of values of an AV1 frame, each of more than 8 bits counted twice: about two
/// seconds of one core at worst, if they are noise. A photograph of 32 megapixels (8 bits, 4:2:0)
/// has as many.
pub(crate) const MAX_AV1_VALUES: u64 = 48_000_000;

/// Maximum number of bytes that the strips or tiles of a TIFF have once they are decompressed:
/// about two seconds of one core at worst. 50 megapixels of 16-bit RGB have 300 million.
pub(crate) const MAX_UNPACKED: u64 = 320_000_000;

/// Maximum number of groups of codes of a lossless WebP: a second of one core for their tables at
/// worst. libwebp writes no more than some thousands.
pub(crate) const MAX_CODE_GROUPS: u64 = 32_768;

/// Limits on one image. All are checked against the encoded bytes and the header, before decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum size of the encoded file, in bytes.
    pub max_bytes: u64,
    /// Maximum number of pixels (width x height, as declared by the header).
    pub max_pixels: u64,
    /// Minimum length of the shorter side, in pixels.
    pub min_side: u32,
    /// Maximum aspect ratio: longer side / shorter side.
    pub max_aspect: f64,
    /// Maximum number of frames of an animation, whose first frame is used; 1 rejects animations.
    pub max_frames: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 50_000_000,
            min_side: 1,
            // A 20:1 strip resized to a short side of 256 has 1.3 million pixels; without a limit,
            // 1 x 65535 would grow to 17 million.
            max_aspect: 20.0,
            max_frames: 256,
        }
    }
}

impl Limits {
    /// No limits, for an image that has passed others.
    pub fn none() -> Self {
        Self {
            max_bytes: u64::MAX,
            max_pixels: u64::MAX,
            min_side: 1,
            max_aspect: f64::MAX,
            max_frames: u32::MAX,
        }
    }

    /// Rejects limits that no image can meet.
    ///
    /// # Errors
    /// [`ImageError::BadOptions`], naming the field.
    pub fn check(&self) -> Result<(), ImageError> {
        let bad = |what: &str| Err(ImageError::BadOptions(what.to_owned()));
        if self.max_bytes == 0 {
            return bad("`max_bytes` must be at least 1");
        }
        if self.max_pixels == 0 {
            return bad("`max_pixels` must be at least 1");
        }
        if self.max_aspect.is_nan() || self.max_aspect < 1.0 {
            return bad("`max_aspect` must be at least 1.0");
        }
        if self.max_frames == 0 {
            return bad("`max_frames` must be at least 1");
        }
        Ok(())
    }
}
