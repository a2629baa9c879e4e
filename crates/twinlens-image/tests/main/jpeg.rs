//! JPEG of every structure decodes to Pillow's pixels or is refused (`fixtures/jpeg.py`).

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use crate::fixture;
use crate::hostile::damage;
use proptest::prelude::*;
use twinlens_image::{ImageModes, Limits, decode_as, decode_reduced, sha256_hex};

/// The structures that Pillow decodes and this crate refuses, by part of their names.
const REFUSED: [&str; 8] = ["/12-3/", "/1-23/", "/13-2/", "/12/", "/12-34/", "/1-234/", "chroma/", "red/"];

/// Subsampled CMYK of which two components are apart in a scan: the only such that is refused.
fn is_apart(name: &str) -> bool {
    let subsampled = ["cmyk4", "inks"].iter().any(|part| name.contains(part));
    subsampled && name.contains("/others/")
}

/// The files of the fixtures, each with its line.
fn structures() -> Vec<(String, Vec<u8>)> {
    let (list, files) = (String::from_utf8(fixture("jpeg.txt")).unwrap(), fixture("jpeg.bin"));
    let mut rest = &files[..];
    let file = |line: &str| {
        let length = line.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        let (bytes, after) = rest.split_at(length);
        rest = after;
        (line.to_owned(), bytes.to_vec())
    };
    list.lines().map(file).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_structures_never_panic(
        which in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..5),
        by in prop::sample::select(vec![1, 2, 4, 8]),
    ) {
        static STRUCTURES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(structures);
        let (name, bytes) = which.get(&STRUCTURES);
        let limits = Limits { max_pixels: 1_000_000, max_aspect: 1e9, ..Limits::default() };
        if let Err(error) = decode_reduced(&damage(bytes.clone(), &flips), &limits, by) {
            prop_assert!(error.code() != "decoder_panicked", "{name}: {error}");
        }
    }
}

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
                && (expected == "refused"
                    || REFUSED.iter().any(|part| name.contains(part))
                    || is_apart(name));
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
