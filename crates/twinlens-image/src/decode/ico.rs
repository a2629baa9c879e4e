//! Decodes the largest image of an ICO file.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{DynamicImage, RgbaImage};

use super::library::{Decoded, decoder_error, read, read_from};
use crate::error::ImageError;
use crate::header::Header;
use crate::header::ico::{Entry, largest};
use crate::sniff::Format;

pub(super) fn decode(bytes: &[u8], header: &Header) -> Result<Decoded, ImageError> {
    let entry = largest(bytes).ok_or(ImageError::Truncated(Format::Ico))?;
    if entry.is_png() {
        return read(entry.data, &Header { format: Format::Png, ..*header });
    }
    // The height in the bitmap's header counts its mask too.
    let mut bitmap = entry.data.to_vec();
    bitmap[8..12].copy_from_slice(&header.height.to_le_bytes());
    let decoder = BmpDecoder::new_without_file_header(Cursor::new(&bitmap))
        .map_err(|error| decoder_error(Format::Ico, error))?;
    let mut decoded = read_from(Box::new(decoder), header)?;
    let alpha = alpha(&entry, header).ok_or(ImageError::Truncated(Format::Ico))?;
    let rgb = decoded.image.into_rgb8();
    let with_alpha = rgb.pixels().zip(alpha).flat_map(|(rgb, alpha)| [rgb[0], rgb[1], rgb[2], alpha]);
    let reason = || "its bitmap has another size".to_owned();
    let image = RgbaImage::from_raw(header.width, header.height, with_alpha.collect());
    let image = image.ok_or_else(|| ImageError::DecodeFailed { format: Format::Ico, reason: reason() })?;
    decoded.image = DynamicImage::ImageRgba8(image);
    Ok(decoded)
}

/// The alpha of each pixel, from top to bottom: with 32 bits the fourth byte, else by the mask of
/// one bit per pixel at the end, whose rows have whole words.
fn alpha(entry: &Entry<'_>, header: &Header) -> Option<Vec<u8>> {
    let (width, height) = (header.width as usize, header.height as usize);
    let rows = |data: &[u8], row: usize, value: &dyn Fn(&[u8], usize) -> u8| {
        data.chunks_exact(row)
            .rev()
            .flat_map(|row| (0..width).map(move |x| value(row, x)))
            .collect::<Vec<_>>()
    };
    if entry.depth == 32 {
        let start = entry.data.get(..4)?.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        let data = entry.data.get(start..)?.get(..4 * width * height)?;
        return Some(rows(data, 4 * width, &|row, x| row[4 * x + 3]));
    }
    let row = width.div_ceil(32) * 4;
    let data = entry.data.get(entry.data.len().checked_sub(row * height)?..)?;
    Some(rows(data, row, &|row, x| if row[x / 8] >> (7 - x % 8) & 1 == 1 { 0 } else { 255 }))
}
