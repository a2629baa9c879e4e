//! Decodes the commonest structure: luma and chroma in one scan without progression.
//!
//! The library parses the file, transforms whole blocks and converts colours. The codes are read
//! here, and the transforms to a half and a quarter of the size are here, with vectors, which the
//! library's do not have. Values are the library's. Damaged files and all other structures are left
//! to it, so that there is one set of refusals.

mod codes;
mod transform;
mod upsample;

use libjpeg_turbo_rs::common::huffman_table::HuffmanTable;
use libjpeg_turbo_rs::common::types::{ComponentInfo, FrameHeader};
use libjpeg_turbo_rs::decode::entropy::{McuComponentPlan, resolve_mcu_plan};
use libjpeg_turbo_rs::decode::idct_scaled::idct_1x1;
use libjpeg_turbo_rs::decode::marker::{JpegMetadata, MarkerReader};
use libjpeg_turbo_rs::simd::{SimdRoutines, detect};
use pulp::NullaryFnOnce;
use pulp::x86::V3;

use codes::Codes;
use transform::{flat, transform_2x2, transform_4x4, transform_8x8};
use upsample::Double;

/// RGB at 1/`by` of the size. `None` for files of another structure, damaged files, and processors
/// without AVX2.
///
/// `size` is the width and height that the header says.
pub(super) fn decode(bytes: &[u8], size: [usize; 2], by: usize) -> Option<Vec<u8>> {
    let simd = V3::try_new()?;
    let metadata = MarkerReader::new(bytes).read_markers().ok()?;
    if [metadata.frame.width(), metadata.frame.height()] != size {
        return None;
    }
    let structure = Structure::new(&metadata, by)?;
    let codes = Codes::new(bytes.get(metadata.entropy_data_offset..)?);
    simd.vectorize(Decode { simd, structure: &structure, codes })
}

/// A component of the scan.
struct Component<'a> {
    codes: [&'a HuffmanTable; 2],
    quantization: &'a [u16; 64],
    /// Blocks of a unit, across and down.
    blocks: [usize; 2],
    /// Side of a block after the transform: 1, 2, 4 or 8.
    side: usize,
    /// How many times as wide and as high it becomes.
    factor: [usize; 2],
}

/// The structure of a file, at a size.
struct Structure<'a> {
    components: [Component<'a>; 3],
    /// Units, across and down.
    units: [usize; 2],
    /// Sides of a unit in pixels of the result.
    unit: [usize; 2],
    /// Sides of the result in pixels.
    size: [usize; 2],
    /// Units between restarts; 0 for no restarts.
    restart: usize,
}

impl<'a> Structure<'a> {
    /// `None` for structures that are left to the library.
    fn new(metadata: &'a JpegMetadata, by: usize) -> Option<Self> {
        let JpegMetadata { frame, scan, .. } = metadata;
        let is_sequential = !(frame.is_progressive || frame.is_lossless || metadata.is_arithmetic);
        let in_order = frame.components.iter().map(|component| component.id);
        let is_one_scan = metadata.scans.len() <= 1
            && scan.components.iter().map(|component| component.component_id).eq(in_order);
        if !is_sequential || !is_one_scan || frame.precision != 8 {
            return None;
        }
        let most = most(frame);
        let unit = most.map(|factor| factor * (8 / by));
        let plan =
            resolve_mcu_plan(frame, scan, &metadata.dc_huffman_tables, &metadata.ac_huffman_tables).ok()?;
        let component = |(codes, info): (McuComponentPlan<'a>, &ComponentInfo)| {
            let table = metadata.quant_tables.get(usize::from(info.quant_table_index))?.as_ref()?;
            let blocks = sampling(info);
            // At a reduced size, more of a chroma block is kept instead of enlarging it afterwards.
            let side = if by == 1 { 8 } else { unit[0] / blocks[0] };
            let factor = [0, 1].map(|axis| unit[axis] / (blocks[axis] * side));
            let fits = [0, 1].iter().all(|axis| blocks[*axis] * side * factor[*axis] == unit[*axis]);
            let is_known = matches!(side, 1 | 2 | 4 | 8) && matches!(factor, [1, 1] | [2, 1] | [2, 2]);
            let codes = [codes.dc_table, codes.ac_table];
            let component = Component { codes, quantization: &table.values, blocks, side, factor };
            (fits && is_known).then_some(component)
        };
        let components: Vec<_> =
            plan.into_iter().zip(&frame.components).map(component).collect::<Option<_>>()?;
        let components: [Component<'a>; 3] = components.try_into().ok()?;
        let sides = [frame.width(), frame.height()];
        let size = sides.map(|side| side.div_ceil(by));
        let [luma, cb, cr] = components.each_ref().map(|component| component.factor);
        // The library enlarges two columns or fewer without a filter.
        let is_wide = cb == [1, 1] || size[0].div_ceil(2) > 2;
        let units = [0, 1].map(|axis| sides[axis].div_ceil(8 * most[axis]));
        let restart = usize::from(metadata.restart_interval);
        let is_known = luma == [1, 1] && cb == cr && is_wide;
        is_known.then_some(Self { components, units, unit, size, restart })
    }
}

fn sampling(component: &ComponentInfo) -> [usize; 2] {
    [component.horizontal_sampling, component.vertical_sampling].map(usize::from)
}

/// The largest sampling factor in each direction.
fn most(frame: &FrameHeader) -> [usize; 2] {
    let factors = frame.components.iter().map(sampling);
    factors.fold([1, 1], |most, one| [most[0].max(one[0]), most[1].max(one[1])])
}

/// Reads the components, a row of units at a time, and converts it.
struct Decode<'a> {
    simd: V3,
    structure: &'a Structure<'a>,
    codes: Codes<'a>,
}

impl NullaryFnOnce for Decode<'_> {
    type Output = Option<Vec<u8>>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { simd, structure, mut codes } = self;
        let [width, height] = structure.size;
        let mut planes = structure.components.each_ref().map(|component| Plane::new(structure, component));
        let mut pixels = vec![0; width * height * 3];
        let mut rows = pixels.chunks_exact_mut(width * 3);
        let routines = detect();
        let mut convert = Convert::new(structure, &routines);
        let mut first = [0; 3];
        let mut number = 0_usize;
        for row in 0..structure.units[1] {
            for column in 0..structure.units[0] {
                if structure.restart > 0 && number > 0 && number.is_multiple_of(structure.restart) {
                    codes.restart()?;
                    first = [0; 3];
                }
                number += 1;
                for ((component, plane), first) in
                    structure.components.iter().zip(&mut planes).zip(&mut first)
                {
                    plane.read(simd, &routines, component, &mut codes, first, column)?;
                }
                if codes.is_beyond() {
                    return None;
                }
            }
            // The last row of a unit may need the first of the next one.
            let held_back = planes[1].factor[1] - 1;
            let is_last = row + 1 == structure.units[1];
            let end = if is_last { height } else { (row + 1) * structure.unit[1] - held_back };
            for (y, rgb) in (convert.next..end).zip(&mut rows) {
                convert.row(simd, &planes, y, rgb);
            }
            convert.next = end;
            planes.iter_mut().for_each(Plane::keep_last_row);
        }
        Some(pixels)
    }
}

/// A row of units of a component, and the row of values above it.
struct Plane {
    values: Vec<u8>,
    stride: usize,
    /// Rows of values in a unit.
    rows: usize,
    /// Values of a unit in a row.
    across: usize,
    factor: [usize; 2],
    /// Sides of what the image needs.
    size: [usize; 2],
    /// Row of the component that is second in `values`.
    top: usize,
    block: [i16; 64],
}

impl Plane {
    fn new(structure: &Structure<'_>, component: &Component<'_>) -> Self {
        let [across, rows] = component.blocks.map(|count| count * component.side);
        let stride = structure.units[0] * across;
        let size = [0, 1].map(|axis| structure.size[axis].div_ceil(component.factor[axis]));
        let values = vec![0; stride * (1 + rows)];
        Self { values, stride, rows, across, factor: component.factor, size, top: 0, block: [0; 64] }
    }

    /// Reads the blocks of the unit in a column.
    #[inline(always)]
    fn read(
        &mut self,
        simd: V3,
        routines: &SimdRoutines,
        component: &Component<'_>,
        codes: &mut Codes<'_>,
        first: &mut i16,
        column: usize,
    ) -> Option<()> {
        let Component { quantization, blocks, side, .. } = component;
        let unit = &mut self.values[self.stride + column * self.across..];
        for down in 0..blocks[1] {
            for across in 0..blocks[0] {
                let nonzero = codes.read(component.codes, first, &mut self.block)?;
                let place = &mut unit[down * side * self.stride + across * side..];
                match side {
                    8 => {
                        let values = transform_8x8(routines, &self.block, quantization, nonzero);
                        put(place, self.stride, &values);
                    }
                    4 if nonzero.is_first_only() => {
                        put(place, self.stride, &[[flat(&self.block, quantization); 4]; 4]);
                    }
                    4 => put(place, self.stride, &transform_4x4(simd, &self.block, quantization)),
                    2 if nonzero.is_first_only() => {
                        put(place, self.stride, &[[flat(&self.block, quantization); 2]; 2]);
                    }
                    2 => put(place, self.stride, &transform_2x2(simd, &self.block, quantization)),
                    _ => place[0] = idct_1x1(&self.block, quantization),
                }
            }
        }
        Some(())
    }

    /// A row of the component, of its width in the image. Rows beyond the image are its last one.
    fn row(&self, y: usize) -> &[u8] {
        let row = y.min(self.size[1] - 1) + 1 - self.top;
        &self.values[row * self.stride..][..self.size[0]]
    }

    fn keep_last_row(&mut self) {
        self.values.copy_within(self.rows * self.stride.., 0);
        self.top += self.rows;
    }
}

/// Writes a block into a plane.
#[inline(always)]
fn put<const SIDE: usize>(place: &mut [u8], stride: usize, rows: &[[u8; SIDE]; SIDE]) {
    for (number, row) in rows.iter().enumerate() {
        place[number * stride..][..SIDE].copy_from_slice(row);
    }
}

/// Converts rows to RGB.
struct Convert<'a> {
    routines: &'a SimdRoutines,
    width: usize,
    /// The next row.
    next: usize,
    sums: Vec<u16>,
    /// Chroma as wide as luma.
    chroma: [Vec<u8>; 2],
}

impl<'a> Convert<'a> {
    fn new(structure: &Structure<'_>, routines: &'a SimdRoutines) -> Self {
        let width = structure.size[0];
        let chroma = [0; 2].map(|_: u8| vec![0; width + 1]);
        Self { routines, width, next: 0, sums: Vec::new(), chroma }
    }

    #[inline(always)]
    fn row(&mut self, simd: V3, [luma, cb, cr]: &[Plane; 3], y: usize, rgb: &mut [u8]) {
        let near = y / cb.factor[1];
        // The row above the first is the first itself.
        let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { near + 1 };
        for (plane, wide) in [cb, cr].into_iter().zip(&mut self.chroma) {
            let row = &mut wide[..plane.size[0] * plane.factor[0]];
            match plane.factor {
                [2, 2] => {
                    let (near, far) = (plane.row(near), plane.row(far));
                    Double { near, far, sums: &mut self.sums, row }.make(simd);
                }
                [2, _] => self.routines.fancy_upsample_h2v1(plane.row(near), plane.size[0], row),
                _ => {}
            }
        }
        let [wide_cb, wide_cr] = &self.chroma;
        let [cb, cr] = match cb.factor[0] {
            1 => [cb.row(y), cr.row(y)],
            _ => [wide_cb.as_slice(), wide_cr.as_slice()],
        };
        self.routines.ycbcr_to_rgb_row(luma.row(y), cb, cr, rgb, self.width);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libjpeg_turbo_rs::{Decoder, Encoder, PixelFormat, ScalingFactor, Subsampling};
    use proptest::prelude::*;

    fn by_library(bytes: &[u8], by: usize) -> Option<Vec<u8>> {
        let mut decoder = Decoder::new(bytes).ok()?;
        decoder.set_output_format(PixelFormat::Rgb);
        decoder.set_scale(ScalingFactor::try_new(1, by as u32).unwrap());
        Some(decoder.decode_image().ok()?.data)
    }

    /// A file with rough or smooth noise, of whose codes some bytes are changed.
    fn file(size: [usize; 2], of: (Subsampling, u8, u16), seed: u64, changes: &[(f64, u8)]) -> Vec<u8> {
        let (sampling, quality, restart) = of;
        let mut state = seed;
        let pixels: Vec<u8> = (0..size[0] * size[1] * 3)
            .map(|at| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let rough = (state >> 60) as usize * (seed % 17) as usize;
                ((at / 3 % size[0] * 3 + at / size[0] + rough) % 256) as u8
            })
            .collect();
        let encoder = Encoder::new(&pixels, size[0], size[1], PixelFormat::Rgb).subsampling(sampling);
        let mut bytes = encoder.quality(quality).restart_blocks(restart).encode().unwrap();
        let scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap() + 14;
        for (place, value) in changes {
            let at = scan + (place * (bytes.len() - scan) as f64) as usize;
            bytes[at] = *value;
        }
        bytes
    }

    const SAMPLING: [Subsampling; 6] = [
        Subsampling::S444,
        Subsampling::S420,
        Subsampling::S422,
        Subsampling::S440,
        Subsampling::S411,
        Subsampling::S441,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]
        #[test]
        fn pixels_are_those_of_the_library(
            size in [1_usize..70, 1_usize..70],
            sampling in prop::sample::select(&SAMPLING[..]),
            (quality, restart, seed) in (1_u8..100, 0_u16..9, any::<u64>()),
            changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 0..3),
        ) {
            let bytes = file(size, (sampling, quality, restart), seed, &changes);
            for by in [1, 2, 4, 8] {
                if let Some(ours) = decode(&bytes, size, by) {
                    prop_assert_eq!(Some(ours), by_library(&bytes, by), "{:?} by {}", sampling, by);
                }
            }
        }

        /// The structures that this module is for are not left to the library.
        #[test]
        fn the_commonest_structures_are_decoded_here(
            size in [5_usize..70, 1_usize..70],
            sampling in prop::sample::select(&SAMPLING[..3]),
            (quality, restart, seed) in (1_u8..100, 0_u16..9, any::<u64>()),
        ) {
            let bytes = file(size, (sampling, quality, restart), seed, &[]);
            for by in [1, 2, 4, 8] {
                let is_known = by == 1 || sampling != Subsampling::S422;
                let is_decoded = decode(&bytes, size, by).is_some();
                prop_assert_eq!(is_decoded, is_known && V3::try_new().is_some(), "{:?} by {}", sampling, by);
            }
        }
    }
}
