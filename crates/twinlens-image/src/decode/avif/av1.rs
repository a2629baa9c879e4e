//! Decodes AV1 frames by `rav1d`, in Rust, to the values of dav1d.

use re_rav1d::{Decoder, Picture, PixelLayout, PlanarImageComponent, Settings};

use crate::error::ImageError;
use crate::guard::isolate_decoder;
use crate::header::avif::{Grid, Layout, Sequence};
use crate::sniff::Format;

pub(super) fn failed(reason: &str) -> ImageError {
    ImageError::DecodeFailed { format: Format::Avif, reason: reason.to_owned() }
}

/// A decoded frame.
pub(super) struct Frame(Picture);

/// Decodes the one frame of a stream, which must be what the grid says of its tiles.
pub(super) fn decode(stream: &[u8], grid: &Grid<'_>) -> Result<Frame, ImageError> {
    let (stream, width, height) = (stream.to_vec(), grid.tile_width, grid.tile_height);
    let picture = isolate_decoder(Format::Avif, move || picture(stream, width.saturating_mul(height)))?;
    let Sequence { depth, layout, .. } = grid.sequence;
    let expected = match layout {
        Layout::Grey => PixelLayout::I400,
        Layout::Yuv420 => PixelLayout::I420,
        Layout::Yuv422 => PixelLayout::I422,
        Layout::Yuv444 => PixelLayout::I444,
    };
    let is_expected = (picture.width(), picture.height()) == (width, height)
        && picture.pixel_layout() == expected
        && picture.bit_depth() as u64 == u64::from(depth);
    if is_expected { Ok(Frame(picture)) } else { Err(failed("the frame is not what its header says")) }
}

fn picture(stream: Vec<u8>, max_pixels: u32) -> Result<Picture, ImageError> {
    let mut settings = Settings::new();
    // More threads would change no value.
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_all_layers(false);
    settings.set_frame_size_limit(max_pixels);
    let broken = |error: re_rav1d::Error| failed(&error.to_string().to_lowercase());
    let mut decoder = Decoder::with_settings(&settings).map_err(broken)?;
    decoder.send_data(stream, None, None, None).map_err(broken)?;
    let picture = decoder.get_picture().map_err(|error| match error {
        re_rav1d::Error::Again => failed("the stream ends before its frame"),
        error => broken(error),
    })?;
    // What follows the frame must be whole too.
    match decoder.get_picture() {
        Err(re_rav1d::Error::Again) => Ok(picture),
        Err(error) => Err(broken(error)),
        Ok(_) => Err(failed("the stream has several frames")),
    }
}

impl Frame {
    /// Copies the beginning of a row of a plane: 0 is brightness.
    pub(super) fn copy_row(&self, plane: usize, y: usize, into: &mut [u16]) {
        let component = PlanarImageComponent::from(plane);
        let (stride, plane) = (self.0.stride(component) as usize, self.0.plane(component));
        let row = &plane[y * stride..][..stride];
        if self.0.bit_depth() == 8 {
            for (value, byte) in into.iter_mut().zip(row) {
                *value = u16::from(*byte);
            }
        } else {
            for (value, bytes) in into.iter_mut().zip(row.chunks_exact(2)) {
                *value = u16::from_ne_bytes([bytes[0], bytes[1]]);
            }
        }
    }
}
