//! The model: two towers, a learned temperature, and the way in and out of files.

use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::ops::block::{BlockShape, PARAMETERS};
use crate::ops::contrastive::contrastive_loss;
use crate::ops::embed::{PatchShape, Texts, patch_embed, text_embed};
use crate::ops::transformer::{Pool, Sequences, transformer};
use crate::reference::{self, Tensors};
use crate::weights::{self, Variables};
use candle_core::{DType, Tensor, Var};
use std::path::Path;

/// The configuration's file in a model's folder.
pub const CONFIG_FILE: &str = "config.json";
/// The weights' file in a model's folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// A CLIP model in main memory.
///
/// [`encode_image`](Self::encode_image) and [`encode_text`](Self::encode_text) are for evaluation and build no graph;
/// [`loss`](Self::loss) is for training.
pub struct Clip {
    config: ClipConfig,
    variables: Variables,
    image_pool: Pool,
    text_pool: Pool,
}

impl Clip {
    /// A model with fresh weights: a function of configuration and seed.
    ///
    /// # Errors
    /// `Config` when no such model can be built.
    pub fn new(config: ClipConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let variables = weights::fresh(&config, seed)?;
        Ok(Self::of(config, variables))
    }

    fn of(config: ClipConfig, variables: Variables) -> Self {
        Self { config, variables, image_pool: Pool::default(), text_pool: Pool::default() }
    }

    /// Reads `config.json` and `model.safetensors` in `dir`.
    ///
    /// # Errors
    /// `Io`, `Config` or `Weights`, with the file's name.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let json = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
        let config: ClipConfig = serde_json::from_str(&json)
            .map_err(|e| ModelError::Config(format!("{}: {e}", path.display())))?;
        config.check()?;
        let variables = weights::read(&dir.join(WEIGHTS_FILE), &config)?;
        Ok(Self::of(config, variables))
    }

    /// Writes `config.json` and `model.safetensors` into `dir`, each whole or not at all.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let json =
            serde_json::to_string_pretty(&self.config).map_err(|e| ModelError::Config(e.to_string()))?;
        weights::write_whole(&dir.join(CONFIG_FILE), format!("{json}\n").as_bytes())?;
        let tensors = self.variables.iter().map(|(name, v)| (name.clone(), v.as_detached_tensor())).collect();
        weights::write_whole(&dir.join(WEIGHTS_FILE), &weights::to_bytes(&tensors, None)?)
    }

    /// The model's shape.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The trainable variables, in the order of their names.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The logarithm of the factor on the similarities.
    #[expect(
        clippy::expect_used,
        reason = "every model has this variable, and it is a scalar f32 in main memory"
    )]
    pub fn logit_scale(&self) -> f32 {
        self.variable("logit_scale").and_then(|v| Ok(v.to_scalar::<f32>()?)).expect("logit_scale")
    }

    /// Puts `logit_scale` back into `[0, ln 100]`: to be called after each step, as the paper does.
    ///
    /// # Errors
    /// When the tensor cannot be written.
    pub fn clamp_logit_scale(&self) -> Result<()> {
        let variable = self.variable("logit_scale")?;
        let clamped = variable.to_scalar::<f32>()?.clamp(0.0, 100f32.ln());
        Ok(variable.set(&Tensor::new(clamped, variable.device())?)?)
    }

    /// SHA-256 of names, shapes and values, in hexadecimal.
    #[expect(clippy::expect_used, reason = "variables are f32 in main memory by construction")]
    pub fn weights_hash(&self) -> String {
        weights::hash(&self.variables).expect("variables can be read")
    }

    fn variable(&self, name: &str) -> Result<&Var> {
        let missing = || candle_core::Error::msg(format!("no variable is called {name}"));
        Ok(self.variables.get(name).ok_or_else(missing)?)
    }

    /// The variables as tensors: in training attached to the graph, in evaluation not.
    fn tensors(&self, train: bool) -> Tensors {
        let tensor = |v: &Var| if train { v.as_tensor().clone() } else { v.as_detached_tensor() };
        self.variables.iter().map(|(name, v)| (name.clone(), tensor(v))).collect()
    }

    /// Unit-length features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`, f32, normalised by channel). Builds
    /// no graph.
    ///
    /// # Errors
    /// `Input` when shape or type do not fit the configuration.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Tensor> {
        self.image_features(pixels, false)
    }

    /// Unit-length features `[batch, embed]` of token `ids` (`[batch, up to context]`, u32), read at each text's highest
    /// id: its end token. Builds no graph.
    ///
    /// # Errors
    /// `Input` when shape, type or an id do not fit the configuration.
    pub fn encode_text(&self, ids: &Tensor) -> Result<Tensor> {
        self.text_features(ids, false)
    }

    /// The contrastive loss of a batch of pairs, with its graph: a scalar on which `backward` may be called once.
    ///
    /// # Errors
    /// `Input` when shapes or types do not fit.
    pub fn loss(&self, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (image, text) = (self.image_features(pixels, true)?, self.text_features(ids, true)?);
        Ok(contrastive_loss(&image, &text, self.variable("logit_scale")?)?)
    }

    fn image_features(&self, pixels: &Tensor, train: bool) -> Result<Tensor> {
        let v = &self.config.vision;
        let fits =
            matches!(pixels.dims(), [n, 3, h, w] if *n > 0 && (*h, *w) == (v.image_size, v.image_size));
        if !fits || pixels.dtype() != DType::F32 {
            let expected = format!("[batch, 3, {0}, {0}] of f32", v.image_size);
            return Err(ModelError::Input { what: "pixels", expected, got: describe(pixels) });
        }
        let tensors = self.tensors(train);
        let shape = PatchShape { image: v.image_size, patch: v.patch, width: v.width };
        let names =
            ["conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"];
        let params = pack(&tensors, names.iter().map(|name| format!("visual.{name}")))?;
        let x = patch_embed(&pixels.contiguous()?, &params, shape, train)?;
        let sequences = Sequences::uniform(pixels.dim(0)?, shape.tokens());
        let block = BlockShape { width: v.width, heads: v.heads, activation: self.config.activation };
        let params = pack(&tensors, block_names("visual.transformer", v.layers))?;
        let x = transformer(&x, &params, block, sequences, &self.image_pool, train)?;
        let x = reference::layer_norm(&x, &tensors, "visual.ln_post")?;
        Ok(reference::normalise(&x.matmul(reference::get(&tensors, "visual.proj")?)?)?)
    }

    fn text_features(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        let t = &self.config.text;
        let fits = matches!(ids.dims(), [n, len] if *n > 0 && (1..=t.context).contains(len));
        if !fits || ids.dtype() != DType::U32 {
            let expected = format!("[batch, up to {}] of u32", t.context);
            return Err(ModelError::Input { what: "token ids", expected, got: describe(ids) });
        }
        let texts = until_end(&ids.to_vec2::<u32>()?);
        if let Some(id) = texts.ids.iter().find(|&&id| id as usize >= t.vocab) {
            let expected = format!("ids below {} (is this the model's own tokenizer?)", t.vocab);
            return Err(ModelError::Input { what: "token ids", expected, got: id.to_string() });
        }
        let tensors = self.tensors(train);
        let sequences = Sequences::causal(texts.lens.iter().copied());
        let (table, positions) = ("token_embedding.weight", "positional_embedding");
        let x =
            text_embed(reference::get(&tensors, table)?, reference::get(&tensors, positions)?, texts, train)?;
        let block = BlockShape { width: t.width, heads: t.heads, activation: self.config.activation };
        let params = pack(&tensors, block_names("transformer", t.layers))?;
        let x = transformer(&x, &params, block, sequences, &self.text_pool, train)?;
        let x = reference::layer_norm(&x, &tensors, "ln_final")?;
        Ok(reference::normalise(&x.matmul(reference::get(&tensors, "text_projection")?)?)?)
    }
}

fn describe(tensor: &Tensor) -> String {
    format!("{:?} of {}", tensor.dims(), tensor.dtype().as_str())
}

/// Each text up to its first highest id: under a causal mask nothing behind it can reach what is read there.
fn until_end(ids: &[Vec<u32>]) -> Texts {
    let mut texts = Texts { ids: Vec::new(), lens: Vec::with_capacity(ids.len()) };
    for row in ids {
        let end = row.iter().enumerate().fold(0, |best, (i, id)| if *id > row[best] { i } else { best });
        texts.ids.extend_from_slice(&row[..=end]);
        texts.lens.push(end + 1);
    }
    texts
}

fn block_names(tower: &str, layers: usize) -> impl Iterator<Item = String> {
    let names =
        move |layer| PARAMETERS.iter().map(move |(name, ..)| format!("{tower}.resblocks.{layer}.{name}"));
    (0..layers).flat_map(names)
}

/// Variables one after another in one flat tensor, as the fused operations take them; the gradient finds its way back.
fn pack(tensors: &Tensors, names: impl Iterator<Item = String>) -> Result<Tensor> {
    let parts = names.map(|name| reference::get(tensors, &name)?.flatten_all());
    Ok(Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}
