//! What every set of ranks can do.

use crate::error::Result;
use std::fmt::Debug;

/// The operations of one rank. Every rank calls the same methods in the same order.
pub trait Collective: Send + Sync + Debug {
    /// This rank's number, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Concatenates the values of all ranks (equally many of each), rank 0 first.
    ///
    /// # Errors
    /// If another rank has exited.
    fn all_gather(&self, values: &[f32]) -> Result<Vec<f32>>;

    /// Passes values to the next rank, the last one's to rank 0, and returns those of the rank
    /// before this one (equally many).
    ///
    /// # Errors
    /// If another rank has exited.
    fn shift(&self, values: &[f32]) -> Result<Vec<f32>>;

    /// Replaces the values by their sums over all ranks, added in the order of the ranks.
    ///
    /// # Errors
    /// If another rank has exited.
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()>;

    /// Replaces the values by those of rank 0.
    ///
    /// # Errors
    /// If another rank has exited.
    fn broadcast(&self, values: &mut [f32]) -> Result<()>;

    /// Waits until every rank has called it.
    ///
    /// # Errors
    /// If another rank has exited.
    fn barrier(&self) -> Result<()> {
        self.any(false).map(drop)
    }

    /// Whether any rank says so.
    ///
    /// # Errors
    /// If another rank has exited.
    fn any(&self, flag: bool) -> Result<bool> {
        let mut sum = [f32::from(u8::from(flag))];
        self.all_reduce_sum(&mut sum)?;
        Ok(sum[0] > 0.0)
    }

    /// The bytes of all ranks, which need not be equally many, rank 0 first.
    ///
    /// # Errors
    /// If another rank has exited.
    fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.all_gather(&number(bytes.len()))?;
        let lengths: Vec<usize> = lengths.chunks_exact(2).map(from_number).collect();
        let longest = lengths.iter().max().map_or(0, |most| most.div_ceil(4));
        let all = self.all_gather(&packed(bytes, longest))?;
        let ranks = lengths.iter().enumerate();
        Ok(ranks.map(|(rank, length)| unpacked(&all[rank * longest..][..longest], *length)).collect())
    }

    /// Replaces the bytes by those of rank 0.
    ///
    /// # Errors
    /// If another rank has exited.
    fn broadcast_bytes(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let mut length = number(bytes.len());
        self.broadcast(&mut length)?;
        let length = from_number(&length);
        let mut values = packed(bytes, length.div_ceil(4));
        self.broadcast(&mut values)?;
        *bytes = unpacked(&values, length);
        Ok(())
    }

    /// On ranks other than 0: waits, perhaps for hours and without using a core, until rank 0 calls
    /// [`wake`](Self::wake).
    ///
    /// # Errors
    /// If rank 0 has exited.
    fn sleep(&self) -> Result<()> {
        Ok(())
    }

    /// On rank 0: ends the [`sleep`](Self::sleep) of the others.
    ///
    /// # Errors
    /// If another rank has exited.
    fn wake(&self) -> Result<()> {
        Ok(())
    }

    /// Looks whether the other ranks are alive, between two operations.
    ///
    /// # Errors
    /// If another rank has exited.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Tells all other ranks that this one ends with an exit code, for a reason that they cannot
    /// see. No operation succeeds afterwards.
    fn abort(&self, code: u8, message: &str);

    /// Ends the connection to the others, after all have finished.
    fn close(&self) {}
}

/// A number as values that are only copied. Adding to it would not keep its bits.
fn number(number: usize) -> [f32; 2] {
    let number = number as u64;
    [f32::from_bits(number as u32), f32::from_bits((number >> 32) as u32)]
}

fn from_number(values: &[f32]) -> usize {
    (u64::from(values[0].to_bits()) | u64::from(values[1].to_bits()) << 32) as usize
}

/// Bytes as `length` values that are only copied, filled up with zeros.
fn packed(bytes: &[u8], length: usize) -> Vec<f32> {
    let mut values = vec![0.0; length];
    for (value, four) in values.iter_mut().zip(bytes.chunks(4)) {
        let mut word = [0; 4];
        word[..four.len()].copy_from_slice(four);
        *value = f32::from_bits(u32::from_le_bytes(word));
    }
    values
}

fn unpacked(values: &[f32], length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// The only rank.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Collective for Local {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn shift(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn all_reduce_sum(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn abort(&self, _: u8, _: &str) {}
}
