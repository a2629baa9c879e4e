//! Decodes JPEG to RGB: libjpeg-turbo's pixels, which are Pillow's.
//!
//! Structures that the decoder would not read right were refused before (`header/jpeg.rs`), or are
//! given to it in other files (`jpeg/components.rs`).
//! Entropy-coded data are read strictly: a decoder that fills up unreadable parts would accept half
//! an image.

#[cfg(target_arch = "x86_64")]
mod baseline;
mod bits;
mod components;
mod scan;

use image::metadata::Orientation;
use libjpeg_turbo_rs::{ColorSpace, DecodeLimits, Decoder, Image, JpegError, PixelFormat, ScalingFactor};

use self::bits::damaged;
use self::components::{Meaning, keep_components};
use crate::error::ImageError;
use crate::header::Header;
use crate::limits::MAX_SCANS;
use crate::raw::{ColourModel, RawImage, cmyk_to_rgb, ink_to_light};

/// The JPEG library and the way it decodes. Pixel values depend on it, so datasets record it in
/// their recipes.
pub const JPEG_DECODER: &str = "libjpeg-turbo, scaled";

/// Decodes at 1/`by` (1, 2, 4 or 8) of the size.
pub(crate) fn decode(bytes: &[u8], header: &Header, by: u32) -> Result<RawImage, ImageError> {
    let bytes = &bytes[..header.length.min(bytes.len())];
    let decoder = open(bytes, header)?;
    let (model, format) = match decoder.jpeg_color_space() {
        ColorSpace::Grayscale => (ColourModel::Grey, PixelFormat::Grayscale),
        ColorSpace::YCbCr | ColorSpace::Rgb => (ColourModel::Rgb, PixelFormat::Rgb),
        ColorSpace::Cmyk | ColorSpace::Ycck => (ColourModel::Cmyk, PixelFormat::Cmyk),
        _ => return Err(ImageError::UnsupportedFormat("JPEG of unknown colours".to_owned())),
    };
    // Read first, since decoding consumes the decoder.
    let icc = decoder.icc_profile().map_err(error)?;
    let exif = decoder.exif_data().map(<[u8]>::to_vec);
    let pixels = match header.beside_black {
        None => to_rgb(pixels(bytes, decoder, header, format, by)?, model),
        Some(beside_black) => {
            let is_ycck = decoder.jpeg_color_space() == ColorSpace::Ycck;
            subsampled_cmyk(bytes, header, is_ycck, beside_black, by)?
        }
    };
    let orientation = exif.as_deref().and_then(Orientation::from_exif_chunk);
    Ok(RawImage {
        width: header.width.div_ceil(by),
        height: header.height.div_ceil(by),
        pixels,
        colour_model: model,
        icc,
        exif,
        // Damaged metadata must not reject good pixels.
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

fn open<'a>(bytes: &'a [u8], header: &Header) -> Result<Decoder<'a>, ImageError> {
    let limits = DecodeLimits {
        max_width: header.width as usize,
        max_height: header.height as usize,
        max_pixels: u64::from(header.width) * u64::from(header.height),
        max_scans: MAX_SCANS as usize,
        ..DecodeLimits::default()
    };
    Decoder::new_with_limits(bytes, limits).map_err(error)
}

fn pixels(
    bytes: &[u8],
    decoder: Decoder<'_>,
    header: &Header,
    format: PixelFormat,
    by: u32,
) -> Result<Vec<u8>, ImageError> {
    #[cfg(target_arch = "x86_64")]
    if decoder.jpeg_color_space() == ColorSpace::YCbCr {
        let size = [header.width as usize, header.height as usize];
        if let Some(pixels) = baseline::decode(bytes, size, by as usize) {
            return Ok(pixels);
        }
    }
    read(decoder, header, format, by).map(|image| image.data)
}

fn read(
    mut decoder: Decoder<'_>,
    header: &Header,
    format: PixelFormat,
    by: u32,
) -> Result<Image, ImageError> {
    decoder.set_output_format(format);
    decoder.set_scale(ScalingFactor::try_new(1, by).map_err(error)?);
    // What libjpeg does with a progressive image whose fine scans are missing.
    decoder.set_block_smoothing(true);
    let image = decoder.decode_image().map_err(error)?;
    let sides = [header.width, header.height].map(|side| side.div_ceil(by) as usize);
    if [image.width, image.height] != sides {
        let (width, height) = (image.width, image.height);
        return Err(damaged(format!(
            "the decoder sees {width} x {height} pixels, the header says otherwise"
        )));
    }
    Ok(image)
}

/// Decodes CMYK with subsampled components as two files of three: see [`components`].
fn subsampled_cmyk(
    bytes: &[u8],
    header: &Header,
    is_ycck: bool,
    beside_black: usize,
    by: u32,
) -> Result<Vec<u8>, ImageError> {
    let read = |kept: [usize; 3], meaning: Meaning| {
        let file = keep_components(bytes, kept, meaning)?;
        read(open(&file, header)?, header, PixelFormat::Rgb, by).map(|image| image.data)
    };
    let mut pixels = read([0, 1, 2], if is_ycck { Meaning::YCbCr } else { Meaning::Rgb })?;
    let black = read([0, beside_black, 3], Meaning::Rgb)?;
    for (pixel, black) in pixels.chunks_exact_mut(3).zip(black.chunks_exact(3)) {
        for value in pixel {
            *value = ink_to_light(if is_ycck { 255 - *value } else { *value }, black[2]);
        }
    }
    Ok(pixels)
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
        error => damaged(error.to_string()),
    }
}
