//! Decodes JPEG to RGB.
//!
//! Headers are read leniently (encoders put odd things between segments), entropy-coded data
//! strictly: a decoder that fills up unreadable parts would accept half an image.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::error::ImageError;
use crate::header::Header;
use crate::limits::MAX_SCANS;
use crate::raw::{ColourModel, RawImage};
use crate::sniff::Format;

/// The JPEG library of this build. Pixel values depend on it, so datasets record it in their
/// recipes.
#[cfg(not(feature = "turbojpeg"))]
pub const JPEG_DECODER: &str = "zune-jpeg";
/// The JPEG library of this build. Pixel values depend on it, so datasets record it in their
/// recipes.
#[cfg(feature = "turbojpeg")]
pub const JPEG_DECODER: &str = "libjpeg-turbo, scaled";

/// Decodes at 1/`by` (1, 2, 4 or 8) of the size if this build's decoder supports it, otherwise at
/// full size.
pub(crate) fn decode(bytes: &[u8], header: &Header, by: u32) -> Result<RawImage, ImageError> {
    #[cfg(feature = "turbojpeg")]
    if let Some((width, height, pixels)) = crate::turbo::decode(bytes, header, by) {
        let (_, raw) = open(bytes, header)?;
        return Ok(RawImage { width, height, pixels, ..raw });
    }
    let _full_size = by;
    decode_zune(bytes, header)
}

/// Decodes at full size with `zune-jpeg`.
fn decode_zune(bytes: &[u8], header: &Header) -> Result<RawImage, ImageError> {
    let terminated = with_invalid_code_at_end(&bytes[..header.end.min(bytes.len())]);
    let (mut decoder, raw) = open(&terminated, header)?;
    let grey = raw.colour_model == ColourModel::Grey;
    let target = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options(header).set_strict_mode(true).jpeg_set_out_colorspace(target));
    let mut pixels = decoder.decode().map_err(error)?;
    if grey {
        pixels = pixels.into_iter().flat_map(|value| [value; 3]).collect();
    }
    Ok(RawImage { pixels, ..raw })
}

type Decoder<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

/// A decoder that has read the headers, and their content.
fn open<'a>(bytes: &'a [u8], header: &Header) -> Result<(Decoder<'a>, RawImage), ImageError> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options(header));
    decoder.decode_headers().map_err(error)?;
    let (width, height) = (header.width, header.height);
    let seen = decoder.dimensions().unwrap_or_default();
    if seen != (width as usize, height as usize) {
        let reason = format!("the decoder sees {seen:?} pixels, the header says otherwise");
        return Err(ImageError::DecodeFailed { format: Format::Jpeg, reason });
    }
    let colour_model = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColourModel::Grey,
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => ColourModel::Cmyk,
        _ => ColourModel::Rgb,
    };
    let (icc, exif) = (decoder.icc_profile(), decoder.exif().cloned());
    Ok((decoder, RawImage { width, height, pixels: Vec::new(), colour_model, icc, exif }))
}

fn options(header: &Header) -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(header.width as usize)
        .set_max_height(header.height as usize)
        .jpeg_set_max_scans(MAX_SCANS)
}

/// Appends ones before the end marker. All ones is not a valid code (ITU-T T.81, annex C), so an
/// image whose data end too early is an error. At an end marker the decoder would instead read
/// zeros without end, which are valid codes.
fn with_invalid_code_at_end(bytes: &[u8]) -> Vec<u8> {
    let mut terminated = Vec::with_capacity(bytes.len() + 2 * ONES + 2);
    terminated.extend_from_slice(bytes);
    terminated.extend([0xff, 0x00].repeat(ONES));
    terminated.extend([0xff, 0xd9]);
    terminated
}

/// Bytes of ones: more than the read-ahead of the decoder (8) plus the longest code and its value
/// (4).
const ONES: usize = 32;

fn error(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::Unsupported(what) => ImageError::UnsupportedFormat(format!("JPEG with {what:?}")),
        error => ImageError::DecodeFailed { format: Format::Jpeg, reason: error.to_string() },
    }
}

#[cfg(feature = "turbojpeg")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::bicubic::resize_bicubic;
    use crate::encode::encode;
    use crate::hash::phash;
    use crate::header::probe;
    use crate::limits::Limits;
    use crate::rgb::Rgb;

    /// Waves whose amplitude falls with their frequency, edges, and grain.
    fn picture(width: u32, height: u32) -> Rgb {
        let value = |x: u32, y: u32, channel: u32| {
            let (u, v) = (f64::from(x) / 160.0, f64::from(y) / 130.0 + 0.3 * f64::from(channel));
            let wave = |k: f64| (k * u + 1.7 * k * k).sin() * (k * v + 2.3 * k).cos() * 90.0 / k;
            let waves: f64 = (1..20).map(|k| wave(f64::from(k))).sum();
            let edge = if (x / 161 + y / 247).is_multiple_of(2) { 15.0 } else { -15.0 };
            let grain = f64::from((x * 7919 + y * 104_729 + channel * 31) % 17) - 8.0;
            (128.0 + waves + edge + grain).clamp(0.0, 255.0) as u8
        };
        let all = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
        Rgb::new(width, height, all.map(|(x, y, c)| value(x, y, c)).collect()).unwrap()
    }

    fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
        assert_eq!(a.len(), b.len());
        let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        (a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0), sum / a.len() as f64)
    }

    #[test]
    fn both_decoders_agree() {
        for (width, height) in [(1000, 800), (333, 257), (16, 16), (9, 7)] {
            let bytes = encode(&picture(width, height), Format::Jpeg, Some(85)).unwrap();
            let header = probe(&bytes, &Limits::default()).unwrap();
            let (turbo, zune) = (decode(&bytes, &header, 1).unwrap(), decode_zune(&bytes, &header).unwrap());
            assert_eq!((turbo.width, turbo.height), (zune.width, zune.height));
            assert_eq!(turbo.colour_model, zune.colour_model);
            let (max, mean) = difference(&turbo.pixels, &zune.pixels);
            assert!(max <= 16 && mean < 0.5, "{width} x {height}: max {max}, mean {mean}");
        }
    }

    #[test]
    fn a_reduced_image_matches_the_full_one_after_resizing() {
        let bytes = encode(&picture(1001, 803), Format::Jpeg, Some(85)).unwrap();
        let header = probe(&bytes, &Limits::default()).unwrap();
        let rgb = |raw: RawImage| Rgb::new(raw.width, raw.height, raw.pixels).unwrap();
        let whole = rgb(decode_zune(&bytes, &header).unwrap());
        // At an eighth, only 126 columns are resized to 100, so the difference is larger.
        for (by, bound) in [(2, 3.0), (4, 3.0), (8, 6.0)] {
            let reduced = rgb(decode(&bytes, &header, by).unwrap());
            assert_eq!((reduced.width(), reduced.height()), (1001_u32.div_ceil(by), 803_u32.div_ceil(by)));
            let (a, b) =
                (resize_bicubic(&reduced, 100, 80).unwrap(), resize_bicubic(&whole, 100, 80).unwrap());
            let (max, mean) = difference(a.pixels(), b.pixels());
            println!("1/{by}: max {max}, mean {mean}");
            assert!(max <= 50 && mean < bound, "1/{by}: max {max}, mean {mean}");
            let bits = (phash(&reduced).unwrap() ^ phash(&whole).unwrap()).count_ones();
            println!("1/{by}: {bits} bits");
            assert!(bits <= 8, "1/{by}: the perceptual hash differs in {bits} bits");
        }
    }
}
