//! JPEG by libjpeg-turbo: RGB to JPEG, and JPEG to RGB at a fraction of the size where that is
//! enough: its inverse DCT makes 4, 2 or 1 values out of 8 directly, which saves most of the work
//! of images that are made small anyway.

use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

use crate::jpeg::MAX_SCANS;
use crate::{Header, Rgb};

/// Width, height and RGB pixels at 1/`by` of the size (rounded up). `None` for what libjpeg-turbo
/// does not do or finds damaged: the plain decoder then has the last word, so that both builds
/// accept the same images.
pub(crate) fn decode(bytes: &[u8], header: &Header, by: u32) -> Option<(u32, u32, Vec<u8>)> {
    // A file without codes it reads with those of the standard's example; the plain decoder refuses
    // it.
    memchr::memmem::find(bytes, &[0xff, 0xc4])?;
    let mut decoder = Decompressor::new().ok()?;
    let seen = decoder.read_header(bytes).ok()?;
    let plain = matches!(seen.colorspace, Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray);
    if !plain || seen.is_lossless || seen.is_arithmetic {
        return None;
    }
    if (seen.width, seen.height) != (header.width as usize, header.height as usize) {
        return None;
    }
    decoder.set_scan_limit(MAX_SCANS as u32).ok()?;
    let scale = ScalingFactor::new(1, by.clamp(1, 8) as usize);
    decoder.set_scaling_factor(scale).ok()?;
    let (width, height) = (scale.scale(seen.width), scale.scale(seen.height));
    let format = PixelFormat::RGB;
    let pitch = width * format.size();
    let mut image = Image { pixels: vec![0; height * pitch], width, pitch, height, format };
    decoder.decompress(bytes, image.as_deref_mut()).ok()?;
    Some((width as u32, height as u32, image.pixels))
}

/// As [`crate::encode`] for JPEG; `None` when libjpeg-turbo does not, and the plain encoder may say
/// why.
pub(crate) fn encode(rgb: &Rgb, quality: u8) -> Option<Vec<u8>> {
    let mut encoder = Compressor::new().ok()?;
    encoder.set_quality(i32::from(quality)).ok()?;
    encoder.set_subsamp(Subsamp::Sub2x2).ok()?;
    let (width, height, format) = (rgb.width() as usize, rgb.height() as usize, PixelFormat::RGB);
    let image = Image { pixels: rgb.pixels(), width, pitch: width * format.size(), height, format };
    encoder.compress_to_vec(image).ok()
}
