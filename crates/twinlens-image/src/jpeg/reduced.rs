//! Decodes the commonest structure at 1/2, 1/4 or 1/8 of the size, where the library has no vectors
//! for its transforms: at half the size, it takes longer than at the whole.
//!
//! The library parses the file, reads codes and converts colours; the loop over the blocks is here,
//! with a vectorised transform. It gives the library's values and refusals, for damaged files too:
//! a test compares them. All other structures are left to the library.

mod transform;

use libjpeg_turbo_rs::JpegError;
use libjpeg_turbo_rs::common::types::{ComponentInfo, FrameHeader};
use libjpeg_turbo_rs::decode::bitstream::BitReader;
use libjpeg_turbo_rs::decode::entropy::{McuComponentPlan, McuDecoder, resolve_mcu_plan};
use libjpeg_turbo_rs::decode::idct_scaled::{idct_1x1, idct_2x2};
use libjpeg_turbo_rs::decode::marker::{JpegMetadata, MarkerReader};
use libjpeg_turbo_rs::simd::{SimdRoutines, detect};
use pulp::NullaryFnOnce;
use pulp::x86::V3;

use transform::transform_4x4;

/// RGB of a file of luma and chroma in one scan without progression, whose components need no
/// upsampling at 1/`by` of the size. `None` for other files, damaged ones, and processors without
/// AVX2.
///
/// `size` is the width and height that the header says.
pub(super) fn decode(bytes: &[u8], size: [usize; 2], by: usize) -> Option<Result<Vec<u8>, JpegError>> {
    let simd = V3::try_new()?;
    let metadata = MarkerReader::new(bytes).read_markers().ok()?;
    if [metadata.frame.width(), metadata.frame.height()] != size {
        return None;
    }
    let file = Reduced::new(&metadata, by)?;
    Some(simd.vectorize(Planes { simd, file: &file, codes: bytes.get(metadata.entropy_data_offset..)? }))
}

/// A component of the scan.
struct Component<'a> {
    codes: McuComponentPlan<'a>,
    quantization: &'a [u16; 64],
    /// Blocks of a unit, across and down.
    blocks: [usize; 2],
    /// Side of a block after the transform: 1, 2, 4 or 8.
    side: usize,
}

/// The structure of a file, at a reduced size.
struct Reduced<'a> {
    components: Vec<Component<'a>>,
    /// Units, across and down.
    units: [usize; 2],
    /// Sides of a unit in pixels of the result; the same for each component.
    unit: [usize; 2],
    /// Sides of the result in pixels.
    size: [usize; 2],
    /// Units between restarts; 0 for no restarts.
    restart: usize,
}

impl<'a> Reduced<'a> {
    /// `None` for structures that are left to the library.
    fn new(metadata: &'a JpegMetadata, by: usize) -> Option<Self> {
        let JpegMetadata { frame, scan, .. } = metadata;
        let is_sequential = !(frame.is_progressive || frame.is_lossless || metadata.is_arithmetic);
        let in_order = frame.components.iter().map(|component| component.id);
        let is_one_scan = metadata.scans.len() <= 1
            && scan.components.iter().map(|component| component.component_id).eq(in_order);
        if !is_sequential || !is_one_scan || frame.components.len() != 3 || frame.precision != 8 {
            return None;
        }
        let most = most(frame);
        let unit = most.map(|factor| factor * (8 / by));
        let plan =
            resolve_mcu_plan(frame, scan, &metadata.dc_huffman_tables, &metadata.ac_huffman_tables).ok()?;
        let component = |(codes, info): (McuComponentPlan<'a>, &ComponentInfo)| {
            let table = metadata.quant_tables.get(usize::from(info.quant_table_index))?.as_ref()?;
            let blocks = sampling(info);
            let side = unit[0] / blocks[0];
            let fits = matches!(side, 1 | 2 | 4 | 8) && blocks.map(|count| count * side) == unit;
            fits.then_some(Component { codes, quantization: &table.values, blocks, side })
        };
        let sides = [frame.width(), frame.height()];
        Some(Self {
            components: plan.into_iter().zip(&frame.components).map(component).collect::<Option<_>>()?,
            units: [0, 1].map(|axis| sides[axis].div_ceil(8 * most[axis])),
            unit,
            size: sides.map(|side| side.div_ceil(by)),
            restart: usize::from(metadata.restart_interval),
        })
    }

    fn stride(&self) -> usize {
        self.units[0] * self.unit[0]
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
struct Planes<'a> {
    simd: V3,
    file: &'a Reduced<'a>,
    codes: &'a [u8],
}

impl NullaryFnOnce for Planes<'_> {
    type Output = Result<Vec<u8>, JpegError>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { simd, file, codes } = self;
        let ([width, height], stride) = (file.size, file.stride());
        let mut planes = [0; 3].map(|_: u8| vec![0; stride * file.unit[1]]);
        let mut pixels = vec![0; width * height * 3];
        let routines = detect();
        let mut blocks = Blocks {
            simd,
            routines: &routines,
            reader: BitReader::new(codes),
            decoder: McuDecoder::new(3),
            coefficients: [0; 64],
        };
        for (row, target) in pixels.chunks_mut(width * 3 * file.unit[1]).enumerate() {
            for column in 0..file.units[0] {
                let number = row * file.units[0] + column;
                if file.restart > 0 && number > 0 && number.is_multiple_of(file.restart) {
                    blocks.reader.reset();
                    blocks.decoder.reset();
                }
                for (component, plane) in file.components.iter().zip(&mut planes) {
                    blocks.read(component, &mut plane[column * file.unit[0]..], stride)?;
                }
                if blocks.reader.insufficient_data() {
                    return Err(JpegError::UnexpectedEof);
                }
            }
            let [y, cb, cr] = planes.each_ref().map(|plane| plane.chunks_exact(stride));
            for (((y, cb), cr), rgb) in y.zip(cb).zip(cr).zip(target.chunks_exact_mut(width * 3)) {
                routines.ycbcr_to_rgb_row(y, cb, cr, rgb, width);
            }
        }
        Ok(pixels)
    }
}

/// Reads blocks of codes.
struct Blocks<'a> {
    simd: V3,
    routines: &'a SimdRoutines,
    reader: BitReader<'a>,
    decoder: McuDecoder,
    coefficients: [i16; 64],
}

impl Blocks<'_> {
    /// The blocks of a component in a unit, to a plane from the unit's first value on.
    #[inline(always)]
    fn read(&mut self, component: &Component<'_>, plane: &mut [u8], stride: usize) -> Result<(), JpegError> {
        let Component { codes, quantization, blocks, side } = component;
        let McuComponentPlan { comp_idx, dc_table, ac_table, .. } = codes;
        for block in 0..blocks[0] * blocks[1] {
            let read = self.decoder.decode_block(
                &mut self.reader,
                *comp_idx,
                dc_table,
                ac_table,
                &mut self.coefficients,
            );
            if let Err(error) = read {
                // Like the library: a segment that ends early is the cause, not the code.
                return Err(if self.reader.insufficient_data() { JpegError::UnexpectedEof } else { error });
            }
            let (across, down) = (block % blocks[0], block / blocks[0]);
            let place = &mut plane[down * side * stride + across * side..];
            let coefficients = &self.coefficients;
            match side {
                8 => put(place, stride, &transform_8x8(self.routines, coefficients, quantization)),
                4 => put(place, stride, &transform_4x4(self.simd, coefficients, quantization)),
                2 => {
                    let mut values = [0; 4];
                    idct_2x2(coefficients, quantization, &mut values);
                    put(place, stride, &pulp::cast::<_, [[u8; 2]; 2]>(values));
                }
                _ => place[0] = idct_1x1(coefficients, quantization),
            }
        }
        Ok(())
    }
}

fn transform_8x8(
    routines: &SimdRoutines,
    coefficients: &[i16; 64],
    quantization: &[u16; 64],
) -> [[u8; 8]; 8] {
    let mut values = [0; 64];
    (routines.idct_islow)(coefficients, quantization, &mut values);
    pulp::cast(values)
}

/// Writes a block into a plane.
#[inline(always)]
fn put<const SIDE: usize>(place: &mut [u8], stride: usize, rows: &[[u8; SIDE]; SIDE]) {
    for (number, row) in rows.iter().enumerate() {
        place[number * stride..][..SIDE].copy_from_slice(row);
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn pixels_and_refusals_are_those_of_the_library(
            size in [1_usize..70, 1_usize..70],
            sampling in prop::sample::select(vec![
                Subsampling::S444, Subsampling::S420, Subsampling::S422, Subsampling::S440, Subsampling::S411,
            ]),
            (quality, restart, seed) in (1_u8..100, 0_u16..9, any::<u64>()),
            changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 0..3),
        ) {
            let bytes = file(size, (sampling, quality, restart), seed, &changes);
            for by in [2, 4, 8] {
                let Some(ours) = decode(&bytes, size, by) else { continue };
                prop_assert_eq!(ours.ok(), by_library(&bytes, by), "{:?} by {}", sampling, by);
            }
        }
    }

    /// The structures that this module is for are not left to the library.
    #[test]
    fn the_commonest_structures_are_decoded_here() {
        for sampling in [Subsampling::S444, Subsampling::S420] {
            let bytes = file([37, 21], (sampling, 80, 0), 1, &[]);
            for by in [2, 4, 8] {
                let pixels = decode(&bytes, [37, 21], by).map(|pixels| pixels.unwrap());
                assert!(pixels.is_some() || V3::try_new().is_none(), "{sampling:?} by {by}");
            }
        }
    }
}
