//! The kernels' sources compiled by a C++ compiler, and a memory of buffers to launch them on.

use candle_core::{DType, Device, Tensor};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use twinlens_model::kernels::{Argument, Launch, Storage, THREADS};

const COMPILERS: [&str; 2] = ["g++", "clang++"];

/// The harness, compiled once in a process.
fn harness() -> &'static Path {
    static HARNESS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let compile = || {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("harness");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/harness.cpp");
        let found = |compiler: &&&str| Command::new(compiler).arg("--version").output().is_ok();
        let compiler =
            COMPILERS.iter().find(found).expect("the test of kernels needs g++ or clang++ in PATH");
        let options = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"];
        let compiled = Command::new(compiler).args(options).arg(source).arg("-o").arg(&program).output();
        let compiled = compiled.unwrap();
        assert!(compiled.status.success(), "{compiler}: {}", String::from_utf8_lossy(&compiled.stderr));
        (dir, program)
    };
    &HARNESS.get_or_init(compile).1
}

/// Buffers by number.
#[derive(Default)]
pub(super) struct Machine(Vec<Vec<u8>>);

impl Machine {
    pub(super) fn bytes(&mut self, bytes: Vec<u8>) -> usize {
        self.0.push(bytes);
        self.0.len() - 1
    }

    pub(super) fn floats(&mut self, values: &[f32]) -> usize {
        self.bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub(super) fn words(&mut self, values: &[u32]) -> usize {
        self.bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Values as a kernel stores them; those that it stores as bf16 are rounded already.
    pub(super) fn stored(&mut self, values: &[f32], storage: Storage) -> usize {
        match storage {
            Storage::F32 => self.floats(values),
            Storage::Bf16 => {
                assert!(values.iter().all(|x| x.to_bits() & 0xffff == 0), "values that bf16 does not hold");
                self.bytes(values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect())
            }
        }
    }

    /// Memory that nobody has written: NaN in each type.
    pub(super) fn fresh(&mut self, count: usize, storage: Storage) -> usize {
        self.bytes(vec![0xff; count * if storage == Storage::F32 { 4 } else { 2 }])
    }

    pub(super) fn read_bytes(&self, buffer: usize) -> &[u8] {
        &self.0[buffer]
    }

    pub(super) fn read(&self, buffer: usize, storage: Storage) -> Vec<f64> {
        let bytes = &self.0[buffer];
        let wide = |bits: u32| f64::from(f32::from_bits(bits));
        match storage {
            Storage::F32 => {
                bytes.chunks_exact(4).map(|x| wide(u32::from_le_bytes(x.try_into().unwrap()))).collect()
            }
            Storage::Bf16 => {
                bytes.chunks_exact(2).map(|x| wide(u32::from_le_bytes([0, 0, x[0], x[1]]))).collect()
            }
        }
    }

    pub(super) fn read_floats(&self, buffer: usize) -> Vec<f64> {
        self.read(buffer, Storage::F32)
    }

    /// Runs a launch with the threads of a block in ascending and in descending order. A missing
    /// barrier makes a difference.
    pub(super) fn run(&mut self, launch: &Launch<usize>) {
        let [up, down] = [false, true].map(|descending| self.run_in_order(launch, descending));
        assert!(up == down, "{}: results depend on the order of threads", launch.kernel);
        self.0 = up;
    }

    fn run_in_order(&self, launch: &Launch<usize>, descending: bool) -> Vec<Vec<u8>> {
        let mut child = Command::new(harness())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // An early end of the harness is seen in its status.
        let _ = input.write_all(&self.message(launch, descending));
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}: {}: {}",
            launch.kernel,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let mut rest = &output.stdout[..];
        let buffers = self.0.iter().map(|buffer| {
            let (own, tail) = rest.split_at(buffer.len());
            rest = tail;
            own.to_vec()
        });
        let buffers = buffers.collect();
        assert!(rest.is_empty());
        buffers
    }

    /// The launch as `kernels/harness.cpp` reads it.
    fn message(&self, launch: &Launch<usize>, descending: bool) -> Vec<u8> {
        let mut message = Vec::new();
        let words = |message: &mut Vec<u8>, words: &[u32]| {
            message.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        };
        words(&mut message, &[launch.kernel.len() as u32]);
        message.extend(launch.kernel.as_bytes());
        words(&mut message, &launch.grid);
        words(&mut message, &[THREADS, launch.shared, u32::from(descending), self.0.len() as u32]);
        for buffer in &self.0 {
            message.extend((buffer.len() as u64).to_le_bytes());
            message.extend(buffer);
        }
        words(&mut message, &[launch.arguments.len() as u32]);
        for argument in &launch.arguments {
            match argument {
                Argument::Buffer(number) => words(&mut message, &[0, *number as u32]),
                Argument::I32(x) => words(&mut message, &[1, *x as u32]),
                Argument::F32(x) => words(&mut message, &[1, x.to_bits()]),
                Argument::I64(x) => words(&mut message, &[2, *x as u32, (*x >> 32) as u32]),
                Argument::Null => words(&mut message, &[3]),
                Argument::Table(buffers) => {
                    words(&mut message, &[4, buffers.len() as u32]);
                    buffers.iter().for_each(|buffer| words(&mut message, &[*buffer as u32]));
                }
            }
        }
        message
    }
}

/// Values that bf16 holds exactly.
pub(super) fn rounded(values: Vec<f32>) -> Vec<f32> {
    let n = values.len();
    let halves = Tensor::from_vec(values, n, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    halves.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// A tensor of f64.
pub(super) fn wide(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}
