//! The size, the structure and the end marker of a JPEG file (ITU-T T.81, annex B).
//!
//! A structure that the decoder does not support is refused here, by name: a decoder that reads it
//! as another one would succeed with other pixels.

use super::walk::{Fault, Walk, be16};

/// The frame header (`SOFn`).
struct Frame {
    width: u32,
    height: u32,
    progressive: bool,
    /// Identifier and sampling factors, horizontal and vertical.
    components: Vec<(u8, [u32; 2])>,
}

impl Frame {
    fn is_subsampled_cmyk(&self) -> bool {
        let most = largest(&self.components);
        self.components.len() == 4 && self.components.iter().any(|(_, sampling)| *sampling != most)
    }
}

/// What a walk over the marker segments has found so far.
#[derive(Default)]
struct Segments {
    frame: Option<Frame>,
    scans: u32,
    /// Samples that all scans visit together.
    samples: u64,
    code_tables: u32,
    /// Whether the second and the third of four components cannot be decoded beside black.
    apart_from_black: [bool; 2],
}

/// Building a table of codes costs time. A progressive file has some for each scan.
const MAX_CODE_TABLES: u32 = 1000;

pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let mut found = Segments::default();
    let mut complete = false;
    let mut at = 2;
    while let Some(next) = next_marker(bytes, at) {
        let marker = bytes[next - 1];
        at = next;
        if marker == 0xd9 {
            complete = found.scans > 0;
            break;
        }
        let Some(length) = be16(bytes, at) else { break };
        match marker {
            0xc4 => {
                found.code_tables += 1;
                if found.code_tables > MAX_CODE_TABLES {
                    return Err(Fault::Damaged("more than 1,000 segments of codes"));
                }
            }
            0xc8 | 0xcc => {}
            0xc0..=0xcf if found.frame.is_some() => return Err(Fault::Damaged("two frame headers")),
            0xc0..=0xcf => found.frame = Some(frame(bytes, at, marker)?),
            0xda => found.scan(bytes, at)?,
            _ => {}
        }
        at += (length as usize).max(2);
    }
    let Some(frame) = found.frame else {
        return Err(if complete { Fault::Damaged("no frame header") } else { Fault::Truncated });
    };
    let components = frame.components.len() as u64;
    // 16-bit coefficients if they are kept between scans.
    let coefficients = if found.scans > 1 || frame.progressive { 2 } else { 0 };
    let length = if complete { at } else { bytes.len() };
    let beside_black = frame
        .is_subsampled_cmyk()
        .then(|| (1..).zip(found.apart_from_black).find_map(|(index, apart)| (!apart).then_some(index)));
    let walk = match beside_black {
        // The components, the decoded buffer, RGB.
        None => Walk::new(frame.width, frame.height, (coefficients + 1 + 1) * components + 3),
        Some(None) => return Err(Fault::Unsupported("CMYK JPEG with subsampled components in scans of two")),
        // Read as two files of three components, one after the other: of the second its components,
        // as stored and as large as the image, and RGB of both. Beside that, a file, and the bits
        // of it that are copied.
        Some(Some(_)) => Walk {
            other_bytes: 3 * bytes.len() as u64,
            ..Walk::new(frame.width, frame.height, (coefficients + 1 + 1) * 3 + 6)
        },
    };
    let passes = if beside_black.is_some() { 2 } else { 1 };
    let samples = found.samples.saturating_mul(passes);
    Ok(Walk { complete, length, scans: found.scans, samples, beside_black: beside_black.flatten(), ..walk })
}

/// Reads the frame header whose length is at `at`.
fn frame(bytes: &[u8], at: usize, marker: u8) -> Result<Frame, Fault> {
    match marker {
        0xc0..=0xc2 => {}
        0xc9..=0xcb | 0xcd..=0xcf => return Err(Fault::Unsupported("arithmetic-coded JPEG")),
        _ => return Err(Fault::Unsupported("lossless or hierarchical JPEG")),
    }
    let head = bytes.get(at + 2..at + 8).ok_or(Fault::Truncated)?;
    let (precision, count) = (head[0], usize::from(head[5]));
    let size = |place| be16(bytes, place).ok_or(Fault::Truncated);
    let (height, width) = (size(at + 3)?, size(at + 5)?);
    if precision != 8 {
        return Err(Fault::Unsupported("JPEG of more than 8 bits per channel"));
    }
    if !matches!(count, 1 | 3 | 4) {
        return Err(Fault::Unsupported("JPEG with neither 1, 3 nor 4 components"));
    }
    let table = bytes.get(at + 8..at + 8 + 3 * count).ok_or(Fault::Truncated)?;
    let components: Vec<_> = table
        .chunks_exact(3)
        .map(|entry| (entry[0], [u32::from(entry[1] >> 4), u32::from(entry[1] & 15)]))
        .collect();
    check_sampling(&components)?;
    Ok(Frame { width, height, progressive: marker == 0xc2, components })
}

/// Rejects ratios between components that cannot be resampled to pixels.
fn check_sampling(components: &[(u8, [u32; 2])]) -> Result<(), Fault> {
    let factors = components.iter().map(|(_, sampling)| *sampling);
    if factors.clone().flatten().any(|factor| !(1..=4).contains(&factor)) {
        return Err(Fault::Damaged("a sampling factor that is not from 1 to 4"));
    }
    let most = largest(components);
    if factors.clone().any(|[h, v]| !most[0].is_multiple_of(h) || !most[1].is_multiple_of(v)) {
        return Err(Fault::Unsupported("JPEG with a fractional sampling ratio"));
    }
    if components[0].1 != most {
        return Err(Fault::Unsupported("JPEG whose first component is not its finest"));
    }
    Ok(())
}

/// The largest sampling factor in each direction.
fn largest(components: &[(u8, [u32; 2])]) -> [u32; 2] {
    [0, 1].map(|axis| components.iter().map(|(_, sampling)| sampling[axis]).max().unwrap_or(1))
}

impl Segments {
    /// Reads the scan header whose length is at `at`.
    fn scan(&mut self, bytes: &[u8], at: usize) -> Result<(), Fault> {
        let frame = self.frame.as_ref().ok_or(Fault::Damaged("a scan before the frame header"))?;
        let count = usize::from(*bytes.get(at + 2).ok_or(Fault::Truncated)?);
        let table = bytes.get(at + 3..at + 3 + 2 * count).ok_or(Fault::Truncated)?;
        let most = largest(&frame.components);
        let (mut samples, mut blocks, mut indices) = (0, 0, Vec::new());
        for entry in table.chunks_exact(2) {
            let index = frame.components.iter().position(|(id, _)| *id == entry[0]);
            let index = index.ok_or(Fault::Damaged("a scan of an unknown component"))?;
            indices.push(index);
            let (_, [h, v]) = &frame.components[index];
            let side = |length: u32, factor: &u32, most: u32| u64::from((length * factor).div_ceil(most));
            samples += side(frame.width, h, most[0]) * side(frame.height, v, most[1]);
            blocks += h * v;
        }
        if count > 1 && blocks > MAX_UNIT_BLOCKS {
            return Err(Fault::Damaged("a unit of more than 10 blocks"));
        }
        if !frame.progressive && count > 1 && count < frame.components.len() {
            return Err(Fault::Unsupported("JPEG with some, but not all components in one scan"));
        }
        if count > 1 && frame.is_subsampled_cmyk() {
            // Exactly one component of several in a scan cannot be kept: see `jpeg/components.rs`.
            let keeps_one =
                |kept: [usize; 3]| indices.iter().filter(|index| kept.contains(index)).count() == 1;
            for (apart, beside_black) in self.apart_from_black.iter_mut().zip([1, 2]) {
                *apart |= keeps_one([0, 1, 2]) || keeps_one([0, beside_black, 3]);
            }
        }
        self.scans += 1;
        self.samples = self.samples.saturating_add(samples);
        Ok(())
    }
}

/// The blocks of a unit of an interleaved scan (ITU-T T.81, B.2.3).
const MAX_UNIT_BLOCKS: u32 = 10;

/// The offset after the first marker at or after `at`: 0xFF and a byte that is neither stuffing
/// (0x00), fill (0xFF), nor a restart marker. This skips entropy-coded data after `SOS` and garbage
/// between segments.
pub(crate) fn next_marker(bytes: &[u8], at: usize) -> Option<usize> {
    let is_marker = |place: &usize| {
        bytes.get(place + 1).is_some_and(|next| !matches!(next, 0x00 | 0x01 | 0xd0..=0xd8 | 0xff))
    };
    memchr::memchr_iter(0xff, bytes.get(at..)?)
        .map(|offset| at + offset)
        .find(is_marker)
        .map(|place| place + 2)
}
