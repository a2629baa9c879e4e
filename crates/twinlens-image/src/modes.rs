//! The two rules by which images that are not plain RGB become RGB.

use image::DynamicImage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How transparency, palettes, deep colours, colour profiles and EXIF orientation are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageModes {
    /// As a viewer shows them on a white page: alpha on white, 16 bits rounded to 8, colour
    /// profiles converted to sRGB, upright.
    #[default]
    White,
    /// As Pillow's `convert("RGB")`, which loaders of published models call: alpha is dropped, 16
    /// bits per channel lose the lower 8, 16-bit grey is clipped at 255, profiles and orientation
    /// are ignored.
    OpenClip,
}

impl ImageModes {
    /// The name in pipeline and model files.
    pub fn name(self) -> &'static str {
        match self {
            Self::White => "white",
            Self::OpenClip => "open_clip",
        }
    }

    /// Converts any colour type to RGB8.
    pub(crate) fn convert(self, image: DynamicImage) -> Vec<u8> {
        match self {
            Self::White => on_white(image),
            Self::OpenClip => without_alpha(image),
        }
    }
}

/// Composites alpha onto white.
fn on_white(image: DynamicImage) -> Vec<u8> {
    if !image.color().has_alpha() {
        return image.into_rgb8().into_raw();
    }
    let mut pixels = image.into_rgba8().into_raw();
    // In place: pixel i is read from 4i..4i+4 before it is written to 3i..3i+3.
    for i in 0..pixels.len() / 4 {
        let alpha = u32::from(pixels[4 * i + 3]);
        for channel in 0..3 {
            let value = u32::from(pixels[4 * i + channel]);
            pixels[3 * i + channel] = ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        }
    }
    pixels.truncate(pixels.len() / 4 * 3);
    pixels
}

fn without_alpha(image: DynamicImage) -> Vec<u8> {
    let high = |value: u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageRgba8(image) => {
            let mut pixels = image.into_raw();
            // In place, as above.
            for i in 0..pixels.len() / 4 {
                let [r, g, b] = [0, 1, 2].map(|channel| pixels[4 * i + channel]);
                pixels[3 * i..3 * i + 3].copy_from_slice(&[r, g, b]);
            }
            pixels.truncate(pixels.len() / 4 * 3);
            pixels
        }
        DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|pixel| [pixel[0]; 3]).collect(),
        DynamicImage::ImageRgb16(image) => image.iter().map(|value| high(*value)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]].map(high)).collect()
        }
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|pixel| [high(pixel[0]); 3]).collect(),
        DynamicImage::ImageLuma16(image) => {
            image.iter().flat_map(|value| [u8::try_from(*value).unwrap_or(u8::MAX); 3]).collect()
        }
        other => other.into_rgb8().into_raw(),
    }
}
