//! The size of formats that are rare on the web, by the decoders that later decode them. They read
//! the header alone; a file that ends too early is found when it is decoded.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::ico::IcoDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::qoi::QoiDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::error::{ImageFormatHint, UnsupportedError, UnsupportedErrorKind};
use image::{ExtendedColorType, ImageDecoder, ImageResult};

use super::walk::{Fault, Walk};
use crate::sniff::Format;

/// A decoder that has read the header.
pub(crate) fn open(bytes: &[u8], format: Format) -> ImageResult<Box<dyn ImageDecoder + '_>> {
    let bytes = Cursor::new(bytes);
    Ok(match format {
        Format::Png => Box::new(PngDecoder::new(bytes)?),
        Format::WebP => Box::new(WebPDecoder::new(bytes)?),
        Format::Gif => Box::new(GifDecoder::new(bytes)?),
        Format::Bmp => Box::new(BmpDecoder::new(bytes)?),
        Format::Tiff => Box::new(TiffDecoder::new(bytes)?),
        Format::Ico => Box::new(IcoDecoder::new(bytes)?),
        Format::Pnm => Box::new(PnmDecoder::new(bytes)?),
        Format::Qoi => Box::new(QoiDecoder::new(bytes)?),
        other => {
            let format = ImageFormatHint::Name(other.name().to_owned());
            let kind = UnsupportedErrorKind::Format(format.clone());
            return Err(image::ImageError::Unsupported(UnsupportedError::from_format_and_kind(format, kind)));
        }
    })
}

pub(super) fn walk(bytes: &[u8], format: Format) -> Result<Walk, Fault> {
    let decoder = open(bytes, format).map_err(|error| match error {
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
