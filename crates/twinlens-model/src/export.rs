//! Models for other programs: weights, configuration, tokenizer and preprocessing in one directory.

use crate::clip::Clip;
use crate::error::Result;
use crate::tokenizer::Tokenizer;
use crate::weights::foreign;
use serde::Serialize;
use std::path::Path;

/// The program that reads an exported model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForeignFormat {
    /// transformers: `CLIPModel` and `CLIPProcessor`.
    HuggingFace,
    /// open_clip: `local-dir:DIR`.
    OpenClip,
}

/// Writes a model so that another program loads it as it is, with its tokenizer and preprocessing.
///
/// There, captions are cleaned in another way: transformers repairs no mojibake and resolves no
/// HTML entities, and open_clip does both even for a tokenizer of one's own.
///
/// # Errors
/// `Format` if the program has no such model; `Io`.
pub fn export(clip: &Clip, tokenizer: &Tokenizer, dir: &Path, to: ForeignFormat) -> Result<()> {
    match to {
        ForeignFormat::HuggingFace => clip.export_hugging_face(dir)?,
        ForeignFormat::OpenClip => {
            let has_own_tokenizer = !tokenizer.is_clips();
            let (config, preprocess) = (clip.config(), clip.preprocess());
            foreign::export_open_clip(dir, config, preprocess, clip.state(), has_own_tokenizer)?;
        }
    }
    tokenizer.export(dir, clip.config().text.context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClipConfig;
    use crate::files::TOKENIZER_FILE;
    use crate::ops::activation::Activation;

    const CAPTIONS: [&str; 3] = ["a photo of a dog!!", " Café\t au  lait", "<|endoftext|> as text"];

    fn model() -> (Clip, Tokenizer) {
        let captions = ["a photo of a cat", "a photo of a dog"].into_iter().cycle().take(20);
        let tokenizer = Tokenizer::train(captions.map(String::from), 300).unwrap();
        let mut config = ClipConfig::preset("vit-tiny-48").unwrap();
        (config.text.vocab, config.activation) = (tokenizer.vocab_size(), Activation::Gelu);
        (Clip::new(config, 3).unwrap(), tokenizer)
    }

    #[test]
    fn what_is_exported_is_read_back() {
        let (clip, tokenizer) = model();
        for to in [ForeignFormat::HuggingFace, ForeignFormat::OpenClip] {
            let dir = tempfile::tempdir().unwrap();
            export(&clip, &tokenizer, dir.path(), to).unwrap();
            let read = Clip::load(dir.path()).unwrap();
            assert_eq!((read.config(), read.weights_hash()), (clip.config(), clip.weights_hash()), "{to:?}");
            let words = Tokenizer::load(&dir.path().join(TOKENIZER_FILE)).unwrap();
            for caption in CAPTIONS {
                assert_eq!(words.encode(caption, 20), tokenizer.encode(caption, 20), "{to:?}: {caption}");
            }
        }
    }

    /// transformers adds no token by itself: the file says which.
    #[test]
    fn the_exported_tokenizer_adds_start_and_end() {
        let (clip, tokenizer) = model();
        let dir = tempfile::tempdir().unwrap();
        export(&clip, &tokenizer, dir.path(), ForeignFormat::HuggingFace).unwrap();
        let theirs = tokenizers::Tokenizer::from_file(dir.path().join(TOKENIZER_FILE)).unwrap();
        for caption in &CAPTIONS[..2] {
            let ids = theirs.encode(*caption, true).unwrap().get_ids().to_vec();
            let len = ids.len();
            assert_eq!(ids, tokenizer.encode(caption, 40)[..len], "{caption}");
            assert_eq!(ids[len - 1] as usize + 1, tokenizer.vocab_size());
        }
        let text = std::fs::read_to_string(dir.path().join("tokenizer_config.json")).unwrap();
        assert!(text.contains("\"PreTrainedTokenizerFast\"") && text.contains("<|startoftext|>"), "{text}");
    }
}
