//! The GPU kernels, run in a C++ emulation: against PyTorch in f64 (`kernels/make_fixtures.py`),
//! and against their plain twins in f64.
//!
//! Inputs are bf16 numbers, so that both storages compute from the same values. With f32 storage
//! results are within 1e-5 of f64 (distance of vectors); with bf16 storage within 4e-3, that is, of
//! rounding each result once to 8 bits. Sums and statistics are f32 in both, and within 1e-5 but
//! where a result that was rounded enters them.

mod layers;
mod losses;
mod machine;
mod pixels;

use crate::common::distance;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use twinlens_model::kernels::Storage;

const STORAGES: [Storage; 2] = [Storage::F32, Storage::Bf16];
const EXACT: f64 = 1e-5;

fn tolerance(storage: Storage) -> f64 {
    match storage {
        Storage::F32 => EXACT,
        Storage::Bf16 => 4e-3,
    }
}

/// What PyTorch computed.
struct Fixtures(HashMap<String, Tensor>);

impl Fixtures {
    fn read() -> Self {
        let bytes = include_bytes!("../../kernels/kernels.safetensors");
        Self(candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f64> {
        crate::common::values(&self.0[name])
    }
}

#[track_caller]
fn check(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    let distance = distance(got, want, 1e-9);
    // NaN fails too.
    assert!(distance < tolerance, "{what}: {distance:e}");
    println!("{what}: within {distance:.1e}");
}
