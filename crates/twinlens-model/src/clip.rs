//! The model: its configuration, variables and settings, and the way in and out of files.

use crate::compute::Precision;
use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::files::{CONFIG_FILE, WEIGHTS_FILE, write_atomically};
use crate::kernels::Kernels;
use crate::ops::reference::{Tensors, get};
use crate::ops::transformer::Pool;
use crate::towers::Tower;
use crate::towers::image::Memory;
use crate::variables::Variables;
use crate::weights;
use crate::weights::foreign::{self, Description};
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use twinlens_image::Preprocess;

/// A CLIP model, in main memory or on a GPU.
///
/// [`encode_image`](Self::encode_image), [`encode_text`](Self::encode_text) and
/// [`score`](Self::score) are for evaluation and build no graph; [`loss`](Self::loss) is for
/// training.
pub struct Clip {
    config: ClipConfig,
    preprocess: Preprocess,
    variables: Variables,
    /// Running statistics of batch norms, updated by training passes.
    buffers: Variables,
    device: Device,
    precision: Precision,
    kernels: Kernels,
    pub(crate) image_memory: Memory,
    pub(crate) text_pool: Pool,
    /// Names of the variables that are not trained.
    frozen: BTreeSet<String>,
}

impl Clip {
    /// A model with fresh weights, which depend on configuration and seed alone.
    ///
    /// # Errors
    /// `Config` if the configuration is invalid.
    pub fn new(config: ClipConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let (variables, buffers) = (weights::fresh(&config, seed)?, weights::fresh_buffers(&config)?);
        Ok(Self::from_variables(config, variables, buffers))
    }

    pub(crate) fn from_variables(config: ClipConfig, variables: Variables, buffers: Variables) -> Self {
        Self {
            preprocess: Preprocess::clip(config.vision.image_size() as u32),
            config,
            variables,
            buffers,
            device: Device::Cpu,
            precision: Precision::F32,
            kernels: Kernels::Plain,
            image_memory: Memory::default(),
            text_pool: Pool::default(),
            frozen: BTreeSet::new(),
        }
    }

    /// A deep copy: its values change independently.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
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
        replica.kernels = self.kernels;
        replica.preprocess = self.preprocess.clone();
        replica.frozen = self.frozen.clone();
        replica.set_recompute(self.text_pool.recomputes());
        Ok(replica)
    }

    /// Sets whether training keeps only the input of each transformer block and recomputes the
    /// other activations in the backward pass, at the cost of one more forward pass. A ResNet
    /// always keeps its activations.
    pub fn set_recompute(&mut self, recompute: bool) {
        (self.image_memory.pool, self.text_pool) = (Pool::new(recompute), Pool::new(recompute));
    }

    pub(crate) fn set_frozen(&mut self, frozen: BTreeSet<String>) {
        self.frozen = frozen;
    }

    /// Whether a variable is not trained.
    pub fn is_frozen(&self, variable: &str) -> bool {
        self.frozen.contains(variable)
    }

    /// Moves the model to `device`, to compute in `precision`. On a GPU, and in half precision, it
    /// uses other operations than in f32 on the CPU, with the same results up to rounding: on a GPU
    /// those with [`kernels`](crate::kernels), unless [`set_kernels`](Self::set_kernels) chooses
    /// their plain twins.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn to_device(self, device: &Device, precision: Precision) -> Result<Self> {
        let move_all = |variables: Variables| -> Result<Variables> {
            let move_one = |(name, v): (String, Var)| {
                Ok((name, Var::from_tensor(&v.as_detached_tensor().to_device(device)?)?))
            };
            variables.into_iter().map(move_one).collect()
        };
        let (variables, buffers) = (move_all(self.variables)?, move_all(self.buffers)?);
        let kernels =
            if Kernels::support(device, precision.dtype()) { Kernels::Fused } else { Kernels::Plain };
        Ok(Self { variables, buffers, device: device.clone(), precision, kernels, ..self })
    }

    /// Which implementation a GPU uses between matrix products.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Chooses it; to compare both on a GPU.
    ///
    /// # Errors
    /// `Device` if this build, the device or the precision has no kernels.
    pub fn set_kernels(&mut self, kernels: Kernels) -> Result<()> {
        if kernels == Kernels::Fused && !Kernels::support(&self.device, self.precision.dtype()) {
            return Err(ModelError::Device(format!(
                "there are no kernels for {} on this device: they need an NVIDIA GPU, a program built with \
                 `--features cuda`, and f32 or bf16",
                self.precision.name()
            )));
        }
        self.kernels = kernels;
        Ok(())
    }

    /// The device of the variables and losses.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The precision of matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Reads a model directory: this program's own, Hugging Face's CLIPModel, or open_clip's. Or a
    /// file of weights in one, such as a checkpoint of a training.
    ///
    /// # Errors
    /// `Io`, `Config`, `Format` or `Weights`, with the path.
    pub fn load(dir: &Path) -> Result<Self> {
        let Description { config, preprocess, weights } = foreign::describe(dir)?;
        Ok(Self { preprocess, ..Self::load_weights(&weights, config)? })
    }

    /// Reads the configuration in a model directory, and finds the weights file without opening it.
    ///
    /// # Errors
    /// `Io`, `Config` or `Format`, with the path.
    pub fn describe(dir: &Path) -> Result<(ClipConfig, PathBuf)> {
        let Description { config, weights, .. } = foreign::describe(dir)?;
        Ok((config, weights))
    }

    /// Reads the configuration in a model directory, which may lack its weights.
    ///
    /// # Errors
    /// `Io`, `Config` or `Format`, with the path.
    pub fn describe_config(dir: &Path) -> Result<ClipConfig> {
        foreign::config(dir)
    }

    /// How the images of this model are prepared.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// Sets how the images of this model are prepared, for a model that starts from another's
    /// weights.
    pub fn set_preprocess(&mut self, preprocess: Preprocess) {
        self.preprocess = preprocess;
    }

    /// Reads a weights file: safetensors, or a PyTorch state dict or checkpoint (`.pt`, `.pth`,
    /// `.bin`), with the names of open_clip (and OpenAI) or Hugging Face.
    ///
    /// # Errors
    /// `Io`, `Config`, `Format` or `Weights`, with the path.
    pub fn load_weights(path: &Path, config: ClipConfig) -> Result<Self> {
        let (variables, buffers) = foreign::read(path, &config)?;
        Ok(Self::from_variables(config, variables, buffers))
    }

    /// Writes a directory that Hugging Face's `CLIPModel.from_pretrained` reads.
    ///
    /// # Errors
    /// `Format` if transformers has no such model: image towers other than the vision transformer,
    /// and objectives other than contrastive. `Io`.
    ///
    /// transformers may begin the central crop of an image one pixel earlier than this program.
    pub fn export_hugging_face(&self, dir: &Path) -> Result<()> {
        foreign::export_hugging_face(dir, &self.config, &self.preprocess, self.state())
    }

    /// Writes a directory that open_clip reads as `local-dir:DIR`.
    ///
    /// # Errors
    /// `Format` if open_clip has no such model: objectives that predict words. `Io`.
    pub fn export_open_clip(&self, dir: &Path) -> Result<()> {
        foreign::export_open_clip(dir, &self.config, &self.preprocess, self.state(), false)
    }

    /// Writes `config.json`, `preprocessor_config.json` and `model.safetensors` into `dir`, each
    /// atomically.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_description(dir)?;
        write_atomically(&dir.join(WEIGHTS_FILE), &weights::to_bytes(&self.state(), None)?)
    }

    /// Writes `config.json` and `preprocessor_config.json` into `dir`, each atomically.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub fn save_description(&self, dir: &Path) -> Result<()> {
        let json =
            serde_json::to_string_pretty(&self.config).map_err(|e| ModelError::Config(e.to_string()))?;
        write_atomically(&dir.join(CONFIG_FILE), format!("{json}\n").as_bytes())?;
        foreign::write_preprocess(dir, &self.preprocess)
    }

    /// Reads how the images of the model in a directory are prepared.
    ///
    /// # Errors
    /// `Io`, `Config` or `Format`, with the path.
    pub fn describe_preprocess(dir: &Path) -> Result<Preprocess> {
        Ok(foreign::describe(dir)?.preprocess)
    }

    /// The model's shape.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The variables, ordered by name.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The running statistics of batch norms, ordered by name. A checkpoint needs them too.
    pub fn buffers(&self) -> &Variables {
        &self.buffers
    }

    /// Variables and buffers by name, detached from the graph.
    pub fn state(&self) -> Tensors {
        let all = self.variables.iter().chain(&self.buffers);
        all.map(|(name, v)| (name.clone(), v.as_detached_tensor())).collect()
    }

    /// Sets all variables and buffers by name.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn set_state(&self, state: &Tensors) -> Result<()> {
        let mut all = self.variables.iter().chain(&self.buffers);
        all.try_for_each(|(name, v)| Ok(v.set(&get(state, name)?.to_device(&self.device)?)?))
    }

    /// The logarithm of the factor on similarities; 0 if the objective has none.
    pub fn logit_scale(&self) -> f32 {
        self.variable("logit_scale").and_then(|v| Ok(v.to_scalar::<f32>()?)).unwrap_or(0.0)
    }

    /// Clamps `logit_scale`, if there is one, to `[0, ln 100]`. Training calls it after each step
    /// (Radford et al. 2021, section 2.5).
    ///
    /// # Errors
    /// If the tensor cannot be written.
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
        let missing = || candle_core::Error::msg(format!("variable {name} is missing"));
        Ok(self.variables.get(name).ok_or_else(missing)?)
    }

    /// The variables as tensors, attached to the graph if `train` and not frozen.
    pub(crate) fn tensors(&self, train: bool) -> Tensors {
        let attached = |name: &str| train && !self.is_frozen(name);
        let tensor =
            |name, v: &Var| if attached(name) { v.as_tensor().clone() } else { v.as_detached_tensor() };
        self.variables.iter().map(|(name, v)| (name.clone(), tensor(name, v))).collect()
    }

    /// The variables that are trained, ordered by name.
    pub fn trainable(&self) -> Variables {
        let trained = self.variables.iter().filter(|(name, _)| !self.is_frozen(name));
        trained.map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// Whether a tower is frozen completely.
    pub fn is_tower_frozen(&self, tower: Tower) -> bool {
        let mut names = self.variables.keys().filter(|name| Tower::of(name) == Some(tower)).peekable();
        names.peek().is_some() && names.all(|name| self.is_frozen(name))
    }
}
