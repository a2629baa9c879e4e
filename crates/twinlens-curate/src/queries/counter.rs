//! Exact counts of more texts than fit in memory.
//!
//! Texts are counted in a table. When it exceeds its memory limit, it is written to a temporary
//! file, sorted, and cleared. At the end the files are merged. The limit does not change the
//! result.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;

use datafusion::common::HashMap;

/// Files per merge: fewer than a process may open.
const FAN_IN: usize = 64;
/// Bytes of an entry beside its text: slot, string, allocator overhead.
const ENTRY: usize = 72;

/// Counts texts, spilling to disk.
#[derive(Debug)]
pub struct Counter {
    counts: HashMap<String, u64>,
    bytes: usize,
    memory: usize,
    folder: PathBuf,
    runs: Vec<File>,
}

impl Counter {
    /// Counts in about `memory` bytes; the rest goes to unnamed files in `folder`, which disappear
    /// with the counter, even if the process is killed.
    #[must_use]
    pub fn new(memory: usize, folder: PathBuf) -> Self {
        Self { counts: HashMap::new(), bytes: 0, memory, folder, runs: Vec::new() }
    }

    /// Adds to the count of a text.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn add(&mut self, text: &str, count: u64) -> io::Result<()> {
        if let Some(known) = self.counts.get_mut(text) {
            *known = known.saturating_add(count);
            return Ok(());
        }
        self.bytes += text.len() + ENTRY;
        self.counts.insert(text.into(), count);
        if self.bytes > self.memory { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        let mut entries: Vec<_> = std::mem::take(&mut self.counts).into_iter().collect();
        self.bytes = 0;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let run = self.write(entries.into_iter().map(Ok))?;
        self.runs.push(run);
        if self.runs.len() == FAN_IN {
            let runs = std::mem::take(&mut self.runs);
            let merged = self.write(Merge::new(runs, Vec::new())?)?;
            self.runs.push(merged);
        }
        Ok(())
    }

    fn write(&self, entries: impl Iterator<Item = io::Result<(String, u64)>>) -> io::Result<File> {
        std::fs::create_dir_all(&self.folder)?;
        let mut file = BufWriter::new(tempfile::tempfile_in(&self.folder)?);
        let mut before = String::new();
        for entry in entries {
            let (text, count) = entry?;
            let shared = before.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
            write_number(&mut file, shared as u64)?;
            write_number(&mut file, (text.len() - shared) as u64)?;
            file.write_all(&text.as_bytes()[shared..])?;
            write_number(&mut file, count)?;
            before = text;
        }
        let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(file)
    }

    /// All texts with their counts, sorted by text.
    ///
    /// # Errors
    /// When a file cannot be read; each item may be one, too.
    pub fn finish(self) -> io::Result<Merge> {
        let mut rest: Vec<_> = self.counts.into_iter().collect();
        rest.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Merge::new(self.runs, rest)
    }
}

/// LEB128.
fn write_number(out: &mut impl Write, mut number: u64) -> io::Result<()> {
    while number >= 0x80 {
        out.write_all(&[number as u8 | 0x80])?;
        number >>= 7;
    }
    out.write_all(&[number as u8])
}

fn read_number(file: &mut impl Read) -> io::Result<u64> {
    let (mut number, mut byte) = (0, [0]);
    for shift in (0..64).step_by(7) {
        file.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(number);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// A sorted file, or the entries left in memory.
#[derive(Debug)]
enum Run {
    File {
        file: BufReader<File>,
        text: Vec<u8>,
    },
    /// In descending order.
    Memory(Vec<(String, u64)>),
}

impl Run {
    fn next(&mut self) -> io::Result<Option<(String, u64)>> {
        match self {
            Self::Memory(entries) => Ok(entries.pop()),
            Self::File { file, text } => {
                if file.fill_buf()?.is_empty() {
                    return Ok(None);
                }
                let (shared, new) = (read_number(file)? as usize, read_number(file)? as usize);
                text.truncate(shared);
                text.resize(shared + new, 0);
                file.read_exact(&mut text[shared..])?;
                let count = read_number(file)?;
                let text = String::from_utf8(text.clone()).map_err(|_| io::ErrorKind::InvalidData)?;
                Ok(Some((text, count)))
            }
        }
    }
}

/// Iterates over the counts, merged from sorted runs.
#[derive(Debug)]
pub struct Merge {
    runs: Vec<Run>,
    /// The next entry of each run.
    next: BinaryHeap<Reverse<(String, usize, u64)>>,
}

impl Merge {
    fn new(files: Vec<File>, rest: Vec<(String, u64)>) -> io::Result<Self> {
        let files = files.into_iter().map(|file| Run::File { file: BufReader::new(file), text: Vec::new() });
        let mut merge = Self { runs: files.chain([Run::Memory(rest)]).collect(), next: BinaryHeap::new() };
        for run in 0..merge.runs.len() {
            merge.refill(run)?;
        }
        Ok(merge)
    }

    fn refill(&mut self, run: usize) -> io::Result<()> {
        if let Some((text, count)) = self.runs[run].next()? {
            self.next.push(Reverse((text, run, count)));
        }
        Ok(())
    }

    fn merged(&mut self) -> io::Result<Option<(String, u64)>> {
        let Some(Reverse((text, run, mut sum))) = self.next.pop() else { return Ok(None) };
        self.refill(run)?;
        while let Some(Reverse((_, run, count))) =
            self.next.peek().filter(|Reverse((other, ..))| *other == text)
        {
            let run = *run;
            sum = sum.saturating_add(*count);
            self.next.pop();
            self.refill(run)?;
        }
        Ok(Some((text, sum)))
    }
}

impl Iterator for Merge {
    type Item = io::Result<(String, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.merged().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn counted(texts: &[String], memory: usize) -> Vec<(String, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let mut counter = Counter::new(memory, folder.path().join("new"));
        texts.iter().for_each(|text| counter.add(text, 1).unwrap());
        counter.finish().unwrap().map(Result::unwrap).collect()
    }

    proptest! {
        /// With any memory limit, down to 0 (one file per text), the counts equal those of a map.
        #[test]
        fn counts_are_exact(texts in prop::collection::vec("[ab犬]{0,4}", 0..200), memory in 0usize..2_000) {
            let mut plain: BTreeMap<String, u64> = BTreeMap::new();
            texts.iter().for_each(|text| *plain.entry(text.clone()).or_default() += 1);
            prop_assert_eq!(counted(&texts, memory), plain.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn large_counts_survive_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut counter = Counter::new(0, folder.path().into());
        counter.add("a", u64::MAX - 1).unwrap();
        counter.add("a", 300).unwrap();
        counter.add("b", 1 << 40).unwrap();
        let found: Vec<_> = counter.finish().unwrap().map(Result::unwrap).collect();
        assert_eq!(found, [("a".into(), u64::MAX), ("b".into(), 1 << 40)]);
    }
}
