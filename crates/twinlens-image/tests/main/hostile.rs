//! Hostile and damaged input is rejected with the right code, without panics.

use crate::fixture;
use proptest::prelude::*;
use twinlens_image::{CODES, Encode, Encoding, Format, Limits, Resize, decode, probe, process, sha256_hex};

/// scene.png with another declared size. Its checksum is then wrong, but the size must be rejected
/// first.
fn declaring(width: u32, height: u32) -> Vec<u8> {
    let mut png = fixture("scene.png");
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    png
}

/// grey.jpg with another declared size.
fn jpeg_declaring(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = fixture("grey.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    jpeg
}

#[test]
fn each_kind_of_bad_input_has_its_code() {
    let limits =
        Limits { max_bytes: 100_000, max_pixels: 10_000, max_aspect: 4.0, max_frames: 2, min_side: 4 };
    let flipped = |name: &str, at: usize| {
        let mut bytes = fixture(name);
        bytes[at] ^= 0xff;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "not_an_image"),
        ("an error page", b"<!DOCTYPE html><html><body>404</body></html>".to_vec(), "not_an_image"),
        ("json", b"{\"error\": true}".to_vec(), "not_an_image"),
        ("text", b"Too many requests".to_vec(), "not_an_image"),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "unsupported_format"),
        ("gif without a frame", b"GIF89a\x04\0\x04\0\0\0\0;".to_vec(), "truncated"),
        ("a long file", [fixture("scene.png"), vec![0; 100_000]].concat(), "too_many_bytes"),
        ("png bomb", declaring(30_000, 30_000), "too_many_pixels"),
        ("png of 2^31 a side", declaring(1 << 31, 1 << 31), "too_many_pixels"),
        ("jpeg bomb", jpeg_declaring(65_535, 65_535), "too_many_pixels"),
        ("zero width", declaring(0, 61), "bad_header"),
        ("zero height jpeg", jpeg_declaring(40, 0), "bad_header"),
        ("a strip", declaring(1000, 10), "aspect"),
        ("a spacer", declaring(1, 1), "too_small"),
        ("three frames, png", fixture("animated.png"), "too_many_frames"),
        ("three frames, webp", fixture("animated.webp"), "too_many_frames"),
        ("a lying size", declaring(90, 90), "decode_failed"),
        ("a damaged chunk", flipped("scene.png", 1000), "decode_failed"),
        ("png without IHDR", flipped("scene.png", 13), "bad_header"),
        ("png signature alone", b"\x89PNG\r\n\x1a\n".to_vec(), "truncated"),
        ("jpeg marker alone", b"\xff\xd8\xff".to_vec(), "truncated"),
        ("webp of an unknown chunk", b"RIFF\x0c\0\0\0WEBPJUNK\0\0\0\0".to_vec(), "bad_header"),
    ];
    for (what, bytes, code) in cases {
        let error = decode(&bytes, &limits).expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(CODES.contains(&error.code()));
    }
}

#[test]
fn a_file_truncated_anywhere_is_rejected() {
    for name in ["scene.png", "progressive.jpg", "exif-6.jpg", "lossy.webp", "alpha.webp", "animated.webp"] {
        let whole = fixture(name);
        assert!(decode(&whole, &Limits::default()).is_ok(), "{name}");
        for length in 0..whole.len() {
            let error = decode(&whole[..length], &Limits::default())
                .expect_err(&format!("{name} cut to {length} of {} bytes was decoded", whole.len()));
            // Within the magic bytes it is not an image yet.
            let expected =
                if length < 12 { ["not_an_image", "truncated"] } else { ["truncated", "truncated"] };
            assert!(expected.contains(&error.code()), "{name} cut to {length}: {error}");
        }
    }
}

#[test]
fn trailing_bytes_are_ignored() {
    for name in ["scene.png", "exif-6.jpg", "lossy.webp"] {
        let padded = [fixture(name), b"<!-- served by -->".to_vec()].concat();
        let whole = decode(&fixture(name), &Limits::default()).unwrap();
        assert_eq!(decode(&padded, &Limits::default()).unwrap(), whole, "{name}");
    }
}

#[test]
fn processing_records_the_original_and_stores_the_result() {
    let limits = Limits::default();
    let body = fixture("exif-6.jpg");
    let resize = Resize { size: 12, ..Resize::default() };
    for (encoding, format) in
        [(Encoding::Jpeg, Format::Jpeg), (Encoding::Png, Format::Png), (Encoding::Webp, Format::WebP)]
    {
        let encode = Encode { format: encoding, quality: None };
        let stored = process(&body, &limits, &resize, &encode).unwrap();
        assert_eq!((stored.original_width, stored.original_height), (40, 24));
        assert_eq!((stored.width, stored.height, stored.format), (20, 12, format));
        assert_eq!(stored.sha256, sha256_hex(&body));
        let header = probe(&stored.bytes, &limits).unwrap();
        assert_eq!((header.format, header.width, header.height), (format, 20, 12));
        assert_eq!(process(&body, &limits, &resize, &encode).unwrap(), stored, "not deterministic");
    }
}

#[test]
fn bytes_are_kept_only_if_the_pixels_are() {
    let keep = Encode { format: Encoding::Keep, quality: None };
    let stored =
        |name: &str, resize: &Resize| process(&fixture(name), &Limits::default(), resize, &keep).unwrap();
    assert_eq!(stored("scene.png", &Resize::NONE).bytes, fixture("scene.png"));
    // A reader that ignores EXIF would show the image rotated.
    let upright = stored("exif-6.jpg", &Resize::NONE);
    assert_ne!(upright.bytes, fixture("exif-6.jpg"));
    assert!(!decode(&upright.bytes, &Limits::default()).unwrap().reoriented);
    let small = stored("scene.png", &Resize { size: 16, ..Resize::default() });
    assert_eq!((small.format, small.height), (Format::Png, 16));
}

pub(crate) fn damage(mut bytes: Vec<u8>, flips: &[(usize, u8)]) -> Vec<u8> {
    for (at, value) in flips {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    bytes
}

/// Low enough that a damaged header which is still valid cannot make the test slow.
fn low_limits() -> Limits {
    Limits { max_pixels: 1 << 20, ..Limits::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), magic in 0..4_usize) {
        let start: &[u8] = [&b""[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\x02\0\0WEBPVP8X"][magic];
        let bytes = [start, &bytes].concat();
        if let Err(error) = decode(&bytes, &low_limits()) {
            prop_assert!(error.code() != "decoder_panicked", "{error}");
        }
    }

    #[test]
    fn damaged_images_never_panic(
        name in prop::sample::select(vec![
            "scene.png", "palette-transparent.png", "animated.png", "progressive.jpg", "cmyk.jpg", "exif-6.jpg",
            "subsampled.jpg", "lossy.webp", "alpha.webp", "animated.webp",
        ]),
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..12),
    ) {
        let bytes = damage(fixture(name), &flips);
        if let Err(error) = process(&bytes, &low_limits(), &Resize::default(), &Encode::default()) {
            prop_assert!(error.code() != "decoder_panicked", "{error}");
        }
    }
}
