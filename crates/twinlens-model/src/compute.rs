//! Where a model computes, and in which precision.
//!
//! On the CPU the fused operations run, in f32. On a GPU (feature `cuda`) the plain ones of
//! [`crate::reference`] do, composed of candle's kernels, in f32 or mixed: weights, norms and the
//! loss in f32, matrix products and convolutions in half precision.

use crate::error::{ModelError, Result};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Shape, Tensor, backend::BackendStorage, bail,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Which device was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceOption {
    /// The first GPU where the program was built for GPUs and finds one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

impl DeviceOption {
    /// Whether this program can compute there in `precision`, as far as that is known before a
    /// device is looked for.
    ///
    /// # Errors
    /// `Device` for a GPU in a program built without, and for half precision without a GPU, where
    /// it is slower than f32.
    pub fn check(self, precision: Precision) -> Result<()> {
        let built = candle_core::utils::cuda_is_available();
        if let (Self::Cuda(number), false) = (self, built) {
            return Err(ModelError::Device(format!(
                "cuda:{number} is asked for, and this program was built without GPUs: build it with `--features cuda`, or take \
                 \"cpu\" or \"auto\""
            )));
        }
        let gpu = self != Self::Cpu && built;
        if gpu || precision.is_f32() { Ok(()) } else { Err(precision.on_cpu()) }
    }

    /// The device.
    ///
    /// # Errors
    /// As [`check`](Self::check), and when the GPU that is asked for cannot be used.
    pub fn open(self, precision: Precision) -> Result<Device> {
        self.check(precision)?;
        let device = match self {
            Self::Auto => Device::cuda_if_available(0).unwrap_or(Device::Cpu),
            Self::Cpu => Device::Cpu,
            Self::Cuda(number) => Device::new_cuda(number).map_err(|error| {
                let hint = "`nvidia-smi` lists the GPUs that there are";
                ModelError::Device(format!("cuda:{number} cannot be used ({error}); {hint}"))
            })?,
        };
        if device.is_cpu() && !precision.is_f32() { Err(precision.on_cpu()) } else { Ok(device) }
    }
}

impl FromStr for DeviceOption {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                let unknown = || format!("no device is called `{name}`: \"auto\", \"cpu\" or \"cuda:0\"");
                number.map(Self::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl TryFrom<String> for DeviceOption {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<DeviceOption> for String {
    fn from(device: DeviceOption) -> Self {
        match device {
            DeviceOption::Auto => "auto".into(),
            DeviceOption::Cpu => "cpu".into(),
            DeviceOption::Cuda(number) => format!("cuda:{number}"),
        }
    }
}

impl JsonSchema for DeviceOption {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeviceOption".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Where a model computes: `cpu`, `cuda:0` (a build with `--features cuda`), or `auto`: a GPU where there is one.",
            "type": "string",
        })
    }
}

/// What matrix products and convolutions are computed in. Weights, norms, softmax sums and losses
/// are f32 throughout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of f32. On a GPU.
    Bf16,
    /// 16 bits with more digits and less range; gradients are scaled by a fixed factor on their
    /// way. On a GPU.
    F16,
}

impl Precision {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// As it is written in options and tables.
    pub fn name(self) -> &'static str {
        self.dtype().as_str()
    }

    /// Whether nothing else was asked for.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    fn on_cpu(self) -> ModelError {
        let name = self.name();
        ModelError::Device(format!(
            "{name} is for GPUs: on the CPU it is slower than f32 and saves nothing; take precision = \"f32\""
        ))
    }

    /// By how much gradients are larger on their way through half-precision operations.
    fn gradient_scale(self) -> f64 {
        // Gradients of features are about 1 / batch; below 6e-8 f16 has nothing.
        if self == Self::F16 { 1024.0 } else { 1.0 }
    }
}

/// `x` itself, whose gradient is `scale` times that of the result.
pub(crate) fn scale_gradient(x: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    if scale == 1.0 { Ok(x.clone()) } else { x.contiguous()?.apply_op1(ScaleGradient(scale)) }
}

impl Precision {
    /// A weight on its way into the operations; gradients come back in their true size.
    pub(crate) fn enter(self, weight: &Tensor) -> candle_core::Result<Tensor> {
        scale_gradient(weight, 1.0 / self.gradient_scale())
    }

    /// A result on its way out of them, in f32.
    pub(crate) fn leave(self, x: &Tensor) -> candle_core::Result<Tensor> {
        scale_gradient(&x.to_dtype(DType::F32)?, self.gradient_scale())
    }
}

struct ScaleGradient(f64);

impl CustomOp1 for ScaleGradient {
    fn name(&self) -> &'static str {
        "scale_gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        if at.start_offset() != 0 {
            bail!("scale_gradient takes whole tensors");
        }
        Ok((x.try_clone(at)?, at.shape().clone()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, at: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        if at.start_offset() != 0 {
            bail!("scale_gradient takes whole tensors");
        }
        Ok((x.try_clone(at)?, at.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, d: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some((d * self.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        for (name, device) in [
            ("auto", Ok(DeviceOption::Auto)),
            ("cpu", Ok(DeviceOption::Cpu)),
            ("cuda:1", Ok(DeviceOption::Cuda(1))),
            ("cuda", Ok(DeviceOption::Cuda(0))),
            ("gpu", Err(r#"no device is called `gpu`: "auto", "cpu" or "cuda:0""#.to_owned())),
        ] {
            assert_eq!(name.parse::<DeviceOption>(), device);
        }
        assert!(DeviceOption::Cpu.open(Precision::F32).unwrap().is_cpu());
        assert!(DeviceOption::Cpu.open(Precision::Bf16).unwrap_err().to_string().contains("bf16"));
        if !candle_core::utils::cuda_is_available() {
            assert!(DeviceOption::Auto.open(Precision::F32).unwrap().is_cpu());
            let error = DeviceOption::Cuda(0).open(Precision::F32).unwrap_err().to_string();
            assert!(error.contains("--features cuda"), "{error}");
        }
    }

    #[test]
    fn gradients_are_scaled_and_values_are_not() {
        let x = candle_core::Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let y = Precision::F16.leave(&(Precision::F16.enter(&x).unwrap() * 3.0).unwrap()).unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [3.0, -6.0]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>().unwrap(), [3.0, 3.0]);
    }
}
