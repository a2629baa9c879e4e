//! The paper's ResNet: its layers by name and size, and the tower in fused operations.
//!
//! ResNet-D (He et al. 2019) with a stem of three convolutions and average pooling for max pooling;
//! anti-aliased: every stride is an average pooling before (Zhang 2019); at the end attention with
//! the mean as its query. All but the last is one operation: see [`crate::ops::trunk`].

use super::{Pass, pack};
use crate::config::ResNetConfig;
use crate::ops::batch_norm::Statistics;
use crate::ops::conv::Conv;
use crate::ops::linear::linear;
use crate::ops::pool::query_attention;
use crate::ops::trunk::{Block, Buffers, Trunk, resnet};
use crate::reference::{self, Tensors};
use crate::weights::Variables;
use candle_core::{Result, Tensor};

/// Part of a new batch that goes into the running statistics, as in PyTorch.
const MOMENTUM: f32 = 0.1;

/// One convolution and the batch norm after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Name of the convolution, to which `.weight` is added.
    pub name: String,
    /// Name of the batch norm.
    pub norm: String,
    /// Side of the kernel: 1, or 3 with padding 1.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Channels in.
    pub input: usize,
    /// Channels out.
    pub output: usize,
    /// Side of the grid that comes in.
    pub input_side: usize,
}

/// One residual block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bottleneck {
    /// Its convolutions, one after another; pooled before the third where `pooled`.
    pub main: [Convolution; 3],
    /// The convolution beside them, after the same pooling, where the sizes change.
    pub downsample: Option<Convolution>,
    /// Whether the grid is halved.
    pub pooled: bool,
}

fn convolution(name: String, norm: String, kernel: usize, sizes: [usize; 3]) -> Convolution {
    let [input, output, input_side] = sizes;
    Convolution { name, norm, kernel, stride: 1, input, output, input_side }
}

impl ResNetConfig {
    /// The stem's convolutions; an average pooling follows.
    pub fn stem(&self) -> [Convolution; 3] {
        let (half, side) = (self.width / 2, self.image_size / 2);
        let layer = |i: usize, input, output| {
            let name = |part: &str| format!("visual.{part}{i}");
            convolution(name("conv"), name("bn"), 3, [input, output, side])
        };
        let first = Convolution { stride: 2, input_side: self.image_size, ..layer(1, 3, half) };
        [first, layer(2, half, half), layer(3, half, self.width)]
    }

    /// The residual blocks of all four stages.
    pub fn blocks(&self) -> Vec<Bottleneck> {
        let mut blocks = Vec::new();
        let (mut input, mut side) = (self.width, self.image_size / 4);
        for (stage, &count) in self.stages.iter().enumerate() {
            let planes = self.width << stage;
            for block in 0..count {
                let name = |part: &str| format!("visual.layer{}.{block}.{part}", stage + 1);
                let layer = |i: usize, kernel, sizes| {
                    convolution(name(&format!("conv{i}")), name(&format!("bn{i}")), kernel, sizes)
                };
                let pooled = block == 0 && stage > 0;
                let inner = if pooled { side / 2 } else { side };
                let beside = [input, 4 * planes, inner];
                blocks.push(Bottleneck {
                    main: [
                        layer(1, 1, [input, planes, side]),
                        layer(2, 3, [planes, planes, side]),
                        layer(3, 1, [planes, 4 * planes, inner]),
                    ],
                    downsample: (block == 0)
                        .then(|| convolution(name("downsample.0"), name("downsample.1"), 1, beside)),
                    pooled,
                });
                (input, side) = (4 * planes, inner);
            }
        }
        blocks
    }

    /// Every convolution.
    pub fn convolutions(&self) -> Vec<Convolution> {
        let blocks = self.blocks().into_iter().flat_map(|b| b.main.into_iter().chain(b.downsample));
        self.stem().into_iter().chain(blocks).collect()
    }
}

impl Convolution {
    fn sizes(&self) -> Conv {
        let Self { kernel, stride, input, output, input_side, .. } = *self;
        Conv { kernel, stride, side: input_side, channels: input, out: output }
    }
}

fn trunk(config: &ResNetConfig) -> Trunk {
    let block = |block: Bottleneck| Block {
        main: [0, 1, 2].map(|i| block.main[i].sizes()),
        shortcut: block.downsample.as_ref().map(Convolution::sizes),
        pooled: block.pooled,
    };
    Trunk {
        stem: config.stem().iter().map(Convolution::sizes).collect(),
        blocks: config.blocks().into_iter().map(block).collect(),
    }
}

/// Features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`), of any length. `running` holds
/// the running statistics.
pub fn features(
    config: &ResNetConfig,
    tensors: &Tensors,
    running: &Variables,
    pixels: &Tensor,
    buffers: &Buffers,
    pass: Pass,
) -> Result<Tensor> {
    let layers = config.convolutions();
    let names = layers.iter().flat_map(|layer| {
        [format!("{}.weight", layer.name), format!("{}.weight", layer.norm), format!("{}.bias", layer.norm)]
    });
    let params = pack(tensors, names)?;
    let fixed = match pass {
        Pass::Evaluate => {
            Some(layers.iter().map(|layer| statistics(running, &layer.norm)).collect::<Result<_>>()?)
        }
        Pass::Preview | Pass::Train => None,
    };
    let (x, batch) = resnet(&pixels.contiguous()?, &params, trunk(config), fixed, buffers, pass.trains())?;
    if pass.trains() {
        for (layer, statistics) in layers.iter().zip(&batch) {
            let pixels = layer.input_side.div_ceil(layer.stride).pow(2);
            move_running(running, &layer.norm, statistics, x.dim(0)? * pixels)?;
        }
    }
    attention_pool(config, tensors, &x)
}

fn attention_pool(config: &ResNetConfig, tensors: &Tensors, x: &Tensor) -> Result<Tensor> {
    let get = |name: &str| reference::get(tensors, &format!("visual.attnpool.{name}"));
    let project = |x: &Tensor, name: &str| {
        linear(x, get(&format!("{name}.weight"))?, Some(get(&format!("{name}.bias"))?))
    };
    let (batch, _, _, width) = x.dims4()?;
    let x = x.reshape((batch, (), width))?;
    let x = Tensor::cat(&[&x.mean_keepdim(1)?, &x], 1)?;
    let x = x.broadcast_add(get("positional_embedding")?)?;
    let q = project(&x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, "q_proj")?;
    let both =
        |part: &str| Tensor::cat(&[get(&format!("k_proj.{part}"))?, get(&format!("v_proj.{part}"))?], 0);
    let kv = linear(&x, &both("weight")?, Some(&both("bias")?))?;
    project(&query_attention(&q, &kv, config.heads)?, "c_proj")
}

fn buffer<'a>(buffers: &'a Variables, norm: &str, part: &str) -> Result<&'a candle_core::Var> {
    let missing = || candle_core::Error::msg(format!("no buffer is called {norm}.{part}"));
    buffers.get(&format!("{norm}.{part}")).ok_or_else(missing)
}

fn statistics(buffers: &Variables, norm: &str) -> Result<Statistics> {
    let mean = buffer(buffers, norm, "running_mean")?.to_vec1()?;
    Ok(Statistics { mean, variance: buffer(buffers, norm, "running_var")?.to_vec1()? })
}

/// Moves the running statistics towards those of a batch of `rows` rows.
fn move_running(buffers: &Variables, norm: &str, batch: &Statistics, rows: usize) -> Result<()> {
    let unbiased = rows as f32 / (rows.max(2) - 1) as f32;
    for (part, new, factor) in
        [("running_mean", &batch.mean, 1.0), ("running_var", &batch.variance, unbiased)]
    {
        let variable = buffer(buffers, norm, part)?;
        let old = variable.to_vec1::<f32>()?;
        let moved: Vec<f32> =
            old.iter().zip(new).map(|(old, new)| old + MOMENTUM * (new * factor - old)).collect();
        variable.set(&Tensor::from_vec(moved, variable.shape(), variable.device())?)?;
    }
    Ok(())
}

/// As [`move_running`], for every norm in the order of the convolutions, by mean and variance where
/// they lie.
pub fn move_running_by(
    config: &ResNetConfig,
    buffers: &Variables,
    found: &[[Tensor; 2]],
    batch: usize,
) -> Result<()> {
    for (layer, [mean, variance]) in config.convolutions().iter().zip(found) {
        let rows = batch * layer.input_side.div_ceil(layer.stride).pow(2);
        let unbiased = rows as f64 / (rows.max(2) - 1) as f64;
        for (part, new, factor) in [("running_mean", mean, 1.0), ("running_var", variance, unbiased)] {
            let (variable, share) = (buffer(buffers, &layer.norm, part)?, f64::from(MOMENTUM));
            let kept = (variable.as_detached_tensor() * (1.0 - share))?;
            variable.set(&(kept + (new * (share * factor))?)?)?;
        }
    }
    Ok(())
}
