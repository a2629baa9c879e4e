//! YUV to RGB by the arithmetic of libavif in floating-point numbers, for what libyuv lacks. The
//! order of the operations is libavif's, since each rounds.

use super::planes::Planes;
use crate::header::avif::Layout;

#[derive(Debug, Clone, Copy)]
pub(super) enum Formula {
    /// The planes are green, blue and red.
    Identity,
    /// Differences of green and orange.
    YCgCo,
    /// The parts of red, green and blue in brightness.
    Matrix { red: f32, green: f32, blue: f32 },
}

impl Formula {
    pub(super) fn matrix(red: f32, blue: f32) -> Self {
        Self::Matrix { red, green: 1.0 - red - blue, blue }
    }

    /// Whether the colours are divided by alpha before they are rounded.
    pub(super) fn divides_alpha(self, planes: &Planes, full_range: bool) -> bool {
        let whole = planes.layout == Layout::Yuv444;
        match self {
            Self::Matrix { .. } => !whole && planes.layout != Layout::Grey,
            Self::Identity => !(planes.depth == 8 && whole && full_range),
            Self::YCgCo => true,
        }
    }

    fn rgb(self, [y, cb, cr]: [f32; 3]) -> [f32; 3] {
        match self {
            Self::Identity => [cr, y, cb],
            Self::YCgCo => {
                let rest = y - cb;
                [rest + cr, y + cb, rest - cr]
            }
            Self::Matrix { red, green, blue } => [
                y + (2.0 * (1.0 - red)) * cr,
                y - ((2.0 * ((red * (1.0 - red) * cr) + (blue * (1.0 - blue) * cb))) / green),
                y + (2.0 * (1.0 - blue)) * cb,
            ],
        }
    }
}

/// The alpha of an image.
#[derive(Clone, Copy)]
pub(super) struct Alpha<'a> {
    pub(super) values: &'a [u16],
    /// Whether the colours are multiplied by it.
    pub(super) premultiplied: bool,
}

/// A value of up to twelve bits as one of eight.
pub(super) fn rounded(value: u16, depth: u32) -> u8 {
    if depth == 8 {
        return value as u8;
    }
    to_byte(f32::from(value) / largest(depth))
}

fn largest(depth: u32) -> f32 {
    ((1_u32 << depth) - 1) as f32
}

fn to_byte(value: f32) -> u8 {
    (0.5 + value * 255.0) as u8
}

/// The brightness of each value of a plane, from 0 to 1 within its range.
fn luma_table(depth: u32, full_range: bool) -> Vec<f32> {
    let (bias, range) =
        if full_range { (0, (1 << depth) - 1) } else { (16 << (depth - 8), 219 << (depth - 8)) };
    table(depth, bias, range)
}

fn table(depth: u32, bias: u32, range: u32) -> Vec<f32> {
    (0..1_u32 << depth).map(|value| (value as f32 - bias as f32) / range as f32).collect()
}

/// Grey without alpha.
pub(super) fn grey(planes: &Planes, full_range: bool) -> Vec<u8> {
    let table = luma_table(planes.depth, full_range);
    let bytes: Vec<u8> = table.into_iter().map(|value| to_byte(value.clamp(0.0, 1.0))).collect();
    planes.y.iter().map(|value| bytes[usize::from(*value)]).collect()
}

/// Converts planes to RGB, or to RGBA.
pub(super) fn to_rgb<const CHANNELS: usize>(
    planes: &Planes,
    alpha: Option<Alpha<'_>>,
    formula: Formula,
    full_range: bool,
) -> Vec<u8> {
    let luma = luma_table(planes.depth, full_range);
    let colour = match formula {
        Formula::Identity => luma.clone(),
        _ if full_range => table(planes.depth, 1 << (planes.depth - 1), (1 << planes.depth) - 1),
        _ => table(planes.depth, 1 << (planes.depth - 1), 224 << (planes.depth - 8)),
    };
    let divides = alpha.is_some_and(|alpha| alpha.premultiplied) && formula.divides_alpha(planes, full_range);
    let width = planes.width as usize;
    let mut pixels = vec![0; width * planes.height as usize * CHANNELS];
    for (index, pixel) in pixels.chunks_exact_mut(CHANNELS).enumerate() {
        let (x, y) = (index % width, index / width);
        let (cb, cr) = match planes.layout {
            Layout::Grey => (0.0, 0.0),
            _ => (
                interpolated(planes, &planes.u, &colour, (x, y)),
                interpolated(planes, &planes.v, &colour, (x, y)),
            ),
        };
        let mut rgb = formula.rgb([luma[usize::from(planes.y[index])], cb, cr]);
        rgb.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
        if let Some(alpha) = alpha {
            let value = alpha.values[index];
            pixel[3] = rounded(value, planes.depth);
            if divides {
                divide(&mut rgb, f32::from(value) / largest(planes.depth));
            }
        }
        for (channel, value) in pixel.iter_mut().zip(rgb) {
            *channel = to_byte(value);
        }
    }
    pixels
}

fn divide(rgb: &mut [f32; 3], alpha: f32) {
    for value in rgb {
        if alpha == 0.0 {
            *value = 0.0;
        } else if alpha < 1.0 {
            *value = (*value / alpha).min(1.0);
        }
    }
}

/// The colour of a pixel between up to four values.
fn interpolated(planes: &Planes, plane: &[u16], table: &[f32], (x, y): (usize, usize)) -> f32 {
    let (across, down) = planes.layout.shifts();
    let stride = planes.colour_width();
    let at = |x: usize, y: usize| table[usize::from(plane[y * stride + x])];
    let near = (x >> across, y >> down);
    if across == 0 {
        return at(near.0, near.1);
    }
    let beside = neighbour(x, planes.width as usize);
    let far = if down == 0 { near.1 } else { neighbour(y, planes.height as usize) };
    at(near.0, near.1) * (9.0 / 16.0)
        + at(beside, near.1) * (3.0 / 16.0)
        + at(near.0, far) * (3.0 / 16.0)
        + at(beside, far) * (1.0 / 16.0)
}

/// The second nearest value of a row or column of colour; at an edge the nearest.
fn neighbour(x: usize, width: usize) -> usize {
    if x == 0 || (x == width - 1 && x % 2 == 1) {
        x / 2
    } else if x % 2 == 1 {
        x / 2 + 1
    } else {
        x / 2 - 1
    }
}
