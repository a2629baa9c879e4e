//! Forward passes: features, losses and scores.

use crate::clip::Clip;
use crate::error::{ModelError, Result};
use crate::objectives::kind::{Family, PairObjective, WordContext};
use crate::ops::device::DeviceOptions;
use crate::ops::embed::Texts;
use crate::ops::reference::{self, Norms, Tensors};
use crate::towers::Tower;
use crate::towers::image::{DeviceContext, ImageTower, Pass, TowerContext};
use crate::towers::text::TextTower;
use candle_core::{DType, Device, Tensor};

impl Clip {
    /// Whether the model computes in the operations for any device and float type instead of those
    /// that are for f32 on the CPU.
    fn uses_reference(&self) -> bool {
        !self.device().is_cpu() || !self.precision().is_f32()
    }

    fn device_options(&self) -> DeviceOptions {
        DeviceOptions { kernels: self.kernels(), recompute: self.text_pool.recomputes() }
    }

    /// The pass that a tower runs: a frozen one is only evaluated.
    fn pass_of(&self, tower: Tower, pass: Pass) -> Pass {
        if pass != Pass::Evaluate && self.is_tower_frozen(tower) { Pass::Evaluate } else { pass }
    }

    fn text_tower<'a>(&'a self, tensors: &'a Tensors) -> TextTower<'a> {
        let activation = self.config().activation;
        let device = self.uses_reference().then(|| self.device_options());
        TextTower { config: &self.config().text, activation, tensors, pool: &self.text_pool, device }
    }

    fn word_context<'a>(&'a self, tensors: &'a Tensors) -> WordContext<'a> {
        let text = self.text_tower(tensors);
        WordContext { text, embed: self.config().embed, precision: self.precision() }
    }

    /// Features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`, f32, normalised by
    /// channel), of unit length if the objective embeds texts too. In main memory, wherever the
    /// model is. Builds no graph.
    ///
    /// # Errors
    /// `Input` if shape or type do not match the configuration.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.image_features(pixels, Pass::Evaluate)?.to_device(&Device::Cpu)?)
    }

    /// Unit-length features `[batch, embed]` of token `ids` (`[batch, up to context]`, u32), read
    /// at each text's highest id: its end token. In main memory, wherever the model is. Builds no
    /// graph.
    ///
    /// # Errors
    /// `Input` if shape, type or an id do not match the configuration, or the objective embeds no
    /// texts.
    pub fn encode_text(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.text_features(ids, Pass::Evaluate)?.to_device(&Device::Cpu)?)
    }

    /// The scalar loss of a batch of pairs, with its graph, on which `backward` may be called once.
    ///
    /// # Errors
    /// `Input` if shapes or types do not match.
    pub fn loss(&self, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let image = self.image_features(pixels, Pass::Train)?;
        match self.config().objective.kind().family() {
            Family::Pairs(_) => self.loss_of_features(&image, &self.text_features(ids, Pass::Train)?),
            Family::Words(objective) => {
                let (texts, tensors) = (self.texts(ids)?, self.tensors(true));
                let cx = self.word_context(&tensors);
                if self.uses_reference() {
                    return Ok(objective.reference_loss(&cx, &image, &ids.to_device(self.device())?)?);
                }
                Ok(objective.loss(&cx, &image, &texts)?)
            }
        }
    }

    /// The loss of features (`[n, embed]`, row i of each a pair) from
    /// [`image_features`](Self::image_features) and [`text_features`](Self::text_features), or of
    /// variables with their values.
    ///
    /// # Errors
    /// `Input` if the objective embeds no texts.
    pub fn loss_of_features(&self, image: &Tensor, text: &Tensor) -> Result<Tensor> {
        let (objective, tensors) = (self.pair_objective()?, self.tensors(true));
        if self.uses_reference() {
            let (image, text) = (image.to_device(self.device())?, text.to_device(self.device())?);
            return Ok(objective.device_loss(&image, &text, &tensors, self.device_options())?);
        }
        Ok(objective.loss(image, text, &tensors)?)
    }

    pub(crate) fn pair_objective(&self) -> Result<&'static dyn PairObjective> {
        match self.config().objective.kind().family() {
            Family::Pairs(objective) => Ok(objective),
            Family::Words(_) => Err(ModelError::Input {
                what: "texts",
                expected: "an objective that embeds texts (others give scores, not features)".into(),
                got: format!("the objective {}", self.config().objective.name()),
            }),
        }
    }

    /// Image features as from [`encode_image`](Self::encode_image), for any pass.
    ///
    /// # Errors
    /// `Input` if shape or type do not match the configuration.
    pub fn image_features(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let (size, tower) = (self.config().vision.image_size(), self.config().vision.tower());
        let fits = matches!(pixels.dims(), [n, 3, h, w] if *n > 0 && (*h, *w) == (size, size));
        if !fits || pixels.dtype() != DType::F32 {
            let expected = format!("[batch, 3, {size}, {size}] of f32");
            return Err(ModelError::Input { what: "pixels", expected, got: describe(pixels) });
        }
        let pass = self.pass_of(Tower::Image, pass);
        let (tensors, activation) = (self.tensors(pass.trains()), self.config().activation);
        let features = if self.uses_reference() {
            self.reference_image_features(tower, tensors, pixels, pass)?
        } else {
            let (tensors, running, memory) = (&tensors, self.buffers(), &self.image_memory);
            tower.features(&TowerContext { activation, tensors, running, memory, pass }, pixels)?
        };
        if self.config().objective.embeds_texts() {
            Ok(reference::normalise(&features)?)
        } else {
            Ok(features)
        }
    }

    /// Image features of any length, in f32, in basic operations.
    fn reference_image_features(
        &self,
        tower: &dyn ImageTower,
        tensors: Tensors,
        pixels: &Tensor,
        pass: Pass,
    ) -> Result<Tensor> {
        let mut tensors = self.precision().enter_all(&tensors)?;
        let pixels = pixels.to_device(self.device())?.to_dtype(self.precision().dtype())?;
        let mut statistics = Vec::new();
        let norms = if pass == Pass::Evaluate {
            tensors.extend(self.buffers().iter().map(|(name, v)| (name.clone(), v.as_detached_tensor())));
            Norms::Running
        } else {
            Norms::Batch(&mut statistics)
        };
        let activation = self.config().activation;
        let cx = DeviceContext { activation, tensors: &tensors, options: self.device_options() };
        let features = match tower.device_features(&cx, &pixels)? {
            Some(features) => features,
            None => tower.reference_features(&tensors, activation, &pixels, norms)?,
        };
        if pass.trains() {
            tower.update_running(self.buffers(), &statistics, pixels.dim(0)?)?;
        }
        Ok(self.precision().leave(&features)?)
    }

    /// Text features as from [`encode_text`](Self::encode_text), for any pass.
    ///
    /// # Errors
    /// As [`encode_text`](Self::encode_text).
    pub fn text_features(&self, ids: &Tensor, pass: Pass) -> Result<Tensor> {
        self.pair_objective()?;
        let train = self.pass_of(Tower::Text, pass).trains();
        let (texts, tensors) = (self.texts(ids)?, self.tensors(train));
        let features = if self.uses_reference() {
            let (tensors, ids) = (self.precision().enter_all(&tensors)?, ids.to_device(self.device())?);
            let features = self.text_tower(&tensors).reference_features(&ids, self.precision().dtype())?;
            self.precision().leave(&features)?
        } else {
            self.text_tower(&tensors).features(texts, train)?
        };
        Ok(reference::normalise(&features)?)
    }

    /// Scores of every text (`ids`, `[texts, up to context]`, u32) for every image, given its
    /// features (`[images, embed]`, from [`encode_image`](Self::encode_image)): `[images, texts]`.
    /// Higher is better; only scores of the same image are comparable.
    ///
    /// Contrastive and sigmoid: the scaled similarity. Bag of words: the mean log probability of
    /// the words. Caption: the log probability of the caption.
    ///
    /// # Errors
    /// `Input` if a shape or an id does not match the configuration.
    pub fn score(&self, image_features: &Tensor, ids: &Tensor) -> Result<Tensor> {
        if image_features.rank() != 2 || image_features.dims()[1] != self.config().embed {
            return Err(ModelError::Input {
                what: "image features",
                expected: format!("[images, {}] of f32", self.config().embed),
                got: describe(image_features),
            });
        }
        let Family::Words(objective) = self.config().objective.kind().family() else {
            let similarity = image_features.matmul(&self.encode_text(ids)?.t()?)?;
            let bias = match self.variables().get("logit_bias") {
                Some(bias) => f64::from(bias.to_scalar::<f32>()?),
                None => 0.0,
            };
            return Ok(similarity.affine(f64::from(self.logit_scale().exp()), bias)?);
        };
        let (texts, tensors) = (self.texts(ids)?, self.tensors(false));
        let cx = self.word_context(&tensors);
        let scores = if self.uses_reference() {
            let (image, ids) = (image_features.to_device(self.device())?, ids.to_device(self.device())?);
            objective.reference_score(&cx, &image, &ids, &texts)?
        } else {
            objective.score(&cx, image_features, &texts)?
        };
        let shape = (image_features.dim(0)?, texts.lens.len());
        Ok(Tensor::from_vec(scores, shape, image_features.device())?)
    }

    /// Checks token ids and cuts each text after its end.
    pub(crate) fn texts(&self, ids: &Tensor) -> Result<Texts> {
        let t = &self.config().text;
        let fits = matches!(ids.dims(), [n, len] if *n > 0 && (1..=t.context).contains(len));
        if !fits || ids.dtype() != DType::U32 {
            let expected = format!("[batch, up to {}] of u32", t.context);
            return Err(ModelError::Input { what: "token ids", expected, got: describe(ids) });
        }
        let texts = Texts::until_end(&ids.to_vec2::<u32>()?);
        if let Some(id) = texts.ids.iter().find(|&&id| id as usize >= t.vocab) {
            let expected = format!("ids below {} (is this the model's own tokenizer?)", t.vocab);
            return Err(ModelError::Input { what: "token ids", expected, got: id.to_string() });
        }
        Ok(texts)
    }
}

fn describe(tensor: &Tensor) -> String {
    format!("{:?} of {}", tensor.dims(), tensor.dtype().as_str())
}
