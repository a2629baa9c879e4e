//! Lossy WebP, in builds with the feature `libwebp`.

use twinlens_image::{Format, Limits, Rgb, decode, encode};

#[test]
fn webp_with_a_quality_is_lossy_and_small() {
    let pixels =
        (0..120 * 90_u32).flat_map(|at| [(at % 120 * 2) as u8, (at / 120 * 2) as u8, (at % 7) as u8]);
    let image = Rgb::new(120, 90, pixels.collect()).unwrap();
    let lossy = encode(&image, Format::WebP, Some(60)).unwrap();
    let lossless = encode(&image, Format::WebP, None).unwrap();
    let decoded = |bytes: &[u8]| decode(bytes, &Limits::default()).unwrap().rgb.into_pixels();
    assert_eq!(decoded(&lossless), image.pixels());
    let differences =
        decoded(&lossy).iter().zip(image.pixels()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>();
    assert!(differences > 0 && differences / (image.pixels().len() as u32) < 4, "{differences}");
    assert!(lossy.len() < lossless.len(), "{} and {}", lossy.len(), lossless.len());
}
