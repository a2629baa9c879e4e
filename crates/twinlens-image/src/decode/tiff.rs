//! Decodes the first image of a TIFF file.
//!
//! Our own, since Pillow's pixels are wanted: the library's decoder has no palettes, and converts
//! several kinds of samples otherwise.

mod pieces;

use image::metadata::Orientation;
use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};

use crate::error::ImageError;
use crate::header::Header;
use crate::header::tiff::{Alpha, Colours, Form, Tiff, read};
use crate::modes::ImageModes;
use crate::raw::{ColourModel, RawImage, cmyk_to_rgb};
use crate::sniff::Format;

pub(super) fn decode(bytes: &[u8], header: &Header, modes: ImageModes) -> Result<RawImage, ImageError> {
    let tiff = read(bytes).map_err(|fault| fault.into_error(Format::Tiff))?;
    let (colour_model, pixels) = match tiff.colours {
        Colours::Grey { .. } => (ColourModel::Grey, grey(&tiff, modes)?),
        Colours::Rgb => (ColourModel::Rgb, rgb(&tiff, modes)?),
        Colours::Palette => (ColourModel::Rgb, palette(&tiff, modes)?),
        Colours::Cmyk => (ColourModel::Cmyk, cmyk(&tiff, modes)?),
    };
    let orientation = tiff.orientation().and_then(Orientation::from_exif);
    Ok(RawImage {
        width: header.width,
        height: header.height,
        pixels,
        colour_model,
        icc: tiff.icc().map(<[u8]>::to_vec),
        exif: None,
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

/// Eight bits of each sample that is used, of shape `[height, width, used]`.
fn samples(tiff: &Tiff<'_>, modes: ImageModes) -> Result<Vec<u8>, ImageError> {
    let grey = matches!(tiff.colours, Colours::Grey { .. });
    let expanded = tiff.bits < 8 && grey;
    let most = if expanded { (1 << tiff.bits) - 1 } else { 255 };
    let is_clipped = tiff.form != Form::Unsigned;
    pieces::samples(tiff, move |value: u16| match (tiff.bits, modes) {
        _ if is_clipped => value as u8,
        (16, ImageModes::White) => ((u32::from(value) + 128) / 257) as u8,
        (16, ImageModes::OpenClip) if grey => value.min(255) as u8,
        (16, ImageModes::OpenClip) => (value >> 8) as u8,
        _ if expanded => (value * 255 / most) as u8,
        _ => value as u8,
    })
}

fn grey(tiff: &Tiff<'_>, modes: ImageModes) -> Result<Vec<u8>, ImageError> {
    let mut samples = samples(tiff, modes)?;
    // Pillow does not invert grey of 16 bits.
    let as_stored = tiff.bits == 16 && modes == ImageModes::OpenClip;
    if tiff.colours == (Colours::Grey { white_is_zero: true }) && !as_stored {
        samples.iter_mut().for_each(|value| *value = 255 - *value);
    }
    let (width, height) = (tiff.width, tiff.height);
    convert(
        modes,
        match tiff.alpha {
            Alpha::None => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
            _ => GrayAlphaImage::from_raw(width, height, samples).map(DynamicImage::from),
        },
    )
}

fn rgb(tiff: &Tiff<'_>, modes: ImageModes) -> Result<Vec<u8>, ImageError> {
    let mut samples = if tiff.bits == 16 && tiff.alpha == Alpha::Premultiplied {
        // Pillow divides the upper bytes.
        self::samples(tiff, ImageModes::OpenClip)?
    } else {
        self::samples(tiff, modes)?
    };
    if tiff.alpha == Alpha::Premultiplied {
        for pixel in samples.chunks_exact_mut(4) {
            let alpha = u32::from(pixel[3]);
            for value in &mut pixel[..3] {
                *value = (u32::from(*value) * 255).checked_div(alpha).map_or(0, |value| value.min(255) as u8);
            }
        }
    }
    let (width, height) = (tiff.width, tiff.height);
    convert(
        modes,
        match tiff.alpha {
            Alpha::None => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
            _ => RgbaImage::from_raw(width, height, samples).map(DynamicImage::from),
        },
    )
}

fn palette(tiff: &Tiff<'_>, modes: ImageModes) -> Result<Vec<u8>, ImageError> {
    let palette = tiff.palette().map_err(|fault| fault.into_error(Format::Tiff))?;
    let samples = samples(tiff, modes)?;
    // An index has no more bits than the palette has colours for.
    let colour = |index: u8| palette.get(usize::from(index)).copied().unwrap_or_default();
    let (width, height) = (tiff.width, tiff.height);
    convert(
        modes,
        match tiff.alpha {
            Alpha::None => {
                let pixels = samples.iter().flat_map(|index| colour(*index)).collect();
                RgbImage::from_raw(width, height, pixels).map(DynamicImage::from)
            }
            _ => {
                let with_alpha = |pixel: &[u8]| {
                    let [r, g, b] = colour(pixel[0]);
                    [r, g, b, pixel[1]]
                };
                let pixels = samples.chunks_exact(2).flat_map(with_alpha).collect();
                RgbaImage::from_raw(width, height, pixels).map(DynamicImage::from)
            }
        },
    )
}

fn cmyk(tiff: &Tiff<'_>, modes: ImageModes) -> Result<Vec<u8>, ImageError> {
    let mut samples = samples(tiff, modes)?;
    samples.iter_mut().for_each(|value| *value = 255 - *value);
    Ok(cmyk_to_rgb(&samples))
}

fn convert(modes: ImageModes, image: Option<DynamicImage>) -> Result<Vec<u8>, ImageError> {
    let reason = "its strips or tiles have another size".to_owned();
    let image = image.ok_or(ImageError::DecodeFailed { format: Format::Tiff, reason })?;
    Ok(modes.convert(image))
}
