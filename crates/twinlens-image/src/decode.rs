//! Encoded bytes to upright 8-bit RGB; see the crate's table for how odd pixels are treated.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{DynamicImage, ImageDecoder, metadata::Orientation};

use crate::{Format, Header, ImageError, Limits, Rgb, exif, probe};

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The upright pixels.
    pub rgb: Rgb,
    /// The format of the encoded bytes.
    pub format: Format,
    /// Whether EXIF asked for a turn or a flip, which `rgb` has had.
    pub turned: bool,
    /// EXIF tags as a JSON object of strings, if there are any.
    pub exif: Option<String>,
}

/// Decodes an image after holding its header against the limits ([`probe`]).
///
/// # Errors
/// Those of [`probe`]; then `unsupported_format` (a feature that the decoder lacks), `decode_failed`,
/// `decoder_panicked` (the panic itself is reported on stderr by the process's panic hook).
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded, ImageError> {
    let header = probe(bytes, limits)?;
    guarded(header.format, || decode_unguarded(bytes, &header))
}

/// A panic of the decoder as an error. The closure owns all that it changes, so no half-changed state can be seen after it.
fn guarded<T>(format: Format, decoder: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(decoder)).unwrap_or(Err(ImageError::DecoderPanicked(format)))
}

fn decode_unguarded(bytes: &[u8], header: &Header) -> Result<Decoded, ImageError> {
    let input = Cursor::new(bytes);
    let bounds = decoder_limits(header);
    let failed = |error| decoder_error(header.format, error);
    match header.format {
        Format::Png => run(PngDecoder::with_limits(input, bounds.clone()).map_err(failed)?, header, bounds),
        Format::WebP => run(WebPDecoder::new(input).map_err(failed)?, header, bounds),
        _ => run(JpegDecoder::new(input).map_err(failed)?, header, bounds),
    }
}

/// The decoder's own limits: a second wall, should it read the header otherwise than we do.
fn decoder_limits(header: &Header) -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    // Besides pixels, text and profile chunks count against it.
    limits.max_alloc = Some(header.decode_bytes.saturating_add(16 << 20));
    limits
}

fn run(
    mut decoder: impl ImageDecoder,
    header: &Header,
    bounds: image::Limits,
) -> Result<Decoded, ImageError> {
    let failed = |error| decoder_error(header.format, error);
    if decoder.dimensions() != (header.width, header.height) {
        let reason = format!("the decoder sees {:?} pixels, the header says otherwise", decoder.dimensions());
        return Err(ImageError::DecodeFailed { format: header.format, reason });
    }
    decoder.set_limits(bounds).map_err(failed)?;
    // Damaged metadata is no reason to refuse good pixels.
    let raw_exif = decoder.exif_metadata().ok().flatten();
    let orientation =
        raw_exif.as_deref().and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
    let mut pixels = flatten(DynamicImage::from_decoder(decoder).map_err(failed)?, header.format)?;
    pixels.apply_orientation(orientation);
    let pixels = pixels.into_rgb8();
    Ok(Decoded {
        rgb: Rgb::new(pixels.width(), pixels.height(), pixels.into_raw())?,
        format: header.format,
        turned: orientation != Orientation::NoTransforms,
        exif: raw_exif.as_deref().and_then(exif::to_json),
    })
}

/// Any colour type to RGB8, alpha onto white.
fn flatten(image: DynamicImage, format: Format) -> Result<DynamicImage, ImageError> {
    if !image.color().has_alpha() {
        return Ok(DynamicImage::ImageRgb8(image.into_rgb8()));
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut pixels = rgba.into_raw();
    // In place: pixel i is written to 3i..3i+3 after it was read from 4i..4i+4.
    for i in 0..pixels.len() / 4 {
        let alpha = u32::from(pixels[4 * i + 3]);
        for channel in 0..3 {
            let value = u32::from(pixels[4 * i + channel]);
            pixels[3 * i + channel] = ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        }
    }
    pixels.truncate(width as usize * height as usize * 3);
    let reason = "the decoder's buffer does not fit its size".to_owned();
    let rgb = image::RgbImage::from_raw(width, height, pixels)
        .ok_or(ImageError::DecodeFailed { format, reason })?;
    Ok(DynamicImage::ImageRgb8(rgb))
}

fn decoder_error(format: Format, error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Unsupported(error) => ImageError::UnsupportedFormat(error.to_string()),
        error => ImageError::DecodeFailed { format, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_decoder_is_an_error() {
        let error = guarded::<()>(Format::Png, || panic!("index out of bounds")).unwrap_err();
        assert_eq!(error.code(), "decoder_panicked");
        assert_eq!(guarded(Format::Png, || Ok(3)), Ok(3));
    }
}
