//! The cache file of a matcher: a header and the trie's arrays, little-endian.
//!
//! A file is used only if its magic, version and key (the SHA-256 of the query list and the
//! options) match, its checksum is right, and the arrays pass [`Trie::check`]. Any other file is
//! ignored.

use twox_hash::XxHash64;

use super::trie::Trie;

/// The format and its version. Raise the digit when the trie's arrays or hash functions change.
const MAGIC: [u8; 16] = *b"twinlens match 1";
const KEY: usize = 32;
const LENGTHS: usize = 6;
const HEAD: usize = MAGIC.len() + KEY + 8 * LENGTHS;

pub(super) fn encode(trie: &Trie, key: &[u8; KEY]) -> Vec<u8> {
    let words = [&trie.starts, &trie.slots, &trie.nodes, &trie.queries, &trie.edges];
    let total = words.iter().map(|array| 4 * array.len()).sum::<usize>() + trie.letters.len();
    let mut bytes = Vec::with_capacity(HEAD + total + 8);
    bytes.extend(MAGIC);
    bytes.extend(key);
    bytes.extend((trie.letters.len() as u64).to_le_bytes());
    words.iter().for_each(|array| bytes.extend((array.len() as u64).to_le_bytes()));
    for array in words {
        array.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    }
    bytes.extend(&trie.letters);
    let checksum = XxHash64::oneshot(0, &bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

/// The trie in `bytes`, if they are a complete, undamaged file with this key.
pub(super) fn decode(bytes: &[u8], key: &[u8; KEY]) -> Option<Trie> {
    let (content, checksum) = bytes.split_last_chunk::<8>()?;
    let (head, mut rest) = content.split_at_checked(HEAD)?;
    let (names, lengths) = head.split_at(MAGIC.len() + KEY);
    if names != [&MAGIC[..], key].concat() || XxHash64::oneshot(0, content) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let (lengths, _) = lengths.as_chunks::<8>();
    let mut lengths = lengths.iter().map(|length| usize::try_from(u64::from_le_bytes(*length)).ok());
    let letters = lengths.next()??;
    let mut words = || {
        let (array, left) = rest.split_at_checked(lengths.next()??.checked_mul(4)?)?;
        rest = left;
        Some(array.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>())
    };
    let mut trie = Trie {
        starts: words()?,
        slots: words()?,
        nodes: words()?,
        queries: words()?,
        edges: words()?,
        letters: Vec::new(),
    };
    trie.letters = rest.to_vec();
    (trie.letters.len() == letters && trie.check()).then_some(trie)
}
