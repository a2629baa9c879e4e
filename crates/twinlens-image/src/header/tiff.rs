//! The first directory of a TIFF file (TIFF 6.0), and which kinds of it are decoded.
//!
//! A kind is decoded if a test holds its pixels to Pillow's; every other is refused by name.

use super::walk::{Fault, Walk};

/// Tiles may exceed the image, but not by more than this factor and the pixels of one large tile.
const MAX_PADDING: u64 = 4;
const LARGE_TILE: u64 = 1 << 20;
/// Pieces may share bytes (writers store equal tiles once), up to this multiple of the file.
const MAX_SHARING: u64 = 4;

/// No limit on pixels lets larger images pass.
const MAX_AREA: u64 = 1 << 40;
/// Longer directories are refused: real ones have some dozens of tags.
const MAX_ENTRIES: usize = 1000;

/// How the samples of a pixel become a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    Grey { white_is_zero: bool },
    Rgb,
    Palette,
    Cmyk,
}

/// How a sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As a share of the largest value.
    Unsigned,
    /// As a value of 0 to 255, beyond which others are clipped, as Pillow does with all samples
    /// that are signed, floating-point or of 32 bits.
    Clipped(Number),
}

/// Numbers that are clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    I16,
    I32,
    U32,
    F32,
}

/// What the last of the samples that are used means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpha {
    None,
    Straight,
    Premultiplied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Lzw,
    Deflate,
    PackBits,
    Group4,
    Jpeg,
}

/// A strip or a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) data: &'a [u8],
    /// Place and size in the image, in pixels. A tile's size may exceed the image.
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Which sample it holds, if samples are stored apart.
    pub(crate) plane: Option<u32>,
}

/// The first image of a TIFF file.
pub(crate) struct Tiff<'a> {
    directory: Directory<'a>,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) colours: Colours,
    pub(crate) alpha: Alpha,
    pub(crate) bits: u32,
    pub(crate) form: Form,
    /// Samples of a pixel, of which the first are used.
    pub(crate) samples: u32,
    pub(crate) used: u32,
    pub(crate) compression: Compression,
    /// Whether samples are differences to the pixel before.
    pub(crate) differences: bool,
    /// Whether JPEG data hold red, green and blue, and not the colours of JPEG.
    pub(crate) rgb_in_jpeg: bool,
    planar: bool,
    piece: (u32, u32),
    tiled: bool,
    offsets: Option<Values>,
    lengths: Option<Values>,
}

const WIDTH: u32 = 256;
const HEIGHT: u32 = 257;
const BITS: u32 = 258;
const COMPRESSION: u32 = 259;
const PHOTOMETRIC: u32 = 262;
const FILL_ORDER: u32 = 266;
const STRIP_OFFSETS: u32 = 273;
const ORIENTATION: u32 = 274;
const SAMPLES: u32 = 277;
const ROWS_PER_STRIP: u32 = 278;
const STRIP_LENGTHS: u32 = 279;
const PLANAR: u32 = 284;
const PREDICTOR: u32 = 317;
const COLOUR_MAP: u32 = 320;
const TILE_WIDTH: u32 = 322;
const TILE_HEIGHT: u32 = 323;
const TILE_OFFSETS: u32 = 324;
const TILE_LENGTHS: u32 = 325;
const EXTRA_SAMPLES: u32 = 338;
const SAMPLE_FORMAT: u32 = 339;
const JPEG_TABLES: u32 = 347;
const ICC: u32 = 34675;

pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let tiff = read(bytes)?;
    if u64::from(tiff.width) * u64::from(tiff.height) > MAX_AREA {
        return Ok(Walk::new(tiff.width, tiff.height, 1));
    }
    tiff.check_pieces()?;
    let sample = u64::from(tiff.bits.div_ceil(8));
    let piece = u64::from(tiff.piece.0) * u64::from(tiff.piece.1) * u64::from(tiff.samples) * sample;
    // The samples, the image of up to four channels and its copy as RGB; one piece, and twice that
    // where a JPEG decoder has buffers of its own.
    let per_pixel = u64::from(tiff.used) + 4 + 3 + 1;
    let pieces = if tiff.compression == Compression::Jpeg { 4 * piece } else { piece };
    let other_bytes = pieces + if tiff.compression == Compression::Jpeg { bytes.len() as u64 } else { 0 };
    Ok(Walk { other_bytes, unpacked: tiff.unpacked(), ..Walk::new(tiff.width, tiff.height, per_pixel) })
}

/// Reads the first directory.
pub(crate) fn read(bytes: &[u8]) -> Result<Tiff<'_>, Fault> {
    let directory = Directory::first(bytes)?;
    let one = |tag, default| directory.one(tag).map(|value| value.unwrap_or(default));
    let side = |tag| directory.one(tag)?.ok_or(Fault::Damaged("no size"));
    let (width, height, samples) = (side(WIDTH)?, side(HEIGHT)?, one(SAMPLES, 1)?);
    if one(FILL_ORDER, 1)? != 1 {
        return Err(Fault::Unsupported("TIFF with the lowest bit first"));
    }
    let bits = one(BITS, 1)?;
    for index in 1..samples.min(MAX_SAMPLES) {
        if directory.value(BITS, index)? != Some(bits) {
            return Err(Fault::Unsupported("TIFF with samples of different depths"));
        }
    }
    let compression = match one(COMPRESSION, 1)? {
        1 => Compression::None,
        4 => Compression::Group4,
        5 => Compression::Lzw,
        7 => Compression::Jpeg,
        8 | 32946 => Compression::Deflate,
        32773 => Compression::PackBits,
        _ => return Err(Fault::Unsupported("TIFF with this compression")),
    };
    let extra = (directory.value(EXTRA_SAMPLES, 0)?, directory.count(EXTRA_SAMPLES));
    let photometric = directory.one(PHOTOMETRIC)?.ok_or(Fault::Damaged("no colours"))?;
    let is_grey = samples == 1 && compression != Compression::Jpeg && extra.0.is_none();
    let form = match (one(SAMPLE_FORMAT, 1)?, bits, photometric) {
        (1, 32, 1) if is_grey && directory.little => Form::Clipped(Number::U32),
        (1, ..) => Form::Unsigned,
        // Pillow takes what libtiff decompressed for bytes in the order of the file.
        (2 | 3, 16 | 32, _) if !directory.little && compression != Compression::None => {
            return Err(Fault::Unsupported("TIFF of compressed numbers with the highest byte first"));
        }
        // Pillow reads these as if they had no sign.
        (2, 8, 1) if is_grey => Form::Unsigned,
        (2, 16, 1) if is_grey => Form::Clipped(Number::I16),
        (2, 32, 1) if is_grey => Form::Clipped(Number::I32),
        (3, 32, 0 | 1) if is_grey => Form::Clipped(Number::F32),
        _ => return Err(Fault::Unsupported("TIFF of signed or floating-point samples of this kind")),
    };
    let (colours, alpha, used) = match form {
        Form::Clipped(_) if compression == Compression::Group4 => {
            return Err(Fault::Damaged("a fax of more than one bit"));
        }
        Form::Clipped(_) => (Colours::Grey { white_is_zero: false }, Alpha::None, 1),
        Form::Unsigned => colours(photometric, bits, samples, extra, compression)?,
    };
    let predicted = matches!(compression, Compression::Lzw | Compression::Deflate);
    let differences = match one(PREDICTOR, 1)? {
        1 => false,
        _ if !predicted => false,
        2 if matches!(bits, 8 | 16 | 32) => true,
        _ => return Err(Fault::Unsupported("TIFF with this predictor")),
    };
    let tiled = directory.one(TILE_WIDTH)?.is_some();
    let piece = if tiled {
        (one(TILE_WIDTH, 0)?, one(TILE_HEIGHT, 0)?)
    } else {
        (width, one(ROWS_PER_STRIP, height)?.min(height))
    };
    let planar = one(PLANAR, 1)? == 2 && samples > 1;
    // Pillow reads these as other samples than they are.
    let unnamed_alpha = colours == Colours::Rgb && samples == 4 && extra.0.is_none();
    if planar && (bits == 16 || unnamed_alpha) {
        return Err(Fault::Unsupported("TIFF with samples of this kind in planes"));
    }
    let (offsets, lengths) =
        if tiled { (TILE_OFFSETS, TILE_LENGTHS) } else { (STRIP_OFFSETS, STRIP_LENGTHS) };
    Ok(Tiff {
        width,
        height,
        colours,
        alpha,
        bits,
        form,
        samples,
        used,
        compression,
        differences,
        rgb_in_jpeg: compression == Compression::Jpeg && photometric == 2,
        planar,
        piece,
        tiled,
        offsets: directory.values(offsets),
        lengths: directory.values(lengths),
        directory,
    })
}

/// More samples per pixel are refused.
const MAX_SAMPLES: u32 = 6;

/// What the samples mean: Pillow's table of kinds, less those of which it has no colours.
fn colours(
    photometric: u32,
    bits: u32,
    samples: u32,
    (extra, extras): (Option<u32>, u32),
    compression: Compression,
) -> Result<(Colours, Alpha, u32), Fault> {
    let (grey, rgb) = (Colours::Grey { white_is_zero: photometric == 0 }, Colours::Rgb);
    if compression == Compression::Jpeg {
        return match (photometric, bits, samples) {
            (1, 8, 1) => Ok((grey, Alpha::None, 1)),
            (2 | 6, 8, 3) => Ok((rgb, Alpha::None, 3)),
            _ => Err(Fault::Unsupported("TIFF with JPEG of these colours")),
        };
    }
    if compression == Compression::Group4 && (bits, samples) != (1, 1) {
        return Err(Fault::Damaged("a fax of more than one bit"));
    }
    Ok(match (photometric, bits, samples, extra) {
        (0 | 1, 1 | 2 | 4 | 8 | 16, 1, None) => (grey, Alpha::None, 1),
        (1, 8, 2, Some(0)) => (grey, Alpha::None, 1),
        (1, 8, 2, Some(2)) => (grey, Alpha::Straight, 2),
        (2, 8 | 16, 3, None) => (rgb, Alpha::None, 3),
        (2, 8 | 16, 4, Some(0)) => (rgb, Alpha::None, 3),
        (2, 8 | 16, 4, Some(1)) => (rgb, Alpha::Premultiplied, 4),
        (2, 8 | 16, 4, None | Some(2)) => (rgb, Alpha::Straight, 4),
        (3, 1 | 2 | 4 | 8, 1, None) => (Colours::Palette, Alpha::None, 1),
        (3, 8, 2, Some(0)) => (Colours::Palette, Alpha::None, 1),
        (3, 8, 2, Some(2)) => (Colours::Palette, Alpha::Straight, 2),
        (5, 8 | 16, 4, None) => (Colours::Cmyk, Alpha::None, 4),
        (5, 8, 5, Some(0)) if extras == 1 => (Colours::Cmyk, Alpha::None, 4),
        _ => return Err(Fault::Unsupported("TIFF with samples of this kind")),
    })
}

impl<'a> Tiff<'a> {
    /// Strips or tiles along a row and a column of the image.
    fn grid(&self) -> (u32, u32) {
        (self.width.div_ceil(self.piece.0), self.height.div_ceil(self.piece.1))
    }

    /// Rejects pieces that would cost more than the image and the file are worth.
    fn check_pieces(&self) -> Result<(), Fault> {
        if self.piece.0 == 0 || self.piece.1 == 0 {
            return Err(Fault::Damaged("strips or tiles without pixels"));
        }
        let (across, down) = self.grid();
        let area = |width: u32, height: u32| u64::from(width) * u64::from(height);
        let padded = area(across, down).saturating_mul(area(self.piece.0, self.piece.1));
        if padded > MAX_PADDING * area(self.width, self.height) + LARGE_TILE {
            return Err(Fault::Unsupported("TIFF with tiles far larger than the image"));
        }
        let mut total = 0;
        for index in 0..self.piece_count() {
            total += self.piece(index)?.data.len() as u64;
        }
        if total > MAX_SHARING * self.directory.bytes.len() as u64 {
            return Err(Fault::Unsupported("TIFF with strips that share their bytes"));
        }
        Ok(())
    }

    /// The bytes of all pieces once they are decompressed, with what exceeds the image.
    fn unpacked(&self) -> u64 {
        let stored = if self.planar { 1 } else { self.samples };
        let row = (u64::from(self.piece.0) * u64::from(stored) * u64::from(self.bits)).div_ceil(8);
        let down = if self.tiled { self.grid().1.saturating_mul(self.piece.1) } else { self.height };
        let planes = if self.planar { self.used } else { 1 };
        row * u64::from(self.grid().0) * u64::from(down) * u64::from(planes)
    }

    pub(crate) fn piece_count(&self) -> u32 {
        let (across, down) = self.grid();
        across.saturating_mul(down).saturating_mul(if self.planar { self.samples } else { 1 })
    }

    pub(crate) fn piece(&self, index: u32) -> Result<Piece<'a>, Fault> {
        let value = |values: Option<Values>| match values {
            Some(values) => self.directory.nth(values, index),
            None => Ok(None),
        };
        let start = value(self.offsets)?.ok_or(Fault::Damaged("too few strips or tiles"))?;
        let length = value(self.lengths)?.ok_or(Fault::Damaged("strips or tiles without lengths"))?;
        let bytes = self.directory.bytes;
        let data = bytes.get(start as usize..start as usize + length as usize).ok_or(Fault::Truncated)?;
        let (across, down) = self.grid();
        let (plane, place) = (index / (across * down).max(1), index % (across * down).max(1));
        let (left, top) = (place % across * self.piece.0, place / across * self.piece.1);
        let height = if self.tiled { self.piece.1 } else { self.piece.1.min(self.height - top) };
        let plane = self.planar.then_some(plane);
        Ok(Piece { data, left, top, width: self.piece.0, height, plane })
    }

    /// The palette: all reds, all greens, all blues, of which the upper bytes count.
    pub(crate) fn palette(&self) -> Result<Vec<[u8; 3]>, Fault> {
        let count = 1 << self.bits;
        let colour = |index| match self.directory.value(COLOUR_MAP, index)? {
            Some(value) => Ok((value >> 8) as u8),
            None => Err(Fault::Damaged("a palette with too few colours")),
        };
        (0..count)
            .map(|index| Ok([colour(index)?, colour(index + count)?, colour(index + 2 * count)?]))
            .collect()
    }

    pub(crate) fn orientation(&self) -> Option<u8> {
        self.directory.one(ORIENTATION).ok()?.and_then(|value| u8::try_from(value).ok())
    }

    pub(crate) fn icc(&self) -> Option<&'a [u8]> {
        self.directory.data(ICC)
    }

    pub(crate) fn jpeg_tables(&self) -> Option<&'a [u8]> {
        self.directory.data(JPEG_TABLES)
    }

    /// A value of 16 bits in the order of the file's bytes.
    pub(crate) fn deep(&self, bytes: [u8; 2]) -> u16 {
        if self.directory.little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) }
    }

    /// A value of 32 bits in the order of the file's bytes.
    pub(crate) fn word(&self, bytes: [u8; 4]) -> u32 {
        if self.directory.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    }
}

/// The values of a tag: their type, their number, and the offset of the first.
#[derive(Clone, Copy)]
struct Values {
    kind: u32,
    count: u32,
    at: usize,
}

/// Entries of 12 bytes: tag, type, number of values, and the values or where they are.
#[derive(Clone, Copy)]
struct Directory<'a> {
    bytes: &'a [u8],
    little: bool,
    start: usize,
    entries: usize,
}

impl<'a> Directory<'a> {
    fn first(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut directory = Self { bytes, little: bytes.starts_with(b"II"), start: 0, entries: 0 };
        if directory.number(2, 2) == Some(43) {
            return Err(Fault::Unsupported("BigTIFF"));
        }
        let at = directory.number(4, 4).ok_or(Fault::Truncated)? as usize;
        let entries = directory.number(at, 2).ok_or(Fault::Truncated)? as usize;
        if entries == 0 {
            return Err(Fault::Truncated);
        }
        if entries > MAX_ENTRIES {
            return Err(Fault::Damaged("a directory of more than 1,000 tags"));
        }
        (directory.start, directory.entries) = (at + 2, entries);
        directory.number(at + 2 + 12 * entries - 4, 4).ok_or(Fault::Truncated)?;
        Ok(directory)
    }

    fn number(&self, at: usize, length: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?.iter();
        let join = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        Some(if self.little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    }

    fn values(&self, tag: u32) -> Option<Values> {
        let mut places = (0..self.entries).map(|index| self.start + 12 * index);
        let at = places.find(|at| self.number(*at, 2) == Some(tag))?;
        let (kind, count) = (self.number(at + 2, 2)?, self.number(at + 4, 4)?);
        let inside = u64::from(count) * size(kind) <= 4;
        let at = if inside { at + 8 } else { self.number(at + 8, 4)? as usize };
        Some(Values { kind, count, at })
    }

    /// A whole number; `None` if there are fewer.
    fn nth(&self, values: Values, index: u32) -> Result<Option<u32>, Fault> {
        if index >= values.count {
            return Ok(None);
        }
        if !matches!(values.kind, 1 | 3 | 4) {
            return Err(Fault::Damaged("a value that is not a whole number"));
        }
        let length = size(values.kind) as usize;
        self.number(values.at + index as usize * length, length).map(Some).ok_or(Fault::Truncated)
    }

    /// Like [`Self::nth`]; `None` without the tag too.
    fn value(&self, tag: u32, index: u32) -> Result<Option<u32>, Fault> {
        self.values(tag).map_or(Ok(None), |values| self.nth(values, index))
    }

    fn one(&self, tag: u32) -> Result<Option<u32>, Fault> {
        self.value(tag, 0)
    }

    fn count(&self, tag: u32) -> u32 {
        self.values(tag).map_or(0, |values| values.count)
    }

    /// The values of a tag of bytes.
    fn data(&self, tag: u32) -> Option<&'a [u8]> {
        let Values { kind, count, at } = self.values(tag)?;
        self.bytes.get(at..at.checked_add(count as usize)?).filter(|_| size(kind) == 1)
    }
}

/// The length of a value in bytes (TIFF 6.0, page 15).
fn size(kind: u32) -> u64 {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 => 4,
        _ => 8,
    }
}
