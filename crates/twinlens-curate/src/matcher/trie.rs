//! A trie over words, flat in memory.
//!
//! A hash table gives every distinct token of the queries a number, which is also the node of
//! queries that begin with it; a second hash table holds the edges to the nodes below. So searching
//! a text takes one look-up per token and one per edge followed, whatever the number of queries.
//!
//! The trie is six arrays without pointers, which the cache file holds as they are. [`Trie::check`]
//! verifies that every index in arrays from a file is in bounds and every probe ends, so that they
//! can be searched without panicking, right or wrong.

use datafusion::common::HashMap;

/// A token that occurs in no query.
const UNKNOWN: u32 = u32::MAX;
/// FNV-1a, 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
/// 2^64 / golden ratio: spreads a hash over its high bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trie {
    /// The bytes of all tokens; those of token `t` are `letters[starts[t]..starts[t + 1]]`.
    pub letters: Vec<u8>,
    pub starts: Vec<u32>,
    /// Open addressing by the hash of a token: its number + 1; 0 where free.
    pub slots: Vec<u32>,
    /// For each node, and one past the last: twice the index of its first query in `queries`, plus
    /// 1 if it has children.
    pub nodes: Vec<u32>,
    /// The ids of the queries that end at a node, sorted, node after node.
    pub queries: Vec<u32>,
    /// Open addressing by parent and token: parent, token, child; child 0 where free (node 0 is
    /// nobody's child).
    pub edges: Vec<u32>,
}

impl Trie {
    /// The trie of `(token form, id)` patterns. `None` if they need 2^31 nodes or letters.
    pub(super) fn build(mut patterns: Vec<(String, i32)>) -> Option<Self> {
        patterns.sort_unstable();
        patterns.dedup();
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let (mut letters, mut starts) = (Vec::new(), vec![0]);
        for token in patterns.iter().flat_map(|(tokens, _)| tokens.split_ascii_whitespace()) {
            if !numbers.contains_key(token) {
                numbers.insert(token, u32::try_from(starts.len() - 1).ok()?);
                letters.extend_from_slice(token.as_bytes());
                starts.push(u32::try_from(letters.len()).ok()?);
            }
        }
        let tokens = u32::try_from(starts.len() - 1).ok()?;

        let mut children: HashMap<(u32, u32), u32> = HashMap::new();
        let (mut ends, mut next) = (Vec::with_capacity(patterns.len()), tokens);
        for (pattern, id) in &patterns {
            let mut node = None;
            for token in pattern.split_ascii_whitespace() {
                let token = numbers[token];
                node = Some(match node {
                    None => token,
                    Some(parent) => *children.entry((parent, token)).or_insert_with(|| {
                        next += 1;
                        next - 1
                    }),
                });
            }
            ends.push((node?, *id as u32));
        }
        if next >= 1 << 31 || ends.len() >= 1 << 31 {
            return None;
        }
        let mut trie = Self { letters, starts, nodes: nodes(next, &mut ends, &children), ..Self::default() };
        trie.queries = ends.into_iter().map(|(_, id)| id).collect();
        trie.slots = trie.token_table();
        trie.edges = edge_table(children);
        Some(trie)
    }

    fn token_table(&self) -> Vec<u32> {
        let tokens = self.starts.len() - 1;
        let mut slots = vec![0; (2 * tokens + 1).next_power_of_two()];
        for token in 0..tokens as u32 {
            let hash = self.letters_of(token).iter().fold(FNV_BASIS, |hash, byte| fnv(hash, *byte));
            let mut at = slot(hash, slots.len());
            while slots[at] != 0 {
                at = (at + 1) & (slots.len() - 1);
            }
            slots[at] = token + 1;
        }
        slots
    }

    fn letters_of(&self, token: u32) -> &[u8] {
        &self.letters[self.starts[token as usize] as usize..self.starts[token as usize + 1] as usize]
    }

    fn token(&self, letters: &[u8], hash: u64) -> u32 {
        let mut at = slot(hash, self.slots.len());
        loop {
            match self.slots[at] {
                0 => return UNKNOWN,
                token if self.letters_of(token - 1) == letters => return token - 1,
                _ => at = (at + 1) & (self.slots.len() - 1),
            }
        }
    }

    fn child(&self, parent: u32, token: u32) -> Option<u32> {
        let count = self.edges.len() / 3;
        let mut at = slot(edge_hash(parent, token), count);
        loop {
            match self.edges[3 * at..3 * at + 3] {
                [_, _, 0] => return None,
                [p, t, child] if p == parent && t == token => return Some(child),
                _ => at = (at + 1) & (count - 1),
            }
        }
    }

    /// Replaces `numbers` by the token numbers of a text in token form.
    fn numbers_into(&self, text: &str, numbers: &mut Vec<u32>) {
        numbers.clear();
        let bytes = text.as_bytes();
        let (mut start, mut hash) = (1, FNV_BASIS);
        for (at, &byte) in bytes.iter().enumerate().skip(1) {
            if byte == b' ' {
                numbers.push(self.token(&bytes[start..at], hash));
                (start, hash) = (at + 1, FNV_BASIS);
            } else {
                hash = fnv(hash, byte);
            }
        }
    }

    /// Appends the ids of all queries in a text in token form, unordered, once per occurrence.
    pub(super) fn find(&self, text: &str, numbers: &mut Vec<u32>, ids: &mut Vec<i32>) {
        self.numbers_into(text, numbers);
        for first in 0..numbers.len() {
            let mut node = numbers[first];
            if node == UNKNOWN {
                continue;
            }
            let mut rest = numbers[first + 1..].iter();
            loop {
                let (from, to) = (self.nodes[node as usize], self.nodes[node as usize + 1]);
                let found = &self.queries[(from >> 1) as usize..(to >> 1) as usize];
                ids.extend(found.iter().map(|id| *id as i32));
                let next = if from & 1 == 1 { rest.next() } else { None };
                match next.filter(|token| **token != UNKNOWN).and_then(|token| self.child(node, *token)) {
                    Some(child) => node = child,
                    None => break,
                }
            }
        }
    }

    /// Whether untrusted arrays can be searched safely; see the module docs.
    pub(super) fn check(&self) -> bool {
        let ascends = |values: &[u32], shift: u32, end: usize| {
            values.is_sorted_by_key(|value| value >> shift)
                && values.last().is_some_and(|last| (last >> shift) as usize == end)
        };
        let is_table = |slots: usize| slots.is_power_of_two();
        let tokens = self.starts.len().wrapping_sub(1);
        let nodes = self.nodes.len().wrapping_sub(1);
        let (edges, odd) = self.edges.as_chunks::<3>();
        self.starts.first() == Some(&0)
            && ascends(&self.starts, 0, self.letters.len())
            && is_table(self.slots.len())
            && self.slots.iter().all(|slot| *slot as usize <= tokens)
            && self.slots.contains(&0)
            && ascends(&self.nodes, 1, self.queries.len())
            && nodes >= tokens
            && odd.is_empty()
            && is_table(edges.len())
            && edges.iter().all(|[_, _, child]| (*child as usize) < nodes.max(1))
            && edges.iter().any(|[_, _, child]| *child == 0)
    }

    /// Heap memory, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let words = [&self.starts, &self.slots, &self.nodes, &self.queries, &self.edges];
        self.letters.capacity() + words.iter().map(|array| 4 * array.capacity()).sum::<usize>()
    }
}

fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
}

/// The first slot to probe in a table whose size is a power of two.
fn slot(hash: u64, size: usize) -> usize {
    ((hash ^ (hash >> 32)).wrapping_mul(SPREAD) >> 32) as usize & (size - 1)
}

fn edge_hash(parent: u32, token: u32) -> u64 {
    (u64::from(parent) << 32 | u64::from(token)).wrapping_mul(SPREAD)
}

/// The `nodes` array. Sorts `ends`, pairs of (node, id).
fn nodes(count: u32, ends: &mut [(u32, u32)], children: &HashMap<(u32, u32), u32>) -> Vec<u32> {
    ends.sort_unstable_by_key(|(node, id)| (*node, *id as i32));
    let mut nodes = vec![0u32; count as usize + 1];
    for (node, _) in ends.iter() {
        nodes[*node as usize + 1] += 2;
    }
    for node in 1..nodes.len() {
        nodes[node] += nodes[node - 1];
    }
    for (parent, _) in children.keys() {
        nodes[*parent as usize] |= 1;
    }
    nodes
}

fn edge_table(children: HashMap<(u32, u32), u32>) -> Vec<u32> {
    let count = (2 * children.len() + 1).next_power_of_two();
    let mut edges = vec![0; 3 * count];
    // Sorted, so that the same queries give the same bytes.
    let mut all: Vec<_> = children.into_iter().collect();
    all.sort_unstable_by_key(|(_, child)| *child);
    for ((parent, token), child) in all {
        let mut at = slot(edge_hash(parent, token), count);
        while edges[3 * at + 2] != 0 {
            at = (at + 1) & (count - 1);
        }
        edges[3 * at..3 * at + 3].copy_from_slice(&[parent, token, child]);
    }
    edges
}
