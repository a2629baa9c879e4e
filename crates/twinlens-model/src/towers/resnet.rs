//! The paper's ResNet: its layers by name and size, and the tower in fused operations.
//!
//! ResNet-D (He et al. 2019) with a stem of three convolutions and average pooling for max pooling; anti-aliased: every
//! stride is an average pooling before (Zhang 2019); at the end attention with the mean as its query. Images go through
//! with their channels together (`[batch, side, side, channels]`), so that a 1 x 1 convolution is a product of matrices
//! and batch norm runs along rows.

use super::{Pass, pack};
use crate::config::ResNetConfig;
use crate::ops::batch_norm::Statistics;
use crate::ops::conv_norm::{LayerShape, conv_norm};
use crate::ops::linear::linear;
use crate::ops::pool::{average_pool, query_attention};
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

/// The tower while it runs.
struct Run<'a> {
    tensors: &'a Tensors,
    buffers: &'a Variables,
    pass: Pass,
}

/// Features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`), of any length. `buffers` holds the running
/// statistics.
pub fn features(
    config: &ResNetConfig,
    tensors: &Tensors,
    buffers: &Variables,
    pixels: &Tensor,
    pass: Pass,
) -> Result<Tensor> {
    let run = Run { tensors, buffers, pass };
    let mut x = pixels.permute((0, 2, 3, 1))?.contiguous()?;
    for layer in config.stem() {
        x = run.layer(&x, &layer, None, true)?;
    }
    x = average_pool(&x)?;
    for block in config.blocks() {
        x = run.block(&x, &block)?;
    }
    run.attention_pool(config, &x)
}

impl Run<'_> {
    fn get(&self, name: &str) -> Result<&Tensor> {
        reference::get(self.tensors, name)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let bias = self.get(&format!("visual.attnpool.{name}.bias"))?;
        linear(x, self.get(&format!("visual.attnpool.{name}.weight"))?, Some(bias))
    }

    /// Convolution, batch norm, `residual` added, relu.
    fn layer(
        &self,
        x: &Tensor,
        layer: &Convolution,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let names = [
            format!("{}.weight", layer.name),
            format!("{}.weight", layer.norm),
            format!("{}.bias", layer.norm),
        ];
        let params = pack(self.tensors, names.into_iter())?;
        let fixed = match self.pass {
            Pass::Evaluate => Some(running(self.buffers, &layer.norm)?),
            Pass::Preview | Pass::Train => None,
        };
        let shape = LayerShape { kernel: layer.kernel, stride: layer.stride, output: layer.output };
        let (y, batch) = conv_norm(x, &params, shape, residual, relu, fixed)?;
        if self.pass == Pass::Train {
            let rows = y.elem_count() / layer.output;
            move_running(self.buffers, &layer.norm, &batch, rows)?;
        }
        Ok(y)
    }

    fn block(&self, x: &Tensor, block: &Bottleneck) -> Result<Tensor> {
        let pooled = |x: Tensor| if block.pooled { average_pool(&x) } else { Ok(x) };
        let [first, second, third] = &block.main;
        let y = self.layer(x, first, None, true)?;
        let y = pooled(self.layer(&y, second, None, true)?)?;
        let beside = match &block.downsample {
            None => x.clone(),
            Some(layer) => self.layer(&pooled(x.clone())?, layer, None, false)?,
        };
        self.layer(&y, third, Some(&beside), true)
    }

    fn attention_pool(&self, config: &ResNetConfig, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, width) = x.dims4()?;
        let x = x.reshape((batch, (), width))?;
        let x = Tensor::cat(&[&x.mean_keepdim(1)?, &x], 1)?;
        let x = x.broadcast_add(self.get("visual.attnpool.positional_embedding")?)?;
        let q = self.linear(&x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, "q_proj")?;
        let both = |part: &str| {
            let name = |projection: &str| format!("visual.attnpool.{projection}.{part}");
            Tensor::cat(&[self.get(&name("k_proj"))?, self.get(&name("v_proj"))?], 0)
        };
        let kv = linear(&x, &both("weight")?, Some(&both("bias")?))?;
        self.linear(&query_attention(&q, &kv, config.heads)?, "c_proj")
    }
}

fn buffer<'a>(buffers: &'a Variables, norm: &str, part: &str) -> Result<&'a candle_core::Var> {
    let missing = || candle_core::Error::msg(format!("no buffer is called {norm}.{part}"));
    buffers.get(&format!("{norm}.{part}")).ok_or_else(missing)
}

fn running(buffers: &Variables, norm: &str) -> Result<Statistics> {
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
