//! Copies some components of a scan of several (ITU-T T.81, annexes F and G).

use super::bits::{BitCopy, CodeTable, Lookup, damaged};
use crate::error::ImageError;

/// How a scan codes the blocks of several components.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Sequential,
    /// First coefficients, perhaps without their last bits.
    First,
    /// A further bit of first coefficients.
    Refinement,
}

impl Coding {
    /// By the end of the scan header: first and last coefficient, high and low bit.
    pub(super) fn new(progressive: bool, parameters: &[u8]) -> Result<Self, ImageError> {
        match parameters {
            _ if !progressive => Ok(Self::Sequential),
            [0, 0, bits] if bits >> 4 == 0 => Ok(Self::First),
            [0, 0, _] => Ok(Self::Refinement),
            _ => Err(damaged("a scan of several components beyond their first coefficients")),
        }
    }
}

/// A component of a scan.
pub(super) struct Part {
    keep: bool,
    /// Blocks of each unit.
    blocks: u32,
    /// Codes of first and of other coefficients.
    dc: Option<Lookup>,
    ac: Option<Lookup>,
}

impl Part {
    pub(super) fn new(
        coding: Coding,
        keep: bool,
        blocks: u32,
        [dc, ac]: [Option<&CodeTable>; 2],
    ) -> Result<Self, ImageError> {
        let lookup = |table: Option<&CodeTable>, needed: bool| match table {
            _ if !needed => Ok(None),
            Some(table) => table.lookup().map(Some),
            None => Err(damaged("a scan without its table of codes")),
        };
        let dc = lookup(dc, coding != Coding::Refinement)?;
        Ok(Self { keep, blocks, dc, ac: lookup(ac, coding == Coding::Sequential)? })
    }

    fn copy_block(&self, copy: &mut BitCopy<'_>) -> Result<(), ImageError> {
        let Some(dc) = &self.dc else { return copy.bits(1, self.keep) };
        let size = copy.code(dc, self.keep)?;
        if size > 15 {
            return Err(damaged("a coefficient of more than 15 bits"));
        }
        copy.bits(u32::from(size), self.keep)?;
        let Some(ac) = &self.ac else { return Ok(()) };
        let mut coefficient = 1;
        while coefficient < 64 {
            let symbol = copy.code(ac, self.keep)?;
            let (run, size) = (symbol >> 4, symbol & 15);
            if size == 0 && run < 15 {
                break;
            }
            copy.bits(u32::from(size), self.keep)?;
            coefficient += run + 1;
        }
        Ok(())
    }
}

/// The entropy-coded data of the kept parts. A restart interval of 0 units is one of all.
pub(super) fn copy_units(
    data: &[u8],
    parts: &[Part],
    mut units: usize,
    interval: usize,
) -> Result<Vec<u8>, ImageError> {
    let (mut out, mut rest) = (Vec::with_capacity(data.len()), data);
    let interval = if interval == 0 { units } else { interval };
    loop {
        let (bytes, restart) = next_interval(&mut rest)?;
        let mut copy = BitCopy::new(&bytes);
        for part in std::iter::repeat_n(parts, units.min(interval)).flatten() {
            for _ in 0..part.blocks {
                part.copy_block(&mut copy)?;
            }
        }
        for byte in copy.finish() {
            out.push(byte);
            if byte == 0xff {
                out.push(0);
            }
        }
        units = units.saturating_sub(interval);
        match restart {
            _ if units == 0 => return Ok(out),
            Some(marker) => out.extend([0xff, marker]),
            None => return Err(damaged("a scan ends before its last unit")),
        }
    }
}

/// The data up to the next restart marker, without stuffing, and that marker.
fn next_interval(rest: &mut &[u8]) -> Result<(Vec<u8>, Option<u8>), ImageError> {
    let mut bytes = Vec::new();
    loop {
        let run = memchr::memchr(0xff, rest).unwrap_or(rest.len());
        bytes.extend_from_slice(&rest[..run]);
        *rest = &rest[run..];
        match rest {
            [] | [0xff] => return Ok((bytes, None)),
            [_, 0, after @ ..] => {
                bytes.push(0xff);
                *rest = after;
            }
            // Fill bytes before a marker.
            [_, 0xff, ..] => *rest = &rest[1..],
            [_, marker @ 0xd0..=0xd7, after @ ..] => {
                let marker = *marker;
                *rest = after;
                return Ok((bytes, Some(marker)));
            }
            _ => return Err(damaged("a marker inside of a scan")),
        }
    }
}
