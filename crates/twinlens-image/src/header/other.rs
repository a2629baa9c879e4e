//! The size of formats that are rare on the web, by the decoders that later decode them. They read
//! the header alone; a file that ends too early is found when it is decoded.

use image::{ExtendedColorType, ImageDecoder};

use super::{Fault, Walk};
use crate::decode::library;
use crate::sniff::Format;

pub(super) fn walk(bytes: &[u8], format: Format) -> Result<Walk, Fault> {
    let decoder = library::open(bytes, format).map_err(|error| match error {
        image::ImageError::IoError(_) => Fault::Truncated,
        image::ImageError::Unsupported(_) => Fault::Unsupported("this variant of the format"),
        _ => Fault::Damaged("the decoder rejects it"),
    })?;
    let (width, height) = decoder.dimensions();
    if matches!(decoder.original_color_type(), ExtendedColorType::Rgb32F | ExtendedColorType::Rgba32F) {
        return Err(Fault::Unsupported("floating-point pixels"));
    }
    // The decoder's buffer, the decoded one, the 8-bit copy, the composited RGB.
    let decoded = u64::from(decoder.color_type().bytes_per_pixel());
    Ok(Walk::new(width, height, 2 * decoded + 4 + 3))
}
