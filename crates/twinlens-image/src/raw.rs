//! The common output of the decoders.

use image::metadata::Orientation;

/// A decoded image before colour conversion and orientation.
pub(crate) struct RawImage {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// RGB, of shape `[height, width, 3]`, as stored.
    pub(crate) pixels: Vec<u8>,
    pub(crate) colour_model: ColourModel,
    pub(crate) icc: Option<Vec<u8>>,
    pub(crate) exif: Option<Vec<u8>>,
    /// How the pixels must be turned to stand upright.
    pub(crate) orientation: Orientation,
}

/// The colour model of the stored values, before conversion to three channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColourModel {
    Rgb,
    Grey,
    /// CMYK or YCCK, converted by simple arithmetic, so that the profile no longer applies.
    Cmyk,
}

/// Converts inverted CMYK (the light that is left) to RGB by Pillow's arithmetic.
pub(crate) fn cmyk_to_rgb(pixels: &[u8]) -> Vec<u8> {
    pixels
        .chunks_exact(4)
        .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]].map(|value| ink_to_light(value, pixel[3])))
        .collect()
}

/// One value of RGB, of what one ink and black leave of the light.
pub(crate) fn ink_to_light(value: u8, black: u8) -> u8 {
    let product = (255 - u32::from(value)) * u32::from(black) + 128;
    black.saturating_sub((((product >> 8) + product) >> 8) as u8)
}
