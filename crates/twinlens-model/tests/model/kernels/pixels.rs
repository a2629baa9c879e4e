//! Pixels as bytes to the input of an image tower: equal to the CPU's in every bit.

use super::machine::Machine;
use super::{STORAGES, check};
use crate::common::noise;
use candle_core::Device;
use twinlens_image::{Filter, Preprocess, Rgb, SquareCrop};
use twinlens_model::kernels::plain;
use twinlens_model::kernels::{ImageBatch, ImageCut, PixelFilter, PixelLaunch, PixelSizes, Storage};

fn image(width: u32, height: u32, seed: u32) -> Rgb {
    let values = noise((width * height * 3) as usize, seed);
    // Extremes are common, so that cubic overshoot is clamped.
    let pixels = values.iter().map(|x| (x * 200.0 + 128.0).clamp(0.0, 255.0) as u8).collect();
    Rgb::new(width, height, pixels).unwrap()
}

#[test]
fn pixels_match_those_of_the_cpu() {
    let size = 24;
    // Width, height, then the square: shrunk by much, by little, not at all, and enlarged.
    let cases: [(u32, u32, SquareCrop, bool); 5] = [
        (150, 101, SquareCrop { left: 31, top: 3, side: 97 }, false),
        (41, 40, SquareCrop { left: 1, top: 0, side: 40 }, true),
        (24, 24, SquareCrop { left: 0, top: 0, side: 24 }, true),
        (9, 30, SquareCrop { left: 2, top: 20, side: 7 }, false),
        (30, 5, SquareCrop { left: 29, top: 4, side: 1 }, false),
    ];
    for (filter, of_kernel) in [
        (Filter::Box, PixelFilter::Box),
        (Filter::Bilinear, PixelFilter::Bilinear),
        (Filter::Bicubic, PixelFilter::Bicubic),
    ] {
        let preprocess = Preprocess { filter, ..Preprocess::clip(size) };
        let (mut bytes, mut cuts, mut want) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (width, height, square, mirror)) in cases.into_iter().enumerate() {
            let image = image(width, height, i as u32);
            cuts.push(ImageCut {
                start: bytes.len(),
                width: width as usize,
                left: square.left as usize,
                top: square.top as usize,
                side: square.side as usize,
                mirror,
            });
            bytes.extend_from_slice(image.pixels());
            let pixels = preprocess.crop_pixels(&image, square).unwrap();
            let mut input = preprocess.normalize(&pixels).unwrap();
            if mirror {
                input.chunks_exact_mut(size as usize).for_each(<[f32]>::reverse);
            }
            want.extend(input);
        }
        let batch = ImageBatch { bytes: &bytes, cuts: &cuts };
        let twin = plain::prepare_pixels(batch, &preprocess, &Device::Cpu).unwrap();
        assert!(
            twin.flatten_all().unwrap().to_vec1::<f32>().unwrap() == want,
            "{filter:?}: the twin's values"
        );
        let outside = ImageBatch { bytes: &bytes[..bytes.len() - 1], cuts: &cuts };
        assert!(plain::prepare_pixels(outside, &preprocess, &Device::Cpu).is_err());
        for storage in STORAGES {
            let got = run(&bytes, &cuts, of_kernel, storage, &preprocess);
            let wide: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
            if storage == Storage::F32 {
                assert!(got == wide, "{filter:?}: values differ");
            }
            check(&format!("pixels {filter:?} {storage:?}"), &got, &wide, 4e-3);
        }
    }
}

fn run(
    bytes: &[u8],
    cuts: &[ImageCut],
    filter: PixelFilter,
    storage: Storage,
    preprocess: &Preprocess,
) -> Vec<f64> {
    let size = preprocess.size as usize;
    let (sizes, table) = PixelSizes::pack(cuts, size, filter);
    let channels: Vec<f32> = (0..3).flat_map(|c| [preprocess.mean[c], preprocess.std[c]]).collect();
    let mut m = Machine::default();
    let launch = PixelLaunch {
        bytes: m.bytes(bytes.to_vec()),
        images: m.bytes(table),
        channels: m.floats(&channels),
        starts: m.fresh(cuts.len() * size, Storage::F32),
        weights: m.fresh(cuts.len() * size * sizes.taps, Storage::F32),
        between: m.bytes(vec![0xff; sizes.between]),
        out: m.fresh(cuts.len() * 3 * size * size, storage),
    };
    launch.launches(storage, &sizes).unwrap().iter().for_each(|launch| m.run(launch));
    m.read(launch.out, storage)
}
