//! The optimiser's moments divided among ranks (ZeRO, stage 1: Rajbhandari et al. 2020, section 5).
//!
//! The numbers of all variables, in the order of their names, are one row, which is cut into equal
//! parts, one for each rank. A rank has the moments of its part alone, updates the weights there,
//! and gives them to the others. Every rank has all gradients, so that their norm, and with it each
//! weight, has the bits that it would have if nothing were divided.

use crate::error::Result;
use crate::moments::Moments;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::ops::Range;
use twinlens_model::weights::Variables;
use twinlens_ranks::Collective;

/// The part of the numbers that a rank updates.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    rank: usize,
    ranks: usize,
    /// Numbers of each rank. The last one may have fewer.
    length: usize,
    /// The place of each variable in the row of all numbers.
    places: BTreeMap<String, Range<usize>>,
}

/// Numbers that are gathered at a time for a checkpoint, of each rank.
const CHUNK: usize = 1 << 20;

impl Shard {
    /// The part of `rank`. `moments` have their full lengths.
    pub(crate) fn new(moments: &BTreeMap<String, Moments>, (rank, ranks): (usize, usize)) -> Self {
        let mut end = 0;
        let place = |(name, moments): (&String, &Moments)| {
            let start = end;
            end += moments.m.len();
            (name.clone(), start..end)
        };
        let places: BTreeMap<_, _> = moments.iter().map(place).collect();
        Self { rank, ranks, length: end.div_ceil(ranks), places }
    }

    /// This rank's numbers in the row.
    fn part(&self) -> Range<usize> {
        self.rank * self.length..(self.rank + 1) * self.length
    }

    /// This rank's numbers of a variable, counted from the variable's first; perhaps none.
    pub(crate) fn own(&self, name: &str) -> Range<usize> {
        let Some(place) = self.places.get(name) else { return 0..0 };
        let part = self.part();
        let start = part.start.clamp(place.start, place.end);
        let end = part.end.clamp(place.start, place.end);
        start - place.start..end - place.start
    }

    /// Writes this rank's numbers of each variable into a vector, where they are in its part.
    fn collect(&self, own: impl Fn(&str, Range<usize>) -> candle_core::Result<Vec<f32>>) -> Result<Vec<f32>> {
        let mut row = vec![0.0; self.length];
        for (name, place) in &self.places {
            let range = self.own(name);
            if range.is_empty() {
                continue;
            }
            let at = place.start + range.start - self.part().start;
            row[at..][..range.len()].copy_from_slice(&own(name, range)?);
        }
        Ok(row)
    }

    /// Gives this rank's weights to the others, and takes theirs.
    ///
    /// # Errors
    /// If another rank has exited.
    pub(crate) fn share_weights(&self, variables: &Variables, ranks: &dyn Collective) -> Result<()> {
        let own = self.collect(|name, range| {
            variables[name].flatten_all()?.narrow(0, range.start, range.len())?.to_vec1()
        })?;
        let all = ranks.all_gather(&own)?;
        for (name, variable) in variables {
            let values = &all[self.places[name].clone()];
            variable.set(&Tensor::from_slice(values, variable.shape(), variable.device())?)?;
        }
        Ok(())
    }

    /// The moments of all variables on rank 0, and none on the others, which need no memory for
    /// them.
    ///
    /// # Errors
    /// If another rank has exited.
    pub(crate) fn whole(
        &self,
        moments: &BTreeMap<String, Moments>,
        ranks: &dyn Collective,
    ) -> Result<BTreeMap<String, Moments>> {
        let [m, v] = [(|of| &of.m) as fn(&Moments) -> &Vec<f32>, |of| &of.v].map(|moment| {
            let own = self.collect(|name, _| Ok(moment(&moments[name]).clone()))?;
            self.gather(&own, ranks)
        });
        let (m, v) = (m?, v?);
        if self.rank > 0 {
            return Ok(BTreeMap::new());
        }
        let whole = |(name, place): (&String, &Range<usize>)| {
            let [m, v] = [&m, &v].map(|row| row[place.clone()].to_vec());
            (name.clone(), Moments { m, v })
        };
        Ok(self.places.iter().map(whole).collect())
    }

    /// The whole row on rank 0.
    fn gather(&self, own: &[f32], ranks: &dyn Collective) -> Result<Vec<f32>> {
        let mut row = vec![0.0; if self.rank == 0 { self.length * self.ranks } else { 0 }];
        for (number, chunk) in own.chunks(CHUNK).enumerate() {
            let all = ranks.all_gather(chunk)?;
            if self.rank == 0 {
                for (rank, values) in all.chunks_exact(chunk.len()).enumerate() {
                    row[rank * self.length + number * CHUNK..][..values.len()].copy_from_slice(values);
                }
            }
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every number of every variable is that of one rank.
        #[test]
        fn the_parts_are_the_whole(lengths in prop::collection::vec(0usize..20, 1..8), ranks in 1usize..6) {
            let named = lengths.iter().enumerate();
            let moments: BTreeMap<String, Moments> = named
                .map(|(number, length)| (format!("v{number}"), Moments { m: vec![0.0; *length], v: vec![0.0; *length] }))
                .collect();
            let shards: Vec<Shard> = (0..ranks).map(|rank| Shard::new(&moments, (rank, ranks))).collect();
            for (name, whole) in &moments {
                let owned: Vec<usize> = shards.iter().flat_map(|shard| shard.own(name)).collect();
                prop_assert_eq!(owned, (0..whole.m.len()).collect::<Vec<_>>());
            }
            let total: usize = lengths.iter().sum();
            for shard in shards {
                let own: usize = moments.keys().map(|name| shard.own(name).len()).sum();
                prop_assert!(own <= total.div_ceil(ranks));
            }
        }
    }
}
