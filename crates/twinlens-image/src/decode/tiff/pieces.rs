//! Decompresses the strips and tiles of a TIFF file.

use std::convert::Infallible;

use fax::Color;
use fax::decoder::{DecodeStatus, Group4Decoder, pels};
use flate2::{Decompress, FlushDecompress, Status};
use weezl::decode::Decoder;
use weezl::{BitOrder, LzwStatus};

use crate::error::ImageError;
use crate::header::probe;
use crate::header::tiff::{Compression, Form, Number, Piece, Tiff};
use crate::jpeg;
use crate::limits::Limits;
use crate::raw::ColourModel;
use crate::sniff::Format;

fn damaged(reason: &str) -> ImageError {
    ImageError::DecodeFailed { format: Format::Tiff, reason: reason.to_owned() }
}

/// Each sample that is used, reduced to eight bits, of shape `[height, width, used]`.
pub(super) fn samples(tiff: &Tiff<'_>, reduce: impl Fn(u16) -> u8) -> Result<Vec<u8>, ImageError> {
    let (width, used) = (tiff.width as usize, tiff.used as usize);
    let mut image = vec![0; width * tiff.height as usize * used];
    let mut rows = Vec::new();
    for index in 0..tiff.piece_count() {
        let piece = tiff.piece(index).map_err(|fault| fault.into_error(Format::Tiff))?;
        // Samples that are not used are not decoded where they are stored apart.
        if piece.plane.is_some_and(|plane| plane >= tiff.used) {
            continue;
        }
        let stored = if piece.plane.is_some() { 1 } else { tiff.samples as usize };
        let row_bytes = (piece.width as usize * stored * tiff.bits as usize).div_ceil(8);
        rows.clear();
        rows.resize(row_bytes * piece.height as usize, 0);
        decompress(tiff, &piece, row_bytes, &mut rows)?;
        if tiff.differences {
            add_differences(tiff, stored, row_bytes, &mut rows);
        }
        let across = (piece.width as usize).min(width - piece.left as usize);
        let down = piece.height.min(tiff.height - piece.top) as usize;
        for (y, row) in rows.chunks_exact(row_bytes.max(1)).take(down).enumerate() {
            let start = (piece.top as usize + y) * width + piece.left as usize;
            let target = &mut image[start * used..(start + across) * used];
            for (x, pixel) in target.chunks_exact_mut(used).enumerate() {
                match piece.plane {
                    Some(plane) => pixel[plane as usize] = reduce(sample(tiff, row, x)),
                    None => {
                        for (index, value) in pixel.iter_mut().enumerate() {
                            *value = reduce(sample(tiff, row, x * stored + index));
                        }
                    }
                }
            }
        }
    }
    Ok(image)
}

/// The sample of a row at an index.
fn sample(tiff: &Tiff<'_>, row: &[u8], index: usize) -> u16 {
    if let Form::Clipped(number) = tiff.form {
        return clipped(tiff, number, row, index);
    }
    match tiff.bits {
        8 => u16::from(row[index]),
        16 => tiff.deep([row[2 * index], row[2 * index + 1]]),
        bits => {
            let bit = index * bits as usize;
            u16::from(row[bit / 8] >> (8 - bits as usize - bit % 8)) & ((1 << bits) - 1)
        }
    }
}

/// A sample of 0 to 255, clipped as Pillow clips its modes `I` and `F`.
fn clipped(tiff: &Tiff<'_>, number: Number, row: &[u8], index: usize) -> u16 {
    let word = || {
        let at = 4 * index;
        tiff.word([row[at], row[at + 1], row[at + 2], row[at + 3]])
    };
    let value = match number {
        Number::I16 => i32::from(tiff.deep([row[2 * index], row[2 * index + 1]]).cast_signed()),
        // Pillow's whole numbers have a sign.
        Number::I32 | Number::U32 => word().cast_signed(),
        // Cuts off the fraction; what is not a number is 0.
        Number::F32 => f32::from_bits(word()) as i32,
    };
    value.clamp(0, 255) as u16
}

/// Undoes predictor 2: a sample is stored as its difference to the same one of the pixel before.
fn add_differences(tiff: &Tiff<'_>, stored: usize, row_bytes: usize, rows: &mut [u8]) {
    for row in rows.chunks_exact_mut(row_bytes.max(1)) {
        if tiff.bits == 8 {
            for at in stored..row.len() {
                row[at] = row[at].wrapping_add(row[at - stored]);
            }
            continue;
        }
        if tiff.bits == 32 {
            for at in (4 * stored..row.len()).step_by(4) {
                let word = |at: usize| tiff.word([row[at], row[at + 1], row[at + 2], row[at + 3]]);
                let value = word(at).wrapping_add(word(at - 4 * stored));
                row[at..at + 4].copy_from_slice(&tiff.word(value.to_ne_bytes()).to_ne_bytes());
            }
            continue;
        }
        for at in (2 * stored..row.len()).step_by(2) {
            let before = tiff.deep([row[at - 2 * stored], row[at - 2 * stored + 1]]);
            let value = tiff.deep([row[at], row[at + 1]]).wrapping_add(before);
            // Reading and writing swap the same bytes.
            let bytes = tiff.deep(value.to_ne_bytes()).to_ne_bytes();
            row[at..at + 2].copy_from_slice(&bytes);
        }
    }
}

/// Fills `rows` with what a strip or tile holds.
fn decompress(
    tiff: &Tiff<'_>,
    piece: &Piece<'_>,
    row_bytes: usize,
    rows: &mut [u8],
) -> Result<(), ImageError> {
    let written = match tiff.compression {
        Compression::None => {
            let length = rows.len().min(piece.data.len());
            rows[..length].copy_from_slice(&piece.data[..length]);
            length
        }
        Compression::PackBits => packbits(piece.data, rows),
        Compression::Lzw => lzw(piece.data, rows)?,
        Compression::Deflate => inflate(piece.data, rows)?,
        Compression::Group4 => fax(piece, row_bytes, rows)?,
        Compression::Jpeg => return jpeg(tiff, piece, rows),
    };
    if written == rows.len() { Ok(()) } else { Err(damaged("a strip or tile ends too early")) }
}

/// TIFF 6.0, section 9. Returns how much was written.
fn packbits(mut data: &[u8], rows: &mut [u8]) -> usize {
    let mut at = 0;
    while let Some((head, rest)) = data.split_first()
        && at < rows.len()
    {
        data = rest;
        let left = rows.len() - at;
        match head {
            0..=127 => {
                let length = (usize::from(*head) + 1).min(data.len());
                let used = length.min(left);
                rows[at..at + used].copy_from_slice(&data[..used]);
                (data, at) = (&data[length..], at + used);
            }
            128 => {}
            129..=255 => {
                let Some((value, rest)) = data.split_first() else { break };
                let used = (257 - usize::from(*head)).min(left);
                rows[at..at + used].fill(*value);
                (data, at) = (rest, at + used);
            }
        }
    }
    at
}

fn lzw(data: &[u8], rows: &mut [u8]) -> Result<usize, ImageError> {
    let mut decoder = Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let (mut read, mut written) = (0, 0);
    while written < rows.len() {
        let result = decoder.decode_bytes(&data[read..], &mut rows[written..]);
        (read, written) = (read + result.consumed_in, written + result.consumed_out);
        match result.status {
            Ok(LzwStatus::Ok) if result.consumed_in + result.consumed_out > 0 => {}
            Ok(_) => break,
            Err(error) => return Err(damaged(&error.to_string())),
        }
    }
    Ok(written)
}

fn inflate(data: &[u8], rows: &mut [u8]) -> Result<usize, ImageError> {
    let mut decoder = Decompress::new(true);
    loop {
        let (read, written) = (decoder.total_in() as usize, decoder.total_out() as usize);
        if written == rows.len() {
            return Ok(written);
        }
        let status = decoder.decompress(&data[read..], &mut rows[written..], FlushDecompress::None);
        let status = status.map_err(|error| damaged(&error.to_string()))?;
        let stuck = (decoder.total_in() as usize, decoder.total_out() as usize) == (read, written);
        if status == Status::StreamEnd || stuck {
            return Ok(decoder.total_out() as usize);
        }
    }
}

/// CCITT Group 4 (ITU-T T.6): black is 1.
fn fax(piece: &Piece<'_>, row_bytes: usize, rows: &mut [u8]) -> Result<usize, ImageError> {
    let width = u16::try_from(piece.width)
        .map_err(|_| ImageError::UnsupportedFormat("a fax this wide".to_owned()))?;
    let bytes = piece.data.iter().map(|byte| Ok::<u8, Infallible>(*byte));
    let Ok(mut decoder) = Group4Decoder::new(bytes, width);
    for (index, row) in rows.chunks_exact_mut(row_bytes.max(1)).enumerate() {
        match decoder.advance() {
            Ok(DecodeStatus::Incomplete) => {}
            Ok(DecodeStatus::End) => return Ok(index * row_bytes),
            Err(_) => return Err(damaged("an invalid code of a fax")),
        }
        for (x, colour) in pels(decoder.transition(), width).enumerate() {
            if colour == Color::Black {
                row[x / 8] |= 0x80 >> (x % 8);
            }
        }
    }
    Ok(rows.len())
}

/// The segment by which a JPEG file says that it holds red, green and blue as they are.
const ADOBE_RGB: &[u8] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";

/// A JPEG file without the tables that all pieces share.
fn jpeg(tiff: &Tiff<'_>, piece: &Piece<'_>, rows: &mut [u8]) -> Result<(), ImageError> {
    let tables = tiff.jpeg_tables().and_then(|tables| tables.get(2..tables.len().checked_sub(2)?));
    let rest = piece.data.get(2..).ok_or_else(|| damaged("a strip or tile without a JPEG"))?;
    let colours = if tiff.rgb_in_jpeg { ADOBE_RGB } else { &[] };
    let file = [&piece.data[..2], colours, tables.unwrap_or_default(), rest].concat();
    let limits = Limits {
        max_pixels: u64::from(piece.width) * u64::from(piece.height),
        max_aspect: f64::INFINITY,
        ..Limits::default()
    };
    if tiff.rgb_in_jpeg && says_colours(&file[2 + colours.len()..]) {
        return Err(ImageError::UnsupportedFormat("TIFF with JPEG that names its colours".to_owned()));
    }
    let header = probe(&file, &limits)?;
    if header.format != Format::Jpeg || !header.single_scan {
        return Err(ImageError::UnsupportedFormat("TIFF with JPEG of several scans".to_owned()));
    }
    if header.width != piece.width || header.height < piece.height {
        return Err(damaged("a JPEG of another size than its strip or tile"));
    }
    let image = jpeg::decode(&file, &header, 1)?;
    let step = match (image.colour_model, tiff.samples) {
        (ColourModel::Grey, 1) => 3,
        (ColourModel::Rgb, 3) => 1,
        _ => return Err(damaged("a JPEG of other colours than the TIFF")),
    };
    for (target, value) in rows.iter_mut().zip(image.pixels.iter().step_by(step)) {
        *target = *value;
    }
    Ok(())
}

/// Whether a JPEG file without its first marker has a JFIF or Adobe segment, which name its
/// colours.
fn says_colours(mut segments: &[u8]) -> bool {
    while let [0xff, marker, high, low, ..] = segments {
        match marker {
            0xe0 | 0xee => return true,
            // The data begin.
            0xda => return false,
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        segments = segments.get(2 + length..).unwrap_or_default();
    }
    false
}
