//! Text to token ids: lower-cased byte-level BPE, in the format of a Hugging Face `tokenizer.json`
//! or of CLIP's vocabulary file.
//!
//! Any text has ids, since the vocabulary holds all 256 bytes. As in CLIP, the start and end tokens
//! are the two highest ids, the end token the highest: the model reads a text where its highest id
//! stands.
//!
//! A vocabulary whose words end in `</w>` is CLIP's, whatever file it came in, and gets CLIP's
//! cleaning ([`clean`]) in place of the file's normaliser: ids are then open_clip's, but for a
//! caption that spells out a special token, which stays text here and would end the caption there.

mod clean;
mod vocabulary;

use crate::error::{ModelError, Result};
use crate::weights::{hex, write_whole};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::{
    Lowercase, NFC, NormalizerWrapper, Replace, Sequence, Strip, replace::ReplacePattern,
};
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
    /// For CLIP's own: the file's normaliser, taken out since captions are cleaned before.
    replaced: Option<Option<NormalizerWrapper>>,
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

/// Words with the space before them, also before the first, so that a word has the same ids
/// wherever it stands.
fn pre_tokenizer() -> ByteLevel {
    ByteLevel::new(true, true, true)
}

impl Tokenizer {
    /// Learns at most `vocab_size` tokens (start and end included) from captions: a function of the
    /// captions as a set with counts, whatever their order.
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

    /// Reads a `tokenizer.json` that has start and end tokens named as CLIP names them, or CLIP's
    /// vocabulary file (`bpe_simple_vocab_16e6.txt.gz`, also unpacked).
    ///
    /// # Errors
    /// `Io` or `Tokenizer`, with the file's name.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
        let named = |e: String| failed(format!("{}: {e}", path.display()));
        let inner = if bytes.trim_ascii_start().starts_with(b"{") {
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| named(e.to_string()))?
        } else {
            vocabulary::parse(&bytes, path)?
        };
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
        let suffix = match inner.get_model() {
            ModelWrapper::BPE(model) => model.end_of_word_suffix.as_deref(),
            _ => None,
        };
        let mut replaced = None;
        if suffix == Some(vocabulary::END_OF_WORD) {
            replaced = Some(inner.get_normalizer().cloned());
            inner.with_normalizer(None::<NormalizerWrapper>).map_err(failed)?;
        }
        // Ids are cut and padded here.
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        Ok(Self { inner, replaced, start, end })
    }

    fn json(&self) -> Result<String> {
        let Some(normalizer) = &self.replaced else { return self.inner.to_string(true).map_err(failed) };
        let mut whole = self.inner.clone();
        whole.with_normalizer(normalizer.clone()).map_err(failed)?;
        whole.to_string(true).map_err(failed)
    }

    /// Writes a `tokenizer.json`, whole or not at all. The same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_whole(path, self.json()?.as_bytes())
    }

    /// `context` ids: start, the text, end, and 0 for the rest. A text that is too long is cut, and
    /// still ends in end.
    pub fn encode(&self, text: &str, context: usize) -> Vec<u32> {
        // The only failures are of the tokenizer's own truncation and padding, which are off.
        let text = if self.replaced.is_some() { Cow::Owned(clean::clean(text)) } else { Cow::Borrowed(text) };
        let encoding = self.inner.encode_fast(&*text, false);
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
        // Spelled out, a special token is text; unseen bytes have ids; every id is inside the
        // vocabulary.
        for text in ["a <|endoftext|> b", "日本 \u{1F600} \0", "ﬁ\u{301}"] {
            let ids = tokenizer.encode(text, 64);
            assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1, "{text}");
            assert!(ids.iter().all(|&id| id <= end) && ids[2] != 0);
        }
    }

    /// Captions with mojibake, references, emoji and CJK, whose ids open_clip's tokenizer gave
    /// (`tests/tokenizer/make_fixtures.py`), by the first 3,000 merges of CLIP's vocabulary.
    #[test]
    fn clips_own_ids_are_open_clips() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizer");
        let tokenizer = Tokenizer::load(&folder.join("merges.txt.gz")).unwrap();
        assert_eq!(tokenizer.vocab_size(), 512 + 3000 + 2);
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(&dir.path().join(TOKENIZER_FILE)).unwrap();
        let read = Tokenizer::load(&dir.path().join(TOKENIZER_FILE)).unwrap();
        assert_eq!(read.hash().unwrap(), tokenizer.hash().unwrap());
        let cases = std::fs::read_to_string(folder.join("hard_cases.jsonl")).unwrap();
        let mut seen = 0;
        for line in cases.lines() {
            let (caption, want): (String, Vec<u32>) = serde_json::from_str(line).unwrap();
            for tokenizer in [&tokenizer, &read] {
                // The word `!` has id 0, as padding has: without both, what is left is in order.
                let mut ids = tokenizer.encode(&caption, 77);
                ids.retain(|id| *id != 0);
                assert_eq!(ids, want, "{caption:?}");
            }
            seen += 1;
        }
        assert_eq!(seen, 400);
    }

    #[test]
    fn a_file_that_is_no_vocabulary_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words.txt.gz");
        for (bytes, word) in [
            (&b"\x1f\x8bnot gzip"[..], "neither"),
            (b"", "no merges"),
            (b"header\none two\nalone", "line 3 is not two tokens"),
            (b"header\nzzz yyy", "words.txt.gz"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Tokenizer::load(&path).err().unwrap().to_string();
            assert!(error.contains(word) && error.contains("words.txt.gz"), "{error}");
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
