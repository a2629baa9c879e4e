//! Damaged, odd and hostile images, made by code: what each is, and under which code it is to be
//! refused, if it is.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// One image.
#[derive(Debug, Clone)]
pub struct Odd {
    /// What is odd about it.
    pub name: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// The code of the reject; `None` for those that are to be taken.
    pub code: Option<&'static str>,
}

/// All of them.
pub fn odd_images() -> Vec<Odd> {
    let mut all = Vec::new();
    let mut add = |name, bytes: Vec<u8>, code: &'static str| {
        all.push(Odd { name, bytes, code: (!code.is_empty()).then_some(code) });
    };
    others(&mut add);
    pngs(&mut add);
    jpegs(&mut add);
    webps(&mut add);
    all
}

type Add<'a> = dyn FnMut(&'static str, Vec<u8>, &'static str) + 'a;

/// What is served in the place of images, and formats that are not decoded.
fn others(add: &mut Add<'_>) {
    add("nothing", Vec::new(), "not_an_image");
    add("one byte", vec![0x89], "not_an_image");
    add("a page", b"<!DOCTYPE html><html><img src='x.png'></html>".to_vec(), "not_an_image");
    add("json", b"{\"error\": \"not found\"}".to_vec(), "not_an_image");
    add("a feed", b"<?xml version='1.0'?><rss/>".to_vec(), "not_an_image");
    add("pdf", b"%PDF-1.7\n".to_vec(), "not_an_image");
    add("gzip", [b"\x1f\x8b\x08\0", [0; 60].as_slice()].concat(), "not_an_image");
    add("zip", [b"PK\x03\x04", [0; 60].as_slice()].concat(), "not_an_image");
    add("zeros", vec![0; 10_000], "not_an_image");
    add(
        "svg",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>".to_vec(),
        "unsupported_format",
    );
    let more: [(&str, &[u8]); 9] = [
        ("gif", b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"),
        ("bmp", b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0"),
        ("tiff", b"II*\0\x08\0\0\0\0\0"),
        ("ico", b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0"),
        ("avif", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf"),
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("jpeg xl", b"\xff\x0a\x7f\x09\x10\x06\x09\x08"),
        ("jpeg 2000", b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 "),
        ("photoshop", b"8BPS\0\x01\0\0\0\0\0\0\0\x03"),
    ];
    for (name, bytes) in more {
        add(name, bytes.to_vec(), "unsupported_format");
    }
}

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A PNG chunk: length, kind, data, checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut checksum = flate2::Crc::new();
    checksum.update(kind);
    checksum.update(data);
    [(data.len() as u32).to_be_bytes().as_slice(), kind, data, &checksum.sum().to_be_bytes()].concat()
}

fn ihdr(width: u32, height: u32, depth: u8, colour: u8) -> Vec<u8> {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    chunk(b"IHDR", &[size.as_slice(), &[depth, colour, 0, 0, 0]].concat())
}

/// So many zeros and then some bytes, compressed. Written in pieces: the largest is longer than it
/// should be in memory.
fn deflated(zeros: usize, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    let piece = vec![0; 1 << 16];
    let mut left = zeros;
    let mut written = Ok(());
    while left > 0 && written.is_ok() {
        let now = left.min(piece.len());
        written = encoder.write_all(&piece[..now]);
        left -= now;
    }
    // Compressing into memory does not fail; if it does, the test that uses it will.
    written.and_then(|()| encoder.write_all(bytes)).and_then(|()| encoder.finish()).unwrap_or_default()
}

fn idat(zeros: usize) -> Vec<u8> {
    chunk(b"IDAT", &deflated(zeros, &[]))
}

fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
    [SIGNATURE, &chunks.concat(), &chunk(b"IEND", &[])].concat()
}

/// Rows of filter byte and 24 values: 8 x 8 in RGB.
const SMALL: usize = 8 * 25;

fn pngs(add: &mut Add<'_>) {
    let good = png(&[ihdr(8, 8, 8, 2), idat(SMALL)]);
    let with = |extra: Vec<u8>| png(&[ihdr(8, 8, 8, 2), extra, idat(SMALL)]);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        bytes
    };
    // Taken.
    add("png", good.clone(), "");
    add("png, one bit", png(&[ihdr(8, 8, 1, 0), idat(16)]), "");
    add("png, 16 bits and alpha", png(&[ihdr(8, 8, 16, 6), idat(8 * 65)]), "");
    add("png, grey and alpha", png(&[ihdr(8, 8, 8, 4), idat(8 * 17)]), "");
    let palette = chunk(b"PLTE", &[200, 10, 10, 0, 0, 255]);
    let transparent = chunk(b"tRNS", &[0]);
    add("png, palette", png(&[ihdr(8, 8, 8, 3), palette.clone(), transparent, idat(8 * 9)]), "");
    add("png, trailing page", [good.clone(), b"<!-- cached -->".to_vec()].concat(), "");
    add("png, empty profile", with(chunk(b"iCCP", b"x\0\0")), "");
    add(
        "png, profile of noise",
        with(chunk(b"iCCP", &[b"x\0\0".as_slice(), &deflated(0, &[0xa5; 500])].concat())),
        "",
    );
    let bomb = [b"x\0\0".as_slice(), &deflated(256 << 20, &[])].concat();
    add("png, bomb in the profile", with(chunk(b"iCCP", &bomb)), "");
    add("png, bomb in the text", with(chunk(b"zTXt", &bomb)), "");
    add("png, 10,000 texts", with(chunk(b"tEXt", b"Comment\0x").repeat(10_000)), "");
    // Refused.
    add("png, signature alone", SIGNATURE.to_vec(), "truncated");
    add("png without an end", good[..good.len() - 12].to_vec(), "truncated");
    add("png, cut in the pixels", good[..good.len() - 20].to_vec(), "truncated");
    add("png of no width", png(&[ihdr(0, 8, 8, 2), idat(SMALL)]), "bad_header");
    add("png of 2^31 a side", png(&[ihdr(1 << 31, 1 << 31, 8, 2), idat(SMALL)]), "too_many_pixels");
    add("png bomb", png(&[ihdr(30_000, 30_000, 1, 0), idat(30_000 * 3751)]), "too_many_pixels");
    add("png strip", png(&[ihdr(4000, 1, 8, 0), idat(4001)]), "aspect");
    add("png of 3 bits", png(&[ihdr(8, 8, 3, 2), idat(SMALL)]), "decode_failed");
    add("png of colour type 5", png(&[ihdr(8, 8, 8, 5), idat(SMALL)]), "decode_failed");
    add("png, header's checksum", flipped(30), "decode_failed");
    add("png, pixels' checksum", flipped(good.len() - 14), "decode_failed");
    add("png, pixels damaged", png(&[ihdr(8, 8, 8, 2), chunk(b"IDAT", &[0xff; 40])]), "decode_failed");
    add("png, too few rows", png(&[ihdr(8, 8, 8, 2), idat(SMALL / 2)]), "decode_failed");
    add(
        "png, filter 9",
        png(&[ihdr(8, 8, 8, 2), chunk(b"IDAT", &deflated(0, &[9; SMALL]))]),
        "decode_failed",
    );
    add("png without pixels", png(&[ihdr(8, 8, 8, 2)]), "decode_failed");
    add("png without a palette", png(&[ihdr(8, 8, 8, 3), idat(8 * 9)]), "decode_failed");
    add("png that begins with pixels", png(&[idat(SMALL), ihdr(8, 8, 8, 2)]), "bad_header");
    add("png, chunk of 4 GB", [SIGNATURE, &ihdr(8, 8, 8, 2), b"\xff\xff\xff\xffIDAT"].concat(), "truncated");
    let frames = chunk(b"acTL", &[1000_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat());
    add("png of 1000 frames", with(frames), "too_many_frames");
}

/// A JPEG segment.
fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
    [&[0xff, marker], ((data.len() + 2) as u16).to_be_bytes().as_slice(), data].concat()
}

/// A real JPEG of 32 x 24.
fn jpeg() -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(32, 24, |x, y| {
        image::Rgb([(x * 8) as u8, (y * 10) as u8, ((x * y * 7) % 256) as u8])
    });
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90);
    let written = pixels.write_with_encoder(encoder);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes
}

/// Where the segment with a marker begins (at the 0xff), among the headers.
fn find(jpeg: &[u8], marker: u8) -> usize {
    let mut at = 2;
    while at + 4 <= jpeg.len() && jpeg[at + 1] != marker {
        at += 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
    }
    at
}

/// Without its segments of one marker.
fn without(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let mut bytes = jpeg.to_vec();
    let scan = |bytes: &[u8]| find(bytes, 0xda);
    while find(&bytes, marker) < scan(&bytes) {
        let at = find(&bytes, marker);
        let length = 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        bytes.drain(at..at + length);
    }
    bytes
}

fn jpegs(add: &mut Add<'_>) {
    let good = jpeg();
    let after_start = |extra: &[u8]| [&good[..2], extra, &good[2..]].concat();
    let frame = find(&good, 0xc0);
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    // Taken.
    add("jpeg", good.clone(), "");
    add("jpeg, fill bytes", after_start(&[0xff; 20]), "");
    let second = 4 + usize::from(u16::from_be_bytes([good[4], good[5]]));
    add("jpeg, junk between segments", [&good[..second], &[0x20; 20], &good[second..]].concat(), "");
    add("jpeg and another", [good.clone(), good.clone()].concat(), "");
    add("jpeg, comment of 64 KB", after_start(&segment(0xfe, &[b'x'; 65_000])), "");
    add("jpeg, profile without its rest", after_start(&segment(0xe2, b"ICC_PROFILE\0\x01\x03xxxx")), "");
    add(
        "jpeg, profile of noise",
        after_start(&segment(0xe2, &[b"ICC_PROFILE\0\x01\x01".as_slice(), &[0xa5; 900]].concat())),
        "",
    );
    // One directory of one entry (orientation 9, which is none), and the next directory is itself.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\x08\0\0\0";
    add("jpeg, exif in a circle", after_start(&segment(0xe1, exif)), "");
    let many = [b"Exif\0\0II*\0\x08\0\0\0\xff\xff".as_slice(), &[0x41; 1000]].concat();
    add("jpeg, exif of 65,535 entries", after_start(&segment(0xe1, &many)), "");
    // Refused.
    add("jpeg, start alone", b"\xff\xd8\xff".to_vec(), "truncated");
    add("jpeg, start and end", b"\xff\xd8\xff\xd9".to_vec(), "truncated");
    add("jpeg without an end", good[..good.len() - 2].to_vec(), "truncated");
    add("jpeg, cut in the picture", good[..good.len() - 100].to_vec(), "truncated");
    add("jpeg, half and then an end", [&good[..good.len() - 300], &[0xff, 0xd9]].concat(), "decode_failed");
    let scan = find(&good, 0xda) + 14;
    add("jpeg, picture overwritten", changed(scan + 40, &[0xff, 0].repeat(60)), "decode_failed");
    add("jpeg of no height", changed(frame + 5, &[0, 0]), "bad_header");
    add("jpeg bomb", changed(frame + 5, &[0xff; 4]), "too_many_pixels");
    add("jpeg, larger than its picture", changed(frame + 5, &[0x0f, 0xff, 0x0f, 0xff]), "decode_failed");
    add("jpeg of 12 bits", changed(frame + 4, &[12]), "decode_failed");
    add("jpeg, arithmetic", changed(frame + 1, &[0xc9]), "unsupported_format");
    add("jpeg, lossless", changed(frame + 1, &[0xc3]), "unsupported_format");
    add("jpeg without a frame", without(&good, 0xc0), "bad_header");
    add("jpeg without codes", without(&good, 0xc4), "decode_failed");
    add("jpeg without quantisation", without(&good, 0xdb), "decode_failed");
    add("jpeg, segment longer than the file", changed(4, &[0xff, 0xf0]), "truncated");
    add("jpeg of 1000 scans", many_scans(1000), "decode_failed");
}

/// A progressive JPEG of 512 x 512 greys and so many scans, each of which decodes all blocks: a
/// small file, and much work.
fn many_scans(scans: usize) -> Vec<u8> {
    let mut bytes = b"\xff\xd8".to_vec();
    bytes.extend(segment(0xdb, &[[0].as_slice(), &[1; 64]].concat()));
    bytes.extend(segment(0xc2, &[8, 2, 0, 2, 0, 1, 1, 0x11, 0]));
    // One code of one bit: a difference of nothing.
    bytes.extend(segment(0xc4, &[[0, 1].as_slice(), &[0; 15], &[0]].concat()));
    // One bit a block.
    let blocks = vec![0; 64 * 64 / 8];
    for scan in 0..scans {
        // The first scan gives the highest bits, and the others say each bit after it again and
        // again.
        bytes.extend(segment(0xda, &[1, 1, 0, 0, 0, if scan == 0 { 0x01 } else { 0x10 }]));
        bytes.extend(&blocks);
    }
    bytes.extend(b"\xff\xd9");
    bytes
}

fn webp() -> Vec<u8> {
    let pixels: Vec<u8> = (0..16 * 16 * 3_u32).map(|value| (value * value % 251) as u8).collect();
    let mut bytes = Vec::new();
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
    let written = encoder.encode(&pixels, 16, 16, image::ExtendedColorType::Rgb8);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes
}

/// A RIFF file of WebP chunks.
fn riff(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, data) in chunks {
        body.extend_from_slice(*kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend_from_slice(data);
        body.extend(vec![0; data.len() % 2]);
    }
    [b"RIFF", (body.len() as u32).to_le_bytes().as_slice(), &body].concat()
}

fn webps(add: &mut Add<'_>) {
    let good = webp();
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    add("webp", good.clone(), "");
    add("webp, trailing page", [good.clone(), b"<!-- -->".to_vec()].concat(), "");
    add("webp, cut", good[..good.len() / 2].to_vec(), "truncated");
    add("webp, head alone", good[..12].to_vec(), "truncated");
    add("webp of an unknown chunk", riff(&[(b"JUNK", &[0; 40])]), "bad_header");
    add("webp without a picture", riff(&[(b"VP8X", &[0; 10])]), "truncated");
    // 2^24 pixels a side.
    add(
        "webp bomb",
        riff(&[(b"VP8X", &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])]),
        "too_many_pixels",
    );
    add("webp, picture overwritten", changed(25, &[0xff; 60]), "decode_failed");
    add("webp, wrong signature", changed(20, &[0x00]), "decode_failed");
    add(
        "webp, lossy, no start code",
        riff(&[(b"VP8 ", &[0, 0, 0, 1, 2, 3, 8, 0, 8, 0, 0, 0])]),
        "decode_failed",
    );
    let mut frames: Vec<(&[u8; 4], &[u8])> =
        vec![(b"VP8X", &[2, 0, 0, 0, 7, 0, 0, 7, 0, 0]), (b"ANIM", &[0; 6])];
    frames.extend(vec![(b"ANMF", [0_u8; 24].as_slice()); 1000]);
    add("webp of 1000 frames", riff(&frames), "too_many_frames");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_many_and_their_names_differ() {
        let all = odd_images();
        let names: std::collections::BTreeSet<_> = all.iter().map(|odd| odd.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().filter(|odd| odd.code.is_some()).count() >= 40, "{}", all.len());
    }
}
