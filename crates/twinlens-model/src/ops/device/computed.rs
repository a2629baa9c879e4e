//! An operation of candle's graph that is computed before it is part of the graph.

use crate::kernels::Kernels;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::{Mutex, PoisonError};

/// How operations run.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    pub kernels: Kernels,
    /// Whether the backward pass recomputes the activations of blocks.
    pub recompute: bool,
}

/// Whether an operation on these tensors needs its gradient.
pub(super) fn is_tracked(tensors: &[&Tensor]) -> bool {
    tensors.iter().any(|tensor| tensor.track_op())
}

/// The gradients of an operation's operands, from that of its result.
pub(super) type Backward<const N: usize> = Box<dyn FnOnce(&Tensor) -> Result<[Tensor; N]> + Send>;

/// An operation whose result is known.
pub(super) struct Computed<const N: usize> {
    name: &'static str,
    out: Tensor,
    backward: Mutex<Option<Backward<N>>>,
}

impl<const N: usize> Computed<N> {
    /// `out` is a tensor of its own, not a view.
    pub(super) fn new(
        name: &'static str,
        out: Tensor,
        backward: impl FnOnce(&Tensor) -> Result<[Tensor; N]> + Send + 'static,
    ) -> Self {
        Self { name, out: out.detach(), backward: Mutex::new(Some(Box::new(backward))) }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) if layout.start_offset() == 0 && layout.is_contiguous() => {
                Ok((storage.try_clone(layout)?, layout.shape().clone()))
            }
            _ => bail!("{}: the result is not a tensor of its own in main memory", self.name),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) if layout.start_offset() == 0 && layout.is_contiguous() => {
                Ok((storage.try_clone(layout)?, layout.shape().clone()))
            }
            _ => bail!("{}: the result is not a tensor of its own on the GPU", self.name),
        }
    }

    fn gradients(&self, d: &Tensor) -> Result<[Tensor; N]> {
        let backward = self.backward.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(backward) = backward else {
            bail!("{}: backward can run only once", self.name);
        };
        backward(&d.contiguous()?.detach())
    }
}

impl CustomOp2 for Computed<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [first, second] = self.gradients(d)?;
        Ok((Some(first), Some(second)))
    }
}

impl CustomOp3 for Computed<3> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [first, second, third] = self.gradients(d)?;
        Ok((Some(first), Some(second), Some(third)))
    }
}
