//! Resizing and decoding agree with Pillow (`fixtures/make.py`), and the fast resize with the
//! reference implementation.

use crate::fixture;
use proptest::prelude::*;
use twinlens_image::{
    Filter, Format, ImageModes, Limits, Preprocess, Rgb, decode, decode_as, encode, resize, resize_reference,
    sha256_hex,
};

fn scene() -> Rgb {
    decode(&fixture("scene.png"), &Limits::default()).unwrap().rgb
}

/// Largest and mean absolute difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    (a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0), sum / a.len() as f64)
}

#[test]
fn resizing_equals_pillow_in_every_value() {
    let filters = [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];
    for (width, height) in [(32, 20), (13, 40), (97, 20), (40, 61), (150, 100), (96, 60), (5, 90), (1, 1)] {
        for filter in filters {
            let name = filter.name();
            let expected = String::from_utf8(fixture("resize.txt")).unwrap();
            let resized = resize(&scene(), width, height, filter).unwrap();
            let found = format!("{name} {width}x{height} {}\n", sha256_hex(resized.pixels()));
            assert!(expected.contains(&found), "{found}");
        }
    }
}

#[test]
fn jpeg_files_are_those_that_pillow_saves() {
    let expected = String::from_utf8(fixture("saved.txt")).unwrap();
    for line in expected.lines() {
        let (quality, hash) = line.split_once(' ').unwrap();
        let file = encode(&scene(), Format::Jpeg, Some(quality.parse().unwrap())).unwrap();
        assert_eq!(sha256_hex(&file), hash, "quality {quality}");
    }
    assert_eq!(expected.lines().count(), 6);
}

#[test]
fn clip_preprocessing_equals_torchvision_on_pillow() {
    for size in [24, 64] {
        let expected = fixture(&format!("clip-{size}.rgb"));
        assert!(Preprocess::clip(size).pixels(&scene()).unwrap() == expected, "size {size}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn fast_resizing_equals_the_reference(
        (width, height, pixels) in (1_u32..120, 1_u32..120).prop_flat_map(|(w, h)| {
            (Just(w), Just(h), prop::collection::vec(any::<u8>(), (w * h * 3) as usize))
        }),
        to_width in 1_u32..100, to_height in 1_u32..100, extreme in any::<bool>(),
        filter in prop::sample::select(vec![Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos]),
    ) {
        let pixels = if extreme { pixels.iter().map(|value| if *value > 127 { 255 } else { 0 }).collect() } else { pixels };
        let image = Rgb::new(width, height, pixels).unwrap();
        let fast = resize(&image, to_width, to_height, filter).unwrap();
        prop_assert!(fast == resize_reference(&image, to_width, to_height, filter).unwrap());
    }
}

#[test]
fn pixel_formats_are_converted_by_the_documented_rules() {
    let cases = [
        ("palette.png", "palette"),
        ("palette-transparent.png", "palette-transparent"),
        ("alpha.png", "alpha"),
        ("alpha.webp", "alpha.webp"),
        ("grey-alpha.png", "grey-alpha"),
        ("one-bit.png", "one-bit"),
        ("sixteen-bit.png", "sixteen-bit"),
        ("animated.png", "animated.png"),
        ("animated.webp", "animated.webp"),
        ("grey.jpg", "grey"),
        ("cmyk.jpg", "cmyk"),
        ("progressive.jpg", "progressive"),
        ("subsampled.jpg", "subsampled"),
        ("lossy.webp", "lossy"),
    ];
    for (file, expected) in cases {
        let decoded =
            decode(&fixture(file), &Limits::default()).unwrap_or_else(|error| panic!("{file}: {error}"));
        let (max, mean) = difference(decoded.rgb.pixels(), &fixture(&format!("{expected}.rgb")));
        assert!(max == 0, "{file}: max {max}, mean {mean}");
    }
}

#[test]
fn the_rule_of_open_clip_equals_pillows_conversion() {
    let expected = String::from_utf8(fixture("convert.txt")).unwrap();
    for line in expected.lines() {
        let (file, hash) = line.split_once(' ').unwrap();
        let decoded = decode_as(&fixture(file), &Limits::default(), ImageModes::OpenClip)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(sha256_hex(decoded.rgb.pixels()), hash, "{file}");
    }
}

#[test]
fn every_exif_orientation_is_applied() {
    for orientation in 1..=8 {
        let decoded = decode(&fixture(&format!("exif-{orientation}.jpg")), &Limits::default()).unwrap();
        assert_eq!((decoded.rgb.width(), decoded.rgb.height()), (40, 24), "orientation {orientation}");
        assert_eq!(decoded.reoriented, orientation != 1);
        let (max, mean) = difference(decoded.rgb.pixels(), &fixture("upright.rgb"));
        assert!(max < 20, "orientation {orientation}: max {max}, mean {mean}");
        let exif = decoded.exif.unwrap();
        assert!(exif.contains(r#""Make":"\"twinlens\"""#) && exif.contains("Orientation"), "{exif}");
    }
}
