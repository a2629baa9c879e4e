//! Makes a JPEG file of three of the four components of another one, without decoding them.
//!
//! `libjpeg-turbo-rs` 0.9 upsamples four components otherwise than libjpeg, and three as libjpeg
//! does. So a subsampled CMYK file is read as two files of three components. They have the same
//! units, restarts and scans as the first, of which codes are left out: reduced sizes and the
//! smoothing of unfinished progressive images stay what libjpeg makes.

use std::borrow::Cow;

use super::bits::{CodeTable, damaged};
use super::scan::{Coding, Part, copy_units};
use crate::error::ImageError;
use crate::header::jpeg::next_marker;

/// What the components of the new file mean: the transform of its Adobe segment.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// Red, green and blue, or whatever else needs no conversion.
    Rgb = 0,
    YCbCr = 1,
}

/// The file of the components `kept`, in ascending order. The first must be the finest, and no scan
/// of several components may have exactly one of them: its blocks would be in another order then
/// ([`crate::header::Header`] knows).
pub(super) fn keep_components(
    bytes: &[u8],
    kept: [usize; 3],
    meaning: Meaning,
) -> Result<Vec<u8>, ImageError> {
    let mut file = Extraction { bytes, kept, ..Extraction::default() };
    file.out.extend(b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00");
    file.out.push(meaning as u8);
    let mut at = 2;
    while let Some(next) = next_marker(bytes, at) {
        let marker = bytes[next - 1];
        if marker == 0xd9 {
            break;
        }
        let length = number(bytes, next);
        let segment = bytes.get(next + 2..next + length).ok_or_else(|| damaged("a segment is cut off"))?;
        at = next + length;
        match marker {
            0xc4 => file.codes(segment)?,
            0xc0..=0xc2 => file.frame(marker, segment)?,
            0xda => at = file.scan(segment, at)?,
            0xdb => file.segment(marker, segment),
            0xdd => {
                file.restart = number(segment, 0);
                file.segment(marker, segment);
            }
            // Colours are said above; the rest is not about pixels.
            _ => {}
        }
    }
    file.out.extend(b"\xff\xd9");
    Ok(file.out)
}

/// The 16 bits at `at`; 0 after the end.
fn number(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).map_or(0, |two| usize::from(two[0]) << 8 | usize::from(two[1]))
}

#[derive(Default)]
struct Extraction<'a> {
    bytes: &'a [u8],
    kept: [usize; 3],
    out: Vec<u8>,
    /// By class (DC, AC) and number.
    tables: [[Option<CodeTable>; 4]; 2],
    progressive: bool,
    /// Identifier of each component, and the blocks that a unit has of it.
    components: Vec<(u8, u32)>,
    /// Units of a scan of several components.
    units: usize,
    /// Units between two restarts; 0 for all.
    restart: usize,
}

impl Extraction<'_> {
    fn segment(&mut self, marker: u8, segment: &[u8]) {
        self.out.extend([0xff, marker]);
        self.out.extend((segment.len() as u16 + 2).to_be_bytes());
        self.out.extend(segment);
    }

    fn codes(&mut self, segment: &[u8]) -> Result<(), ImageError> {
        let mut rest = segment;
        while let Some((place, table)) = rest.split_first() {
            let (table, length) = CodeTable::read(table)?;
            let slot = self.tables.get_mut(usize::from(place >> 4));
            let slot = slot.and_then(|class| class.get_mut(usize::from(place & 15)));
            *slot.ok_or_else(|| damaged("a table of codes of an unknown kind"))? = Some(table);
            rest = &rest[1 + length..];
        }
        self.segment(0xc4, segment);
        Ok(())
    }

    fn frame(&mut self, marker: u8, segment: &[u8]) -> Result<(), ImageError> {
        let (Some(head), Some(table)) = (segment.get(..6), segment.get(6..18)) else {
            return Err(damaged("the frame header is cut off"));
        };
        let entries: Vec<&[u8]> = table.chunks_exact(3).collect();
        let most =
            |shift: u8| entries.iter().map(|entry| usize::from(entry[1] >> shift & 15)).max().unwrap_or(1);
        let across = number(head, 3).div_ceil(8 * most(4).max(1));
        self.units = across * number(head, 1).div_ceil(8 * most(0).max(1));
        self.components =
            entries.iter().map(|e| (e[0], u32::from(e[1] >> 4) * u32::from(e[1] & 15))).collect();
        self.progressive = marker == 0xc2;
        let kept = self.kept.map(|index| entries[index]).concat();
        self.segment(marker, &[&head[..5], &[3], &kept].concat());
        Ok(())
    }

    /// Copies what is kept of a scan whose data begin at `at`, and returns where they end.
    fn scan(&mut self, segment: &[u8], at: usize) -> Result<usize, ImageError> {
        let bytes = self.bytes;
        let end = next_marker(bytes, at).map_or(bytes.len(), |next| next - 2);
        let data = bytes.get(at..end).unwrap_or_default();
        let cut = || damaged("a scan header is cut off");
        let (count, rest) = segment.split_first().ok_or_else(cut)?;
        let entries = rest.get(..2 * usize::from(*count)).ok_or_else(cut)?;
        let parameters = rest.get(entries.len()..entries.len() + 3).ok_or_else(cut)?;
        let index = |entry: &[u8]| {
            let index = self.components.iter().position(|(identifier, _)| *identifier == entry[0]);
            index.ok_or_else(|| damaged("a scan of an unknown component"))
        };
        let indices = entries.chunks_exact(2).map(index).collect::<Result<Vec<_>, _>>()?;
        let is_kept = |index: &usize| self.kept.contains(index);
        let chosen = entries.chunks_exact(2).zip(&indices).filter(|(_, index)| is_kept(index));
        let chosen = chosen.map(|(entry, _)| entry).collect::<Vec<_>>().concat();
        if chosen.is_empty() {
            return Ok(end);
        }
        let copied = if let [_] = indices[..] {
            Cow::Borrowed(data)
        } else {
            let coding = Coding::new(self.progressive, parameters)?;
            let part = |(entry, index): (&[u8], &usize)| {
                let blocks = self.components[*index].1;
                let table = |class: usize, number: u8| self.tables[class].get(usize::from(number))?.as_ref();
                Part::new(coding, is_kept(index), blocks, [table(0, entry[1] >> 4), table(1, entry[1] & 15)])
            };
            let parts = entries.chunks_exact(2).zip(&indices).map(part).collect::<Result<Vec<_>, _>>()?;
            Cow::Owned(copy_units(data, &parts, self.units, self.restart)?)
        };
        let count = (chosen.len() / 2) as u8;
        self.segment(0xda, &[&[count], &chosen[..], parameters].concat());
        self.out.extend(copied.as_ref());
        Ok(end)
    }
}
