//! Text of any encoding as UTF-8.

use std::io::{self, Read};

use encoding_rs::{Decoder, DecoderResult, Encoding};

/// Bytes that are decoded at a time.
const CHUNK: usize = 32 << 10;
/// Stands for bytes that are not a character: it is not UTF-8 either, so that the row is rejected
/// and not changed.
const NO_CHARACTER: u8 = 0xff;

/// A stream of UTF-8, without byte order mark.
pub(super) struct Transcoded<R> {
    input: R,
    decoder: Decoder,
    raw: Vec<u8>,
    text: Vec<u8>,
    /// Bytes of `text` that were read.
    at: usize,
    is_end: bool,
}

impl<R: Read> Transcoded<R> {
    pub(super) fn new(input: R, encoding: &'static Encoding) -> Self {
        let decoder = encoding.new_decoder_with_bom_removal();
        Self { input, decoder, raw: vec![0; CHUNK], text: Vec::new(), at: 0, is_end: false }
    }

    fn decode(&mut self) -> io::Result<()> {
        let read = self.input.read(&mut self.raw)?;
        self.is_end = read == 0;
        (self.text, self.at) = (Vec::with_capacity(4 * CHUNK), 0);
        let mut rest = &self.raw[..read];
        let mut piece = vec![0; CHUNK];
        loop {
            let (result, used, written) =
                self.decoder.decode_to_utf8_without_replacement(rest, &mut piece, self.is_end);
            self.text.extend_from_slice(&piece[..written]);
            rest = &rest[used..];
            match result {
                DecoderResult::InputEmpty => return Ok(()),
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(..) => self.text.push(NO_CHARACTER),
            }
        }
    }
}

impl<R: Read> Read for Transcoded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.text.len() && !self.is_end {
            self.decode()?;
        }
        let length = buffer.len().min(self.text.len() - self.at);
        buffer[..length].copy_from_slice(&self.text[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_any_encoding_are_read() {
        let utf16: Vec<u8> = "\u{feff}é😀".repeat(9000).encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases = [
            (encoding_rs::UTF_16LE, utf16, "é😀".to_string() + &"\u{feff}é😀".repeat(8999)),
            (encoding_rs::WINDOWS_1252, b"caf\xe9".to_vec(), "café".into()),
            (encoding_rs::SHIFT_JIS, b"\x93\xfa\x96\x7b".to_vec(), "日本".into()),
        ];
        for (encoding, bytes, expected) in cases {
            let mut text = String::new();
            Transcoded::new(bytes.as_slice(), encoding).read_to_string(&mut text).unwrap();
            assert_eq!(text, expected, "{encoding:?}");
        }
        let mut bytes = Vec::new();
        Transcoded::new(b"a\x81\xffb".as_slice(), encoding_rs::EUC_JP).read_to_end(&mut bytes).unwrap();
        assert!(std::str::from_utf8(&bytes).is_err(), "{bytes:?}");
    }
}
