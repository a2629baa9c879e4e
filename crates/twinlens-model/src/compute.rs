//! The device a model runs on, and its precision.
//!
//! The CPU runs the fused operations, in f32. A GPU (feature `cuda`) runs the operations of
//! [`crate::reference`], composed of candle's kernels, in f32 or mixed precision: weights, norms
//! and the loss in f32, matrix products and convolutions in half precision.

use crate::error::{ModelError, Result};
use crate::ops::reference::Tensors;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Shape, Tensor, backend::BackendStorage, bail,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The requested device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceOption {
    /// The first GPU if the program was built for GPUs and finds one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

impl DeviceOption {
    /// Checks that this build supports the device and `precision`, without opening the device.
    ///
    /// # Errors
    /// `Device` for a GPU in a build without GPU support, and for half precision on the CPU, where
    /// it is slower than f32.
    pub fn check(self, precision: Precision) -> Result<()> {
        let built = candle_core::utils::cuda_is_available();
        if let (Self::Cuda(number), false) = (self, built) {
            return Err(ModelError::Device(format!(
                "cuda:{number} needs a program built with `--features cuda`; use \"cpu\" or \"auto\" instead"
            )));
        }
        let gpu = self != Self::Cpu && built;
        if gpu || precision.is_f32() { Ok(()) } else { Err(precision.on_cpu()) }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// As [`check`](Self::check), and if the GPU cannot be used.
    pub fn open(self, precision: Precision) -> Result<Device> {
        self.check(precision)?;
        let device = match self {
            Self::Auto => Device::cuda_if_available(0).unwrap_or(Device::Cpu),
            Self::Cpu => Device::Cpu,
            Self::Cuda(number) => Device::new_cuda(number).map_err(|error| {
                ModelError::Device(format!(
                    "cuda:{number} cannot be used ({error}); `nvidia-smi` lists the GPUs"
                ))
            })?,
        };
        if device.is_cpu() && !precision.is_f32() { Err(precision.on_cpu()) } else { Ok(device) }
    }
}

impl DeviceOption {
    /// Opens the device for one of several processes of a machine: `auto` is the GPU with the
    /// number of the process.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for(self, local_rank: usize, precision: Precision) -> Result<Device> {
        let device = self.open(precision)?;
        match self {
            Self::Auto if local_rank > 0 && !device.is_cpu() => Self::Cuda(local_rank).open(precision),
            _ => Ok(device),
        }
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
                let unknown = || format!("unknown device `{name}`: expected \"auto\", \"cpu\" or \"cuda:0\"");
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
            "description": "Device: `cpu`, `cuda:0` (in a build with `--features cuda`), or `auto`: a GPU if there is one.",
            "type": "string",
        })
    }
}

/// Precision of matrix products and convolutions. Weights, norms, softmax sums and losses are
/// always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of f32. GPU only.
    Bf16,
    /// 16 bits with more precision and less range; gradients are scaled by a fixed factor on the
    /// way. GPU only.
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

    /// The name in options and tables.
    pub fn name(self) -> &'static str {
        self.dtype().as_str()
    }

    /// Whether this is f32, the default.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    fn on_cpu(self) -> ModelError {
        let name = self.name();
        ModelError::Device(format!(
            "precision {name} needs a GPU: on the CPU it is slower than f32 and saves nothing; use precision = \"f32\""
        ))
    }

    /// The factor on gradients inside half-precision operations.
    fn gradient_scale(self) -> f64 {
        // Gradients of features are about 1 / batch; f16 underflows below 6e-8.
        if self == Self::F16 { 1024.0 } else { 1.0 }
    }
}

/// Returns `x`; its gradient is `scale` times that of the result.
pub(crate) fn scale_gradient(x: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    if scale == 1.0 { Ok(x.clone()) } else { x.contiguous()?.apply_op1(ScaleGradient(scale)) }
}

impl Precision {
    /// Passes a weight into half-precision operations; unscales its gradient.
    pub(crate) fn enter(self, weight: &Tensor) -> candle_core::Result<Tensor> {
        scale_gradient(weight, 1.0 / self.gradient_scale())
    }

    /// Passes all weights that are trained into half-precision operations.
    pub(crate) fn enter_all(self, tensors: &Tensors) -> candle_core::Result<Tensors> {
        let enter = |(name, tensor): (&String, &Tensor)| {
            let tensor = if tensor.track_op() { self.enter(tensor)? } else { tensor.clone() };
            Ok((name.clone(), tensor))
        };
        tensors.iter().map(enter).collect()
    }

    /// Passes a result out of half-precision operations as f32; scales its gradient.
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
            bail!("scale_gradient needs contiguous tensors");
        }
        Ok((x.try_clone(at)?, at.shape().clone()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, at: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        if at.start_offset() != 0 {
            bail!("scale_gradient needs contiguous tensors");
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
    fn devices_are_parsed_and_opened() {
        for (name, device) in [
            ("auto", Ok(DeviceOption::Auto)),
            ("cpu", Ok(DeviceOption::Cpu)),
            ("cuda:1", Ok(DeviceOption::Cuda(1))),
            ("cuda", Ok(DeviceOption::Cuda(0))),
            ("gpu", Err(r#"unknown device `gpu`: expected "auto", "cpu" or "cuda:0""#.to_owned())),
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
    fn only_gradients_are_scaled() {
        let x = candle_core::Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let y = Precision::F16.leave(&(Precision::F16.enter(&x).unwrap() * 3.0).unwrap()).unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [3.0, -6.0]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>().unwrap(), [3.0, 3.0]);
    }
}
