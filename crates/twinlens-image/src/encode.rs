//! Encodes pixels. The encoders are pure functions of pixels and options, so shards are
//! reproducible.

use image::codecs::{png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::rgb::Rgb;
use crate::sniff::Format;

/// The format of stored images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// The original bytes if the pixels did not change; otherwise the original format.
    Keep,
    /// JPEG: small, lossy.
    #[default]
    Jpeg,
    /// PNG: lossless and widely supported.
    Png,
    /// WebP: lossless and smaller than PNG; lossy if `quality` is given (needs a build with the
    /// feature `libwebp`).
    Webp,
}

/// How images are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Encode {
    /// The format of the stored bytes.
    pub format: Encoding,
    /// Quality of JPEG and lossy WebP, 1 to 100. Default: 95 for JPEG (as in img2dataset), lossless
    /// for WebP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<u8>,
}

/// The default quality of JPEG.
const JPEG_QUALITY: u8 = 95;

impl Encode {
    /// Rejects a quality that is out of range or would have no effect.
    ///
    /// # Errors
    /// [`ImageError::BadOptions`], naming the field.
    pub fn check(&self) -> Result<(), ImageError> {
        let problem = match (self.quality, self.format) {
            (Some(quality), _) if !(1..=100).contains(&quality) => {
                format!("`quality` must be from 1 to 100, not {quality}")
            }
            (Some(_), Encoding::Png) => "PNG is lossless: remove `quality`".to_owned(),
            (Some(_), Encoding::Webp) if cfg!(not(feature = "libwebp")) => {
                "this build writes only lossless WebP: remove `quality`, or build with `--features libwebp`"
                    .to_owned()
            }
            _ => return Ok(()),
        };
        Err(ImageError::BadOptions(problem))
    }

    /// The format to encode as, if the image was in the format `original`.
    pub(crate) fn target(&self, original: Format) -> Format {
        match self.format {
            Encoding::Keep => original,
            Encoding::Jpeg => Format::Jpeg,
            Encoding::Png => Format::Png,
            Encoding::Webp => Format::WebP,
        }
    }
}

/// Encodes as JPEG, PNG or WebP, without metadata. For `quality` see [`Encode::quality`].
///
/// # Errors
/// `encode_failed` if a side is too long for the format (65,535 pixels for JPEG, 16,383 for WebP),
/// or the format cannot be written.
pub fn encode(rgb: &Rgb, format: Format, quality: Option<u8>) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let encoded = match format {
        Format::Jpeg => jpeg(rgb, quality.unwrap_or(JPEG_QUALITY), &mut bytes),
        Format::Png => lossless(rgb, PngEncoder::new(&mut bytes)),
        Format::WebP if rgb.width().max(rgb.height()) >= 1 << 14 => {
            Err(format!("{} x {}: a side is longer than 16383 pixels", rgb.width(), rgb.height()))
        }
        #[cfg(feature = "libwebp")]
        Format::WebP if quality.is_some() => lossy_webp(rgb, quality.unwrap_or(100), &mut bytes),
        Format::WebP => lossless(rgb, WebPEncoder::new_lossless(&mut bytes)),
        _ => Err("this format cannot be written".to_owned()),
    };
    encoded.map_err(|reason| ImageError::EncodeFailed { format, reason })?;
    Ok(bytes)
}

fn lossless(rgb: &Rgb, encoder: impl ImageEncoder) -> Result<(), String> {
    let colour = ExtendedColorType::Rgb8;
    encoder.write_image(rgb.pixels(), rgb.width(), rgb.height(), colour).map_err(|error| error.to_string())
}

#[cfg(feature = "libwebp")]
fn lossy_webp(rgb: &Rgb, quality: u8, bytes: &mut Vec<u8>) -> Result<(), String> {
    let encoder = webp::Encoder::from_rgb(rgb.pixels(), rgb.width(), rgb.height());
    let encoded = encoder.encode_simple(false, f32::from(quality)).map_err(|error| format!("{error:?}"))?;
    bytes.extend_from_slice(&encoded);
    Ok(())
}

/// Encodes to the bytes that libjpeg-turbo writes, with chroma at half the resolution, as
/// img2dataset and Pillow do.
fn jpeg(rgb: &Rgb, quality: u8, bytes: &mut Vec<u8>) -> Result<(), String> {
    let [width, height] = [rgb.width(), rgb.height()].map(|side| side as usize);
    *bytes = compress(rgb.pixels(), width, height, PixelFormat::Rgb, quality, Subsampling::S420)
        .map_err(|error| error.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quality_without_effect_is_refused() {
        let problem = |format, quality| {
            Encode { format, quality }.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        let lossy_webp = if cfg!(feature = "libwebp") { "" } else { "libwebp" };
        let cases = [
            (Encoding::Jpeg, Some(95), ""),
            (Encoding::Keep, Some(1), ""),
            (Encoding::Jpeg, Some(0), "from 1 to 100"),
            (Encoding::Png, Some(90), "lossless"),
            (Encoding::Png, None, ""),
            (Encoding::Webp, None, ""),
            (Encoding::Webp, Some(80), lossy_webp),
        ];
        for (format, quality, expected) in cases {
            let found = problem(format, quality);
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{format:?}: {found}"
            );
        }
    }
}
