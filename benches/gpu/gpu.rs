//! What `benches/gpu/run` measures of twinlens; each line of output is a JSON object.
//!
//!     gpu kernels [--device cuda:0] [--small]
//!     gpu values MODEL BATCHES OUT [--device cuda:0] [--precision bf16] [--kernels fused|plain] [--steps 50]
//!     gpu steps MODEL BATCH [the same options]
//!
//! `kernels` compares each kernel with its plain twin in f32: distance and microseconds. `values`
//! writes features, gradients and the losses of some steps on the batches (`pixels`, `ids`) to a
//! safetensors file. `steps` times steps on random pixels. MODEL is a folder with `config.json` and
//! weights for `values`, and a JSON configuration or a preset's name for `steps`.

#![allow(clippy::print_stdout, reason = "a program")]

mod compare;
mod train;

use candle_core::Device;
use twinlens_model::kernels::Kernels;
use twinlens_model::{DeviceOption, Precision};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// candle walks its graph recursively.
const STACK_BYTES: usize = 256 << 20;

/// The command line.
struct Options {
    device: Device,
    precision: Precision,
    /// `None` for what the device has.
    kernels: Option<Kernels>,
    steps: usize,
    small: bool,
    arguments: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut arguments = std::env::args().skip(1);
        let (mut device, mut precision, mut kernels) = (DeviceOption::Cuda(0), Precision::F32, None);
        let (mut steps, mut small, mut rest) = (50, false, Vec::new());
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--device" => device = value()?.parse()?,
                "--precision" => {
                    precision = match value()?.as_str() {
                        "f32" => Precision::F32,
                        "bf16" => Precision::Bf16,
                        other => return Err(format!("precision {other}: f32 or bf16").into()),
                    }
                }
                "--kernels" => {
                    kernels = Some(match value()?.as_str() {
                        "fused" => Kernels::Fused,
                        "plain" => Kernels::Plain,
                        other => return Err(format!("kernels {other}: fused or plain").into()),
                    });
                }
                "--steps" => steps = value()?.parse()?,
                "--small" => small = true,
                _ => rest.push(argument),
            }
        }
        // In f32: the CPU may try half precision here, though it is of no use there.
        let device = device.open(Precision::F32)?;
        Ok(Self { device, precision, kernels, steps, small, arguments: rest })
    }
}

fn run() -> Result<(), Failure> {
    let options = Options::parse()?;
    let arguments: Vec<&str> = options.arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["kernels"] => compare::kernels(&options),
        ["values", model, batches, out] => train::values(&options, model, batches, out),
        ["steps", model, batch] => train::steps(&options, model, batch.parse()?),
        _ => Err("usage: gpu kernels | values MODEL BATCHES OUT | steps MODEL BATCH".into()),
    }
}

fn main() -> Result<(), Failure> {
    let trainer = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run)?;
    trainer.join().map_err(|_| "the bench panicked")?
}
