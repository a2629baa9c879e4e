//! The pixel buffer of this crate: 8-bit RGB, rows from top to bottom, upright.

use crate::error::ImageError;

/// An upright 8-bit RGB image. `pixels` has shape `[height, width, 3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Rgb {
    /// Takes pixels of shape `[height, width, 3]`.
    ///
    /// # Errors
    /// [`ImageError::ResizeFailed`] if the buffer has another length or a side is zero.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        if width == 0 || height == 0 || pixels.len() as u64 != u64::from(width) * u64::from(height) * 3 {
            let length = pixels.len();
            return Err(ImageError::ResizeFailed(format!(
                "{length} bytes are not {width} x {height} RGB pixels"
            )));
        }
        Ok(Self { width, height, pixels })
    }

    /// Width, in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height, in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The values, of shape `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The values, of shape `[height, width, 3]`, without a copy.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The part of `width` x `height` pixels whose top left pixel is at column `left`, row `top`.
    ///
    /// # Errors
    /// [`ImageError::ResizeFailed`] if the part is empty or exceeds the image.
    pub fn crop(&self, left: u32, top: u32, width: u32, height: u32) -> Result<Self, ImageError> {
        let inside = |start: u32, length: u32, whole: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= whole)
        };
        if !inside(left, width, self.width) || !inside(top, height, self.height) {
            return Err(ImageError::ResizeFailed(format!(
                "a crop of {width} x {height} at ({left}, {top}) exceeds the image of {} x {}",
                self.width, self.height
            )));
        }
        let stride = self.width as usize * 3;
        let (start, length) = (left as usize * 3, width as usize * 3);
        let mut pixels = Vec::with_capacity(height as usize * length);
        for row in self.pixels.chunks_exact(stride).skip(top as usize).take(height as usize) {
            pixels.extend_from_slice(&row[start..start + length]);
        }
        Self::new(width, height, pixels)
    }

    /// The image centred on a white square of `size` pixels. If a border is uneven, the extra pixel
    /// is on the right and at the bottom.
    ///
    /// # Errors
    /// [`ImageError::ResizeFailed`] if the image is larger than the square.
    pub fn pad_white(&self, size: u32) -> Result<Self, ImageError> {
        if self.width > size || self.height > size {
            let (width, height) = (self.width, self.height);
            return Err(ImageError::ResizeFailed(format!(
                "{width} x {height} does not fit into a square of {size}"
            )));
        }
        let (left, top) = ((size - self.width) as usize / 2, (size - self.height) as usize / 2);
        let stride = self.width as usize * 3;
        let mut pixels = vec![255; size as usize * size as usize * 3];
        for (row, source) in self.pixels.chunks_exact(stride).enumerate() {
            let at = ((top + row) * size as usize + left) * 3;
            pixels[at..at + stride].copy_from_slice(source);
        }
        Self::new(size, size, pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: u32, height: u32) -> Rgb {
        Rgb::new(width, height, (0..width * height * 3).map(|v| v as u8).collect()).unwrap()
    }

    #[test]
    fn crop_copies_the_part_and_rejects_parts_outside() {
        let part = ramp(4, 3).crop(1, 2, 2, 1).unwrap();
        assert_eq!((part.width(), part.height()), (2, 1));
        assert_eq!(part.pixels(), &[27, 28, 29, 30, 31, 32]);
        for (left, top, width, height) in [(3, 0, 2, 1), (0, 3, 1, 1), (0, 0, 0, 1), (u32::MAX, 0, 2, 1)] {
            assert!(ramp(4, 3).crop(left, top, width, height).is_err());
        }
    }

    #[test]
    fn padding_is_white_and_centred() {
        let padded = ramp(2, 1).pad_white(4).unwrap();
        let row = |r: usize| &padded.pixels()[r * 12..r * 12 + 12];
        assert!(row(0).iter().chain(row(2)).chain(row(3)).all(|v| *v == 255));
        assert_eq!(row(1), &[255, 255, 255, 0, 1, 2, 3, 4, 5, 255, 255, 255]);
        assert!(ramp(5, 1).pad_white(4).is_err());
    }
}
