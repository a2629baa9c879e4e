//! The planes of an image, put together of the frames of its tiles.

use super::av1::{self, failed};
use crate::error::ImageError;
use crate::header::avif::{Grid, Layout};

/// Brightness and two planes of colour.
pub(super) struct Planes {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bits per value: 8, 10 or 12.
    pub(super) depth: u32,
    pub(super) layout: Layout,
    /// Of shape `[height, width]`.
    pub(super) y: Vec<u16>,
    /// Of shape `[colour_height, colour_width]`, blue first. Empty if the image is grey.
    pub(super) u: Vec<u16>,
    pub(super) v: Vec<u16>,
}

impl Planes {
    fn new(width: u32, height: u32, depth: u32, layout: Layout) -> Self {
        let mut planes = Self { width, height, depth, layout, y: Vec::new(), u: Vec::new(), v: Vec::new() };
        planes.y = vec![0; width as usize * height as usize];
        if layout != Layout::Grey {
            planes.u = vec![0; planes.colour_width() * planes.colour_height()];
            planes.v = planes.u.clone();
        }
        planes
    }

    pub(super) fn colour_width(&self) -> usize {
        let (across, _) = self.layout.shifts();
        self.width.div_ceil(1 << across) as usize
    }

    fn colour_height(&self) -> usize {
        let (_, down) = self.layout.shifts();
        self.height.div_ceil(1 << down) as usize
    }
}

pub(super) fn decode(grid: &Grid<'_>) -> Result<Planes, ImageError> {
    let mut planes = Planes::new(grid.width, grid.height, grid.sequence.depth, grid.sequence.layout);
    copy_tiles(grid, &mut planes)?;
    Ok(planes)
}

/// The alpha of an image: the brightness of a grid, widened if its range is limited.
pub(super) fn decode_alpha(grid: &Grid<'_>) -> Result<Vec<u16>, ImageError> {
    let depth = grid.sequence.depth;
    let mut planes = Planes::new(grid.width, grid.height, depth, Layout::Grey);
    copy_tiles(grid, &mut planes)?;
    if !grid.sequence.colours.full_range {
        let (black, white) = (16 << (depth - 8), 235 << (depth - 8));
        let (range, full) = (white - black, (1 << depth) - 1);
        for value in &mut planes.y {
            // Rounds towards zero, as a division does in C.
            *value = (((i32::from(*value) - black) * full + range / 2) / range).clamp(0, full) as u16;
        }
    }
    Ok(planes.y)
}

fn copy_tiles(grid: &Grid<'_>, planes: &mut Planes) -> Result<(), ImageError> {
    let (across, down) = planes.layout.shifts();
    let (widths, height) = ([planes.width as usize, planes.colour_width()], planes.height as usize);
    let tile_sides = (grid.tile_width as usize, grid.tile_height as usize);
    if grid.columns == 0 {
        return Err(failed("a grid without columns"));
    }
    for (index, data) in grid.tiles.iter().enumerate() {
        let frame = av1::decode(data, grid)?;
        let (column, row) = (index % grid.columns as usize, index / grid.columns as usize);
        let (left, top) = (column * tile_sides.0, row * tile_sides.1);
        let bottom = (top + tile_sides.1).min(height);
        for plane in 0..if planes.layout == Layout::Grey { 1 } else { 3 } {
            let (across, down) = if plane == 0 { (0, 0) } else { (across, down) };
            let width = widths[plane.min(1)];
            let (left, right) = (left >> across, ((left + tile_sides.0).div_ceil(1 << across)).min(width));
            let values = [&mut planes.y, &mut planes.u, &mut planes.v].into_iter().nth(plane);
            let Some(values) = values else { continue };
            for y in top >> down..bottom.div_ceil(1 << down) {
                frame.copy_row(plane, y - (top >> down), &mut values[y * width..][left..right]);
            }
        }
    }
    Ok(())
}
