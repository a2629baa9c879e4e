//! CLIP's own vocabulary, out of the file that OpenAI and open_clip ship
//! (`bpe_simple_vocab_16e6.txt.gz`).
//!
//! The file holds merges, one a line. Ids: the 256 bytes, the same at the end of a word, what each
//! merge makes in order, start, end. A byte is written as a printable character.

use super::{END, START, failed};
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

/// What marks the end of a word.
pub const END_OF_WORD: &str = "</w>";
/// Merges that CLIP uses of the file's 262,144: as many as make 49,152 tokens with bytes, less the
/// two special ones.
const MERGES: usize = 49_152 - 256 - 2;
/// Words: English endings, runs of letters, single digits, runs of anything else but white space.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
/// More than the file takes unpacked.
const MOST_BYTES: u64 = 64 << 20;

/// The characters of bytes 0 to 255, in the order of CLIP's ids: printable ones are themselves and
/// come first.
fn byte_characters() -> Vec<char> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (shown, hidden): (Vec<u8>, Vec<u8>) = (0..=255u8).partition(printable);
    let replaced = (0x100u32..).take(hidden.len()).filter_map(char::from_u32);
    shown.into_iter().map(char::from).chain(replaced).collect()
}

/// The tokenizer of a vocabulary file's bytes, which may be compressed; `path` names it in errors.
///
/// # Errors
/// `Tokenizer` when it is no such file.
pub fn parse(file: &[u8], path: &Path) -> Result<Tokenizer> {
    let named = |problem: String| failed(format!("{}: {problem}", path.display()));
    let mut text = String::new();
    let read = if file.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(file).take(MOST_BYTES).read_to_string(&mut text)
    } else {
        file.take(MOST_BYTES).read_to_string(&mut text)
    };
    read.map_err(|e| named(format!("neither a tokenizer.json nor CLIP's vocabulary ({e})")))?;
    // The first line says what the file is.
    let lines = text.lines().skip(1).take(MERGES);
    let merge = |(i, line): (usize, &str)| match line.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_owned(), b.to_owned())),
        _ => Err(named(format!("line {} is not two tokens", i + 2))),
    };
    let merges = lines.enumerate().map(merge).collect::<Result<Vec<_>>>()?;
    if merges.is_empty() {
        return Err(named("neither a tokenizer.json nor CLIP's vocabulary (it has no merges)".into()));
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
        .map_err(|e| named(e.to_string()))?;
    let mut inner = Tokenizer::new(model);
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(failed)?;
    let normalizer = Sequence::new(vec![NFC.into(), white_space.into(), Lowercase.into()]);
    inner.with_normalizer(Some(normalizer)).map_err(failed)?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true);
    let bytes = ByteLevel::new(false, true, false);
    inner.with_pre_tokenizer(Some(Steps::new(vec![words.map_err(failed)?.into(), bytes.into()])));
    inner.with_decoder(Some(bytes));
    let special = [START, END].map(|token| AddedToken::from(token, true).normalized(false));
    inner.add_special_tokens(special).map_err(failed)?;
    Ok(inner)
}
