//! Launches that turn pixels as bytes into the input of an image tower.

use super::launch::{Argument, Launch, Storage, THREADS, blocks, int};
use candle_core::{Result, bail};
use twinlens_image::Filter;

/// The filters of Pillow that the kernels have: not Lanczos, whose sines differ between libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFilter {
    /// The mean of the pixels that are covered.
    Box,
    /// Linear interpolation.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5.
    Bicubic,
}

impl PixelFilter {
    /// The kernels' filter for one of the CPU's.
    ///
    /// # Errors
    /// For Lanczos.
    pub fn of(filter: Filter) -> Result<Self> {
        match filter {
            Filter::Box => Ok(Self::Box),
            Filter::Bilinear => Ok(Self::Bilinear),
            Filter::Bicubic => Ok(Self::Bicubic),
            Filter::Lanczos => bail!("the kernels have no Lanczos filter; resize on the CPU"),
        }
    }

    /// Its number in `kernels/pixels.cu`, and half its width.
    fn parameters(self) -> (i32, f64) {
        match self {
            Self::Box => (0, 0.5),
            Self::Bilinear => (1, 1.0),
            Self::Bicubic => (2, 2.0),
        }
    }

    /// The most input values that an output value has, for squares of up to `side`.
    fn taps(self, side: usize, size: usize) -> usize {
        let stretch = (side as f64 / size as f64).max(1.0);
        2 * (self.parameters().1 * stretch).ceil() as usize + 1
    }
}

/// The pixels of a batch of images, and the squares that become input.
#[derive(Clone, Copy, Debug)]
pub struct ImageBatch<'a> {
    /// All images, one after another, row by row in three bytes a pixel.
    pub bytes: &'a [u8],
    /// A square of each.
    pub cuts: &'a [ImageCut],
}

impl ImageBatch<'_> {
    /// # Errors
    /// If a square lies outside of the bytes, or is empty.
    pub(super) fn check(&self) -> Result<()> {
        for (number, cut) in self.cuts.iter().enumerate() {
            let last = cut.start + 3 * ((cut.top + cut.side.max(1) - 1) * cut.width + cut.left + cut.side);
            if cut.side == 0 || cut.left + cut.side > cut.width || last > self.bytes.len() {
                bail!("image {number}: {cut:?} is empty, or beyond its image");
            }
        }
        Ok(())
    }
}

/// The square of an image that becomes input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageCut {
    /// The image's first byte; its pixels are three bytes, row by row.
    pub start: usize,
    /// Pixels of the image's rows.
    pub width: usize,
    /// First column of the square.
    pub left: usize,
    /// First row of the square.
    pub top: usize,
    /// Side of the square.
    pub side: usize,
    /// Whether it is mirrored.
    pub mirror: bool,
}

/// Squares of images, resized as Pillow does, mirrored, and normalised.
#[derive(Clone, Debug)]
pub struct PixelLaunch<B> {
    /// The images, u8.
    pub bytes: B,
    /// The table of [`PixelSizes::pack`], u8.
    pub images: B,
    /// Mean and standard deviation of each channel, `[3, 2]`, f32, in 0..1.
    pub channels: B,
    /// Scratch, `[images, size]`, i32.
    pub starts: B,
    /// Scratch, `[images, size, taps]`, i32.
    pub weights: B,
    /// Scratch of [`PixelSizes::between`] bytes.
    pub between: B,
    /// The result, `[images, 3, size, size]`.
    pub out: B,
}

/// The sizes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PixelSizes {
    /// Images.
    pub images: usize,
    /// The side of the result.
    pub size: usize,
    /// Weights of an output value.
    pub taps: usize,
    /// Bytes between the two passes.
    pub between: usize,
    filter: PixelFilter,
    largest: usize,
}

impl PixelSizes {
    /// The sizes, and the table of images as the kernels read it.
    pub fn pack(cuts: &[ImageCut], size: usize, filter: PixelFilter) -> (Self, Vec<u8>) {
        let (mut between, mut table) = (0, Vec::with_capacity(cuts.len() * 40));
        for cut in cuts {
            for offset in [cut.start, between] {
                table.extend((offset as i64).to_le_bytes());
            }
            let numbers = [3 * cut.width, cut.left, cut.top, cut.side, usize::from(cut.mirror), 0];
            table.extend(numbers.iter().flat_map(|&number| (number as i32).to_le_bytes()));
            between += 3 * cut.side * size;
        }
        let largest = cuts.iter().map(|cut| cut.side).max().unwrap_or(0);
        let taps = filter.taps(largest, size);
        (Self { images: cuts.len(), size, taps, between, filter, largest }, table)
    }
}

impl<B: Copy> PixelLaunch<B> {
    /// Its launches, in order.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launches(&self, storage: Storage, sizes: &PixelSizes) -> Result<[Launch<B>; 3]> {
        let PixelSizes { images, size, taps, .. } = *sizes;
        let numbers = [Argument::I32(int(size)?), Argument::I32(int(taps)?)];
        let launch = |kernel: String, values: usize, rows: usize, buffers: &[B]| -> Result<Launch<B>> {
            let grid = [blocks(values)?.div_ceil(THREADS), blocks(rows)?, blocks(images)?];
            let buffers = buffers.iter().copied().map(Argument::Buffer);
            let arguments = buffers.chain(numbers.clone()).collect();
            Ok(Launch { source: "pixels", kernel, grid, shared: 0, arguments })
        };
        let &Self { bytes, images: table, channels, starts, weights, between, out } = self;
        let mut tap = launch("pixel_taps".to_owned(), size, 1, &[table, starts, weights])?;
        tap.grid = [tap.grid[0], tap.grid[2], 1];
        tap.arguments.push(Argument::I32(sizes.filter.parameters().0));
        let rows = sizes.largest.min(65_535);
        Ok([
            tap,
            launch("pixel_rows".to_owned(), 3 * size, rows, &[bytes, table, starts, weights, between])?,
            launch(
                format!("pixel_columns_{}", storage.suffix()),
                3 * size,
                size,
                &[between, table, starts, weights, channels, out],
            )?,
        ])
    }
}
