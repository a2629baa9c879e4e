//! The choice between a kernel and its plain twin.

#[cfg(feature = "cuda")]
use super::cuda;
use super::layers::AttentionSizes;
use super::optimizer::{AdamWFactors, AdamWStep};
use super::pixels::ImageBatch;
use super::plain::{self, Attended, Delta, Norm, Normed};
use crate::ops::activation::Activation;
use candle_core::{DType, Device, Result, Tensor};
use twinlens_image::Preprocess;

/// Which implementation computes what lies between matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Candle's operations ([`plain`]), on any device.
    #[default]
    Plain,
    /// The kernels of this module, on a GPU (feature `cuda`), in f32 and bf16.
    Fused,
}

impl Kernels {
    /// Whether the kernels are part of this build and take this device and type.
    pub fn support(device: &Device, dtype: DType) -> bool {
        cfg!(feature = "cuda") && device.is_cuda() && matches!(dtype, DType::F32 | DType::BF16)
    }
}

/// The error of a build without kernels.
#[cfg(not(feature = "cuda"))]
fn not_built<T>(what: &str) -> Result<T> {
    candle_core::bail!("{what}: the kernels need a program built with `--features cuda`")
}

macro_rules! choices {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Kernels {
            $(
                #[doc = concat!("[`plain::", stringify!($name), "`], or the kernel.")]
                ///
                /// # Errors
                /// If a shape does not match, or this build or the device has no kernels.
                pub fn $name(self, $($argument: $type),*) -> Result<$result> {
                    match self {
                        Self::Plain => plain::$name($($argument),*),
                        #[cfg(feature = "cuda")]
                        Self::Fused => cuda::$name($($argument),*),
                        #[cfg(not(feature = "cuda"))]
                        Self::Fused => not_built(stringify!($name)),
                    }
                }
            )*
        }
    };
}

choices! {
    fn add_norm(x: &Tensor, delta: Delta<'_>, norm: Norm<'_>) -> Normed;
    fn add_norm_backward(normed: &Normed, gain: &Tensor, dy: &Tensor, d_sum: Option<&Tensor>) -> (Tensor, [Tensor; 3]);
    fn bias_activation(x: &Tensor, bias: &Tensor, activation: Activation) -> Tensor;
    fn bias_activation_backward(x: &Tensor, bias: &Tensor, dy: &Tensor, activation: Activation) -> (Tensor, Tensor);
    fn column_sums(x: &Tensor) -> Tensor;
    fn attention(qkv: &Tensor, bias: &Tensor, sizes: AttentionSizes) -> (Tensor, Tensor);
    fn attention_backward(attended: Attended<'_>, d_out: &Tensor, sizes: AttentionSizes) -> Tensor;
    fn row_log_sums(logits: &Tensor) -> Tensor;
    fn contrastive_gradient(logits: &Tensor, own: &Tensor, other: &Tensor, first: usize) -> (Tensor, Tensor);
    fn embed(ids: &Tensor, table: &Tensor, positions: &Tensor, len: usize, dtype: DType) -> Tensor;
    fn prepare_pixels(batch: ImageBatch<'_>, preprocess: &Preprocess, device: &Device) -> Tensor;
    fn embedding_gradient(d: &Tensor, ids: &[u32], vocabulary: usize) -> Tensor;
}

/// Makes the step in one launch; [`plain::adamw`] is its twin for one variable.
///
/// # Errors
/// If a tensor is not on a GPU, or this program was built without support for them.
pub fn adamw(step: &AdamWStep, factors: &AdamWFactors) -> Result<()> {
    #[cfg(feature = "cuda")]
    return cuda::adamw(step, factors);
    #[cfg(not(feature = "cuda"))]
    not_built(&format!("step {} of {} variables", factors.step, step.weights.len()))
}

/// The sum of the squares of each gradient (f32, on a GPU), in one launch.
///
/// # Errors
/// As [`adamw`].
pub fn sums_of_squares(gradients: &[Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    return cuda::sums_of_squares(gradients);
    #[cfg(not(feature = "cuda"))]
    not_built(&format!("the norm of {} gradients", gradients.len()))
}
