//! Text to token ids: lower-cased byte-level BPE, in the format of a Hugging Face `tokenizer.json`.
//!
//! Any text has ids, since the vocabulary holds all 256 bytes. As in CLIP, the start and end tokens are the two highest
//! ids, the end token the highest: the model reads a text where its highest id stands.

use crate::error::{ModelError, Result};
use crate::weights::{hex, write_whole};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence, Strip, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Trainer,
};

/// The tokenizer's file in a model's folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Fewest tokens: all bytes, start and end.
const SMALLEST: usize = 258;

/// A trained tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
}

fn failed(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

fn normalizer() -> Result<Sequence> {
    // White space collapsed, as in CLIP: captions come out of HTML.
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(failed)?;
    Ok(Sequence::new(vec![NFC.into(), white_space.into(), Strip::new(true, true).into(), Lowercase.into()]))
}

/// Words with the space before them, also before the first, so that a word has the same ids wherever it stands.
fn pre_tokenizer() -> ByteLevel {
    ByteLevel::new(true, true, true)
}

impl Tokenizer {
    /// Learns at most `vocab_size` tokens (start and end included) from captions: a function of the captions as a set
    /// with counts, whatever their order.
    ///
    /// # Errors
    /// `Tokenizer` when `vocab_size` does not hold all bytes, start and end (258).
    pub fn train(captions: impl Iterator<Item = String>, vocab_size: usize) -> Result<Self> {
        if vocab_size < SMALLEST {
            return Err(failed(format!(
                "vocab_size is {vocab_size}; bytes, start and end alone are {SMALLEST}"
            )));
        }
        let (normalizer, pre_tokenizer) = (normalizer()?, pre_tokenizer());
        let mut words = BTreeMap::<String, usize>::new();
        for caption in captions {
            let mut text = NormalizedString::from(caption);
            normalizer.normalize(&mut text).map_err(failed)?;
            let mut parts = PreTokenizedString::from(text);
            pre_tokenizer.pre_tokenize(&mut parts).map_err(failed)?;
            for (word, ..) in parts.get_splits(OffsetReferential::Original, OffsetType::None) {
                match words.get_mut(word) {
                    Some(count) => *count += 1,
                    None => _ = words.insert(word.to_owned(), 1),
                }
            }
        }
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size - 2)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let repeated = words.iter().flat_map(|(word, &count)| std::iter::repeat_n(word.as_str(), count));
        trainer.feed(repeated, |word| Ok(vec![word.to_owned()])).map_err(failed)?;
        let mut model = BPE::default();
        trainer.train(&mut model).map_err(failed)?;

        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(normalizer)).map_err(failed)?;
        inner.with_pre_tokenizer(Some(pre_tokenizer));
        inner.with_decoder(Some(pre_tokenizer));
        let special = [START, END].map(|token| AddedToken::from(token, true).normalized(false));
        inner.add_special_tokens(special).map_err(failed)?;
        Self::of(inner)
    }

    /// Reads a `tokenizer.json` that has start and end tokens named as CLIP names them.
    ///
    /// # Errors
    /// `Io` or `Tokenizer`, with the file's name.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
        let named = |e: String| failed(format!("{}: {e}", path.display()));
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| named(e.to_string()))?;
        Self::of(inner).map_err(|e| named(e.to_string()))
    }

    fn of(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        // A caption that spells out a special token must not become one.
        inner.set_encode_special_tokens(true);
        let id =
            |token: &str| inner.token_to_id(token).ok_or_else(|| failed(format!("it has no token {token}")));
        let (start, end) = (id(START)?, id(END)?);
        let size = inner.get_vocab_size(true);
        if end as usize + 1 != size {
            return Err(failed(format!(
                "{END} has id {end}, not the highest of {size}: texts are read at the highest id"
            )));
        }
        Ok(Self { inner, start, end })
    }

    fn json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(failed)
    }

    /// Writes a `tokenizer.json`, whole or not at all. The same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_whole(path, self.json()?.as_bytes())
    }

    /// `context` ids: start, the text, end, and 0 for the rest. A text that is too long is cut, and still ends in end.
    pub fn encode(&self, text: &str, context: usize) -> Vec<u32> {
        // The only failures are of the tokenizer's own truncation and padding, which are off.
        let encoding = self.inner.encode_fast(text, false);
        let text = encoding.as_ref().map_or(&[][..], |e| e.get_ids());
        let mut ids = Vec::with_capacity(context);
        ids.push(self.start);
        ids.extend_from_slice(&text[..text.len().min(context.saturating_sub(2))]);
        ids.push(self.end);
        ids.resize(context, 0);
        ids
    }

    /// Ids run from 0 to this, exclusive.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Every token with its id, in the order of ids.
    pub fn tokens(&self) -> Vec<(u32, String)> {
        let mut tokens: Vec<_> =
            self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort();
        tokens
    }

    /// SHA-256 of its file's bytes, in hexadecimal.
    ///
    /// # Errors
    /// `Tokenizer` when it cannot be written out.
    pub fn hash(&self) -> Result<String> {
        Ok(hex(&Sha256::digest(self.json()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions() -> impl DoubleEndedIterator<Item = String> {
        let words = [
            "grinning face",
            "a picture of a Cat Face",
            "dog  face",
            "woman: medium skin tone",
            "flag: São Tomé",
        ];
        (0..200).map(move |i| format!("{} {}", words[i % words.len()], i % 7))
    }

    #[test]
    fn training_is_a_function_of_the_captions() {
        let forward = Tokenizer::train(captions(), 400).unwrap();
        let backward = Tokenizer::train(captions().rev(), 400).unwrap();
        assert_eq!(forward.hash().unwrap(), backward.hash().unwrap());
        assert!(forward.vocab_size() > 258 && forward.vocab_size() <= 400);
        assert!(Tokenizer::train(captions(), 257).is_err());
    }

    #[test]
    fn ids_start_end_pad_and_cut() {
        let tokenizer = Tokenizer::train(captions(), 400).unwrap();
        let (start, end) = (tokenizer.vocab_size() as u32 - 2, tokenizer.vocab_size() as u32 - 1);
        let ids = tokenizer.encode("grinning face", 8);
        assert_eq!(ids.len(), 8);
        assert_eq!((ids[0], ids[ids.iter().position(|&i| i == 0).unwrap() - 1]), (start, end));
        assert_eq!(tokenizer.encode("  GRINNING\n face ", 8), ids);
        assert_eq!(tokenizer.encode("", 4), [start, end, 0, 0]);
        let long = tokenizer.encode(&"face ".repeat(50), 8);
        assert_eq!((long[0], long[7]), (start, end));
        // Spelled out, a special token is text; unseen bytes have ids; every id is inside the vocabulary.
        for text in ["a <|endoftext|> b", "日本 \u{1F600} \0", "ﬁ\u{301}"] {
            let ids = tokenizer.encode(text, 64);
            assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1, "{text}");
            assert!(ids.iter().all(|&id| id <= end) && ids[2] != 0);
        }
    }

    #[test]
    fn a_file_holds_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKENIZER_FILE);
        let tokenizer = Tokenizer::train(captions(), 400).unwrap();
        tokenizer.save(&path).unwrap();
        let read = Tokenizer::load(&path).unwrap();
        assert_eq!(read.hash().unwrap(), tokenizer.hash().unwrap());
        assert_eq!(
            read.encode("a cat's <|endoftext|> face", 32),
            tokenizer.encode("a cat's <|endoftext|> face", 32)
        );
        std::fs::write(&path, "{").unwrap();
        let error = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(error.contains(TOKENIZER_FILE), "{error}");
    }
}
