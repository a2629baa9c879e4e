//! `decode`: the steps from a JPEG of 1000 x 800 to a stored image, on one thread.
//!
//!     cargo bench -p twinlens-image --bench decode
//!
//! `items/s` are images per second. With `TWINLENS_IMAGES=DIR`, only the processing of the JPEGs
//! there to 256 pixels is measured, for `decode_peer.py`.

use std::path::Path;
use std::time::Instant;

use divan::{Bencher, black_box, counter::ItemsCount};
use twinlens_image::{
    Encode, Encoding, Filter, Format, Limits, Resize, Rgb, decode, decode_reduced, encode, phash, process,
    resize, resize_reference, sha256_hex,
};

fn main() -> std::io::Result<()> {
    match std::env::var_os("TWINLENS_IMAGES") {
        Some(folder) => process_all(Path::new(&folder)),
        None => {
            println!("JPEG by {}", twinlens_image::JPEG_DECODER);
            divan::main();
            Ok(())
        }
    }
}

/// Processes all JPEGs of a directory five times and prints the shortest time as JSON.
fn process_all(folder: &Path) -> std::io::Result<()> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|name| name == "jpg"));
    let images: Vec<Vec<u8>> = paths.iter().map(std::fs::read).collect::<std::io::Result<_>>()?;
    let turn = |_| {
        let start = Instant::now();
        let refused = images
            .iter()
            .filter(|bytes| process(bytes, &limits(), &Resize::default(), &Encode::default()).is_err());
        (black_box(refused.count()), start.elapsed().as_secs_f64())
    };
    let (refused, seconds) = (0..5)
        .map(turn)
        .fold((0, f64::INFINITY), |(_, shortest), (refused, seconds)| (refused, shortest.min(seconds)));
    let (images, decoder) = (images.len(), twinlens_image::JPEG_DECODER);
    println!(r#"{{"images": {images}, "refused": {refused}, "seconds": {seconds}, "decoder": "{decoder}"}}"#);
    Ok(())
}

/// An image with a spectrum like that of a photograph: octaves of noise, each with half the size
/// and 0.55 of the amplitude of the previous one.
#[expect(clippy::expect_used, reason = "the size fits the values")]
fn photograph(width: u32, height: u32) -> Rgb {
    let lattice = |x: u32, y: u32, seed: u32| {
        let mut hash =
            x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca6b) ^ seed.wrapping_mul(0xc2b2_ae35);
        hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
        f64::from((hash ^ (hash >> 13)) & 0xffff) / 65_535.0 - 0.5
    };
    let octave = |x: u32, y: u32, size: u32, seed: u32| {
        let (left, top) = (x / size, y / size);
        let (u, v) = (f64::from(x % size) / f64::from(size), f64::from(y % size) / f64::from(size));
        let row = |y| lattice(left, y, seed) * (1.0 - u) + lattice(left + 1, y, seed) * u;
        row(top) * (1.0 - v) + row(top + 1) * v
    };
    let value = |x: u32, y: u32, channel: u32| {
        let octaves = (0..8_u32).map(|level| {
            let size = 256 >> level;
            let grey = octave(x, y, size, level);
            (grey + 0.4 * octave(x, y, size, 100 + 10 * channel + level)) * 0.55_f64.powi(level as i32)
        });
        (128.0 + 170.0 * octaves.sum::<f64>()).clamp(0.0, 255.0) as u8
    };
    let pixels = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |channel| value(x, y, channel))));
    Rgb::new(width, height, pixels.collect()).expect("three values a pixel")
}

#[expect(clippy::expect_used, reason = "a size that JPEG can hold")]
fn jpeg() -> Vec<u8> {
    encode(&photograph(1000, 800), Format::Jpeg, Some(85)).expect("a JPEG")
}

fn limits() -> Limits {
    Limits::default()
}

#[divan::bench(args = [1, 2, 4])]
fn decode_jpeg_reduced_by(bencher: Bencher<'_, '_>, by: u32) {
    let bytes = jpeg();
    bencher.counter(ItemsCount::new(1u8)).bench(|| decode_reduced(black_box(&bytes), &limits(), by));
}

#[divan::bench(args = [Format::Png, Format::WebP])]
fn decode_lossless(bencher: Bencher<'_, '_>, format: Format) {
    let bytes = encode(&photograph(1000, 800), format, None).unwrap_or_default();
    bencher.counter(ItemsCount::new(1u8)).bench(|| decode(black_box(&bytes), &limits()));
}

#[divan::bench(args = [64, 224, 256])]
fn process_to(bencher: Bencher<'_, '_>, size: u32) {
    let bytes = jpeg();
    let (resize, keep) = (Resize { size, ..Resize::default() }, Encode::default());
    bencher.counter(ItemsCount::new(1u8)).bench(|| process(black_box(&bytes), &limits(), &resize, &keep));
}

#[divan::bench]
fn process_keeping_bytes(bencher: Bencher<'_, '_>) {
    let bytes = jpeg();
    let keep = Encode { format: Encoding::Keep, ..Encode::default() };
    bencher
        .counter(ItemsCount::new(1u8))
        .bench(|| process(black_box(&bytes), &limits(), &Resize::NONE, &keep));
}

#[divan::bench]
fn resize_to_256(bencher: Bencher<'_, '_>) {
    let image = photograph(1000, 800);
    bencher.counter(ItemsCount::new(1u8)).bench(|| resize(black_box(&image), 320, 256, Filter::Bicubic));
}

#[divan::bench]
fn resize_to_256_by_the_reference(bencher: Bencher<'_, '_>) {
    let image = photograph(1000, 800);
    bencher
        .counter(ItemsCount::new(1u8))
        .bench(|| resize_reference(black_box(&image), 320, 256, Filter::Bicubic));
}

#[divan::bench(args = [Format::Jpeg, Format::Png, Format::WebP])]
fn encode_256(bencher: Bencher<'_, '_>, format: Format) {
    let image = photograph(320, 256);
    bencher.counter(ItemsCount::new(1u8)).bench(|| encode(black_box(&image), format, None));
}

#[divan::bench]
fn perceptual_hash(bencher: Bencher<'_, '_>) {
    let image = photograph(1000, 800);
    bencher.counter(ItemsCount::new(1u8)).bench(|| phash(black_box(&image)));
}

#[divan::bench]
fn sha256(bencher: Bencher<'_, '_>) {
    let bytes = jpeg();
    bencher.counter(ItemsCount::new(1u8)).bench(|| sha256_hex(black_box(&bytes)));
}
