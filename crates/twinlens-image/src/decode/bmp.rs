//! Colours of BMP files with 16 bits per pixel.

use image::DynamicImage;

use crate::header::bmp::green_bits;

/// Widens 5 and 6 bits to 8 as Pillow does, rounding down, where the library rounded to nearest.
pub(super) fn round_down(image: &mut DynamicImage, file: &[u8]) {
    let (Some(green), DynamicImage::ImageRgb8(image)) = (green_bits(file), image) else { return };
    let [five, six] = [5, 6].map(widened);
    for pixel in image.pixels_mut() {
        let [r, g, b] = pixel.0.map(usize::from);
        pixel.0 = [five[r], if green == 6 { six[g] } else { five[g] }, five[b]];
    }
}

/// For each value that was rounded to nearest, the one that is rounded down.
fn widened(bits: u32) -> [u8; 256] {
    let most = (1 << bits) - 1;
    std::array::from_fn(|value| ((value * most + 127) / 255 * 255 / most) as u8)
}
