//! Fuzzing on stable Rust: readers of bytes of strangers get mutants of sound files.
//!
//! A test takes a few hundred mutants. With `TWINLENS_FUZZ=SECONDS` each reader is fed for so long,
//! and a mutant with a new outcome (another error, another shape of the result) becomes a seed.
//! With `TWINLENS_FUZZ_DIR=FOLDER`, the input at hand is in the file `NAME.current` there, which
//! survives an abort; those that panic or take too long are kept as `NAME-HASH`. `tests/fuzz/all`
//! does that for all readers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Mutants of a test in the suite.
const IN_THE_SUITE: usize = 300;
/// But not for longer.
const AT_MOST: Duration = Duration::from_millis(1500);
/// An input that takes longer is a fault: a budget for slow, shared machines.
const SLOW: Duration = Duration::from_secs(20);
/// The longest mutant.
const MAX_BYTES: usize = 1 << 20;
/// The most seeds.
const MAX_SEEDS: usize = 2000;

/// Numbers at which sizes overflow.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// A reader and what it is fed.
pub struct Fuzz {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: Vec<&'static [u8]>,
    random: u64,
}

impl Fuzz {
    /// A reader, named for files and messages, and sound files for it.
    ///
    /// # Panics
    /// There are no seeds.
    pub fn new(name: &'static str, seeds: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let seeds: Vec<Vec<u8>> = seeds.into_iter().filter(|seed| seed.len() <= MAX_BYTES).collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        Self { name, seeds, words: Vec::new(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Words that mean something in the format.
    pub fn words(self, words: &[&'static [u8]]) -> Self {
        Self { words: words.to_vec(), ..self }
    }

    /// Feeds the reader, which describes its outcome: outcomes that differ in more than numbers are
    /// new.
    ///
    /// # Panics
    /// The reader panics, or takes too long.
    pub fn run(mut self, read: impl Fn(&[u8]) -> String) {
        let seconds: Option<f64> = std::env::var("TWINLENS_FUZZ").ok().and_then(|text| text.parse().ok());
        let folder = std::env::var_os("TWINLENS_FUZZ_DIR").map(PathBuf::from);
        let limit = seconds.map_or(AT_MOST, Duration::from_secs_f64);
        if let Some(seconds) = seconds {
            // Another order of mutants in each run.
            let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            self.random ^= clock.as_nanos() as u64 ^ seconds.to_bits();
        }
        let (started, mut inputs, mut faults, mut seen) = (Instant::now(), 0, Vec::new(), HashSet::new());
        let sound = self.seeds.len();
        while started.elapsed() < limit && (seconds.is_some() || inputs < IN_THE_SUITE + sound) {
            let input = if inputs < sound { self.seeds[inputs].clone() } else { self.mutant() };
            inputs += 1;
            if let Some(folder) = &folder {
                std::fs::write(folder.join(format!("{}.current", self.name)), &input).unwrap();
            }
            let began = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| read(&input)));
            let fault = match outcome {
                Err(panic) => Some(format!("panics: {}", message(&*panic))),
                Ok(_) if began.elapsed() > SLOW => Some(format!("takes {:?}", began.elapsed())),
                Ok(outcome) => {
                    if seen.insert(shape(&outcome)) && self.seeds.len() < MAX_SEEDS {
                        self.seeds.push(input.clone());
                    }
                    None
                }
            };
            if let Some(fault) = fault
                && seen.insert(shape(&fault))
            {
                let kept = folder.as_ref().map_or_else(std::env::temp_dir, PathBuf::clone);
                let path = kept.join(format!("{}-{:016x}", self.name, hash(&input)));
                std::fs::write(&path, &input).unwrap();
                faults.push(format!("{fault}: {}", path.display()));
            }
        }
        if seconds.is_some() {
            println!("| {} | {inputs} | {} | {} |", self.name, seen.len(), faults.len());
        }
        assert!(faults.is_empty(), "{} of {inputs} inputs\n{}", self.name, faults.join("\n"));
    }

    /// Splitmix64, below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }

    fn mutant(&mut self) -> Vec<u8> {
        let seed = self.below(self.seeds.len());
        let mut bytes = self.seeds[seed].clone();
        for _ in 0..=self.below(5) {
            self.mutate(&mut bytes);
        }
        bytes.truncate(MAX_BYTES);
        bytes
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        // Most meaning is near the ends: headers, footers.
        let length = bytes.len();
        let at = match self.below(4) {
            0 => self.below(length.min(64)),
            1 => length.saturating_sub(1 + self.below(64)),
            _ => self.below(length),
        };
        let most = if self.below(4) == 0 { 512 } else { 16 };
        let some = 1 + self.below(most);
        let range = at.min(length)..(at + some).min(length);
        match self.below(12) {
            0 if length > 0 => bytes[at] ^= 1 << self.below(8),
            1 if length > 0 => bytes[at] = self.below(256) as u8,
            2 => self.number(bytes, at),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(range)),
            5 => {
                let piece = bytes[range].to_vec();
                let most = if self.below(8) == 0 { 200 } else { 3 };
                let times = 1 + self.below(most);
                bytes.splice(at..at, piece.repeat(times));
            }
            6 => {
                let piece: Vec<u8> = (0..some).map(|_| self.below(256) as u8).collect();
                bytes.splice(at..at, piece);
            }
            7 => {
                let (piece, to) = (bytes[range].to_vec(), self.below(length + 1));
                let end = (to + piece.len()).min(length);
                bytes.splice(to..end, piece);
            }
            8 => {
                let other = self.below(self.seeds.len());
                let from = self.below(self.seeds[other].len());
                let rest = self.seeds[other][from..].to_vec();
                bytes.truncate(at);
                bytes.extend(rest);
            }
            9 | 10 if !self.words.is_empty() => {
                let word = self.below(self.words.len());
                let word = self.words[word];
                let end = if self.below(2) == 0 { at } else { (at + word.len()).min(length) };
                bytes.splice(at.min(end)..end, word.iter().copied());
            }
            _ => self.digits(bytes),
        }
    }

    /// Writes a number at which sizes overflow.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let number = match self.below(NUMBERS.len() + 2) {
            0 => bytes.len() as u64,
            1 => self.below(1 << 20) as u64,
            other => NUMBERS[other - 2],
        };
        let width = 1 << self.below(4);
        let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
        let parts = if self.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
        bytes.iter_mut().skip(at).zip(parts).for_each(|(byte, part)| *byte = *part);
    }

    /// Replaces a number that is written in digits.
    fn digits(&mut self, bytes: &mut Vec<u8>) {
        let from = self.below(bytes.len());
        let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|start| from + start) else {
            return;
        };
        let count = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = self.below(NUMBERS.len());
        let number = NUMBERS[number].to_string();
        let number = if self.below(4) == 0 { format!("-{number}") } else { number };
        bytes.splice(start..start + count, number.into_bytes());
    }
}

/// An outcome without its numbers and names in quotes.
fn shape(outcome: &str) -> u64 {
    let mut is_quoted = false;
    let plain: String = outcome
        .chars()
        .filter(|c| {
            is_quoted ^= matches!(c, '`' | '"');
            !is_quoted && !c.is_ascii_digit()
        })
        .take(200)
        .collect();
    hash(plain.as_bytes())
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_trusts_a_length_is_found() {
        let seeds = [b"\x04abcd".to_vec()];
        let trusting = |bytes: &[u8]| match bytes.split_first() {
            Some((length, rest)) => format!("{:?}", &rest[..usize::from(*length)]),
            None => String::new(),
        };
        let outcome = catch_unwind(|| Fuzz::new("trusting", seeds).run(trusting));
        let text = message(&*outcome.unwrap_err());
        assert!(text.contains("trusting of ") && text.contains("out of range"), "{text}");
    }
}
