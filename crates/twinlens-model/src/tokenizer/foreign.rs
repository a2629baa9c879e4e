//! Tokenizers for transformers, which open_clip uses too.

use super::Tokenizer;
use super::special::{END, START, tokenizer_error};
use crate::error::Result;
use crate::files::{TOKENIZER_FILE, write_atomically};
use serde_json::json;
use std::path::Path;
use tokenizers::processors::template::TemplateProcessing;

/// Which class reads a tokenizer, and its settings.
const CONFIG_FILE: &str = "tokenizer_config.json";
/// Tokens of CLIP's vocabulary.
const CLIP_VOCAB: usize = 49_408;

impl Tokenizer {
    /// Whether it is CLIP's own tokenizer, which open_clip has built in.
    pub(crate) fn is_clips(&self) -> bool {
        self.replaced_normalizer.is_some() && self.vocab_size() == CLIP_VOCAB
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, from which transformers makes the same
    /// ids: start, text, end, and end again up to the length of a batch.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub(crate) fn export(&self, dir: &Path, context: usize) -> Result<()> {
        let mut theirs = self.clone();
        let template = TemplateProcessing::builder()
            .try_single(format!("{START} $A {END}"))
            .map_err(tokenizer_error)?
            .special_tokens(vec![(START, self.start), (END, self.end)])
            .build()
            .map_err(tokenizer_error)?;
        theirs.inner.with_post_processor(Some(template));
        theirs.save(&dir.join(TOKENIZER_FILE))?;
        // CLIPTokenizer is made for words that end in `</w>`, and rebuilds the rest itself.
        let is_clips_kind = self.replaced_normalizer.is_some();
        let class = if is_clips_kind { "CLIPTokenizer" } else { "PreTrainedTokenizerFast" };
        let config = json!({
            "tokenizer_class": class, "model_max_length": context, "clean_up_tokenization_spaces": false,
            "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
        });
        write_atomically(&dir.join(CONFIG_FILE), format!("{config:#}\n").as_bytes())
    }
}
