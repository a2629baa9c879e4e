//! Reads files through compression, whatever their names say.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::DatasetError;
use crate::sniff::{Compression, FileKind, SNIFF_BYTES};

/// Bytes of each buffer.
const BUFFER: usize = 1 << 17;
/// Largest Zstandard window, as a power of two: what its command line reads by default (128 MiB).
const MAX_ZSTD_WINDOW: u32 = 27;
/// Most memory of an xz decoder, in KiB: its dictionary has at most 64 MiB unless someone asks for
/// more (`xz -9` does not).
const MAX_XZ_KIB: u32 = 66 << 10;
/// Compressed files within compressed files, as servers make them that compress once more.
const MAX_LAYERS: usize = 3;
/// A copy on disk may have this many times the bytes of its compressed file ...
pub(crate) const MAX_RATIO: u64 = 200;
/// ... and this many more.
pub(crate) const FREE_BYTES: u64 = 64 << 20;

/// A file without its compression.
pub struct Unpacked {
    /// What the content is.
    pub kind: FileKind,
    /// How it is compressed, the outermost first.
    pub layers: Vec<Compression>,
    input: Box<dyn BufRead + Send>,
}

impl std::fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacked").field("kind", &self.kind).field("layers", &self.layers).finish()
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl BufRead for Unpacked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
    }
}

/// Reads an input through its compression; memory does not depend on the input.
///
/// # Errors
/// I/O errors. Damaged compressed data are an error where they are read, never an early end.
pub fn unpack(input: impl Read + Send + 'static) -> io::Result<Unpacked> {
    let mut input: Box<dyn Read + Send> = Box::new(input);
    let mut layers = Vec::new();
    loop {
        let (start, peeked) = Peeked::new(input)?;
        let kind = FileKind::of(&start);
        match kind {
            FileKind::Compressed(compression) if layers.len() < MAX_LAYERS => {
                layers.push(compression);
                input = decoder(compression, peeked)?;
            }
            _ => {
                let input = Box::new(BufReader::with_capacity(BUFFER, peeked));
                return Ok(Unpacked { kind, layers, input });
            }
        }
    }
}

/// Opens a file and reads it through its compression.
///
/// # Errors
/// I/O errors with the path.
pub fn open(path: &Path) -> Result<Unpacked, DatasetError> {
    let io = |error| DatasetError::io(path, error);
    unpack(File::open(path).map_err(io)?).map_err(io)
}

fn decoder(compression: Compression, input: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let input = BufReader::with_capacity(BUFFER, input);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        // It checks the size of the dictionary before it allocates.
        Compression::Xz => Box::new(Xz(lzma_rust2::XzReader::new_mem_limit(input, true, MAX_XZ_KIB))),
    })
}

/// Says what the library's shortest errors mean.
struct Xz<R: Read>(lzma_rust2::XzReader<R>);

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => {
                let why = "xz data with a dictionary of more than 64 MiB: compress them again with `xz -9`";
                io::Error::new(io::ErrorKind::InvalidData, why)
            }
            _ => error,
        })
    }
}

/// An input of which the start was read to look at it.
struct Peeked {
    start: io::Cursor<Vec<u8>>,
    /// An error after the start: it is returned in its place, not lost.
    error: Option<io::Error>,
    rest: Box<dyn Read + Send>,
}

impl Peeked {
    /// The first [`SNIFF_BYTES`], and all bytes.
    fn new(mut rest: Box<dyn Read + Send>) -> io::Result<(Vec<u8>, Self)> {
        let mut start = Vec::new();
        let error = rest.by_ref().take(SNIFF_BYTES as u64).read_to_end(&mut start).err();
        match error {
            Some(error) if start.is_empty() => Err(error),
            error => Ok((start.clone(), Self { start: io::Cursor::new(start), error, rest })),
        }
    }
}

impl Read for Peeked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.start.read(buffer)? {
            0 if !buffer.is_empty() => match self.error.take() {
                Some(error) => Err(error),
                None => self.rest.read(buffer),
            },
            read => Ok(read),
        }
    }
}

/// A file that can be read at any position: the file itself, or a copy without its compression,
/// which is deleted when this is dropped.
#[derive(Debug)]
pub struct PlainFile {
    /// What it is.
    pub kind: FileKind,
    /// How the original is compressed.
    pub layers: Vec<Compression>,
    /// The file, at its start.
    pub file: File,
    /// Its length in bytes.
    pub length: u64,
    /// Why the copy ends before the original does.
    pub damage: Option<String>,
}

impl PlainFile {
    /// Opens a file; of a compressed one, makes an unnamed copy in `scratch`.
    ///
    /// # Errors
    /// I/O errors with the path; a file that decompresses to hundreds of times its length.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, DatasetError> {
        let io = |error| DatasetError::io(path, error);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut unpacked = unpack(file.try_clone().map_err(io)?).map_err(io)?;
        if unpacked.layers.is_empty() {
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            return Ok(Self { kind: unpacked.kind, layers: Vec::new(), file, length, damage: None });
        }
        let on_scratch = |error| DatasetError::io(scratch, error);
        std::fs::create_dir_all(scratch).map_err(on_scratch)?;
        let mut copy = tempfile::tempfile_in(scratch).map_err(on_scratch)?;
        let limit = length.saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES);
        let damage = copy_unpacked(path, &mut unpacked, &mut copy, limit, &on_scratch)?;
        let length = copy.stream_position().map_err(on_scratch)?;
        copy.seek(SeekFrom::Start(0)).map_err(on_scratch)?;
        Ok(Self { kind: unpacked.kind, layers: unpacked.layers, file: copy, length, damage })
    }
}

/// Copies up to `limit` bytes; returns the damage at which the input ends.
fn copy_unpacked(
    path: &Path,
    input: &mut Unpacked,
    copy: &mut File,
    limit: u64,
    on_scratch: &dyn Fn(io::Error) -> DatasetError,
) -> Result<Option<String>, DatasetError> {
    let mut copied = 0;
    loop {
        let read = match input.fill_buf() {
            Ok(bytes) => {
                copy.write_all(bytes).map_err(on_scratch)?;
                bytes.len()
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Some(error.to_string())),
        };
        if read == 0 {
            return Ok(None);
        }
        input.consume(read);
        copied += read as u64;
        if copied > limit {
            let why = format!("it decompresses to more than {MAX_RATIO} times its length");
            let hint = "decompress it yourself if that is right, and name the result";
            return Err(DatasetError::refused(path, why, hint));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use twinlens_testkit::fuzz::Fuzz;
    use twinlens_testkit::xz;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Python: `lzma.compress(b"one two")`.
    const XZ: &str = "fd377a585a000004e6d6b4460200210116000000742fe5a30100066f6e652074776f0000383264958b58237c\
                      00011f07162eb8731fb6f37d010000000004595a";

    #[test]
    fn compressed_streams_are_read_to_their_end() {
        use Compression::{Bzip2, Gzip, Xz, Zstd};
        let cases: [(Vec<u8>, &[Compression]); 10] = [
            (b"one two".to_vec(), &[]),
            ([gzip(b"one "), gzip(b"two")].concat(), &[Gzip]),
            ([zstd(b"one "), zstd(b"two")].concat(), &[Zstd]),
            ([b"\x50\x2a\x4d\x18\x02\0\0\0xx".to_vec(), zstd(b"one two")].concat(), &[Zstd]),
            ([bzip2(b"one "), bzip2(b"two")].concat(), &[Bzip2]),
            (gzip(&gzip(b"one two")), &[Gzip, Gzip]),
            (zstd(&bzip2(b"one two")), &[Zstd, Bzip2]),
            (hex::decode(XZ).unwrap(), &[Xz]),
            ([xz::stored(b"one ", 28), vec![0; 4], xz::stored(b"two", 16)].concat(), &[Xz]),
            (gzip(&xz::stored(b"one two", 16)), &[Gzip, Xz]),
        ];
        for (bytes, layers) in cases {
            let mut unpacked = unpack(io::Cursor::new(bytes)).unwrap();
            let mut text = String::new();
            unpacked.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), unpacked.layers.as_slice()), ("one two", layers));
            assert_eq!(unpacked.kind, FileKind::Text);
        }
    }

    #[test]
    fn damage_is_an_error_and_no_early_end() {
        let text: Vec<u8> = (0..5000u32).flat_map(|n| format!("{n} ").into_bytes()).collect();
        for packed in [gzip(&text), zstd(&text), bzip2(&text), xz::stored(&text, 16), gzip(&zstd(&text))] {
            for cut in [12, packed.len() / 2, packed.len() - 1] {
                let read = unpack(io::Cursor::new(packed[..cut].to_vec()))
                    .and_then(|mut unpacked| unpacked.read_to_end(&mut Vec::new()));
                assert!(read.is_err(), "cut at {cut} of {}", packed.len());
            }
        }
        for whole in [gzip(b"whole"), xz::stored(b"whole", 16)] {
            let damaged = [whole, b"tail".to_vec()].concat();
            let mut unpacked = unpack(io::Cursor::new(damaged)).unwrap();
            assert!(unpacked.read_to_end(&mut Vec::new()).is_err(), "what follows a member is not dropped");
        }
    }

    #[test]
    fn a_dictionary_of_gigabytes_is_refused_before_it_is_allocated() {
        for (dictionary, is_read) in [(28, true), (29, false), (30, false), (40, false)] {
            let packed = xz::stored(b"one two", dictionary);
            let read = unpack(io::Cursor::new(packed));
            let text = read.and_then(io::read_to_string);
            match text {
                Ok(text) => assert!(is_read && text == "one two"),
                Err(error) => assert!(!is_read && error.to_string().contains("64 MiB"), "{error}"),
            }
        }
    }

    /// Damaged xz files are errors, never panics.
    #[test]
    fn any_xz_mutant_is_read_or_refused() {
        let text: Vec<u8> = (0..700u32).flat_map(|n| format!("{n} ").into_bytes()).collect();
        let seeds = vec![hex::decode(XZ).unwrap(), xz::stored(&text, 16), xz::stored(b"", 40)];
        Fuzz::new("xz", seeds).run(|bytes| {
            let read = unpack(io::Cursor::new(bytes.to_vec()))
                .and_then(|unpacked| io::copy(&mut unpacked.take(1 << 24), &mut io::sink()));
            if read.is_ok() { "read" } else { "refused" }.into()
        });
    }

    #[test]
    fn a_plain_file_can_be_read_at_any_position() {
        let folder = tempfile::tempdir().unwrap();
        let (path, scratch) = (folder.path().join("a.tar"), folder.path().join("scratch"));
        let read_at_4 = |plain: &mut PlainFile| {
            let mut text = String::new();
            plain.file.seek(SeekFrom::Start(4)).unwrap();
            plain.file.read_to_string(&mut text).unwrap();
            text
        };
        for bytes in [b"one two".to_vec(), gzip(b"one two")] {
            std::fs::write(&path, bytes).unwrap();
            let mut plain = PlainFile::open(&path, &scratch).unwrap();
            assert_eq!((plain.length, plain.damage.as_deref()), (7, None));
            assert_eq!(read_at_4(&mut plain), "two");
        }
        let noise: Vec<u8> =
            (0..20_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let whole = gzip(&noise);
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let cut = PlainFile::open(&path, &scratch).unwrap();
        assert!(cut.damage.is_some() && cut.length > 1000 && cut.length < noise.len() as u64);
        std::fs::write(&path, zstd(&vec![0; 100 << 20])).unwrap();
        let bomb = PlainFile::open(&path, &scratch).unwrap_err();
        assert!(bomb.to_string().contains("200 times"), "{bomb}");
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "copies are not left behind");
    }
}
