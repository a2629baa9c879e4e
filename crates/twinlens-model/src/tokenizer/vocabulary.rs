//! CLIP's vocabulary, from the file that OpenAI and open_clip ship
//! (`bpe_simple_vocab_16e6.txt.gz`).
//!
//! The file holds one merge per line. Ids in order: the 256 bytes, the 256 bytes at the end of a
//! word, the result of each merge, start, end. A byte is written as a printable character.

use super::special::{END, START, tokenizer_error};
use crate::error::Result;
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Steps;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Marks the end of a word.
pub(super) const END_OF_WORD: &str = "</w>";
/// How many of the file's 262,144 merges CLIP uses: as its code computes it, 49,152 less 256 bytes
/// and two special tokens.
const MERGES: usize = 49_152 - 256 - 2;
/// Words: English contractions, runs of letters, single digits, runs of other non-space characters.
const WORD_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
/// Upper bound of the uncompressed size, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The characters that stand for the bytes, in the order of CLIP's ids: printable bytes first, as
/// themselves.
fn byte_characters() -> Vec<char> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (printable, other): (Vec<u8>, Vec<u8>) = (0..=255u8).partition(printable);
    let substitutes = (0x100u32..).take(other.len()).filter_map(char::from_u32);
    printable.into_iter().map(char::from).chain(substitutes).collect()
}

/// Builds the tokenizer from a vocabulary file's bytes, gzipped or not; errors name `path`.
///
/// # Errors
/// `Tokenizer` if it is not such a file.
pub(super) fn parse(file: &[u8], path: &Path) -> Result<Tokenizer> {
    let error = |problem: String| tokenizer_error(format!("{}: {problem}", path.display()));
    let mut text = String::new();
    let read = if file.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(file).take(MAX_BYTES).read_to_string(&mut text)
    } else {
        file.take(MAX_BYTES).read_to_string(&mut text)
    };
    read.map_err(|e| error(format!("neither a tokenizer.json nor CLIP's vocabulary ({e})")))?;
    // The first line is a header.
    let lines = text.lines().skip(1).take(MERGES);
    let merge = |(i, line): (usize, &str)| match line.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_owned(), b.to_owned())),
        _ => Err(error(format!("line {} is not two tokens", i + 2))),
    };
    let merges = lines.enumerate().map(merge).collect::<Result<Vec<_>>>()?;
    if merges.is_empty() {
        return Err(error("neither a tokenizer.json nor CLIP's vocabulary (it has no merges)".into()));
    }
    let bytes = byte_characters();
    let mut tokens: Vec<String> = bytes.iter().map(char::to_string).collect();
    tokens.extend(bytes.iter().map(|c| format!("{c}{END_OF_WORD}")));
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .end_of_word_suffix(END_OF_WORD.into())
        .build()
        .map_err(|e| error(e.to_string()))?;
    let mut inner = Tokenizer::new(model);
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(tokenizer_error)?;
    let normalizer = Sequence::new(vec![NFC.into(), white_space.into(), Lowercase.into()]);
    inner.with_normalizer(Some(normalizer)).map_err(tokenizer_error)?;
    let words = Split::new(SplitPattern::Regex(WORD_PATTERN.into()), SplitDelimiterBehavior::Removed, true);
    let bytes = ByteLevel::new(false, true, false);
    inner.with_pre_tokenizer(Some(Steps::new(vec![words.map_err(tokenizer_error)?.into(), bytes.into()])));
    inner.with_decoder(Some(bytes));
    let special = [START, END].map(|token| AddedToken::from(token, true).normalized(false));
    inner.add_special_tokens(special).map_err(tokenizer_error)?;
    Ok(inner)
}
