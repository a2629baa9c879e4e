//! JPEG by libjpeg-turbo. Its inverse DCT can produce 4, 2 or 1 values out of 8 directly, which
//! saves most of the work for images that are downscaled anyway.

use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

use crate::header::Header;
use crate::limits::MAX_SCANS;
use crate::rgb::Rgb;

/// Width, height and RGB pixels at 1/`by` of the size (rounded up). `None` for images that
/// libjpeg-turbo does not support or finds damaged: then `zune-jpeg` decides, so that both builds
/// accept the same images.
pub(crate) fn decode(bytes: &[u8], header: &Header, by: u32) -> Option<(u32, u32, Vec<u8>)> {
    // libjpeg-turbo reads a file without Huffman tables with those of the standard's example;
    // `zune-jpeg` rejects it.
    memchr::memmem::find(bytes, &[0xff, 0xc4])?;
    let mut decoder = Decompressor::new().ok()?;
    let seen = decoder.read_header(bytes).ok()?;
    let supported = matches!(seen.colorspace, Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray);
    if !supported || seen.is_lossless || seen.is_arithmetic {
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

/// Like [`crate::encode`] for JPEG. `None` if libjpeg-turbo fails; `jpeg-encoder` then reports why.
pub(crate) fn encode(rgb: &Rgb, quality: u8) -> Option<Vec<u8>> {
    let mut encoder = Compressor::new().ok()?;
    encoder.set_quality(i32::from(quality)).ok()?;
    encoder.set_subsamp(Subsamp::Sub2x2).ok()?;
    let (width, height, format) = (rgb.width() as usize, rgb.height() as usize, PixelFormat::RGB);
    let image = Image { pixels: rgb.pixels(), width, pitch: width * format.size(), height, format };
    encoder.compress_to_vec(image).ok()
}
