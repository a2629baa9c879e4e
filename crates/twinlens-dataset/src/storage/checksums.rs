//! Verifies recorded files as they are read.
//!
//! The manifest holds a CRC-32 of each block of a file. Reading a range means reading the blocks
//! that it touches and comparing them, so a query that reads little verifies little. Footers and
//! indexes are verified like data. A file of an older manifest has no checksums, and is read as it
//! is.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::verify::{SeenBlocks, Verify};
use crate::error::DatasetError;

/// Bytes of a block. Smaller blocks make manifests larger, larger ones make small reads slower.
pub(crate) const BLOCK: u64 = 128 << 10;

/// The CRC-32 of each block of a file, in order; the last block may be shorter. Serialised as
/// hexadecimal digits, eight per block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockSums(Vec<u32>);

impl BlockSums {
    /// Whether nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for BlockSums {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|sum| sum.to_be_bytes()).collect();
        serializer.serialize_str(&hex::encode(bytes))
    }
}

impl<'de> Deserialize<'de> for BlockSums {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)?;
        let (sums, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom("eight digits per block are expected"));
        }
        Ok(Self(sums.iter().map(|sum| u32::from_be_bytes(*sum)).collect()))
    }
}

/// Computes [`BlockSums`] of bytes that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct BlockSummer {
    sums: Vec<u32>,
    block: crc32fast::Hasher,
    in_block: u64,
}

impl BlockSummer {
    pub(crate) fn update(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (head, rest) = piece.split_at(piece.len().min((BLOCK - self.in_block) as usize));
            self.block.update(head);
            self.in_block += head.len() as u64;
            if self.in_block == BLOCK {
                self.sums.push(std::mem::take(&mut self.block).finalize());
                self.in_block = 0;
            }
            piece = rest;
        }
    }

    pub(crate) fn finish(mut self) -> BlockSums {
        if self.in_block > 0 {
            self.sums.push(self.block.finalize());
        }
        BlockSums(self.sums)
    }
}

/// What the manifest records of one file.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// For messages.
    path: PathBuf,
    bytes: u64,
    sums: BlockSums,
    when: When,
}

/// When blocks are compared.
#[derive(Debug)]
enum When {
    Always,
    /// These were.
    First(Arc<SeenBlocks>),
    Never,
}

impl Recorded {
    /// `None` if the manifest holds no checksums.
    pub(crate) fn new(path: PathBuf, bytes: u64, sums: &BlockSums, verify: &Verify) -> Option<Self> {
        let when = match verify {
            Verify::Always => When::Always,
            Verify::First(seen) => When::First(seen.of(&path, sums.0.len())),
            Verify::Never => When::Never,
        };
        (!sums.is_empty()).then(|| Self { path, bytes, sums: sums.clone(), when })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The blocks that a range touches, as bytes.
    pub(crate) fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        if let When::Never = self.when {
            return range.clone();
        }
        let start = range.start / BLOCK * BLOCK;
        start..range.end.next_multiple_of(BLOCK).min(self.bytes).max(start)
    }

    /// The blocks that some ranges touch, joined where they meet.
    pub(crate) fn joined_blocks(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut blocks: Vec<_> = ranges.iter().map(|range| self.blocks(range)).collect();
        blocks.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for next in blocks {
            match joined.last_mut() {
                Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
                _ => joined.push(next),
            }
        }
        joined
    }

    /// Compares whole blocks that begin at `start` with their checksums.
    pub(crate) fn verify(&self, start: u64, bytes: &[u8]) -> Result<(), DatasetError> {
        if let When::Never = self.when {
            return Ok(());
        }
        for (index, block) in (start / BLOCK..).zip(bytes.chunks(BLOCK as usize)) {
            if let When::First(seen) = &self.when
                && seen.contains(index)
            {
                continue;
            }
            if self.sums.0.get(index as usize) != Some(&crc32fast::hash(block)) {
                let from = index * BLOCK;
                let why = format!(
                    "bytes {from} to {} are not those that were written (their CRC-32 differs from the manifest's)",
                    from + block.len() as u64
                );
                return Err(DatasetError::DamagedFile { path: self.path.clone(), why });
            }
            if let When::First(seen) = &self.when {
                seen.insert(index);
            }
        }
        Ok(())
    }
}

/// The part `range` of one of `pieces`, each given with the position of its first byte.
pub(crate) fn cut(pieces: &[(u64, Bytes)], range: &Range<u64>) -> Option<Bytes> {
    pieces.iter().find_map(|(start, bytes)| {
        let (from, to) = (range.start.checked_sub(*start)?, range.end.checked_sub(*start)?);
        (from <= to && to <= bytes.len() as u64).then(|| bytes.slice(from as usize..to as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums(bytes: &[u8], piece: usize) -> BlockSums {
        let mut summer = BlockSummer::default();
        bytes.chunks(piece).for_each(|piece| summer.update(piece));
        summer.finish()
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn checksums_do_not_depend_on_pieces_and_survive_json() {
        let bytes = noise(3 * BLOCK as usize + 17);
        let whole = sums(&bytes, usize::MAX);
        assert_eq!(whole.0.len(), 4);
        assert_eq!(sums(&bytes, 1000), whole);
        let json = serde_json::to_string(&whole).unwrap();
        assert_eq!(json.len(), 4 * 8 + 2);
        assert_eq!(serde_json::from_str::<BlockSums>(&json).unwrap(), whole);
        assert!(serde_json::from_str::<BlockSums>("\"0123\"").is_err());
    }

    #[test]
    fn blocks_are_compared_always_first_or_never() {
        let mut bytes = noise(2 * BLOCK as usize);
        let (sums, second) = (sums(&bytes, 4096), BLOCK as usize);
        let first = Verify::First(Arc::default());
        let recorded = |verify: &Verify| Recorded::new("f".into(), 2 * BLOCK, &sums, verify).unwrap();
        let [always, once, never] = [&Verify::Always, &first, &Verify::Never].map(recorded);
        assert!(once.verify(0, &bytes[..second]).is_ok());
        bytes[0] ^= 1;
        bytes[second] ^= 1;
        assert!(always.verify(0, &bytes).is_err() && never.verify(0, &bytes).is_ok());
        // Another reader of the same process knows the first block.
        let again = recorded(&first);
        assert!(again.verify(0, &bytes[..second]).is_ok() && again.verify(BLOCK, &bytes[second..]).is_err());
        assert_eq!((always.blocks(&(5..6)), never.blocks(&(5..6))), (0..BLOCK, 5..6));
    }

    proptest! {
        #[test]
        fn ranges_are_read_by_blocks_and_every_flip_is_found(
            length in 1u64..3 * BLOCK, at in any::<u64>(), bit in 0u32..8, from in any::<u64>(), to in any::<u64>(),
        ) {
            let mut bytes = noise(length as usize);
            let recorded = Recorded::new("f".into(), length, &sums(&bytes, 4096), &Verify::Always).unwrap();
            let (at, a, b) = (at % length, from % (length + 1), to % (length + 1));
            let range = a.min(b)..a.max(b);
            let blocks = recorded.blocks(&range);
            prop_assert!(blocks.start <= range.start && range.end <= blocks.end && blocks.end <= length.max(blocks.start));
            let read = |bytes: &[u8]| bytes[blocks.start as usize..blocks.end as usize].to_vec();
            prop_assert!(recorded.verify(blocks.start, &read(&bytes)).is_ok());
            bytes[at as usize] ^= 1 << bit;
            let found = recorded.verify(blocks.start, &read(&bytes)).is_err();
            prop_assert_eq!(found, blocks.contains(&at));
        }
    }
}
