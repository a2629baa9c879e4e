//! The hashes by which pairs are drawn.

use twox_hash::XxHash64;

/// The seeded hash of a pair: XXH64 over its `uid`.
#[must_use]
pub(crate) fn pair_hash(seed: u64, uid: &str) -> u64 {
    XxHash64::oneshot(seed, uid.as_bytes())
}

/// The hash that orders the pairs of a query: XXH64 over the query's id, seeded by the
/// [`pair_hash`]. Hashing in two steps keeps uid and query id from running into each other.
#[must_use]
pub(crate) fn match_hash(pair: u64, query: i32) -> u64 {
    XxHash64::oneshot(pair, &query.to_le_bytes())
}
