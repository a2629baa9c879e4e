//! The model: two towers, an objective, and the way in and out of its own files.

use crate::compute::Precision;
use crate::config::{ClipConfig, VisionConfig};
use crate::error::{ModelError, Result};
use crate::objective::Objective;
use crate::ops::contrastive::contrastive_loss;
use crate::ops::cross_entropy::linear_cross_entropy;
use crate::ops::embed::Texts;
use crate::ops::sigmoid::sigmoid_loss;
use crate::ops::transformer::Pool;
use crate::ops::trunk::Buffers;
use crate::parts::Tower;
use crate::reference::{self, Tensors};
use crate::towers::{Pass, resnet, text, vit};
use crate::weights::{self, Variables};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeSet;
use std::path::Path;

/// The configuration's file in a model's folder.
pub const CONFIG_FILE: &str = "config.json";
/// The weights' file in a model's folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// A CLIP model, in main memory or on a GPU.
///
/// [`encode_image`](Self::encode_image), [`encode_text`](Self::encode_text) and
/// [`score`](Self::score) are for evaluation and build no graph; [`loss`](Self::loss) is for
/// training.
pub struct Clip {
    config: ClipConfig,
    variables: Variables,
    /// Running statistics of batch norms: moved by training passes, not by gradients.
    buffers: Variables,
    device: Device,
    precision: Precision,
    image_pool: Pool,
    image_buffers: Buffers,
    text_pool: Pool,
    /// Names of the variables that training leaves as they are.
    frozen: BTreeSet<String>,
}

impl Clip {
    /// A model with fresh weights: a function of configuration and seed.
    ///
    /// # Errors
    /// `Config` when no such model can be built.
    pub fn new(config: ClipConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let (variables, buffers) = (weights::fresh(&config, seed)?, weights::fresh_buffers(&config)?);
        Ok(Self::from_variables(config, variables, buffers))
    }

    pub(crate) fn from_variables(config: ClipConfig, variables: Variables, buffers: Variables) -> Self {
        Self {
            config,
            variables,
            buffers,
            device: Device::Cpu,
            precision: Precision::F32,
            image_pool: Pool::default(),
            image_buffers: Buffers::default(),
            text_pool: Pool::default(),
            frozen: BTreeSet::new(),
        }
    }

    /// A model of its own with the same values and settings.
    ///
    /// # Errors
    /// When a tensor cannot be copied.
    pub fn replica(&self) -> Result<Self> {
        let copy = |all: &Variables| -> Result<Variables> {
            let one = |(name, v): (&String, &Var)| {
                Ok((name.clone(), Var::from_tensor(&v.as_detached_tensor().copy()?)?))
            };
            all.iter().map(one).collect()
        };
        let mut replica =
            Self::from_variables(self.config.clone(), copy(&self.variables)?, copy(&self.buffers)?);
        (replica.device, replica.precision) = (self.device.clone(), self.precision);
        replica.frozen = self.frozen.clone();
        replica.set_recompute(self.image_pool.recomputes());
        Ok(replica)
    }

    /// Whether training keeps the input alone of each transformer block, and computes the rest
    /// again on the way back: one more forward pass of each block. A ResNet keeps its activations.
    pub fn set_recompute(&mut self, recompute: bool) {
        (self.image_pool, self.text_pool) = (Pool::new(recompute), Pool::new(recompute));
    }

    pub(crate) fn set_frozen(&mut self, frozen: BTreeSet<String>) {
        self.frozen = frozen;
    }

    /// Whether training leaves a variable as it is.
    pub fn is_frozen(&self, variable: &str) -> bool {
        self.frozen.contains(variable)
    }

    /// The same model on `device`, computing in `precision`: on a GPU, and in half precision
    /// anywhere, in plain operations that give the same but for rounding.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_device(self, device: &Device, precision: Precision) -> Result<Self> {
        let moved = |variables: Variables| -> Result<Variables> {
            let move_one = |(name, v): (String, Var)| {
                Ok((name, Var::from_tensor(&v.as_detached_tensor().to_device(device)?)?))
            };
            variables.into_iter().map(move_one).collect()
        };
        let (variables, buffers) = (moved(self.variables)?, moved(self.buffers)?);
        Ok(Self { variables, buffers, device: device.clone(), precision, ..self })
    }

    /// Where the variables lie and losses are computed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What matrix products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Writes `config.json` and `model.safetensors` into `dir`, each whole or not at all.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let json =
            serde_json::to_string_pretty(&self.config).map_err(|e| ModelError::Config(e.to_string()))?;
        weights::write_atomically(&dir.join(CONFIG_FILE), format!("{json}\n").as_bytes())?;
        weights::write_atomically(&dir.join(WEIGHTS_FILE), &weights::to_bytes(&self.state(), None)?)
    }

    /// The model's shape.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The trainable variables, in the order of their names.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// What a model holds besides its variables, in the order of names: the running statistics of a
    /// ResNet's batch norms. A checkpoint that leaves them out loses them.
    pub fn buffers(&self) -> &Variables {
        &self.buffers
    }

    /// Variables and buffers by name, without a graph.
    pub fn state(&self) -> Tensors {
        let all = self.variables.iter().chain(&self.buffers);
        all.map(|(name, v)| (name.clone(), v.as_detached_tensor())).collect()
    }

    /// Sets all variables and buffers, by name.
    ///
    /// # Errors
    /// When one is missing or of another shape.
    pub fn set_state(&self, state: &Tensors) -> Result<()> {
        let mut all = self.variables.iter().chain(&self.buffers);
        all.try_for_each(|(name, v)| Ok(v.set(&reference::get(state, name)?.to_device(&self.device)?)?))
    }

    /// The logarithm of the factor on the similarities; 0 where the objective has none.
    pub fn logit_scale(&self) -> f32 {
        self.variable("logit_scale").and_then(|v| Ok(v.to_scalar::<f32>()?)).unwrap_or(0.0)
    }

    /// Puts `logit_scale`, where there is one, back into `[0, ln 100]`: to be called after each
    /// step, as the paper does.
    ///
    /// # Errors
    /// When the tensor cannot be written.
    pub fn clamp_logit_scale(&self) -> Result<()> {
        let Some(variable) = self.variables.get("logit_scale") else { return Ok(()) };
        let clamped = variable.to_scalar::<f32>()?.clamp(0.0, 100f32.ln());
        Ok(variable.set(&Tensor::new(clamped, variable.device())?)?)
    }

    /// SHA-256 of names, shapes and values of variables and buffers, in hexadecimal.
    #[expect(clippy::expect_used, reason = "variables are f32 in main memory by construction")]
    pub fn weights_hash(&self) -> String {
        weights::hash(self.variables.iter().chain(&self.buffers)).expect("variables can be read")
    }

    pub(crate) fn variable(&self, name: &str) -> Result<&Var> {
        let missing = || candle_core::Error::msg(format!("no variable is called {name}"));
        Ok(self.variables.get(name).ok_or_else(missing)?)
    }

    /// The variables as tensors: in training attached to the graph, in evaluation, and where they
    /// are frozen, not.
    pub(crate) fn tensors(&self, train: bool) -> Tensors {
        let attached = |name: &str| train && !self.is_frozen(name);
        let tensor =
            |name, v: &Var| if attached(name) { v.as_tensor().clone() } else { v.as_detached_tensor() };
        self.variables.iter().map(|(name, v)| (name.clone(), tensor(name, v))).collect()
    }

    /// A scalar for a loss: a constant where it is frozen.
    fn scalar(&self, name: &str) -> Result<Tensor> {
        let variable = self.variable(name)?;
        Ok(if self.is_frozen(name) { variable.as_detached_tensor() } else { variable.as_tensor().clone() })
    }

    /// The pass that a tower makes: one that is frozen is only evaluated.
    fn pass_of(&self, tower: Tower, pass: Pass) -> Pass {
        if pass != Pass::Evaluate && self.is_tower_frozen(tower) { Pass::Evaluate } else { pass }
    }

    /// Features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`, f32, normalised by
    /// channel): of unit length where the objective embeds texts too. In main memory, wherever the
    /// model is. Builds no graph.
    ///
    /// # Errors
    /// `Input` when shape or type do not fit the configuration.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.image_features(pixels, Pass::Evaluate)?.to_device(&Device::Cpu)?)
    }

    /// Unit-length features `[batch, embed]` of token `ids` (`[batch, up to context]`, u32), read
    /// at each text's highest id: its end token. In main memory, wherever the model is. Builds no
    /// graph.
    ///
    /// # Errors
    /// `Input` when shape, type or an id do not fit the configuration, or the objective embeds no
    /// texts.
    pub fn encode_text(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.text_features(ids, Pass::Evaluate)?.to_device(&Device::Cpu)?)
    }

    /// The loss of a batch of pairs, with its graph: a scalar on which `backward` may be called
    /// once.
    ///
    /// # Errors
    /// `Input` when shapes or types do not fit.
    pub fn loss(&self, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let image = self.image_features(pixels, Pass::Train)?;
        if self.config.objective.embeds_texts() {
            return self.loss_of_features(&image, &self.text_features(ids, Pass::Train)?);
        }
        let (texts, tensors) = (self.texts(ids)?, self.tensors(true));
        if self.is_plain() {
            return self.plain_words_loss(&image, ids);
        }
        if self.config.objective == Objective::BagOfWords {
            let [w, bias] = ["words.weight", "words.bias"].map(|name| reference::get(&tensors, name));
            return Ok(linear_cross_entropy(&image, w?, bias?, texts.bags(), true)?);
        }
        let (t, activation) = (&self.config.text, self.config.activation);
        let (x, targets) = text::next_tokens(t, activation, &tensors, &image, &texts, &self.text_pool, true)?;
        let bias = Tensor::zeros(t.vocab, DType::F32, image.device())?;
        let targets = targets.into_iter().map(|target| vec![target]).collect();
        Ok(linear_cross_entropy(
            &x,
            reference::get(&tensors, "token_embedding.weight")?,
            &bias,
            targets,
            true,
        )?)
    }

    /// The loss of features (`[n, embed]`, row i of each a pair) that
    /// [`image_features`](Self::image_features) and [`text_features`](Self::text_features) left, or
    /// of variables with their values.
    ///
    /// # Errors
    /// `Input` when the objective embeds no texts.
    pub fn loss_of_features(&self, image: &Tensor, text: &Tensor) -> Result<Tensor> {
        let tensors = self.tensors(true);
        let get = |name: &str| reference::get(&tensors, name);
        if self.is_plain() {
            let (image, text) = (image.to_device(&self.device)?, text.to_device(&self.device)?);
            return match self.config.objective {
                Objective::Contrastive => {
                    Ok(reference::contrastive_loss(&image, &text, get("logit_scale")?)?)
                }
                Objective::Sigmoid => {
                    Ok(reference::sigmoid_loss(&image, &text, get("logit_scale")?, get("logit_bias")?)?)
                }
                other => Err(no_text_features(other)),
            };
        }
        match self.config.objective {
            Objective::Contrastive => Ok(contrastive_loss(image, text, &self.scalar("logit_scale")?)?),
            Objective::Sigmoid => {
                let (scale, bias) = (self.scalar("logit_scale")?, self.scalar("logit_bias")?);
                Ok(sigmoid_loss(image, text, &scale, &bias)?)
            }
            other => Err(no_text_features(other)),
        }
    }

    /// Image features as [`encode_image`](Self::encode_image) leaves them, for any pass.
    ///
    /// # Errors
    /// `Input` when shape or type do not fit the configuration.
    pub fn image_features(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let size = self.config.vision.image_size();
        let fits = matches!(pixels.dims(), [n, 3, h, w] if *n > 0 && (*h, *w) == (size, size));
        if !fits || pixels.dtype() != DType::F32 {
            let expected = format!("[batch, 3, {size}, {size}] of f32");
            return Err(ModelError::Input { what: "pixels", expected, got: describe(pixels) });
        }
        let pass = self.pass_of(Tower::Image, pass);
        let (tensors, train) = (self.tensors(pass.trains()), pass.trains());
        let features = match &self.config.vision {
            _ if self.is_plain() => self.plain_image_features(pixels, pass)?,
            VisionConfig::Vit(v) => {
                vit::features(v, self.config.activation, &tensors, pixels, &self.image_pool, train)?
            }
            VisionConfig::ResNet(r) => {
                resnet::features(r, &tensors, &self.buffers, pixels, &self.image_buffers, pass)?
            }
        };
        if self.config.objective.embeds_texts() { Ok(reference::normalise(&features)?) } else { Ok(features) }
    }

    /// Text features as [`encode_text`](Self::encode_text) leaves them, for any pass.
    ///
    /// # Errors
    /// As [`encode_text`](Self::encode_text).
    pub fn text_features(&self, ids: &Tensor, pass: Pass) -> Result<Tensor> {
        if !self.config.objective.embeds_texts() {
            return Err(no_text_features(self.config.objective));
        }
        let pass = self.pass_of(Tower::Text, pass);
        let texts = self.texts(ids)?;
        let features = if self.is_plain() {
            self.plain_text_features(ids, pass.trains())?
        } else {
            let (t, tensors) = (&self.config.text, self.tensors(pass.trains()));
            let activation = self.config.activation;
            text::features(t, activation, &tensors, texts, &self.text_pool, pass.trains())?
        };
        Ok(reference::normalise(&features)?)
    }

    /// Checked token ids, each text up to its end.
    pub(crate) fn texts(&self, ids: &Tensor) -> Result<Texts> {
        let t = &self.config.text;
        let fits = matches!(ids.dims(), [n, len] if *n > 0 && (1..=t.context).contains(len));
        if !fits || ids.dtype() != DType::U32 {
            let expected = format!("[batch, up to {}] of u32", t.context);
            return Err(ModelError::Input { what: "token ids", expected, got: describe(ids) });
        }
        let texts = text::until_end(&ids.to_vec2::<u32>()?);
        if let Some(id) = texts.ids.iter().find(|&&id| id as usize >= t.vocab) {
            let expected = format!("ids below {} (is this the model's own tokenizer?)", t.vocab);
            return Err(ModelError::Input { what: "token ids", expected, got: id.to_string() });
        }
        Ok(texts)
    }

    pub(crate) fn text_pool(&self) -> &Pool {
        &self.text_pool
    }
}

pub(crate) fn no_text_features(objective: Objective) -> ModelError {
    ModelError::Input {
        what: "texts",
        expected: "a model whose objective is contrastive or sigmoid (others give scores, not features)"
            .into(),
        got: format!("the objective {objective:?}"),
    }
}

pub(crate) fn describe(tensor: &Tensor) -> String {
    format!("{:?} of {}", tensor.dims(), tensor.dtype().as_str())
}
