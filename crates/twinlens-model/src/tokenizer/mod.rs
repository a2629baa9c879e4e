//! Text to token ids: lower-cased byte-level BPE, in the format of a Hugging Face `tokenizer.json`
//! or of CLIP's vocabulary file.
//!
//! Any text can be encoded, since the vocabulary holds all 256 bytes. As in CLIP, start and end
//! token have the two highest ids, the end token the highest: the model reads a text at its highest
//! id.
//!
//! A vocabulary whose words end in `</w>` is CLIP's, whatever its file format, and uses CLIP's
//! cleaning ([`twinlens_text::clean_caption`]) instead of the file's normaliser. Ids then equal
//! open_clip's, except for a caption that spells out a special token: it stays text here and would
//! end the caption there.

mod foreign;
mod special;
mod vocabulary;

use crate::error::{ModelError, Result};
use crate::files::write_atomically;
use sha2::{Digest, Sha256};
use special::{END, START, tokenizer_error};
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

/// Smallest vocabulary: all bytes, start and end.
const MIN_VOCAB: usize = 258;

/// A trained tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// For CLIP's vocabulary: the file's normaliser, which cleaning replaces.
    replaced_normalizer: Option<Option<NormalizerWrapper>>,
    start: u32,
    end: u32,
}

fn normalizer() -> Result<Sequence> {
    // Collapses white space, as CLIP does: captions come from HTML.
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(tokenizer_error)?;
    Ok(Sequence::new(vec![NFC.into(), white_space.into(), Strip::new(true, true).into(), Lowercase.into()]))
}

/// Words keep the space before them, and the first word gets one, so that a word has the same ids
/// anywhere in a text.
fn pre_tokenizer() -> ByteLevel {
    ByteLevel::new(true, true, true)
}

impl Tokenizer {
    /// Learns at most `vocab_size` tokens (start and end included) from captions. The order of the
    /// captions has no effect.
    ///
    /// # Errors
    /// `Tokenizer` if `vocab_size` is below 258, which all bytes, start and end need.
    pub fn train(captions: impl Iterator<Item = String>, vocab_size: usize) -> Result<Self> {
        if vocab_size < MIN_VOCAB {
            return Err(tokenizer_error(format!(
                "vocab_size is {vocab_size}; it must be at least {MIN_VOCAB}: all bytes, start and end"
            )));
        }
        let (normalizer, pre_tokenizer) = (normalizer()?, pre_tokenizer());
        let mut words = BTreeMap::<String, usize>::new();
        for caption in captions {
            let mut text = NormalizedString::from(caption);
            normalizer.normalize(&mut text).map_err(tokenizer_error)?;
            let mut parts = PreTokenizedString::from(text);
            pre_tokenizer.pre_tokenize(&mut parts).map_err(tokenizer_error)?;
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
        trainer.feed(repeated, |word| Ok(vec![word.to_owned()])).map_err(tokenizer_error)?;
        let mut model = BPE::default();
        trainer.train(&mut model).map_err(tokenizer_error)?;

        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(normalizer)).map_err(tokenizer_error)?;
        inner.with_pre_tokenizer(Some(pre_tokenizer));
        inner.with_decoder(Some(pre_tokenizer));
        let special = [START, END].map(|token| AddedToken::from(token, true).normalized(false));
        inner.add_special_tokens(special).map_err(tokenizer_error)?;
        Self::new(inner)
    }

    /// Reads a `tokenizer.json` with CLIP's start and end tokens, or CLIP's vocabulary file
    /// (`bpe_simple_vocab_16e6.txt.gz`, or uncompressed).
    ///
    /// # Errors
    /// `Io` or `Tokenizer`, with the path.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
        let with_path = |e: String| tokenizer_error(format!("{}: {e}", path.display()));
        let inner = if bytes.trim_ascii_start().starts_with(b"{") {
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| with_path(e.to_string()))?
        } else {
            vocabulary::parse(&bytes, path)?
        };
        Self::new(inner).map_err(|e| with_path(e.to_string()))
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        // A caption that spells out a special token must not become one.
        inner.set_encode_special_tokens(true);
        let id = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| tokenizer_error(format!("token {token} is missing")))
        };
        let (start, end) = (id(START)?, id(END)?);
        let size = inner.get_vocab_size(true);
        if end as usize + 1 != size {
            return Err(tokenizer_error(format!(
                "{END} has id {end}, but must have the highest id of {size} tokens: the model reads a text there"
            )));
        }
        let suffix = match inner.get_model() {
            ModelWrapper::BPE(model) => model.end_of_word_suffix.as_deref(),
            _ => None,
        };
        let mut replaced_normalizer = None;
        if suffix == Some(vocabulary::END_OF_WORD) {
            replaced_normalizer = Some(inner.get_normalizer().cloned());
            inner.with_normalizer(None::<NormalizerWrapper>).map_err(tokenizer_error)?;
        }
        // `encode` truncates and pads.
        inner.with_truncation(None).map_err(tokenizer_error)?;
        inner.with_padding(None);
        Ok(Self { inner, replaced_normalizer, start, end })
    }

    fn json(&self) -> Result<String> {
        let mut file = self.inner.clone();
        if let Some(normalizer) = &self.replaced_normalizer {
            file.with_normalizer(normalizer.clone()).map_err(tokenizer_error)?;
        }
        file.to_string(true).map_err(tokenizer_error)
    }

    /// Writes a `tokenizer.json` atomically. The same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.json()?.as_bytes())
    }

    /// Encodes a text as `context` ids: start, the text, end, then zeros. A longer text is
    /// truncated before the end token.
    pub fn encode(&self, text: &str, context: usize) -> Vec<u32> {
        let text = self.ids(text);
        let mut ids = Vec::with_capacity(context);
        ids.push(self.start);
        ids.extend_from_slice(&text[..text.len().min(context.saturating_sub(2))]);
        ids.push(self.end);
        ids.resize(context, 0);
        ids
    }

    /// The number of tokens of a text, with the start and the end token: those that exceed a
    /// model's context are truncated.
    pub fn count(&self, text: &str) -> usize {
        self.ids(text).len() + 2
    }

    /// The tokens of a text alone.
    fn ids(&self, text: &str) -> Vec<u32> {
        let text = if self.replaced_normalizer.is_some() {
            Cow::Owned(twinlens_text::clean_caption(text))
        } else {
            Cow::Borrowed(text)
        };
        // Fails only in the library's truncation and padding, which are off.
        let encoding = self.inner.encode_fast(&*text, false);
        encoding.map_or(Vec::new(), |encoding| encoding.get_ids().to_vec())
    }

    /// The number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Every token with its id, ordered by id.
    pub fn tokens(&self) -> Vec<(u32, String)> {
        let mut tokens: Vec<_> =
            self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort();
        tokens
    }

    /// SHA-256 of the file that [`save`](Self::save) writes, in hexadecimal.
    ///
    /// # Errors
    /// `Tokenizer` if it cannot be serialised.
    pub fn hash(&self) -> Result<String> {
        Ok(hex::encode(Sha256::digest(self.json()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::TOKENIZER_FILE;

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
    fn training_does_not_depend_on_the_order_of_captions() {
        let forward = Tokenizer::train(captions(), 400).unwrap();
        let backward = Tokenizer::train(captions().rev(), 400).unwrap();
        assert_eq!(forward.hash().unwrap(), backward.hash().unwrap());
        assert!(forward.vocab_size() > 258 && forward.vocab_size() <= 400);
        assert!(Tokenizer::train(captions(), 257).is_err());
    }

    #[test]
    fn ids_are_delimited_padded_and_truncated() {
        let tokenizer = Tokenizer::train(captions(), 400).unwrap();
        let (start, end) = (tokenizer.vocab_size() as u32 - 2, tokenizer.vocab_size() as u32 - 1);
        let ids = tokenizer.encode("grinning face", 8);
        assert_eq!(ids.len(), 8);
        assert_eq!((ids[0], ids[ids.iter().position(|&i| i == 0).unwrap() - 1]), (start, end));
        assert_eq!(tokenizer.encode("  GRINNING\n face ", 8), ids);
        assert_eq!(tokenizer.encode("", 4), [start, end, 0, 0]);
        let long = tokenizer.encode(&"face ".repeat(50), 8);
        assert_eq!((long[0], long[7]), (start, end));
        // A spelled-out special token is text; unseen bytes have ids; every id is in the
        // vocabulary.
        for text in ["a <|endoftext|> b", "日本 \u{1F600} \0", "ﬁ\u{301}"] {
            let ids = tokenizer.encode(text, 64);
            assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1, "{text}");
            assert!(ids.iter().all(|&id| id <= end) && ids[2] != 0);
        }
    }

    /// Captions with mojibake, entities, emoji and CJK; expected ids are from open_clip's tokenizer
    /// (`tests/tokenizer/make_fixtures.py`) with the first 3,000 merges of CLIP's vocabulary.
    #[test]
    fn clip_vocabulary_gives_open_clips_ids() {
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
                // The word `!` has id 0, like padding: compare without both.
                let mut ids = tokenizer.encode(&caption, 77);
                ids.retain(|id| *id != 0);
                assert_eq!(ids, want, "{caption:?}");
            }
            seen += 1;
        }
        assert_eq!(seen, 400);
    }

    #[test]
    fn errors_of_vocabulary_files_name_the_file() {
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
    fn a_saved_tokenizer_encodes_the_same() {
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
