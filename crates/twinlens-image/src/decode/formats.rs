//! Decodes all formats but JPEG and TIFF, as Pillow does where the library does otherwise.

use image::DynamicImage;

use super::library::{Metadata, read};
use super::{bmp, frames, ico};
use crate::error::ImageError;
use crate::header::Header;
use crate::modes::ImageModes;
use crate::raw::RawImage;
use crate::sniff::Format;

/// Decodes an image that [`crate::probe`] accepted.
pub(super) fn decode(bytes: &[u8], header: &Header, modes: ImageModes) -> Result<RawImage, ImageError> {
    let mut decoded = match header.format {
        Format::Gif => frames::first_of_gif(bytes, header, modes)?,
        Format::WebP => frames::first_of_webp(bytes, header)?,
        Format::Ico => ico::decode(bytes, header)?,
        _ => read(bytes, header)?,
    };
    if modes == ImageModes::OpenClip {
        as_pillow(&mut decoded.image, bytes, header.format);
    }
    let Metadata { icc, exif, orientation } = decoded.metadata;
    Ok(RawImage {
        width: header.width,
        height: header.height,
        pixels: modes.convert(decoded.image),
        colour_model: decoded.colour_model,
        icc,
        exif,
        orientation,
    })
}

/// Undoes what the library does otherwise than Pillow.
fn as_pillow(image: &mut DynamicImage, bytes: &[u8], format: Format) {
    match (format, &*image) {
        // Grey of 16 bits with a transparent value: as without one, it is clipped.
        (Format::Png, DynamicImage::ImageLumaA16(_)) if bytes.get(25) == Some(&0) => {
            *image = image.to_luma16().into();
        }
        (Format::Bmp, DynamicImage::ImageRgb8(_)) => bmp::round_down(image, bytes),
        _ => {}
    }
}
