//! The paper's ResNet: the tower and its layers by name and size.
//!
//! ResNet-D (He et al. 2019) with a stem of three convolutions, and average pooling instead of max
//! pooling. Every stride is an average pooling before a convolution (Zhang 2019), and the last
//! layer is attention with the mean as its query (Radford et al. 2021, section 2.4). All but that
//! layer is one operation, see [`crate::ops::trunk`].

use super::blocks::{Kept, pack};
use super::image::{ImageTower, Pass, TowerContext, TowerKind};
use crate::ops::activation::Activation;
use crate::ops::batch_norm::{EPS, Statistics};
use crate::ops::conv::Conv;
use crate::ops::linear::linear;
use crate::ops::pool::query_attention;
use crate::ops::reference::{self, Norms, Tensors, get, like, widened};
use crate::ops::trunk::{Block, Trunk, resnet};
use crate::variables::{Declarations, Init, Variables};
use candle_core::{D, Result, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Weight of a new batch in the running statistics, as in PyTorch.
const MOMENTUM: f32 = 0.1;

pub(crate) static KIND: TowerKind = TowerKind::new::<ResNetConfig>(
    "resnet",
    "The paper's ResNet: a stem of three convolutions, average pooling before each stride, attention pooling at the end.",
    Some(|settings| settings.contains_key("stages")),
);

/// The shape of the paper's ResNet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Side of the square input, in pixels; a multiple of 32, which the tower shrinks to 1.
    pub image_size: usize,
    /// Channels after the stem, even; the last stage has 32 times as many.
    pub width: usize,
    /// Residual blocks of each of the four stages.
    pub stages: [usize; 4],
    /// Heads of the attention pooling; divides 32 times `width`.
    pub heads: usize,
}

/// A convolution and its batch norm.
struct Layer {
    /// Name of the convolution; its variable is `{name}.weight`.
    name: String,
    /// Name of the batch norm.
    norm: String,
    conv: Conv,
}

impl Layer {
    fn new(name: String, norm: String, kernel: usize, [channels, out, side]: [usize; 3]) -> Self {
        Self { name, norm, conv: Conv { kernel, stride: 1, side, channels, out } }
    }

    /// Convolution and batch norm of `x` (`[batch, channels, side, side]`) in basic operations.
    fn reference(&self, x: &Tensor, tensors: &Tensors, norms: &mut Norms<'_>) -> Result<Tensor> {
        let w = like(get(tensors, &format!("{}.weight", self.name))?, x)?;
        let x = x.conv2d(&w, self.conv.kernel / 2, self.conv.stride, 1, 1)?;
        batch_norm(&x, tensors, &self.norm, norms)
    }
}

/// A residual block.
struct Bottleneck {
    /// Applied in turn; the input of the third is pooled if `pooled`.
    main: [Layer; 3],
    /// Convolution of the shortcut, after the same pooling, if the sizes change.
    downsample: Option<Layer>,
    /// Whether the grid is halved.
    pooled: bool,
}

impl ResNetConfig {
    /// Channels of the last stage.
    fn channels(&self) -> usize {
        32 * self.width
    }

    /// Side of the last stage's grid.
    fn grid(&self) -> usize {
        self.image_size / 32
    }

    fn stem(&self) -> [Layer; 3] {
        let (half, side) = (self.width / 2, self.image_size / 2);
        let layer = |i: usize, channels, out| {
            Layer::new(format!("visual.conv{i}"), format!("visual.bn{i}"), 3, [channels, out, side])
        };
        let mut stem = [layer(1, 3, half), layer(2, half, half), layer(3, half, self.width)];
        (stem[0].conv.stride, stem[0].conv.side) = (2, self.image_size);
        stem
    }

    /// The residual blocks of all four stages.
    fn blocks(&self) -> Vec<Bottleneck> {
        let mut blocks = Vec::new();
        let (mut input, mut side) = (self.width, self.image_size / 4);
        for (stage, &count) in self.stages.iter().enumerate() {
            let planes = self.width << stage;
            for block in 0..count {
                let name = |part: &str| format!("visual.layer{}.{block}.{part}", stage + 1);
                let layer = |i: usize, kernel, sizes| {
                    Layer::new(name(&format!("conv{i}")), name(&format!("bn{i}")), kernel, sizes)
                };
                let pooled = block == 0 && stage > 0;
                let inner = if pooled { side / 2 } else { side };
                let shortcut = [input, 4 * planes, inner];
                blocks.push(Bottleneck {
                    main: [
                        layer(1, 1, [input, planes, side]),
                        layer(2, 3, [planes, planes, side]),
                        layer(3, 1, [planes, 4 * planes, inner]),
                    ],
                    downsample: (block == 0)
                        .then(|| Layer::new(name("downsample.0"), name("downsample.1"), 1, shortcut)),
                    pooled,
                });
                (input, side) = (4 * planes, inner);
            }
        }
        blocks
    }

    fn layers(&self) -> Vec<Layer> {
        let blocks = self.blocks().into_iter().flat_map(|b| b.main.into_iter().chain(b.downsample));
        self.stem().into_iter().chain(blocks).collect()
    }

    fn trunk(&self) -> Trunk {
        let block = |block: Bottleneck| Block {
            main: [0, 1, 2].map(|i| block.main[i].conv),
            shortcut: block.downsample.map(|layer| layer.conv),
            pooled: block.pooled,
        };
        Trunk {
            stem: self.stem().iter().map(|layer| layer.conv).collect(),
            blocks: self.blocks().into_iter().map(block).collect(),
        }
    }

    fn attention_pool(&self, tensors: &Tensors, x: &Tensor) -> Result<Tensor> {
        let get = |name: &str| get(tensors, &format!("visual.attnpool.{name}"));
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
        project(&query_attention(&q, &kv, self.heads)?, "c_proj")
    }

    fn reference_attention_pool(&self, tensors: &Tensors, x: &Tensor) -> Result<Tensor> {
        let (batch, width, _, _) = x.dims4()?;
        let x = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let x = Tensor::cat(&[&x.mean_keepdim(1)?, &x], 1)?;
        let get = |name: &str| get(tensors, &format!("visual.attnpool.{name}"));
        let x = x.broadcast_add(&like(get("positional_embedding")?, &x)?)?;
        let linear = |x: &Tensor, name: &str| {
            reference::linear(x, get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?)
        };
        let heads = |x: Tensor| {
            let split = x.reshape((batch, (), self.heads, width / self.heads))?;
            split.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) =
            (heads(linear(&x, "q_proj")?)?, heads(linear(&x, "k_proj")?)?, heads(linear(&x, "v_proj")?)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? / ((width / self.heads) as f64).sqrt())?;
        let attended = like(&candle_nn::ops::softmax(&widened(&scores)?, D::Minus1)?, &v)?.matmul(&v)?;
        let attended = attended.transpose(1, 2)?.contiguous()?.reshape((batch, (), width))?;
        linear(&attended, "c_proj")?.narrow(1, 0, 1)?.squeeze(1)
    }
}

impl ImageTower for ResNetConfig {
    fn kind(&self) -> &'static TowerKind {
        &KIND
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("image_size", json!(self.image_size)),
            ("width", json!(self.width)),
            ("stages", json!(self.stages)),
            ("heads", json!(self.heads)),
        ]
    }

    fn multiples(&self) -> Vec<(&'static str, usize, &'static str, usize)> {
        vec![
            ("32 times vision.width", self.channels(), "vision.heads", self.heads),
            ("vision.image_size", self.image_size, "its stride", 32),
            ("vision.width", self.width, "the stem's halving", 2),
        ]
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn declare(&self, variables: &mut Declarations, embed: usize) {
        for Layer { name, norm, conv } in self.layers() {
            let init = Init::uniform_fan_in(conv.channels * conv.kernel * conv.kernel);
            let shape = [conv.out, conv.channels, conv.kernel, conv.kernel];
            variables.add(format!("{name}.weight"), &shape, init);
            variables.add_norm(&norm, conv.out);
        }
        for block in self.blocks() {
            // A block starts as the identity.
            let last = &block.main[2];
            variables.add(format!("{}.weight", last.norm), &[last.conv.out], Init::ZERO);
        }
        let width = self.channels();
        let normal = Init::normal_fan_in(width);
        variables.add("visual.attnpool.positional_embedding", &[self.grid().pow(2) + 1, width], normal);
        for (name, out) in [("q_proj", width), ("k_proj", width), ("v_proj", width), ("c_proj", embed)] {
            variables.add(format!("visual.attnpool.{name}.weight"), &[out, width], normal);
            variables.add(format!("visual.attnpool.{name}.bias"), &[out], Init::uniform_fan_in(width));
        }
    }

    fn running(&self) -> Vec<(String, usize)> {
        let both = |layer: Layer| {
            ["running_mean", "running_var"].map(|part| (format!("{}.{part}", layer.norm), layer.conv.out))
        };
        self.layers().into_iter().flat_map(both).collect()
    }

    /// As open_clip counts them: the attention pooling is counted with every position as a query,
    /// though only one is computed here.
    fn flops(&self, embed: usize) -> usize {
        let convolutions =
            self.layers().into_iter().map(|layer| 2 * layer.conv.weights_len() * layer.conv.out_pixels());
        let (width, tokens) = (self.channels(), self.grid().pow(2) + 1);
        let projections = 2 * tokens * (3 * width * width + width * embed);
        convolutions.sum::<usize>() + projections + 4 * tokens * tokens * width
    }

    /// The input of each batch norm and the output of its activation.
    fn kept(&self) -> Kept {
        let layers = self.layers().into_iter();
        let all = layers.map(|layer| 2 * layer.conv.out * layer.conv.out_pixels()).sum::<usize>() as u64;
        Kept { all, recomputed: all }
    }

    fn features(&self, cx: &TowerContext<'_>, pixels: &Tensor) -> Result<Tensor> {
        let layers = self.layers();
        let names = layers.iter().flat_map(|Layer { name, norm, .. }| {
            [format!("{name}.weight"), format!("{norm}.weight"), format!("{norm}.bias")]
        });
        let params = pack(cx.tensors, names)?;
        let fixed = match cx.pass {
            Pass::Evaluate => {
                Some(layers.iter().map(|layer| statistics(cx.running, &layer.norm)).collect::<Result<_>>()?)
            }
            Pass::Preview | Pass::Train => None,
        };
        let (pixels, buffers) = (pixels.contiguous()?, &cx.memory.buffers);
        let (x, batch) = resnet(&pixels, &params, self.trunk(), fixed, buffers, cx.pass.trains())?;
        if cx.pass.trains() {
            for (layer, statistics) in layers.iter().zip(&batch) {
                update_running(cx.running, &layer.norm, statistics, x.dim(0)? * layer.conv.out_pixels())?;
            }
        }
        self.attention_pool(cx.tensors, &x)
    }

    /// Channels first, with candle's convolution and pooling.
    fn reference_features(
        &self,
        tensors: &Tensors,
        _: Activation,
        pixels: &Tensor,
        mut norms: Norms<'_>,
    ) -> Result<Tensor> {
        let mut x = pixels.clone();
        for layer in self.stem() {
            x = relu(&layer.reference(&x, tensors, &mut norms)?)?;
        }
        x = x.avg_pool2d(2)?;
        for Bottleneck { main: [first, second, third], downsample, pooled } in self.blocks() {
            let pool = |x: Tensor| if pooled { x.avg_pool2d(2) } else { Ok(x) };
            let y = relu(&first.reference(&x, tensors, &mut norms)?)?;
            let y = pool(relu(&second.reference(&y, tensors, &mut norms)?)?)?;
            let y = third.reference(&y, tensors, &mut norms)?;
            let shortcut = match downsample {
                None => x,
                Some(layer) => layer.reference(&pool(x)?, tensors, &mut norms)?,
            };
            x = relu(&(y + shortcut)?)?;
        }
        self.reference_attention_pool(tensors, &x)
    }

    fn update_running(&self, running: &Variables, statistics: &[[Tensor; 2]], batch: usize) -> Result<()> {
        for (layer, [mean, variance]) in self.layers().iter().zip(statistics) {
            let rows = batch * layer.conv.out_pixels();
            let unbiased = rows as f64 / (rows.max(2) - 1) as f64;
            for (part, new, factor) in [("running_mean", mean, 1.0), ("running_var", variance, unbiased)] {
                let (variable, share) = (buffer(running, &layer.norm, part)?, f64::from(MOMENTUM));
                let kept = (variable.as_detached_tensor() * (1.0 - share))?;
                variable.set(&(kept + (new * (share * factor))?)?)?;
            }
        }
        Ok(())
    }

    fn to_open_clip(&self) -> Option<Value> {
        Some(json!({
            "image_size": self.image_size, "layers": self.stages, "width": self.width, "patch_size": null,
            "head_width": self.channels() / self.heads,
        }))
    }
}

fn buffer<'a>(running: &'a Variables, norm: &str, part: &str) -> Result<&'a Var> {
    let missing = || candle_core::Error::msg(format!("buffer {norm}.{part} is missing"));
    running.get(&format!("{norm}.{part}")).ok_or_else(missing)
}

fn statistics(running: &Variables, norm: &str) -> Result<Statistics> {
    let mean = buffer(running, norm, "running_mean")?.to_vec1()?;
    Ok(Statistics { mean, variance: buffer(running, norm, "running_var")?.to_vec1()? })
}

/// Moves the running statistics towards those of a batch of `rows` rows.
fn update_running(running: &Variables, norm: &str, batch: &Statistics, rows: usize) -> Result<()> {
    let unbiased = rows as f32 / (rows.max(2) - 1) as f32;
    for (part, new, factor) in
        [("running_mean", &batch.mean, 1.0), ("running_var", &batch.variance, unbiased)]
    {
        let variable = buffer(running, norm, part)?;
        let old = variable.to_vec1::<f32>()?;
        let moved: Vec<f32> =
            old.iter().zip(new).map(|(old, new)| old + MOMENTUM * (new * factor - old)).collect();
        variable.set(&Tensor::from_vec(moved, variable.shape(), variable.device())?)?;
    }
    Ok(())
}

/// Batch norm of `x` (`[batch, channels, side, side]`).
fn batch_norm(x: &Tensor, tensors: &Tensors, name: &str, norms: &mut Norms<'_>) -> Result<Tensor> {
    let part = |part: &str| get(tensors, &format!("{name}.{part}"))?.reshape((1, (), 1, 1));
    let wide = widened(x)?;
    let (centred, variance) = match norms {
        Norms::Running => (wide.broadcast_sub(&part("running_mean")?)?, part("running_var")?),
        Norms::Batch(statistics) => {
            let mean = wide.mean_keepdim((0, 2, 3))?;
            let centred = wide.broadcast_sub(&mean)?;
            let variance = centred.sqr()?.mean_keepdim((0, 2, 3))?;
            statistics.push([mean.detach().flatten_all()?, variance.detach().flatten_all()?]);
            (centred, variance)
        }
    };
    let scaled = centred.broadcast_div(&(variance + f64::from(EPS))?.sqrt()?)?;
    like(&scaled.broadcast_mul(&part("weight")?)?.broadcast_add(&part("bias")?)?, x)
}

/// `max(x, 0)` with derivative 0 at 0, where candle's is 1.
fn relu(x: &Tensor) -> Result<Tensor> {
    x * x.gt(0.0)?.to_dtype(x.dtype())?
}
