//! Variables as towers and objectives declare them: name, shape and initial distribution.
//!
//! Each variable draws its initial values from a random stream of its own, which depends on the
//! seed and the name alone. Distributions are those of CLIP's code, and PyTorch's defaults
//! elsewhere.

use crate::error::Result;
use candle_core::{Device, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Variables ordered by name, so that iteration has the same order in every run.
pub type Variables = BTreeMap<String, Var>;

/// The distribution of a variable's initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
}

impl Init {
    pub const ZERO: Self = Self::Constant(0.0);
    pub const ONE: Self = Self::Constant(1.0);

    /// Normal with standard deviation `n`^-1/2.
    pub fn normal_fan_in(n: usize) -> Self {
        Self::Normal((n as f64).powf(-0.5))
    }

    /// PyTorch's default for linear layers and convolutions with `n` inputs: uniform within
    /// `n`^-1/2 (Kaiming with a = sqrt(5)).
    pub fn uniform_fan_in(n: usize) -> Self {
        Self::Uniform((n as f64).powf(-0.5))
    }

    /// The endless stream of initial values of variable `name`.
    pub fn values(self, name: &str, seed: u64) -> impl Iterator<Item = f32> {
        let mut stream = Sha256::new();
        stream.update(seed.to_le_bytes());
        stream.update(name);
        let mut rng = ChaCha8Rng::from_seed(stream.finalize().into());
        std::iter::repeat_with(move || match self {
            Self::Constant(value) => value,
            Self::Uniform(bound) => rng.random_range(-bound..bound) as f32,
            Self::Normal(deviation) => (deviation * standard_normal(&mut rng)) as f32,
        })
    }
}

/// A standard normal number by the Box-Muller transform. Every published model started from these
/// values, so another method cannot replace it.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Shape and initial distribution of each variable of a model, by name.
#[derive(Default)]
pub struct Declarations(pub BTreeMap<String, (Vec<usize>, Init)>);

impl Declarations {
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], init: Init) {
        self.0.insert(name.into(), (shape.to_vec(), init));
    }

    /// Gains (`{name}.weight`, 1) and biases (`{name}.bias`, 0) of a norm.
    pub fn add_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], Init::ONE);
        self.add(format!("{name}.bias"), &[width], Init::ZERO);
    }

    /// How many numbers all variables have.
    pub fn parameters(&self) -> usize {
        self.0.values().map(|(shape, _)| shape.iter().product::<usize>()).sum()
    }

    /// Creates the variables with their initial values.
    pub fn create(self, seed: u64) -> Result<Variables> {
        let create = |(name, (shape, init)): (String, (Vec<usize>, Init))| {
            let values = init.values(&name, seed).take(shape.iter().product()).collect::<Vec<_>>();
            Ok((name, Var::from_vec(values, shape, &Device::Cpu)?))
        };
        self.0.into_iter().map(create).collect()
    }
}
