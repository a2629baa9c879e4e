//! Launches of layer norm, activation and attention.

use super::launch::{Argument, Launch, RowGroups, Storage, THREADS, WARPS, blocks, int};
use candle_core::{Result, bail};

const FLOAT: u32 = 4;

/// Layer norm of `x`, or of `x + delta + delta_bias`: the end of one residual branch and the
/// beginning of the next.
#[derive(Clone, Debug)]
pub struct AddNorm<B> {
    /// `[rows, width]`.
    pub x: B,
    /// `[rows, width]`, and where its sum with `x` is written.
    pub delta: Option<(B, B)>,
    /// `[width]`, f32, added to `delta`.
    pub delta_bias: Option<B>,
    /// `[width]`, f32.
    pub gain: B,
    /// `[width]`, f32.
    pub bias: B,
    /// The result, `[rows, width]`.
    pub y: B,
    /// Mean and 1 / sqrt(var + eps) of each row, `[rows, 2]`, f32.
    pub stats: B,
    /// Rows and width.
    pub shape: (usize, usize),
}

impl<B: Copy> AddNorm<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        let (rows, width) = self.shape;
        let (delta, sum) = self.delta.unzip();
        Ok(Launch {
            source: "norm",
            kernel: format!("add_layer_norm_{}", storage.suffix()),
            grid: [blocks(rows)?, 1, 1],
            shared: FLOAT * (blocks(width)? + WARPS),
            arguments: vec![
                Argument::Buffer(self.x),
                delta.into(),
                self.delta_bias.into(),
                Argument::Buffer(self.gain),
                Argument::Buffer(self.bias),
                sum.into(),
                Argument::Buffer(self.y),
                Argument::Buffer(self.stats),
                Argument::I32(int(width)?),
            ],
        })
    }
}

/// The gradient of [`AddNorm`].
#[derive(Clone, Debug)]
pub struct AddNormBackward<B> {
    /// What was normalised, `[rows, width]`.
    pub sum: B,
    /// From the forward pass.
    pub stats: B,
    /// `[width]`, f32.
    pub gain: B,
    /// `[rows, width]`.
    pub dy: B,
    /// The gradient that reaches the sum another way, `[rows, width]`.
    pub d_sum: Option<B>,
    /// The gradient of the sum, `[rows, width]`.
    pub d: B,
    /// Parts of the gradients of gain, bias and `delta_bias`, `[groups, 3, width]`, f32.
    pub parts: B,
    /// Rows and width.
    pub shape: (usize, usize),
}

impl<B: Copy> AddNormBackward<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        let (rows, width) = self.shape;
        let groups = RowGroups::of(rows);
        Ok(Launch {
            source: "norm",
            kernel: format!("add_layer_norm_backward_{}", storage.suffix()),
            grid: [blocks(groups.count)?, 1, 1],
            shared: FLOAT * (3 * blocks(width)? + WARPS),
            arguments: vec![
                Argument::Buffer(self.sum),
                Argument::Buffer(self.stats),
                Argument::Buffer(self.gain),
                Argument::Buffer(self.dy),
                self.d_sum.into(),
                Argument::Buffer(self.d),
                Argument::Buffer(self.parts),
                Argument::I64(rows as i64),
                Argument::I32(int(width)?),
                Argument::I32(int(groups.group)?),
            ],
        })
    }
}

/// The activation as the kernels number it.
fn kind(activation: crate::ops::activation::Activation) -> i32 {
    match activation {
        crate::ops::activation::Activation::Gelu => 0,
        crate::ops::activation::Activation::QuickGelu => 1,
    }
}

/// f(x + bias).
#[derive(Clone, Debug)]
pub struct BiasActivation<B> {
    /// `[rows, width]`.
    pub x: B,
    /// `[width]`, f32.
    pub bias: B,
    /// The result, `[rows, width]`.
    pub y: B,
    /// Rows and width.
    pub shape: (usize, usize),
    /// The function.
    pub activation: crate::ops::activation::Activation,
}

impl<B: Copy> BiasActivation<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        let (rows, width) = self.shape;
        let count = rows * width;
        Ok(Launch {
            source: "activation",
            kernel: format!("bias_activation_{}", storage.suffix()),
            grid: [blocks(count.div_ceil(4 * THREADS as usize))?.min(1 << 16), 1, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.x),
                Argument::Buffer(self.bias),
                Argument::Buffer(self.y),
                Argument::I64(count as i64),
                Argument::I32(int(width)?),
                Argument::I32(kind(self.activation)),
            ],
        })
    }
}

/// The gradient of [`BiasActivation`].
#[derive(Clone, Debug)]
pub struct BiasActivationBackward<B> {
    /// `[rows, width]`.
    pub x: B,
    /// `[width]`, f32.
    pub bias: B,
    /// `[rows, width]`.
    pub dy: B,
    /// The gradient of `x`, `[rows, width]`.
    pub dx: B,
    /// Parts of the gradient of the bias, `[groups, width]`, f32.
    pub parts: B,
    /// Rows and width.
    pub shape: (usize, usize),
    /// The function.
    pub activation: crate::ops::activation::Activation,
}

impl<B: Copy> BiasActivationBackward<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        let (rows, width) = self.shape;
        let groups = RowGroups::of(rows);
        Ok(Launch {
            source: "activation",
            kernel: format!("bias_activation_backward_{}", storage.suffix()),
            grid: [blocks(width.div_ceil(THREADS as usize))?, blocks(groups.count)?, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.x),
                Argument::Buffer(self.bias),
                Argument::Buffer(self.dy),
                Argument::Buffer(self.dx),
                Argument::Buffer(self.parts),
                Argument::I64(rows as i64),
                Argument::I32(int(width)?),
                Argument::I32(int(groups.group)?),
                Argument::I32(kind(self.activation)),
            ],
        })
    }
}

/// Sums over rows: of groups of rows, or of all.
#[derive(Clone, Debug)]
pub struct ColumnSums<B> {
    /// `[rows, width]`.
    pub x: B,
    /// `[groups, width]`, f32.
    pub sums: B,
    /// Rows and width.
    pub shape: (usize, usize),
    /// How the rows are grouped.
    pub groups: RowGroups,
}

impl<B: Copy> ColumnSums<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        let (rows, width) = self.shape;
        Ok(Launch {
            source: "activation",
            kernel: format!("column_sums_{}", storage.suffix()),
            grid: [blocks(width.div_ceil(THREADS as usize))?, blocks(self.groups.count)?, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.x),
                Argument::Buffer(self.sums),
                Argument::I64(rows as i64),
                Argument::I32(int(width)?),
                Argument::I32(int(self.groups.group)?),
            ],
        })
    }
}

/// Rows and columns of a tile of attention scores.
const TILE: u32 = 32;
/// Dimensions of a grid after the first.
const LARGEST_GRID: usize = 65_535;

/// The sizes of attention over a batch of sequences of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub len: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers in a head, at most 128.
    pub depth: usize,
    /// Whether a token attends only to itself and earlier ones.
    pub causal: bool,
}

impl AttentionSizes {
    /// The depth of the tiles in shared memory.
    fn tile_depth(self) -> Result<u32> {
        match self.depth {
            1..=64 => Ok(64),
            65..=128 => Ok(128),
            other => bail!("attention kernels take heads of up to 128 numbers, not {other}"),
        }
    }

    /// A launch without arguments, for so many tiles of rows and of scores in shared memory.
    fn launch<B>(self, name: &str, storage: Storage, rows: u32, squares: u32) -> Result<Launch<B>> {
        let depth = self.tile_depth()?;
        if self.heads > LARGEST_GRID || self.batch > LARGEST_GRID {
            bail!("attention kernels take up to {LARGEST_GRID} sequences, not {}", self.batch);
        }
        Ok(Launch {
            source: "attention",
            kernel: format!("{name}_{depth}_{}", storage.suffix()),
            grid: [blocks(self.len)?.div_ceil(TILE), blocks(self.heads)?, blocks(self.batch)?],
            shared: FLOAT * TILE * (rows * (depth + 1) + squares * (TILE + 1) + 2),
            arguments: Vec::new(),
        })
    }

    fn arguments<B>(self, lens: Option<B>) -> Result<[Argument<B>; 5]> {
        Ok([
            Argument::I32(int(self.len)?),
            Argument::I32(int(self.heads)?),
            Argument::I32(int(self.depth)?),
            Argument::I32(i32::from(self.causal)),
            lens.into(),
        ])
    }
}

/// softmax(Q K^T / sqrt(depth)) V for each head of each sequence.
#[derive(Clone, Debug)]
pub struct Attention<B> {
    /// Queries, keys and values, `[batch, len, 3 heads depth]`.
    pub qkv: B,
    /// Added to them, `[3 heads depth]`, f32.
    pub bias: Option<B>,
    /// The result, `[batch, len, heads depth]`.
    pub out: B,
    /// ln sum exp of each query's scores, `[batch, heads, len]`, f32.
    pub log_sums: B,
    /// Tokens that each sequence has, `[batch]`, i32, at least 1; later ones are hidden.
    pub lens: Option<B>,
    /// The sizes.
    pub sizes: AttentionSizes,
}

impl<B: Copy> Attention<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        let mut launch = self.sizes.launch("attention", storage, 3, 1)?;
        launch.arguments = vec![
            Argument::Buffer(self.qkv),
            self.bias.into(),
            Argument::Buffer(self.out),
            Argument::Buffer(self.log_sums),
        ];
        launch.arguments.extend(self.sizes.arguments(self.lens)?);
        Ok(launch)
    }
}

/// The gradient of [`Attention`], in three launches.
#[derive(Clone, Debug)]
pub struct AttentionBackward<B> {
    /// `[batch, len, 3 heads depth]`.
    pub qkv: B,
    /// `[3 heads depth]`, f32.
    pub bias: Option<B>,
    /// From the forward pass.
    pub out: B,
    /// From the forward pass.
    pub log_sums: B,
    /// `[batch, len, heads depth]`.
    pub d_out: B,
    /// Scratch, `[batch, heads, len]`, f32.
    pub means: B,
    /// The gradient of `qkv`, `[batch, len, 3 heads depth]`.
    pub d_qkv: B,
    /// As in the forward pass.
    pub lens: Option<B>,
    /// The sizes.
    pub sizes: AttentionSizes,
}

impl<B: Copy> AttentionBackward<B> {
    /// Its launches, in order.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launches(&self, storage: Storage) -> Result<[Launch<B>; 3]> {
        let AttentionSizes { batch, len, heads, depth, .. } = self.sizes;
        let rows = batch * heads * len;
        let means = Launch {
            source: "attention",
            kernel: format!("attention_means_{}", storage.suffix()),
            grid: [blocks(rows.div_ceil(WARPS as usize))?, 1, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.out),
                Argument::Buffer(self.d_out),
                Argument::Buffer(self.means),
                Argument::I64(rows as i64),
                Argument::I32(int(len)?),
                Argument::I32(int(heads)?),
                Argument::I32(int(depth)?),
            ],
        };
        let gradient = |name: &str| -> Result<Launch<B>> {
            let mut launch = self.sizes.launch(name, storage, 4, 2)?;
            launch.arguments = vec![
                Argument::Buffer(self.qkv),
                self.bias.into(),
                Argument::Buffer(self.d_out),
                Argument::Buffer(self.log_sums),
                Argument::Buffer(self.means),
                Argument::Buffer(self.d_qkv),
            ];
            launch.arguments.extend(self.sizes.arguments(self.lens)?);
            Ok(launch)
        };
        Ok([means, gradient("attention_queries")?, gradient("attention_keys")?])
    }
}
