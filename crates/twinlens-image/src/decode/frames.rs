//! The first frame of an animation, on its canvas.

use std::borrow::Cow;

use image::{DynamicImage, GenericImage, GenericImageView, Rgba, RgbaImage};

use super::library::{Decoded, decoder_error, metadata, read};
use crate::error::ImageError;
use crate::header::gif::{Frame, INTERLACED};
use crate::header::other::open;
use crate::header::{Header, gif, webp};
use crate::modes::ImageModes;
use crate::sniff::Format;

/// A WebP file; where the frame does not lie, the canvas is transparent black.
pub(super) fn first_of_webp(bytes: &[u8], header: &Header) -> Result<Decoded, ImageError> {
    let Some(frame) = webp::first_frame(bytes) else { return read(bytes, header) };
    let alone = Header { width: frame.width, height: frame.height, ..*header };
    let mut decoded = read(&frame.file, &alone)?;
    // Profile and orientation stand beside the frames.
    let mut container = open(bytes, Format::WebP).map_err(|error| decoder_error(Format::WebP, error))?;
    decoded.metadata = metadata(&mut *container);
    if (frame.width, frame.height) != (header.width, header.height) {
        let mut canvas = RgbaImage::new(header.width, header.height);
        canvas
            .copy_from(&decoded.image.into_rgba8(), frame.left, frame.top)
            .map_err(|error| decoder_error(Format::WebP, error))?;
        decoded.image = canvas.into();
    }
    Ok(decoded)
}

/// A GIF file. Where the frame does not lie, the screen is transparent; Pillow shows a colour of
/// the palette there.
pub(super) fn first_of_gif(bytes: &[u8], header: &Header, modes: ImageModes) -> Result<Decoded, ImageError> {
    let frame = gif::first_frame(bytes).ok_or(ImageError::Truncated(Format::Gif))?;
    let mut file = Cow::Borrowed(bytes);
    let screen = [header.width, header.height].map(|side| (side as u16).to_le_bytes());
    if bytes.get(6..10) != Some(screen.as_flattened()) {
        file.to_mut()[6..10].copy_from_slice(screen.as_flattened());
    }
    if frame.interlaced {
        // The library refuses an interlaced frame whose last code makes several rows.
        file.to_mut()[frame.flags] &= !INTERLACED;
    }
    let mut decoded = read(&file, header)?;
    if let DynamicImage::ImageRgba8(image) = &mut decoded.image {
        if frame.interlaced {
            sort_rows(image, &frame);
        }
        if modes == ImageModes::OpenClip {
            fill_around(image, &frame);
        }
    }
    Ok(decoded)
}

/// Puts the rows of an interlaced frame in their places (GIF89a, appendix E).
fn sort_rows(image: &mut RgbaImage, frame: &Frame) {
    let stored = image.view(frame.left, frame.top, frame.width, frame.height).to_image();
    let passes = [(0, 8), (4, 8), (2, 4), (1, 2)];
    let places = passes.into_iter().flat_map(|(first, step)| (first..frame.height).step_by(step));
    for (row, place) in stored.rows().zip(places) {
        for (x, pixel) in row.enumerate() {
            image.put_pixel(frame.left + x as u32, frame.top + place, *pixel);
        }
    }
}

fn fill_around(image: &mut RgbaImage, frame: &Frame) {
    let [r, g, b] = frame.background;
    let covered = |x: u32, y: u32| {
        (frame.left..frame.left + frame.width).contains(&x)
            && (frame.top..frame.top + frame.height).contains(&y)
    };
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if !covered(x, y) {
            *pixel = Rgba([r, g, b, 0]);
        }
    }
}
