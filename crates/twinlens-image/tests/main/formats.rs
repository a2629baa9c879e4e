//! Odd images of every format but JPEG decode to Pillow's pixels or are refused
//! (`fixtures/formats.py`).

use std::path::Path;
use std::process::Command;

use crate::fixture;
use twinlens_image::{ImageModes, Limits, decode_as, sha256_hex};

/// The images that Pillow decodes and this crate refuses, by part of their names: PNM whose largest
/// values are not divisors of 255, and TIFF of floating-point colours, of compressed numbers in
/// another order of bytes than this machine's, of YCbCr or Lab samples, of several extra samples,
/// of some kinds in planes, and of compressions that are rare.
const REFUSED: [&str; 21] = [
    "-planar",
    "-1-7",
    "-2-7",
    "-3-7",
    "-4-7",
    "-100",
    "-256",
    "-1000",
    "tiff/signed16",
    "tiff/float32",
    "tiff/rgb32f",
    "tiff/ycbcr8",
    "tiff/lab8",
    "tiff/rgbxx8",
    "tiff/rgbax8",
    "tiff/greypre8",
    "-group3",
    "-tiff_ccitt",
    "-zstd",
    "-lzma",
    "-LAB-",
];

/// How many of the files of a folder were decoded, or every difference.
pub(crate) fn compare(files: &[u8], list: &str, refused: &[&str]) -> Result<usize, String> {
    let (mut wrong, mut decoded, mut at) = (Vec::new(), 0, 0);
    let limits = Limits { max_aspect: 1e9, ..Limits::default() };
    for line in list.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (name, length) = (fields[0], fields[1].parse::<usize>().unwrap());
        let bytes = &files[at..at + length];
        at += length;
        for (modes, expected) in [(ImageModes::OpenClip, fields[2]), (ImageModes::White, fields[3])] {
            let image = decode_as(bytes, &limits, modes);
            let found = match &image {
                Ok(image) => sha256_hex(image.rgb.pixels())[..16].to_owned(),
                Err(error) => format!("{}: {error}", error.code()),
            };
            decoded += usize::from(image.is_ok());
            let is_refused = found.starts_with("unsupported_format")
                && (expected == "refused"
                    || expected == "-"
                    || refused.iter().any(|part| name.contains(part)));
            // What Pillow refuses may be decoded if its values are known without Pillow.
            let known = expected == "refused" && fields[3] != "-" && image.is_ok();
            if found != expected && !is_refused && !known {
                wrong.push(format!("{name}, {}: {found}, expected {expected}", modes.name()));
            }
        }
    }
    if wrong.is_empty() { Ok(decoded) } else { Err(wrong.join("\n")) }
}

#[test]
fn odd_images_decode_to_pillows_pixels_or_are_refused() {
    let list = String::from_utf8(fixture("formats.txt")).unwrap();
    let decoded = compare(&fixture("formats.bin"), &list, &REFUSED).unwrap();
    assert!(decoded * 10 > 2 * list.lines().count() * 8, "only {decoded} of {}", 2 * list.lines().count());
}

/// Runs where Python has Pillow and numpy (`TWINLENS_TEST_PYTHON`, else `python3`).
/// `TWINLENS_FORMATS` holds a seed and a count, as in `2 1000`.
#[test]
fn random_images_decode_to_pillows_pixels_or_are_refused() {
    let python = std::env::var("TWINLENS_TEST_PYTHON").unwrap_or("python3".into());
    let folder = std::env::temp_dir().join(format!("twinlens-formats-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats.py");
    let arguments = std::env::var("TWINLENS_FORMATS").unwrap_or("1 260".into());
    let made = Command::new(python).arg(script).arg(&folder).args(arguments.split(' ')).output();
    if made.is_ok_and(|made| made.status.success()) {
        let list = std::fs::read_to_string(folder.join("formats.txt")).unwrap();
        compare(&std::fs::read(folder.join("formats.bin")).unwrap(), &list, &REFUSED).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
