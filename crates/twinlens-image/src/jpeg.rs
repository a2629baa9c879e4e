//! Decodes JPEG to RGB: libjpeg-turbo's pixels, which are Pillow's.
//!
//! Structures that the decoder would not read right were refused before (`header/jpeg.rs`).
//! Entropy-coded data are read strictly: a decoder that fills up unreadable parts would accept half
//! an image.

use image::metadata::Orientation;
use libjpeg_turbo_rs::{ColorSpace, DecodeLimits, Decoder, JpegError, PixelFormat, ScalingFactor};

use crate::error::ImageError;
use crate::header::Header;
use crate::limits::MAX_SCANS;
use crate::raw::{ColourModel, RawImage, cmyk_to_rgb};
use crate::sniff::Format;

/// The JPEG library and the way it decodes. Pixel values depend on it, so datasets record it in
/// their recipes.
pub const JPEG_DECODER: &str = "libjpeg-turbo, scaled";

/// Decodes at 1/`by` (1, 2, 4 or 8) of the size.
pub(crate) fn decode(bytes: &[u8], header: &Header, by: u32) -> Result<RawImage, ImageError> {
    let bytes = &bytes[..header.length.min(bytes.len())];
    let limits = DecodeLimits {
        max_width: header.width as usize,
        max_height: header.height as usize,
        max_pixels: u64::from(header.width) * u64::from(header.height),
        max_scans: MAX_SCANS as usize,
        ..DecodeLimits::default()
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(error)?;
    let (model, format) = match decoder.jpeg_color_space() {
        ColorSpace::Grayscale => (ColourModel::Grey, PixelFormat::Grayscale),
        ColorSpace::YCbCr | ColorSpace::Rgb => (ColourModel::Rgb, PixelFormat::Rgb),
        ColorSpace::Cmyk | ColorSpace::Ycck => (ColourModel::Cmyk, PixelFormat::Cmyk),
        _ => return Err(ImageError::UnsupportedFormat("JPEG of unknown colours".to_owned())),
    };
    decoder.set_output_format(format);
    decoder.set_scale(ScalingFactor::try_new(1, by).map_err(error)?);
    // What libjpeg does with a progressive image whose fine scans are missing.
    decoder.set_block_smoothing(true);
    let image = decoder.decode_image().map_err(error)?;
    let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let (width, height) = (side(image.width), side(image.height));
    if (width, height) != (header.width.div_ceil(by), header.height.div_ceil(by)) {
        let reason = format!("the decoder sees {width} x {height} pixels, the header says otherwise");
        return Err(ImageError::DecodeFailed { format: Format::Jpeg, reason });
    }
    let orientation = image.exif_data.as_deref().and_then(Orientation::from_exif_chunk);
    Ok(RawImage {
        width,
        height,
        pixels: to_rgb(image.data, model),
        colour_model: model,
        icc: image.icc_profile,
        exif: image.exif_data,
        // Damaged metadata must not reject good pixels.
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

fn to_rgb(pixels: Vec<u8>, model: ColourModel) -> Vec<u8> {
    match model {
        ColourModel::Rgb => pixels,
        ColourModel::Grey => pixels.into_iter().flat_map(|value| [value; 3]).collect(),
        // Stored inverted, as Adobe's programs do: what is stored is the light that is left.
        ColourModel::Cmyk => cmyk_to_rgb(&pixels),
    }
}

fn error(error: JpegError) -> ImageError {
    match error {
        JpegError::Unsupported(what) => ImageError::UnsupportedFormat(format!("JPEG with {what}")),
        error => ImageError::DecodeFailed { format: Format::Jpeg, reason: error.to_string() },
    }
}
