//! The sequence header of an AV1 stream (AV1 specification, sections 5.3 and 5.5).

use crate::header::walk::Fault;

/// Where a frame has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Grey,
    Yuv420,
    Yuv422,
    Yuv444,
}

impl Layout {
    /// By how many bits the sides of the colour planes are shorter: across and down.
    pub(crate) fn shifts(self) -> (u32, u32) {
        match self {
            Self::Yuv420 => (1, 1),
            Self::Yuv422 => (1, 0),
            Self::Grey | Self::Yuv444 => (0, 0),
        }
    }
}

/// How the values of the planes mean colours (ITU-T H.273).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colours {
    pub(crate) primaries: u32,
    pub(crate) matrix: u32,
    pub(crate) full_range: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Bits per value: 8, 10 or 12.
    pub(crate) depth: u32,
    pub(crate) layout: Layout,
    pub(crate) colours: Colours,
    /// The largest frame, in pixels.
    pub(super) width: u32,
    pub(super) height: u32,
}

/// Reads the header of a stream that has one frame. Others are refused: a decoder that is given
/// many frames of a few bytes each spends the time of an image on each.
pub(super) fn read(stream: &[u8]) -> Result<Sequence, Fault> {
    let (mut sequence, mut frames) = (None, 0);
    for unit in (Units { rest: stream }) {
        let (kind, body) = unit?;
        match kind {
            1 if sequence.is_none() => sequence = Some(header(&mut Bits { bytes: body, at: 0 })?),
            1 => return Err(Fault::Unsupported("AVIF with several AV1 sequences in an item")),
            // A frame header, and a frame with its header.
            3 | 6 => frames += 1,
            _ => {}
        }
    }
    let sequence = sequence.ok_or(Fault::Damaged("an AV1 stream without a sequence header"))?;
    match frames {
        0 => Err(Fault::Damaged("an AV1 stream without a frame")),
        1 => Ok(sequence),
        _ => Err(Fault::Unsupported("AVIF with several AV1 frames in an item")),
    }
}

/// The open bitstream units of a stream: their types and bodies.
struct Units<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Units<'a> {
    type Item = Result<(u8, &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let (head, mut rest) = self.rest.split_first()?;
        let cut = Some(Err(Fault::Damaged("an AV1 unit is longer than its stream")));
        self.rest = &[];
        if head & 4 != 0 {
            rest = rest.get(1..)?;
        }
        let mut length = rest.len() as u64;
        if head & 2 != 0 {
            let Some((value, digits)) = leb128(rest) else { return cut };
            (length, rest) = (value, &rest[digits..]);
        }
        let Some(body) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
            return cut;
        };
        self.rest = &rest[body.len()..];
        Some(Ok((head >> 3 & 15, body)))
    }
}

/// A number in groups of seven bits, and how many bytes it takes.
fn leb128(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(8).enumerate() {
        value |= u64::from(byte & 127) << (7 * index);
        if byte & 128 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<u32, Fault> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8).ok_or(Fault::Damaged("an AV1 sequence header is cut"))?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Ok(value)
    }

    fn flag(&mut self) -> Result<bool, Fault> {
        Ok(self.take(1)? == 1)
    }

    fn skip_variable(&mut self) -> Result<(), Fault> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
        }
        if zeros < 32 { self.take(zeros).map(drop) } else { Ok(()) }
    }
}

fn header(bits: &mut Bits<'_>) -> Result<Sequence, Fault> {
    let profile = bits.take(3)?;
    // A still picture need not be said to be one.
    bits.take(1)?;
    let reduced = bits.flag()?;
    if reduced {
        bits.take(5)?;
    } else {
        operating_point(bits)?;
    }
    let (across, down) = (bits.take(4)? + 1, bits.take(4)? + 1);
    let (width, height) = (bits.take(across)? + 1, bits.take(down)? + 1);
    if !reduced && bits.flag()? {
        bits.take(7)?;
    }
    // 128x128 blocks, filters within a frame.
    bits.take(3)?;
    if !reduced {
        tools(bits)?;
    }
    // Scaling, filters after decoding.
    bits.take(3)?;
    let (depth, layout, colours) = colours(bits, profile)?;
    Ok(Sequence { depth, layout, colours, width, height })
}

/// Timing and the one operating point. Several of them mean several layers.
fn operating_point(bits: &mut Bits<'_>) -> Result<(), Fault> {
    let (mut delay_bits, mut has_model) = (0, false);
    if bits.flag()? {
        bits.take(32)?;
        bits.take(32)?;
        if bits.flag()? {
            bits.skip_variable()?;
        }
        has_model = bits.flag()?;
        if has_model {
            delay_bits = bits.take(5)? + 1;
            bits.take(32)?;
            bits.take(10)?;
        }
    }
    let has_delays = bits.flag()?;
    if bits.take(5)? != 0 {
        return Err(Fault::Unsupported("AVIF of several layers"));
    }
    bits.take(12)?;
    if bits.take(5)? > 7 {
        bits.take(1)?;
    }
    if has_model && bits.flag()? {
        bits.take(delay_bits)?;
        bits.take(delay_bits)?;
        bits.take(1)?;
    }
    if has_delays && bits.flag()? {
        bits.take(4)?;
    }
    Ok(())
}

/// Tools for prediction from other frames.
fn tools(bits: &mut Bits<'_>) -> Result<(), Fault> {
    bits.take(4)?;
    let has_order = bits.flag()?;
    if has_order {
        bits.take(2)?;
    }
    let screen_content = if bits.flag()? { 2 } else { bits.take(1)? };
    if screen_content > 0 && !bits.flag()? {
        bits.take(1)?;
    }
    if has_order {
        bits.take(3)?;
    }
    Ok(())
}

fn colours(bits: &mut Bits<'_>, profile: u32) -> Result<(u32, Layout, Colours), Fault> {
    let deep = bits.flag()?;
    let depth = match (deep, profile) {
        (false, _) => 8,
        (true, 2) if bits.flag()? => 12,
        (true, _) => 10,
    };
    let grey = profile != 1 && bits.flag()?;
    let (primaries, transfer, matrix) =
        if bits.flag()? { (bits.take(8)?, bits.take(8)?, bits.take(8)?) } else { (2, 2, 2) };
    let colours = |full_range| Colours { primaries, matrix, full_range };
    if grey {
        return Ok((depth, Layout::Grey, colours(bits.flag()?)));
    }
    if (primaries, transfer, matrix) == (1, 13, 0) {
        return Ok((depth, Layout::Yuv444, colours(true)));
    }
    let full_range = bits.flag()?;
    let layout = match profile {
        0 => Layout::Yuv420,
        1 => Layout::Yuv444,
        2 if depth < 12 => Layout::Yuv422,
        2 => match (bits.flag()?, depth) {
            (false, _) => Layout::Yuv444,
            (true, _) if bits.flag()? => Layout::Yuv420,
            (true, _) => Layout::Yuv422,
        },
        _ => return Err(Fault::Unsupported("AV1 of a reserved profile")),
    };
    Ok((depth, layout, colours(full_range)))
}
