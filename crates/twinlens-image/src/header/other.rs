//! The size of formats that are rare on the web, by the decoders that later decode them. They read
//! the header alone; a file that ends too early is found when it is decoded.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::qoi::QoiDecoder;
use image::codecs::webp::WebPDecoder;
use image::error::{ImageFormatHint, UnsupportedError, UnsupportedErrorKind};
use image::{ImageDecoder, ImageResult};

use super::bmp;
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
    if format == Format::Bmp {
        bmp::check(bytes.get(14..).ok_or(Fault::Truncated)?)?;
    }
    if format == Format::Pnm {
        let (_, head) = PnmDecoder::new(Cursor::new(bytes)).map_err(fault)?.into_inner();
        check_largest_value(head.maximal_sample())?;
    }
    let decoder = open(bytes, format).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    // The decoder's buffer, the decoded one, the 8-bit copy, the composited RGB.
    let decoded = u64::from(decoder.color_type().bytes_per_pixel());
    Ok(Walk::new(width, height, 2 * decoded + 4 + 3))
}

fn fault(error: image::ImageError) -> Fault {
    match error {
        image::ImageError::IoError(_) => Fault::Truncated,
        image::ImageError::Unsupported(_) => Fault::Unsupported("this variant of the format"),
        _ => Fault::Damaged("the decoder rejects it"),
    }
}

/// Rejects values of PNM that are not multiples of 1/255: the decoder and Pillow round them
/// differently.
fn check_largest_value(value: u32) -> Result<(), Fault> {
    let exact = (1..=255).contains(&value) && 255 % value == 0;
    if exact || value == 65535 {
        Ok(())
    } else {
        Err(Fault::Unsupported("PNM with a largest value that is neither 255 nor 65535"))
    }
}
