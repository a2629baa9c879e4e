//! AVIF files of every structure decode to Pillow's pixels or are refused (`fixtures/avif.py`).

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use proptest::prelude::*;
use twinlens_image::{Format, Limits, decode, probe, sniff};

use crate::fixture;
use crate::formats::compare;

/// What Pillow decodes and this crate refuses, by part of the names: coefficients that are derived
/// from primaries for which libyuv has none.
const REFUSED: [&str; 4] = ["-12-full-4", "-12-full-12", "-12-limited-4", "-12-limited-12"];

#[test]
fn avif_of_every_structure_decodes_to_pillows_pixels_or_is_refused() {
    let list = String::from_utf8(fixture("avif.txt")).unwrap();
    let decoded = compare(&fixture("avif.bin"), &list, &REFUSED).unwrap();
    assert!(decoded * 10 > 2 * list.lines().count() * 8, "only {decoded} of {}", 2 * list.lines().count());
}

/// Runs where Python has Pillow and numpy (`TWINLENS_TEST_PYTHON`, else `python3`).
/// `TWINLENS_FORMATS` holds a seed and a count, as in `2 1000`.
#[test]
fn random_avif_decodes_to_pillows_pixels_or_is_refused() {
    let python = std::env::var("TWINLENS_TEST_PYTHON").unwrap_or("python3".into());
    let folder = std::env::temp_dir().join(format!("twinlens-avif-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/avif.py");
    let arguments = std::env::var("TWINLENS_FORMATS").unwrap_or("1 120".into());
    let made = Command::new(python).arg(script).arg(&folder).args(arguments.split(' ')).output();
    if made.is_ok_and(|made| made.status.success()) {
        let list = std::fs::read_to_string(folder.join("avif.txt")).unwrap();
        compare(&std::fs::read(folder.join("avif.bin")).unwrap(), &list, &REFUSED).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The files of the fixture, with their names.
fn files() -> Vec<(String, Vec<u8>)> {
    let (list, all) = (String::from_utf8(fixture("avif.txt")).unwrap(), fixture("avif.bin"));
    let mut at = 0;
    let file = |line: &str| {
        let mut fields = line.split(' ');
        let (name, length) = (fields.next().unwrap(), fields.next().unwrap().parse::<usize>().unwrap());
        at += length;
        (name.to_owned(), all[at - length..at].to_vec())
    };
    list.lines().map(file).collect()
}

/// A small file of each sort.
static SORTS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let all = files();
    let sorts = ["saved-4", "sequence-4", "-grid", "420-8-", "444-1", "premultiplied"];
    let smallest = |sort: &str| {
        let found =
            all.iter().filter(|(name, file)| name.contains(sort) && decode(file, &Limits::default()).is_ok());
        found.min_by_key(|(_, file)| file.len()).unwrap_or_else(|| panic!("no {sort}")).clone()
    };
    sorts.map(smallest).to_vec()
});

#[test]
fn a_file_truncated_anywhere_is_rejected() {
    for (name, whole) in SORTS.iter() {
        let image = decode(whole, &Limits::default()).unwrap();
        for length in 0..whole.len() {
            let error = match decode(&whole[..length], &Limits::default()) {
                // A sequence may lack its later frames.
                Ok(cut) if name.contains("sequence") && cut == image => continue,
                Ok(_) => panic!("{name} cut to {length} of {} bytes was decoded", whole.len()),
                Err(error) => error,
            };
            let is_plain = whole[8..12] == *b"mif1" && length < usize::from(whole[3]);
            let expected = match length {
                ..12 => "not_an_image",
                // Of HEIF's own brand; those that follow say that it is AVIF.
                _ if is_plain => "unsupported_format",
                _ => "truncated",
            };
            assert_eq!(error.code(), expected, "{name} cut to {length}: {error}");
        }
        let padded = [whole.as_slice(), b"<!-- served by -->"].concat();
        assert_eq!(decode(&padded, &Limits::default()).unwrap(), image, "{name}");
    }
}

#[test]
fn limits_hold_before_a_frame_is_decoded() {
    for (name, file) in SORTS.iter() {
        let header = probe(file, &Limits::default()).unwrap();
        assert_eq!(header.format, Format::Avif);
        let pixels = u64::from(header.width) * u64::from(header.height);
        let few = Limits { max_pixels: pixels - 1, ..Limits::default() };
        assert_eq!(decode(file, &few).unwrap_err().code(), "too_many_pixels", "{name}");
        if name.contains("sequence") {
            assert_eq!(header.frames, 3);
            let still = Limits { max_frames: 1, ..Limits::default() };
            assert_eq!(decode(file, &still).unwrap_err().code(), "too_many_frames");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Damage in the boxes and the headers of streams, and in their data.
    #[test]
    fn damaged_avif_never_panics(
        sort in 0..6_usize,
        flips in prop::collection::vec((any::<usize>(), any::<u8>(), any::<bool>()), 1..8),
    ) {
        let mut bytes = SORTS[sort].1.clone();
        let length = bytes.len();
        for (at, value, anywhere) in flips {
            bytes[at % if anywhere { length } else { length.min(600) }] = value;
        }
        if sniff(&bytes) == Some(Format::Avif) {
            let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
            if let Err(error) = decode(&bytes, &limits) {
                prop_assert!(error.code() != "decoder_panicked", "{error}");
            }
        }
    }
}
