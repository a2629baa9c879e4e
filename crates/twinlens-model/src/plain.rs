//! The model where the fused operations do not run: on a GPU, or in half precision.
//!
//! Towers and objectives are then those of [`crate::reference`], candle's own kernels. Weights stay
//! f32; features leave the towers in f32, and losses are computed in it.

use crate::clip::Clip;
use crate::config::VisionConfig;
use crate::error::Result;
use crate::objective::Objective;
use crate::reference::{self, Norms, Tensors};
use crate::towers::{Pass, resnet};
use candle_core::{D, Device, Tensor};

/// Logits held at a time, about.
const LOGITS: usize = 1 << 26;

impl Clip {
    /// Whether the plain operations run.
    pub(crate) fn is_plain(&self) -> bool {
        !self.device().is_cpu() || !self.precision().is_f32()
    }

    /// The variables on their way into half-precision operations.
    fn entering(&self, train: bool) -> Result<Tensors> {
        let enter = |(name, tensor): (String, Tensor)| {
            let tensor = if tensor.track_op() { self.precision().enter(&tensor)? } else { tensor };
            Ok((name, tensor))
        };
        self.tensors(train).into_iter().map(enter).collect()
    }

    /// Image features of any length, in f32.
    pub(crate) fn plain_image_features(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let mut tensors = self.entering(pass.trains())?;
        let pixels = pixels.to_device(self.device())?.to_dtype(self.precision().dtype())?;
        let mut found = Vec::new();
        let norms = if pass == Pass::Evaluate {
            tensors.extend(self.buffers().iter().map(|(name, v)| (name.clone(), v.as_detached_tensor())));
            Norms::Running
        } else {
            Norms::Batch(&mut found)
        };
        let features = reference::image_features(&tensors, self.config(), &pixels, norms)?;
        if let (VisionConfig::ResNet(config), true) = (&self.config().vision, pass.trains()) {
            resnet::move_running_by(config, self.buffers(), &found, pixels.dim(0)?)?;
        }
        Ok(self.precision().leave(&features)?)
    }

    /// Text features of any length, in f32.
    pub(crate) fn plain_text_features(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        let (tensors, ids) = (self.entering(train)?, ids.to_device(self.device())?);
        let features = reference::text_features(&tensors, self.config(), &ids, self.precision().dtype())?;
        Ok(self.precision().leave(&features)?)
    }

    /// The loss of objectives that predict words from image features.
    pub(crate) fn plain_words_loss(&self, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let ids = ids.to_device(self.device())?;
        if self.config().objective == Objective::BagOfWords {
            return Ok(reference::bag_of_words_loss(&self.tensors(true), image, &ids)?);
        }
        let logits = self.plain_caption_logits(image, &ids, true)?;
        Ok(reference::caption_loss_of(&logits, &ids)?)
    }

    fn plain_caption_logits(&self, image: &Tensor, ids: &Tensor, train: bool) -> Result<Tensor> {
        let image = self.precision().enter(image)?.to_dtype(self.precision().dtype())?;
        let logits = reference::caption_logits(&self.entering(train)?, self.config(), &image, ids)?;
        Ok(self.precision().leave(&logits)?)
    }

    /// The logits of words in images, `[images, vocabulary]`, in main memory.
    pub(crate) fn plain_words(&self, image: &Tensor) -> Result<Tensor> {
        let tensors = self.tensors(false);
        let [w, bias] = ["words.weight", "words.bias"].map(|name| reference::get(&tensors, name));
        Ok(reference::linear(&image.to_device(self.device())?, w?, bias?)?.to_device(&Device::Cpu)?)
    }

    /// The logarithm of the probability of each text (`ids`, `[texts, context]`) as a caption of
    /// one image (`[1, embed]`).
    pub(crate) fn plain_caption_scores(&self, image: &Tensor, ids: &Tensor) -> Result<Vec<f32>> {
        let (image, ids) = (image.to_device(self.device())?, ids.to_device(self.device())?);
        let ((texts, context), config) = (ids.dims2()?, self.config());
        let at_once = (LOGITS / (context * config.text.vocab)).max(1);
        let mut scores = Vec::with_capacity(texts);
        for first in (0..texts).step_by(at_once) {
            let ids = ids.narrow(0, first, at_once.min(texts - first))?.contiguous()?;
            let image = image.broadcast_as((ids.dim(0)?, config.embed))?.contiguous()?;
            let logits = self.plain_caption_logits(&image, &ids, false)?;
            let (targets, counted) = reference::next_words(&ids)?;
            let fits = logits.gather(&targets.unsqueeze(2)?, D::Minus1)?.squeeze(2)?;
            scores.extend((fits * counted)?.sum(1)?.to_vec1::<f32>()?);
        }
        Ok(scores)
    }
}
