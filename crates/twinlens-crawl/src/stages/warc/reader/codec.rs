//! The compressions of archives.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use super::item::RecordError;

/// The first bytes of a gzip member: magic number and "deflate".
const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
/// The first bytes of a zstd frame.
pub(super) const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Gzip,
    Zstd,
}

impl Codec {
    /// The compression of a file that begins like this.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        // Any skippable frame may begin a zstd file.
        let is_skippable = matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        match start {
            _ if start.starts_with(&GZIP[..2]) => Some(Self::Gzip),
            _ if start.starts_with(&ZSTD) || is_skippable => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The compression that the name of a file says.
    pub(super) fn named(name: &str) -> Option<Self> {
        let ending = name.rsplit_once('.')?.1.to_ascii_lowercase();
        match ending.as_str() {
            "gz" => Some(Self::Gzip),
            "zst" | "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => &GZIP,
            Self::Zstd => &ZSTD,
        }
    }

    pub(super) fn damage(self) -> &'static str {
        match self {
            Self::Gzip => "damaged_gzip",
            Self::Zstd => "damaged_zstd",
        }
    }

    /// Code and detail of a damaged record.
    ///
    /// # Errors
    /// When the file itself cannot be read.
    pub(super) fn damage_of(self, error: RecordError) -> io::Result<(&'static str, String)> {
        match error {
            RecordError::Io(error) => Err(error),
            RecordError::Compression(why) => Ok((self.damage(), why)),
            RecordError::Damage(code, detail) => Ok((code, detail)),
        }
    }

    /// A decoder of a member that begins here.
    pub(super) fn decoder<R: BufRead>(self, input: R, dictionary: &[u8]) -> io::Result<Decoder<R>> {
        Ok(match self {
            Self::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(input))),
            Self::Zstd => {
                let decoder = zstd::Decoder::with_dictionary(input, dictionary)?;
                Decoder::Zstd(Box::new(decoder.single_frame()))
            }
        })
    }
}

/// Decodes one member.
pub(super) enum Decoder<R> {
    Gzip(Box<GzDecoder<R>>),
    Zstd(Box<zstd::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn into_inner(self) -> R {
        match self {
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Gzip(_)) { "Gzip" } else { "Zstd" })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            // The library reports what is wrong with a frame as `Other`.
            Self::Zstd(decoder) => decoder.read(buffer).map_err(|error| match error.kind() {
                io::ErrorKind::Other => io::Error::new(io::ErrorKind::InvalidData, error),
                _ => error,
            }),
        }
    }
}

/// Counts what is read.
#[derive(Debug)]
pub(super) struct Counted<R> {
    pub(super) inner: R,
    pub(super) bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}
