//! Launches of the optimiser over all variables at once.

use super::launch::{Argument, Launch, THREADS, blocks, int};
use candle_core::{Result, Tensor};

/// Numbers of a variable that one block takes, as in `kernels/adamw.cu`.
const CHUNK: usize = 4096;

/// Which blocks of a launch take which variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariableBlocks {
    /// Numbers of each variable.
    pub lens: Vec<i64>,
    /// The first block of each, and the number of blocks.
    pub blocks: Vec<u32>,
}

impl VariableBlocks {
    /// For variables of these lengths, none of them 0.
    ///
    /// # Errors
    /// If they are too many numbers.
    pub fn new(lens: impl IntoIterator<Item = usize>) -> Result<Self> {
        let (mut first, mut all) = (0, Self { lens: Vec::new(), blocks: vec![0] });
        for len in lens {
            first += len.div_ceil(CHUNK);
            all.lens.push(len as i64);
            all.blocks.push(blocks(first)?);
        }
        Ok(all)
    }

    /// Blocks.
    pub fn count(&self) -> u32 {
        self.blocks.last().copied().unwrap_or(0)
    }

    /// The variable of each block.
    pub fn variables(&self) -> impl Iterator<Item = usize> {
        let ranges = self.blocks.windows(2).enumerate();
        ranges.flat_map(|(variable, range)| (range[0]..range[1]).map(move |_| variable))
    }
}

/// The numbers of a step that all variables share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWFactors {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// The step, from 1.
    pub step: u64,
    /// Factor on all gradients.
    pub scale: f32,
}

impl AdamWFactors {
    /// A variable's entry in `factors` of [`AdamWLaunch`], for its learning rate and decay.
    pub fn of(&self, rate: f64, decay: f64) -> [f32; 2] {
        [(rate / (1.0 - self.beta1.powf(self.step as f64))) as f32, (1.0 - rate * decay) as f32]
    }
}

/// A step of AdamW.
#[derive(Clone, Debug)]
pub struct AdamWLaunch<B> {
    /// The variables, f32.
    pub weights: Vec<B>,
    /// Their gradients, f32.
    pub gradients: Vec<B>,
    /// First moments, f32.
    pub m: Vec<B>,
    /// Second moments, f32.
    pub v: Vec<B>,
    /// [`VariableBlocks::lens`], i64.
    pub lens: B,
    /// [`VariableBlocks::blocks`], u32.
    pub blocks: B,
    /// [`AdamWFactors::of`] of each variable, f32.
    pub factors: B,
}

impl<B: Copy> AdamWLaunch<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If there are too many variables.
    pub fn launch(&self, variables: &VariableBlocks, step: &AdamWFactors) -> Result<Launch<B>> {
        let AdamWFactors { beta1, beta2, eps, .. } = *step;
        let (b1, b2) = (beta1 as f32, beta2 as f32);
        let root = (1.0 - beta2.powf(step.step as f64)).sqrt() as f32;
        let mut arguments: Vec<_> =
            [&self.weights, &self.gradients, &self.m, &self.v].map(|t| Argument::Table(t.clone())).into();
        arguments.extend([self.lens, self.blocks, self.factors].map(Argument::Buffer));
        arguments.push(Argument::I32(int(self.weights.len())?));
        arguments.extend([b1, b2, 1.0 - b1, 1.0 - b2, eps as f32, root, step.scale].map(Argument::F32));
        let grid = [variables.count(), 1, 1];
        Ok(Launch { source: "adamw", kernel: "adamw".to_owned(), grid, shared: 0, arguments })
    }
}

/// The sum of the squares of each block's gradients.
#[derive(Clone, Debug)]
pub struct SumOfSquares<B> {
    /// The gradients, f32.
    pub gradients: Vec<B>,
    /// [`VariableBlocks::lens`], i64.
    pub lens: B,
    /// [`VariableBlocks::blocks`], u32.
    pub blocks: B,
    /// `[blocks]`, f64.
    pub parts: B,
}

impl<B: Copy> SumOfSquares<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If there are too many variables.
    pub fn launch(&self, variables: &VariableBlocks) -> Result<Launch<B>> {
        Ok(Launch {
            source: "adamw",
            kernel: "sum_of_squares".to_owned(),
            grid: [variables.count(), 1, 1],
            shared: 8 * THREADS,
            arguments: vec![
                Argument::Table(self.gradients.clone()),
                Argument::Buffer(self.lens),
                Argument::Buffer(self.blocks),
                Argument::Buffer(self.parts),
                Argument::I32(int(self.gradients.len())?),
            ],
        })
    }
}

/// A step of AdamW over variables on a GPU (f32, contiguous), all of which it changes in place.
#[derive(Clone, Debug, Default)]
pub struct AdamWStep {
    /// The variables.
    pub weights: Vec<Tensor>,
    /// Their gradients.
    pub gradients: Vec<Tensor>,
    /// First moments.
    pub m: Vec<Tensor>,
    /// Second moments.
    pub v: Vec<Tensor>,
    /// Learning rate and decay of each.
    pub rates: Vec<(f64, f64)>,
}
