//! JPEG of every structure decodes to Pillow's pixels or is refused (`fixtures/jpeg.py`).

use std::path::Path;
use std::process::Command;

use crate::fixture;
use twinlens_image::{ImageModes, Limits, decode_as, decode_reduced, sha256_hex};

/// The structures that Pillow decodes and this crate refuses, by part of their names.
const REFUSED: [&str; 9] =
    ["/12-3/", "/1-23/", "/13-2/", "/12/", "/12-34/", "/1-234/", "cmyk420/", "chroma/", "red/"];

/// How many of the files of a folder were decoded, or every difference.
fn compare(files: &[u8], list: &str) -> Result<usize, String> {
    let (mut wrong, mut decoded, mut at) = (Vec::new(), 0, 0);
    for line in list.lines() {
        let mut fields = line.split(' ');
        let (name, length) = (fields.next().unwrap(), fields.next().unwrap().parse::<usize>().unwrap());
        let bytes = &files[at..at + length];
        at += length;
        let limits = Limits { max_aspect: 1e9, ..Limits::default() };
        for (by, expected) in [1, 2, 4, 8].into_iter().zip(fields) {
            let image = if by == 1 {
                decode_as(bytes, &limits, ImageModes::OpenClip)
            } else {
                decode_reduced(bytes, &limits, by)
            };
            let found = match &image {
                Ok(image) => sha256_hex(image.rgb.pixels())[..16].to_owned(),
                Err(error) => format!("{}: {error}", error.code()),
            };
            decoded += usize::from(image.is_ok());
            let refused = found.starts_with("unsupported_format")
                && (expected == "refused" || REFUSED.iter().any(|part| name.contains(part)));
            let too_many_blocks = expected == "refused" && found.starts_with("bad_header");
            if expected != "-" && found != expected && !refused && !too_many_blocks {
                wrong.push(format!("{name} at 1/{by}: {found}, Pillow {expected}"));
            }
        }
    }
    if wrong.is_empty() { Ok(decoded) } else { Err(wrong.join("\n")) }
}

#[test]
fn structures_decode_to_pillows_pixels_or_are_refused() {
    let list = String::from_utf8(fixture("jpeg.txt")).unwrap();
    let decoded = compare(&fixture("jpeg.bin"), &list).unwrap();
    assert!(decoded > 2 * list.lines().count(), "only {decoded} images of {}", list.lines().count());
}

/// Runs where Python has Pillow (`TWINLENS_TEST_PYTHON`, else `python3`).
#[test]
fn random_structures_decode_to_pillows_pixels_or_are_refused() {
    let python = std::env::var("TWINLENS_TEST_PYTHON").unwrap_or("python3".into());
    let folder = std::env::temp_dir().join(format!("twinlens-jpeg-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg.py");
    let seed = std::env::var("TWINLENS_JPEG_SEED").unwrap_or("1".into());
    let made = Command::new(python).arg(script).arg(&folder).args([&seed, "600"]).output();
    if made.is_ok_and(|made| made.status.success()) {
        let list = std::fs::read_to_string(folder.join("jpeg.txt")).unwrap();
        compare(&std::fs::read(folder.join("jpeg.bin")).unwrap(), &list).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
