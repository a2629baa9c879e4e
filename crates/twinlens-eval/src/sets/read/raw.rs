//! Encodes raw pixels as PNG, without loss, so that any program can open the images.

use twinlens_image::{Format, Rgb, encode};

use crate::images::Reject;

/// The order of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One value per pixel.
    Grey,
    /// Three values per pixel.
    Interleaved,
    /// Three planes, row by row.
    Planes,
    /// Three planes, column by column.
    ColumnPlanes,
}

/// Encodes `height x width` pixels as PNG.
pub(super) fn png(values: &[u8], width: u32, height: u32, layout: Layout) -> Result<Vec<u8>, Reject> {
    let (columns, area) = (width as usize, values.len() / if layout == Layout::Grey { 1 } else { 3 });
    let rows = height as usize;
    let pixels = match layout {
        Layout::Grey => values.iter().flat_map(|value| [*value; 3]).collect(),
        Layout::Interleaved => values.to_vec(),
        Layout::Planes => (0..area).flat_map(|at| [0, 1, 2].map(|plane| values[plane * area + at])).collect(),
        Layout::ColumnPlanes => {
            let place = |at: usize| (at % columns) * rows + at / columns;
            (0..area).flat_map(|at| [0, 1, 2].map(|plane| values[plane * area + place(at)])).collect()
        }
    };
    let refused =
        |error: twinlens_image::ImageError| Reject { code: error.code(), detail: error.to_string() };
    encode(&Rgb::new(width, height, pixels).map_err(refused)?, Format::Png, None).map_err(refused)
}
