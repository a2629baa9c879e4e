//! How large an image may be, held against its header before a pixel is decoded.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ImageError;

/// Bounds on one image. All are checked on the encoded bytes and the header, before decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest encoded file, in bytes.
    pub max_bytes: u64,
    /// Most pixels (width x height, as the header declares them) that are decoded.
    pub max_pixels: u64,
    /// Shortest side that is accepted, in pixels.
    pub min_side: u32,
    /// Largest longer side / shorter side that is accepted.
    pub max_aspect: f64,
    /// Most frames of an animation of which the first frame is taken; 1 refuses animations.
    pub max_frames: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 50_000_000,
            min_side: 1,
            // A strip of 20:1 that is resized to a short side of 256 has 1.3 million pixels;
            // without a bound, a header of 1 x 65535 would be blown up to 17 million.
            max_aspect: 20.0,
            max_frames: 256,
        }
    }
}

impl Limits {
    /// Refuses values that no image can meet.
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
