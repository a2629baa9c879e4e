//! JPEG to RGB.
//!
//! The headers are read leniently (writers put odd things between segments), the picture itself strictly: a decoder that fills up
//! what it cannot read would let half pictures through.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::colour::Stored;
use crate::decode::Raw;
use crate::{Format, Header, ImageError};

/// The decoder of JPEG in this build: it decides single values of pixels, so datasets name it in their recipes.
#[cfg(not(feature = "turbojpeg"))]
pub const JPEG_DECODER: &str = "zune-jpeg";
/// The decoder of JPEG in this build: it decides single values of pixels, so datasets name it in their recipes.
#[cfg(feature = "turbojpeg")]
pub const JPEG_DECODER: &str = "libjpeg-turbo, scaled";

/// Most scans of a progressive image; each is a pass over all coefficients, and a small file can have thousands.
pub(crate) const MAX_SCANS: usize = 100;

/// Decodes, if the decoder can and `by` (1, 2, 4 or 8) allows it at a fraction of the size.
pub(crate) fn decode(bytes: &[u8], header: &Header, by: u32) -> Result<Raw, ImageError> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(header.width as usize)
        .set_max_height(header.height as usize)
        .jpeg_set_max_scans(MAX_SCANS);
    let strictly_ended = with_strict_end(&bytes[..header.end.min(bytes.len())]);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&strictly_ended), options);
    decoder.decode_headers().map_err(error)?;
    let seen = decoder.dimensions().unwrap_or_default();
    if seen != (header.width as usize, header.height as usize) {
        let reason = format!("the decoder sees {seen:?} pixels, the header says otherwise");
        return Err(ImageError::DecodeFailed { format: Format::Jpeg, reason });
    }
    let colours = decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);
    let stored = match colours {
        ColorSpace::Luma => Stored::Grey,
        ColorSpace::CMYK | ColorSpace::YCCK => Stored::Inks,
        _ => Stored::Rgb,
    };
    let (icc, exif) = (decoder.icc_profile(), decoder.exif().cloned());
    let raw = |(width, height, pixels)| Raw { width, height, pixels, stored, icc, exif };
    #[cfg(feature = "turbojpeg")]
    if let Some(pixels) = crate::turbo::decode(bytes, header, by) {
        return Ok(raw(pixels));
    }
    let _full_size = by;
    let grey = stored == Stored::Grey;
    let target = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.set_strict_mode(true).jpeg_set_out_colorspace(target));
    let mut pixels = decoder.decode().map_err(error)?;
    if grey {
        pixels = pixels.into_iter().flat_map(|value| [value; 3]).collect();
    }
    Ok(raw((header.width, header.height, pixels)))
}

/// The file up to its end marker, and then ones. A code of ones alone is no code (ITU-T T.81, annex C), so that a picture which
/// goes on after its data have ended is an error; after an end marker the decoder would read zeros for ever, which are codes.
fn with_strict_end(bytes: &[u8]) -> Vec<u8> {
    let mut ended = Vec::with_capacity(bytes.len() + 2 * ONES + 2);
    ended.extend_from_slice(bytes);
    ended.extend([0xff, 0x00].repeat(ONES));
    ended.extend([0xff, 0xd9]);
    ended
}

/// Bytes of ones: more than the decoder reads ahead (8), the longest code and its value (4).
const ONES: usize = 32;

fn error(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::Unsupported(what) => ImageError::UnsupportedFormat(format!("JPEG with {what:?}")),
        error => ImageError::DecodeFailed { format: Format::Jpeg, reason: error.to_string() },
    }
}
