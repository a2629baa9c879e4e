//! Memory that processes share: a file that all of them have mapped.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Values of a word.
const WORD: usize = 2;

/// Values that several processes read and write.
#[derive(Debug)]
pub(super) struct Memory(MmapRaw);

impl Memory {
    /// Maps a file that has room for `values` values.
    pub(super) fn map(file: &File, values: usize) -> io::Result<Self> {
        let bytes = values.div_ceil(WORD) * size_of::<AtomicU64>();
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::Error::other("the shared file is too short"));
        }
        Ok(Self(MmapOptions::new().len(bytes).map_raw(file)?))
    }

    #[expect(
        unsafe_code,
        reason = "reading and writing the file instead takes twice as long (benches/ranks)"
    )]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, has `len` bytes, and lives as long as `self`. Every
        // word is a valid `AtomicU64`, which all processes access as such, so that no access is a
        // data race, whatever they do. The file cannot become shorter, which would end the process:
        // it has no name when the ranks begin, and they do not change its length.
        unsafe {
            let words = self.0.as_ptr().cast::<AtomicU64>();
            std::slice::from_raw_parts(words, self.0.len() / size_of::<AtomicU64>())
        }
    }

    /// Writes values from the place of an even number on.
    pub(super) fn put(&self, place: usize, values: &[f32]) {
        let (twos, last) = values.as_chunks::<WORD>();
        let words = &self.words()[place / WORD..][..values.len().div_ceil(WORD)];
        let pack = |low: f32, high: f32| u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32;
        for (word, [low, high]) in words.iter().zip(twos) {
            word.store(pack(*low, *high), Ordering::Relaxed);
        }
        if let [last] = last {
            words[twos.len()].store(pack(*last, 0.0), Ordering::Relaxed);
        }
    }

    /// Reads values from the place of an even number on.
    pub(super) fn get(&self, place: usize, values: &mut [f32]) {
        let words = &self.words()[place / WORD..][..values.len().div_ceil(WORD)];
        let (twos, last) = values.as_chunks_mut::<WORD>();
        for (word, two) in words.iter().zip(&mut *twos) {
            let word = word.load(Ordering::Relaxed);
            *two = [f32::from_bits(word as u32), f32::from_bits((word >> 32) as u32)];
        }
        if let [last] = last {
            *last = f32::from_bits(words[twos.len()].load(Ordering::Relaxed) as u32);
        }
    }
}

impl Memory {
    /// Counts one up in the word at a place: what was written before is there for whoever sees it.
    pub(super) fn count(&self, place: usize) {
        self.words()[place / WORD].fetch_add(1, Ordering::Release);
    }

    /// The count at a place.
    pub(super) fn counted(&self, place: usize) -> u64 {
        self.words()[place / WORD].load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_a_file_are_one_memory() {
        let folder = std::env::temp_dir().join(format!("twinlens-memory-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert!(Memory::map(&file, 10).is_err());
        file.set_len(80).unwrap();
        let [one, other] = [0, 1].map(|_| Memory::map(&file, 20).unwrap());
        one.put(4, &[1.0, f32::NAN, -0.0]);
        let mut values = [7.0; 3];
        other.get(4, &mut values);
        assert_eq!(values.map(f32::to_bits), [1.0f32, f32::NAN, -0.0].map(f32::to_bits));
        other.get(0, &mut values);
        assert_eq!(values, [0.0; 3]);
        assert_eq!(other.counted(12), 0);
        one.count(12);
        other.count(12);
        assert_eq!(one.counted(12), 2);
    }
}
