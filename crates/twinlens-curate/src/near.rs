//! Hashes within a Hamming distance of others.
//!
//! The 64 bits are cut into (distance + 1) bands. Two hashes within the distance agree in at least
//! one band, so only hashes that share a band are compared.

use datafusion::common::HashMap;

/// The greatest distance. Beyond it, bands are so short that nearly all hashes share one.
pub(crate) const MAX_DISTANCE: u32 = 12;

/// An index for nearest-neighbour search among hashes.
#[derive(Debug)]
pub(crate) struct NearIndex {
    distance: u32,
    /// Each band, and the hashes by their value in it.
    bands: Vec<(Band, HashMap<u64, Vec<u64>>)>,
    hashes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Band {
    shift: u32,
    mask: u64,
}

impl Band {
    fn value(self, hash: u64) -> u64 {
        hash >> self.shift & self.mask
    }
}

impl NearIndex {
    /// An empty index for a distance in bits, at most [`MAX_DISTANCE`].
    #[must_use]
    pub(crate) fn new(distance: u32) -> Self {
        let count = distance.min(MAX_DISTANCE) + 1;
        let band = |index: u32| {
            let (start, end) = (64 * index / count, 64 * (index + 1) / count);
            Band { shift: start, mask: u64::MAX >> (64 - (end - start)) }
        };
        let bands = (0..count).map(|index| (band(index), HashMap::new())).collect();
        Self { distance: count - 1, bands, hashes: 0 }
    }

    /// Adds a hash. Adding one again has no effect on the results.
    pub(crate) fn insert(&mut self, hash: u64) {
        self.hashes += 1;
        for (band, hashes) in &mut self.bands {
            hashes.entry(band.value(hash)).or_default().push(hash);
        }
    }

    /// The nearest hash within the distance, and its distance; of several, the smallest hash.
    #[must_use]
    pub(crate) fn nearest(&self, hash: u64) -> Option<(u64, u32)> {
        let candidates =
            self.bands.iter().filter_map(|(band, hashes)| hashes.get(&band.value(hash))).flatten();
        let measured = candidates.map(|other| ((other ^ hash).count_ones(), *other));
        let (distance, nearest) = measured.min()?;
        (distance <= self.distance).then_some((nearest, distance))
    }

    /// Approximate heap memory in bytes; vectors grow by doubling.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.hashes * self.bands.len() * 16 + self.bands.iter().map(|(_, map)| map.len() * 48).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reference implementation: compare with all.
    fn naive(hashes: &[u64], hash: u64, distance: u32) -> Option<(u64, u32)> {
        let all = hashes.iter().map(|other| ((other ^ hash).count_ones(), *other)).min();
        all.filter(|(found, _)| *found <= distance).map(|(found, other)| (other, found))
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_all(
            hashes in prop::collection::vec(any::<u64>(), 1..20),
            flips in prop::collection::vec(0u32..64, 0..16),
            distance in 0..=MAX_DISTANCE,
            near: prop::sample::Index,
        ) {
            let mut index = NearIndex::new(distance);
            hashes.iter().for_each(|hash| index.insert(*hash));
            let hash = flips.iter().fold(hashes[near.index(hashes.len())], |hash, bit| hash ^ 1 << bit);
            prop_assert_eq!(index.nearest(hash), naive(&hashes, hash, distance));
        }
    }

    #[test]
    fn an_empty_index_has_no_nearest_hash() {
        assert_eq!(NearIndex::new(4).nearest(7), None);
        assert_eq!(NearIndex::new(0).bytes(), 0);
    }
}
