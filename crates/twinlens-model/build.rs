//! Compiles the GPU kernels to PTX, under the feature `cuda`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The oldest GPU that the PTX runs on (A100): bf16 needs it.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if let Err(message) = compile() {
        println!("cargo::error={message}");
    }
}

fn compile() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let home = env::var_os("CUDA_HOME").map(PathBuf::from);
    let nvcc = home.map(|home| home.join("bin/nvcc")).filter(|nvcc| nvcc.is_file());
    let nvcc = nvcc.unwrap_or_else(|| PathBuf::from("nvcc"));
    let sources = fs::read_dir("kernels").map_err(|error| format!("kernels: {error}"))?;
    for source in sources {
        let source = source.map_err(|error| format!("kernels: {error}"))?.path();
        if source.extension().is_some_and(|extension| extension == "cu") {
            compile_source(&nvcc, &source, &out)?;
        }
    }
    Ok(())
}

fn compile_source(nvcc: &Path, source: &Path, out: &Path) -> Result<(), String> {
    let to = out.join(source.with_extension("ptx").file_name().ok_or("a source without a name")?);
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-ptx"]).arg(format!("-arch={ARCHITECTURE}"));
    let output =
        command.arg(source).arg("-o").arg(to).output().map_err(|error| {
            format!("{}: {error}; install the CUDA toolkit or set CUDA_HOME", nvcc.display())
        })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    Err(format!("nvcc cannot compile {}: {message}", source.display()))
}
