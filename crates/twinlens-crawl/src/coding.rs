//! Content codings of HTTP (RFC 9110, section 8.4.1), as browsers and archives meet them: servers
//! send them unasked, name ones that do not exist (`none`, `UTF-8`), and send plain bodies under
//! the name of a coding.

use std::io::{self, Read};

use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};

/// Maximum number of codings that are applied to one body.
const MAX_CODINGS: usize = 5;
/// Largest window of zstd, as a power of two (RFC 9659).
const ZSTD_WINDOW: u32 = 23;
/// Codings that exist and cannot be decoded here. Other names are not codings.
const UNSUPPORTED: &[&str] =
    &["compress", "x-compress", "dcb", "dcz", "exi", "pack200-gzip", "sdch", "bzip2"];

/// A coding that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    /// zlib, or bare deflate, which some servers send.
    Deflate,
    Brotli,
    Zstd,
}

/// Parses `Content-Encoding` values: the codings in the order in which they were applied. Names
/// that are not codings are ignored, as browsers do.
///
/// # Errors
/// The name of a coding that cannot be decoded.
pub(crate) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Vec<Coding>, String> {
    let mut codings = Vec::new();
    for name in values.into_iter().flat_map(|value| value.split(',')) {
        let name = name.trim().to_ascii_lowercase();
        match name.as_str() {
            "gzip" | "x-gzip" => codings.push(Coding::Gzip),
            "deflate" => codings.push(Coding::Deflate),
            "br" => codings.push(Coding::Brotli),
            "zstd" => codings.push(Coding::Zstd),
            name if UNSUPPORTED.contains(&name) => return Err(format!("content coding `{name}`")),
            _ => {}
        }
    }
    if codings.len() > MAX_CODINGS {
        return Err(format!("{} content codings", codings.len()));
    }
    Ok(codings)
}

impl Coding {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// The most memory that its decoder takes, in bytes.
    pub(crate) fn window_bytes(self) -> u64 {
        match self {
            Self::Gzip | Self::Deflate => 64 << 10,
            Self::Brotli => 16 << 20,
            Self::Zstd => 1 << ZSTD_WINDOW,
        }
    }

    /// Reads the decoded body; `None` if the body is not in this coding, whatever its header says.
    pub(crate) fn decoder(self, body: &[u8]) -> Option<Box<dyn Read + Send + '_>> {
        match self {
            Self::Gzip if body.starts_with(&[0x1f, 0x8b]) => Some(Box::new(GzipMembers::new(body))),
            Self::Zstd if body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => {
                let mut decoder = zstd::Decoder::with_buffer(body).ok()?;
                decoder.window_log_max(ZSTD_WINDOW).ok()?;
                Some(Box::new(decoder))
            }
            Self::Deflate if is_zlib(body) => Some(Box::new(ZlibDecoder::new(body))),
            // These two have no magic number.
            Self::Deflate => begins(DeflateDecoder::new(body), body)
                .then(|| -> Box<dyn Read + Send> { Box::new(DeflateDecoder::new(body)) }),
            // A window of more than 16 MiB, which HTTP does not allow.
            Self::Brotli if body.first().is_some_and(|byte| byte & 0x7f == 0x11) => None,
            Self::Brotli => {
                begins(brotli(body), body).then(|| -> Box<dyn Read + Send> { Box::new(brotli(body)) })
            }
            Self::Gzip | Self::Zstd => None,
        }
    }
}

fn brotli(body: &[u8]) -> brotli_decompressor::Decompressor<&[u8]> {
    brotli_decompressor::Decompressor::new(body, 4096)
}

/// Whether a body begins with a zlib header (RFC 1950, section 2.2).
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [method, flags, ..]
        if method & 0x8f == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31))
}

/// Whether a decoder makes something of a body that is not obviously plain.
fn begins(mut decoder: impl Read, body: &[u8]) -> bool {
    let is_image =
        [&b"\x89PNG"[..], b"\xff\xd8\xff", b"GIF8", b"RIFF"].iter().any(|magic| body.starts_with(magic));
    let is_markup = matches!(body.trim_ascii_start(), [b'<', b'a'..=b'z' | b'A'..=b'Z' | b'!' | b'?', ..]);
    let mut some = [0; 1024];
    match decoder.read(&mut some) {
        _ if is_image || is_markup => false,
        // An empty stream is short; many a plain body begins like one.
        Ok(0) => (1..=4).contains(&body.len()),
        read => read.is_ok(),
    }
}

/// Reads the members of a gzip body, and ignores what follows them.
struct GzipMembers<'a> {
    member: Option<GzDecoder<&'a [u8]>>,
}

impl<'a> GzipMembers<'a> {
    fn new(body: &'a [u8]) -> Self {
        Self { member: Some(GzDecoder::new(body)) }
    }
}

impl Read for GzipMembers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let rest = self.member.take().map(GzDecoder::into_inner).unwrap_or_default();
            self.member = rest.starts_with(&[0x1f, 0x8b, 8]).then(|| GzDecoder::new(rest));
        }
        Ok(0)
    }
}

/// Why a body could not be decoded.
#[derive(Debug)]
pub(crate) enum DecodeError {
    /// It is longer than the limit.
    TooLong,
    /// Nothing of it could be decoded.
    Damaged(String),
}

/// Undoes the codings of a body, the last first. A damaged or truncated body is used as far as it
/// can be decoded.
pub(crate) fn decode(codings: &[Coding], body: &[u8], max_bytes: u64) -> Result<Vec<u8>, DecodeError> {
    let mut body = std::borrow::Cow::Borrowed(body);
    for coding in codings.iter().rev() {
        let Some(decoder) = coding.decoder(&body) else { continue };
        let mut decoded = Vec::new();
        let read = decoder.take(max_bytes + 1).read_to_end(&mut decoded);
        match read {
            _ if decoded.len() as u64 > max_bytes => return Err(DecodeError::TooLong),
            Err(error) if decoded.is_empty() => {
                return Err(DecodeError::Damaged(format!("content coding `{}`: {error}", coding.name())));
            }
            _ => body = decoded.into(),
        }
    }
    Ok(body.into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use proptest::prelude::*;

    use super::*;

    const ALL: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

    /// Encodes a body. Brotli is stored uncompressed: its encoder is not a dependency.
    fn encode(coding: Coding, body: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap()
            }
            Coding::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap()
            }
            Coding::Zstd => zstd::encode_all(body, 1).unwrap(),
            Coding::Brotli => brotli_stored(body),
        }
    }

    /// RFC 7932, section 9.2: uncompressed meta-blocks of at most 64 KiB, then an empty last one.
    fn brotli_stored(body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, block) in body.chunks(1 << 16).enumerate() {
            // Before the first block, one bit for a window of 16 bits. Then: not the last, four
            // nibbles of length, uncompressed.
            let length = (block.len() - 1) as u32;
            let header = (length << 3) | (1 << 19);
            let (header, bits) = if number == 0 { (header << 1, 21) } else { (header, 20) };
            bytes.extend_from_slice(&header.to_le_bytes()[..usize::div_ceil(bits, 8)]);
            bytes.extend_from_slice(block);
        }
        // Last and empty; at the beginning with the bit of the window.
        bytes.push(if body.is_empty() { 0b110 } else { 0b11 });
        bytes
    }

    fn raw_deflate(body: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn names_are_parsed_and_unknown_ones_ignored() {
        type Case = (&'static [&'static str], Result<&'static [Coding], &'static str>);
        let cases: [Case; 8] = [
            (&[], Ok(&[])),
            (&["GZIP "], Ok(&[Coding::Gzip])),
            (&["x-gzip, br", "zstd"], Ok(&[Coding::Gzip, Coding::Brotli, Coding::Zstd])),
            (&["none"], Ok(&[])),
            (&["UTF-8", "aws-chunked, identity"], Ok(&[])),
            (&["aws-chunked,gzip"], Ok(&[Coding::Gzip])),
            (&["compress"], Err("content coding `compress`")),
            (&["gzip,gzip,gzip,gzip,gzip,gzip"], Err("6 content codings")),
        ];
        for (values, expected) in cases {
            let found = parse(values.iter().copied());
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{values:?}");
        }
    }

    #[test]
    fn bodies_are_what_they_are_and_not_what_their_headers_say() {
        let page = b"<html><body>plain</body></html>";
        for coding in ALL {
            for plain in [&page[..], b"\x89PNG\r\n\x1a\n....", b"\xff\xd8\xff\xe0....", b"", b"  {}"] {
                assert_eq!(decode(&[coding], plain, 1000).unwrap(), plain, "{coding:?} {plain:?}");
            }
        }
        assert_eq!(decode(&[Coding::Deflate], &raw_deflate(page), 1000).unwrap(), page);
        let trailing = [encode(Coding::Gzip, page), b"trailing".to_vec()].concat();
        assert_eq!(decode(&[Coding::Gzip], &trailing, 1000).unwrap(), page);
        let members = [encode(Coding::Gzip, page), encode(Coding::Gzip, page)].concat();
        assert_eq!(decode(&[Coding::Gzip], &members, 1000).unwrap(), [page, &page[..]].concat());
    }

    #[test]
    fn bombs_are_refused() {
        let zeros = vec![0; 2 << 20];
        for coding in ALL {
            let bomb = encode(coding, &zeros);
            assert!(matches!(decode(&[coding], &bomb, 1 << 20), Err(DecodeError::TooLong)), "{coding:?}");
            assert_eq!(decode(&[coding], &bomb, 2 << 20).unwrap().len(), 2 << 20, "{coding:?}");
        }
        // A window of 1 GiB, as a header may say: it is not allocated.
        let large = [0x11, 0x1e, 0, 0, 0];
        assert_eq!(decode(&[Coding::Brotli], &large, 1000).unwrap(), large);
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&zeros).unwrap();
        let wide = encoder.finish().unwrap();
        assert!(matches!(decode(&[Coding::Zstd], &wide, 4 << 20), Err(DecodeError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn codings_are_undone(
            body in proptest::collection::vec(any::<u8>(), 0..3000),
            codings in proptest::collection::vec(proptest::sample::select(ALL.to_vec()), 0..4),
        ) {
            let coded = codings.iter().fold(body.clone(), |body, coding| encode(*coding, &body));
            prop_assert_eq!(decode(&codings, &coded, 1 << 20).unwrap(), body);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            coding in proptest::sample::select(ALL.to_vec()),
            cut in 0usize..600,
        ) {
            let _any = decode(&[coding], &bytes, 10_000);
            let mut coded = encode(coding, &bytes);
            coded.truncate(cut);
            let _cut = decode(&[coding], &coded, 10_000);
            if let Some(byte) = coded.get_mut(cut / 2) {
                *byte ^= 0x10;
            }
            let _damaged = decode(&[coding], &coded, 10_000);
        }
    }
}
