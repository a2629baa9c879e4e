//! Pixels to bytes. The encoders are pure functions of pixels and options, so shards come out the same each time.

use image::codecs::{png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use jpeg_encoder::{ColorType, Encoder as JpegEncoder, SamplingFactor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Format, ImageError, Rgb};

/// In which format images are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// The original bytes if the pixels did not change (no resize, no turn); otherwise the original's format.
    Keep,
    /// JPEG: small, lossy.
    #[default]
    Jpeg,
    /// PNG: lossless, opens everywhere.
    Png,
    /// WebP, lossless: smaller than PNG.
    Webp,
}

/// How images are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Encode {
    /// The format of the stored bytes.
    pub format: Encoding,
    /// JPEG quality, 1 to 100. The other formats are lossless.
    pub quality: u8,
}

impl Default for Encode {
    /// JPEG at 95, as img2dataset.
    fn default() -> Self {
        Self { format: Encoding::Jpeg, quality: 95 }
    }
}

impl Encode {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// [`ImageError::BadOptions`], naming the field.
    pub fn check(&self) -> Result<(), ImageError> {
        if (1..=100).contains(&self.quality) {
            return Ok(());
        }
        Err(ImageError::BadOptions(format!("`quality` must be from 1 to 100, not {}", self.quality)))
    }

    /// The format of an image that was `original` and whose pixels changed.
    pub(crate) fn target(&self, original: Format) -> Format {
        match self.format {
            Encoding::Keep => original,
            Encoding::Jpeg => Format::Jpeg,
            Encoding::Png => Format::Png,
            Encoding::Webp => Format::WebP,
        }
    }
}

/// Encodes as `format`, one of the decodable ones; `quality` (1 to 100) is for JPEG. Metadata is not written.
///
/// # Errors
/// `encode_failed` when the format cannot hold the size (65,535 pixels a side for JPEG, 16,383 for WebP), or
/// is not one that can be written.
pub fn encode(rgb: &Rgb, format: Format, quality: u8) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let encoded = match format {
        Format::Jpeg => jpeg(rgb, quality, &mut bytes),
        Format::Png => lossless(rgb, PngEncoder::new(&mut bytes)),
        Format::WebP if rgb.width().max(rgb.height()) >= 1 << 14 => {
            Err(format!("{} x {}: a side is longer than 16383 pixels", rgb.width(), rgb.height()))
        }
        Format::WebP => lossless(rgb, WebPEncoder::new_lossless(&mut bytes)),
        _ => Err("it cannot be written".to_owned()),
    };
    encoded.map_err(|reason| ImageError::EncodeFailed { format, reason })?;
    Ok(bytes)
}

fn lossless(rgb: &Rgb, encoder: impl ImageEncoder) -> Result<(), String> {
    let colour = ExtendedColorType::Rgb8;
    encoder.write_image(rgb.pixels(), rgb.width(), rgb.height(), colour).map_err(|error| error.to_string())
}

/// Chroma at half the resolution, as img2dataset's encoder and most others write it.
fn jpeg(rgb: &Rgb, quality: u8, bytes: &mut Vec<u8>) -> Result<(), String> {
    let side =
        |length: u32| u16::try_from(length).map_err(|_| format!("{length} pixels are longer than 65535"));
    let (width, height) = (side(rgb.width())?, side(rgb.height())?);
    let mut encoder = JpegEncoder::new(bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(rgb.pixels(), width, height, ColorType::Rgb).map_err(|error| error.to_string())
}
