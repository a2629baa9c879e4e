//! An on-disk cache of text embeddings, keyed by a hash of the weights and of every prompt's
//! tokens.
//!
//! A damaged, truncated or foreign file is a cache miss. The size of the directory is bounded; the
//! least recently used file is evicted first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"twltxt01";
const MAX_BYTES: u64 = 256 << 20;
const EXTENSION: &str = "embeddings";

#[derive(Debug, Clone)]
pub struct TextCache {
    folder: PathBuf,
    max_bytes: u64,
}

impl TextCache {
    /// A cache in `folder`, which is created by the first [`put`](Self::put).
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), max_bytes: MAX_BYTES }
    }

    fn path(&self, key: &[u8; 32]) -> PathBuf {
        self.folder.join(format!("{}.{EXTENSION}", hex::encode(&key[..16])))
    }

    /// The embeddings stored under a key, if there are `rows` of them.
    pub fn get(&self, key: &[u8; 32], rows: usize) -> Option<Vec<Vec<f32>>> {
        let path = self.path(key);
        let bytes = fs::read(&path).ok()?;
        let (body, sum) = bytes.split_last_chunk::<32>()?;
        if Sha256::digest(body)[..] != sum[..] {
            return None;
        }
        let data = body.strip_prefix(MAGIC)?.strip_prefix(key)?;
        let (width, data) = data.split_first_chunk::<4>()?;
        let width = u32::from_le_bytes(*width) as usize;
        if width == 0 || data.len() != rows.checked_mul(width)?.checked_mul(4)? {
            return None;
        }
        let values: Vec<f32> = data
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        // The modification time records the last use.
        let _ =
            File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    /// Stores embeddings. Failures are ignored: the embeddings are computed again.
    pub fn put(&self, key: &[u8; 32], rows: &[Vec<f32>]) {
        let width = rows.first().map_or(0, Vec::len) as u32;
        let mut bytes = [&MAGIC[..], key, &width.to_le_bytes()].concat();
        bytes.extend(rows.iter().flatten().flat_map(|value| value.to_le_bytes()));
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        if bytes.len() as u64 <= self.max_bytes {
            let _ = self.write(key, &bytes);
        }
    }

    fn write(&self, key: &[u8; 32], bytes: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(key);
        // Two processes may write the same file at once.
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, &path)?;
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|file| file.1).sum();
        for (_, size, old) in files {
            if total > self.max_bytes && old != path {
                fs::remove_file(&old)?;
                total -= size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_misses_and_the_oldest_is_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = TextCache::new(&folder.path().join("texts"));
        let rows = vec![vec![0.5_f32, -1.0], vec![f32::MIN_POSITIVE, 3.0]];
        let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
        assert_eq!(cache.get(&a, 2), None);
        cache.put(&a, &rows);
        assert_eq!(cache.get(&a, 2), Some(rows.clone()));
        assert_eq!((cache.get(&a, 3), cache.get(&b, 2)), (None, None));
        let path = cache.path(&a);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.get(&a, 2), None, "byte {at}");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(cache.get(&a, 2), None);
        cache.put(&a, &rows);
        let long_ago = SystemTime::UNIX_EPOCH;
        cache.put(&b, &rows);
        File::options().append(true).open(cache.path(&b)).unwrap().set_modified(long_ago).unwrap();
        cache.max_bytes = 2 * whole.len() as u64;
        cache.put(&c, &rows);
        let kept = [a, b, c].map(|key| cache.get(&key, 2).is_some());
        assert_eq!(kept, [true, false, true]);
    }
}
