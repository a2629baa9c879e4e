//! Images that cost as much as their format allows: small files of many pixels, and files full of
//! what takes time or memory to read.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::images::{chunk, png, riff, segment};

/// How expensive a bomb may be.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Width and height of bombs of many pixels. A multiple of 16.
    pub side: u32,
    /// Length of bombs of many bytes.
    pub length: usize,
}

impl Size {
    fn pixels(self) -> usize {
        self.side as usize * self.side as usize
    }
}

/// A name and what makes the file.
pub type Bomb = (&'static str, fn(Size) -> Vec<u8>);

pub const IMAGE_BOMBS: &[Bomb] = &[
    ("jpeg, flat", |size| jpeg_flat(size, &[])),
    ("jpeg, scans", jpeg_scans),
    ("jpeg, corrections", jpeg_corrections),
    ("jpeg, tables", |size| jpeg_flat(Size { side: 16, ..size }, &repeated(&codes(0, 0), size.length))),
    ("jpeg, markers", |size| {
        jpeg_flat(Size { side: 16, ..size }, &repeated(&segment(0xe5, &[]), size.length))
    }),
    ("jpeg, comments", |size| {
        jpeg_flat(Size { side: 16, ..size }, &repeated(&segment(0xfe, b"x"), size.length))
    }),
    ("jpeg, profile", jpeg_profile),
    ("jpeg, cmyk", |size| jpeg_cmyk(size, 1)),
    ("jpeg, cmyk, scans", |size| jpeg_cmyk(size, 80)),
    ("png, deep", |size| png_flat(size, 16, 6, 0, &[])),
    ("png, interlaced", |size| png_flat(size, 16, 6, 1, &[])),
    ("png, bits", |size| png_flat(size, 1, 0, 0, &[])),
    ("png, texts", |size| png_with(size, &chunk(b"tEXt", b"k\0v"))),
    ("png, packed texts", |size| png_with(size, &chunk(b"zTXt", &packed_text()))),
    ("png, packed profile", png_packed_profile),
    ("png, empty chunks", |size| png_with(size, &chunk(b"IDAT", &[]))),
    ("gif, flat", |size| gif(size, false, size.side)),
    ("gif, interlaced", |size| gif(size, true, size.side)),
    ("gif, large screen", |size| gif(size, false, 16)),
    ("gif, extensions", gif_extensions),
    ("webp, noise", webp_noise),
    ("webp, flat", webp_flat),
    ("webp, codes", |size| webp_codes(32_768, size.length)),
    ("bmp, empty", bmp_empty),
    ("bmp, steps", bmp_steps),
    ("ico, entries", ico_entries),
    ("pnm, numbers", pnm_numbers),
    ("pnm, comment", |size| {
        [b"P5\n#".as_slice(), &vec![b'x'; size.length], b"\n16 16\n255\n", &[0; 256]].concat()
    }),
    ("qoi, runs", qoi),
    ("tiff, deep", |size| tiff(deep(size), 8, 1, &zlib(&vec![0; 8 * deep(size).pixels()]))),
    ("tiff, strips", tiff_strips),
    ("tiff, no steps", |size| tiff(Size { side: 16, ..size }, 32773, 1, &vec![0x80; size.length])),
    ("tiff, clear codes", |size| tiff(Size { side: 16, ..size }, 5, 1, &clear_codes(size.length))),
    ("tiff, shared strips", |size| tiff(deep(size), 1, deep(size).side, &vec![0; 8 * deep(size).pixels()])),
];

fn repeated(part: &[u8], length: usize) -> Vec<u8> {
    part.repeat(length / part.len())
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    // Compressing into memory does not fail; if it did, the image would be refused.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
}

fn two(side: u32) -> [u8; 2] {
    (side as u16).to_be_bytes()
}

// JPEG

/// A table of one code, `0`, for one symbol. `class` is 0x00 for the first coefficient, 0x10 for
/// the others.
fn codes(class: u8, symbol: u8) -> Vec<u8> {
    segment(0xc4, &[[class, 1].as_slice(), &[0; 15], &[symbol]].concat())
}

fn jpeg_frame(marker: u8, side: u32, components: u8) -> Vec<u8> {
    let mut frame = [[8].as_slice(), &two(side), &two(side), &[components]].concat();
    (1..=components).for_each(|id| frame.extend([id, 0x11, 0]));
    [segment(0xdb, &[[0].as_slice(), &[1; 64]].concat()), segment(marker, &frame)].concat()
}

/// All coefficients are zero: two bits for each block.
fn jpeg_flat(size: Size, extra: &[u8]) -> Vec<u8> {
    let scan = segment(0xda, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    let frame = jpeg_frame(0xc0, size.side, 3);
    let data = vec![0; 3 * size.pixels() / 64 / 4];
    [b"\xff\xd8", extra, &frame, &codes(0, 0), &codes(0x10, 0), &scan, &data, b"\xff\xd9"].concat()
}

/// Four components, of which two are subsampled, all zero: one bit for each block and scan.
fn jpeg_cmyk(size: Size, scans: u8) -> Vec<u8> {
    let side = if scans > 1 { size.side.min(1568) } else { size.side };
    let mut frame = jpeg_frame(0xc2, side, 4);
    let sampling = frame.len() - 12;
    for (component, factors) in [0x22, 0x11, 0x11, 0x22].into_iter().enumerate() {
        frame[sampling + 3 * component + 1] = factors;
    }
    let mut bytes = [b"\xff\xd8", frame.as_slice(), &codes(0, 0)].concat();
    let units = side.div_ceil(16) as usize * side.div_ceil(16) as usize;
    for scan in 0..scans {
        let bits = if scan == 0 { 0x01 } else { 0x10 };
        bytes.extend(segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 0, bits]));
        bytes.extend(vec![0; (10 * units).div_ceil(8)]);
    }
    [bytes.as_slice(), b"\xff\xd9"].concat()
}

/// As many scans as a decoder may be made to walk over all blocks.
fn jpeg_scans(size: Size) -> Vec<u8> {
    let side = size.side.min(3136);
    let blocks = vec![0; (side * side / 64 / 8) as usize];
    let mut bytes = [b"\xff\xd8", jpeg_frame(0xc2, side, 1).as_slice(), &codes(0, 0)].concat();
    for scan in 0..100 {
        bytes.extend(segment(0xda, &[1, 1, 0, 0, 0, if scan == 0 { 0x01 } else { 0x10 }]));
        bytes.extend(&blocks);
    }
    [bytes.as_slice(), b"\xff\xd9"].concat()
}

/// Every coefficient is set by the first scans and corrected by each later one.
fn jpeg_corrections(size: Size) -> Vec<u8> {
    let side = size.side.min(3136);
    let blocks = (side * side / 64) as usize;
    let mut bytes = [b"\xff\xd8", jpeg_frame(0xc2, side, 1).as_slice(), &codes(0, 0)].concat();
    bytes.extend(segment(0xda, &[1, 1, 0, 0, 0, 0]));
    bytes.extend(vec![0; blocks.div_ceil(8)]);
    // Code 0 and a sign of 1, 63 times in each block.
    bytes.extend(codes(0x10, 1));
    bytes.extend(segment(0xda, &[1, 1, 0, 1, 63, 0x01]));
    bytes.extend(vec![0x55; (126 * blocks).div_ceil(8)]);
    // The end of a block, and 63 corrections.
    bytes.extend(codes(0x10, 0));
    while bytes.len() + 8 * blocks < size.length.max(64 * blocks) {
        bytes.extend(segment(0xda, &[1, 1, 0, 1, 63, 0x10]));
        bytes.extend(vec![0; 8 * blocks]);
    }
    [bytes.as_slice(), b"\xff\xd9"].concat()
}

/// A profile in 255 segments.
fn jpeg_profile(size: Size) -> Vec<u8> {
    let part = vec![0xa5; (size.length / 256).min(65_000)];
    let segments =
        (1..=255).map(|index| segment(0xe2, &[b"ICC_PROFILE\0", [index, 255].as_slice(), &part].concat()));
    jpeg_flat(Size { side: 16, ..size }, &segments.collect::<Vec<_>>().concat())
}

// PNG

fn png_flat(size: Size, depth: u8, colour: u8, interlaced: u8, extra: &[u8]) -> Vec<u8> {
    let samples = if colour == 6 { 4 } else { 1 };
    let row = |width: u32| 1 + (width as usize * samples * usize::from(depth)).div_ceil(8);
    let passes = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)];
    let rows: Vec<(usize, u32)> = if interlaced == 1 {
        passes.iter().map(|(across, down)| (row(size.side / across), size.side / down)).collect()
    } else {
        vec![(row(size.side), size.side)]
    };
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    for (length, count) in rows {
        // The filter that costs most.
        let mut row = vec![0; length];
        row[0] = 4;
        (0..count).for_each(|_| drop(encoder.write_all(&row)));
    }
    let head = [size.side.to_be_bytes(), size.side.to_be_bytes()].concat();
    let head = chunk(b"IHDR", &[head.as_slice(), &[depth, colour, 0, 0, interlaced]].concat());
    png(&[head, extra.to_vec(), chunk(b"IDAT", &encoder.finish().unwrap_or_default())])
}

/// A small image with as many equal chunks as fit.
fn png_with(size: Size, chunk: &[u8]) -> Vec<u8> {
    png_flat(Size { side: 16, ..size }, 8, 6, 0, &repeated(chunk, size.length))
}

fn packed_text() -> Vec<u8> {
    [b"k\0\0".as_slice(), &zlib(&vec![0; 1 << 20])].concat()
}

fn png_packed_profile(size: Size) -> Vec<u8> {
    let profile = [b"x\0\0".as_slice(), &zlib(&vec![0; 16 * size.length])].concat();
    png_flat(Size { side: 16, ..size }, 8, 6, 0, &chunk(b"iCCP", &profile))
}

// GIF

/// Bits, the lowest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for bit in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> bit & 1) as u8) << (self.used % 8);
            }
            self.used += 1;
        }
    }
}

/// A frame of `side` on the screen of the size, all zero.
fn gif(size: Size, interlaced: bool, side: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    let (mut left, mut run, mut next) = (i64::from(side) * i64::from(side), 0, 258);
    bits.put(256, 9);
    // Zero, then codes for two, three, ... zeros.
    while left > 0 {
        let width = |codes: u32| (u32::BITS - codes.leading_zeros()).clamp(9, 12);
        bits.put(if run == 0 { 0 } else { 257 + run }, width(next - 1));
        run += 1;
        left -= i64::from(run);
        next += 1;
        if run == 3000 {
            bits.put(256, width(next - 1));
            (run, next) = (0, 258);
        }
    }
    bits.put(257, 12);
    let screen = (size.side as u16).to_le_bytes();
    let frame = (side as u16).to_le_bytes();
    let mut bytes = [b"GIF89a", screen.as_slice(), &screen, &[0xf7, 0, 0], &[0; 768]].concat();
    bytes.extend([b',', 0, 0, 0, 0]);
    bytes.extend([frame, frame].concat());
    bytes.extend([if interlaced { 0x40 } else { 0 }, 8]);
    for block in bits.bytes.chunks(255) {
        bytes.push(block.len() as u8);
        bytes.extend(block);
    }
    [bytes.as_slice(), b"\0;"].concat()
}

fn gif_extensions(size: Size) -> Vec<u8> {
    let whole = gif(Size { side: 16, ..size }, false, 16);
    [&whole[..13 + 768], &repeated(b"!\xfe\x01x\0", size.length), &whole[13 + 768..]].concat()
}

// WebP

/// Bytes that look random.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(next).collect()
}

/// A lossy image with the strongest filter, of which each half of `data` is a partition.
fn webp_lossy(size: Size, mut data: Vec<u8>) -> Vec<u8> {
    let first = data.len() / 2;
    // No options but the level of the filter, 63, and the coarsest quantisation, 127.
    data[..3].copy_from_slice(&[0x0f, 0xc0, 0xfe]);
    let tag = (first as u32) << 5 | 1 << 4;
    let side = (size.side as u16).to_le_bytes();
    let head = [&tag.to_le_bytes()[..3], &[0x9d, 1, 0x2a], &side, &side].concat();
    riff(&[(b"VP8 ", &[head, data].concat())])
}

/// Coefficients at random.
fn webp_noise(size: Size) -> Vec<u8> {
    // The length of the first partition has 19 bits.
    webp_lossy(size, noise(size.length.min((1 << 20) - 2)))
}

/// A lossless image of one colour: each pixel takes no bits.
fn webp_flat(size: Size) -> Vec<u8> {
    let mut bits = webp_head(size.side);
    // No transformations, no cache, one group of codes.
    bits.put(0, 3);
    (0..5).for_each(|_| one_symbol(&mut bits));
    riff(&[(b"VP8L", &[bits.bytes, vec![0; 16]].concat())])
}

fn webp_head(side: u32) -> Bits {
    let mut bits = Bits::default();
    bits.put(0x2f, 8);
    bits.put(side - 1, 14);
    bits.put(side - 1, 14);
    bits.put(0, 4);
    bits
}

/// A code of one symbol, 0, which takes no bits.
fn one_symbol(bits: &mut Bits) {
    bits.put(0b0001, 4);
}

/// A small lossless image of `groups` groups of codes, each with tables for codes of ten bits;
/// whole if `length` is more than 55 bytes for each.
pub fn webp_codes(groups: u32, length: usize) -> Vec<u8> {
    let mut bits = webp_head(16);
    // No transformations, no cache, several groups: one pixel of the image that chooses among them
    // for each block of 512.
    bits.put(0b100, 3);
    bits.put(7, 3);
    // That image: no cache, codes of one symbol each: green and red are the last group.
    bits.put(0, 1);
    for symbol in [(groups - 1) & 255, (groups - 1) >> 8, 0, 0, 0] {
        bits.put(0b101, 3);
        bits.put(symbol, 8);
    }
    while bits.bytes.len() < length.min(6 << 20) {
        (0..5).for_each(|_| chain(&mut bits));
    }
    riff(&[(b"VP8L", &bits.bytes)])
}

/// A code whose eleven symbols have 1, 2, ..., 10, 10 bits.
fn chain(bits: &mut Bits) {
    // Not simple. The codes for lengths: 17 and 18 have three bits, 0 to 10 and 16 have four.
    bits.put(0, 1);
    bits.put(14 - 4, 4);
    // In the order 17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10.
    for length in [3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4] {
        bits.put(length, 3);
    }
    // Eleven lengths are given, the others are zero.
    bits.put(1, 1);
    bits.put(1, 3);
    bits.put(11 - 2, 4);
    // Canonical codes of four bits, the highest bit first: 0 is 4, 1 is 5, ..., 10 is 14, 16 is 15.
    for length in (1_u32..=10).chain([10]) {
        bits.put((length + 4).reverse_bits() >> 28, 4);
    }
}

// The others

fn bmp(size: Size, depth: u8, compression: u32, data: &[u8]) -> Vec<u8> {
    let side = size.side.to_le_bytes();
    let head =
        [40_u32.to_le_bytes(), side, side, [1, 0, depth, 0], compression.to_le_bytes(), [0; 4]].concat();
    let palette = vec![0; 16 + 4 * 256];
    let start = (14 + head.len() + palette.len()) as u32;
    [b"BM", [0; 8].as_slice(), &start.to_le_bytes(), &head, &palette, data].concat()
}

/// The end, at once.
fn bmp_empty(size: Size) -> Vec<u8> {
    bmp(size, 8, 1, &[0, 1])
}

/// Steps of no pixels.
fn bmp_steps(size: Size) -> Vec<u8> {
    bmp(size, 8, 1, &[repeated(&[0, 2, 0, 0], size.length), vec![0, 1]].concat())
}

/// As many entries as the format has, all of one image.
fn ico_entries(size: Size) -> Vec<u8> {
    let image = png_flat(size, 8, 6, 0, &[]);
    let start = 6 + 16 * 65_535_u32;
    let entry = [[0, 0, 0, 0, 1, 0, 32, 0], [0; 8]].concat();
    let entry = [&entry[..8], &(image.len() as u32).to_le_bytes(), &start.to_le_bytes()].concat();
    [[0, 0, 1, 0, 0xff, 0xff].as_slice(), &entry.repeat(65_535), &image].concat()
}

fn pnm_numbers(size: Size) -> Vec<u8> {
    let side = (size.side as usize).min((size.length / 6).isqrt());
    [format!("P3\n{side} {side}\n255\n").into_bytes(), b"0 ".repeat(3 * side * side)].concat()
}

/// Runs of 62 pixels.
fn qoi(size: Size) -> Vec<u8> {
    let side = size.side.to_be_bytes();
    let runs = vec![0xfd; size.pixels().div_ceil(62)];
    [b"qoif", side.as_slice(), &side, &[4, 0], &runs, &[0, 0, 0, 0, 0, 0, 0, 1]].concat()
}

/// A TIFF file of 16-bit RGBA with the head of one of `side` x `side` pixels, and next to no data.
pub fn tiff_head(side: u32) -> Vec<u8> {
    tiff(Size { side, length: 0 }, 8, 1, &zlib(&[0; 8]))
}

/// A TIFF file of 16-bit RGBA, in `strips` strips that all have the same data.
fn tiff(size: Size, compression: u32, strips: u32, data: &[u8]) -> Vec<u8> {
    let rows = size.side.div_ceil(strips);
    let values = 8 + 2 + 12 * 9 + 4;
    let (offsets, lengths) = (values + 8, values + 8 + 4 * strips);
    let start = lengths + 4 * strips;
    let tags = [
        [256, 1, size.side],
        [257, 1, size.side],
        [258, 4, values],
        [259, 1, compression],
        [262, 1, 2],
        [273, strips, offsets],
        [277, 1, 4],
        [278, 1, rows],
        [279, strips, lengths],
    ];
    let mut bytes = b"II*\0\x08\0\0\0\x09\0".to_vec();
    for [tag, count, value] in tags {
        bytes.extend((tag as u16).to_le_bytes());
        // Bits per sample are short numbers, all others long ones; a single one stands here.
        bytes.extend(if tag == 258 { 3_u16 } else { 4 }.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        let single = match tag {
            273 if strips == 1 => start,
            279 if strips == 1 => data.len() as u32,
            _ => value,
        };
        bytes.extend(single.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend([16, 0].repeat(4));
    (0..strips).for_each(|_| bytes.extend(start.to_le_bytes()));
    (0..strips).for_each(|_| bytes.extend((data.len() as u32).to_le_bytes()));
    [bytes.as_slice(), data].concat()
}

/// As many pixels of eight bytes as are decoded.
fn deep(size: Size) -> Size {
    Size { side: size.side.min(6320), ..size }
}

/// A strip for each row.
fn tiff_strips(size: Size) -> Vec<u8> {
    let size = deep(size);
    tiff(size, 8, size.side, &zlib(&vec![0; 8 * size.side as usize]))
}

/// LZW codes that only clear the table.
fn clear_codes(length: usize) -> Vec<u8> {
    // Nine bits: 1 0000 0000, eight of them in nine bytes.
    [0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01, 0x00].repeat(length / 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_as_long_as_they_may_be() {
        let size = Size { side: 64, length: 10_000 };
        for (name, make) in IMAGE_BOMBS {
            let length = make(size).len();
            assert!(length > 30 && length < 4_000_000, "{name}: {length}");
        }
    }
}
