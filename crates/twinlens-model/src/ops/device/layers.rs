//! Layer norm and the token embedding.

use super::computed::{Computed, DeviceOptions, is_tracked};
use crate::kernels::plain::Norm;
use candle_core::{DType, Result, Tensor, bail};

/// Layer norm of the last dimension of `x`, with `gain` and `bias` (`[width]`, f32).
pub(crate) fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, options: DeviceOptions) -> Result<Tensor> {
    let (shape, width) = (x.shape().clone(), gain.elem_count());
    let rows = x.detach().contiguous()?.reshape(((), width))?;
    let (own_gain, own_bias) = (gain.detach(), bias.detach());
    let norm = Norm { gain: &own_gain, bias: &own_bias };
    let normed = options.kernels.add_norm(&rows, None, norm)?;
    let y = normed.y.reshape(&shape)?;
    if !is_tracked(&[x, gain, bias]) {
        return Ok(y);
    }
    let backward = move |d: &Tensor| {
        let d = d.reshape(((), width))?;
        let (d, [d_gain, d_bias, _]) = options.kernels.add_norm_backward(&normed, &own_gain, &d, None)?;
        Ok([d.reshape(&shape)?, d_gain, d_bias])
    };
    x.contiguous()?.apply_op3(gain, bias, Computed::new("layer_norm", y, backward))
}

/// Rows of the tokens `ids` (`[batch, len]`, u32) as `dtype`, `[batch len, width]`: `table`
/// (`[vocabulary, width]`) at each id, plus `positions` (`[context, width]`).
pub(crate) fn embed(
    ids: &Tensor,
    table: &Tensor,
    positions: &Tensor,
    dtype: DType,
    options: DeviceOptions,
) -> Result<Tensor> {
    let ((batch, len), (vocabulary, width)) = (ids.dims2()?, table.dims2()?);
    let context = positions.dim(0)?;
    let numbers = ids.flatten_all()?.to_vec1::<u32>()?;
    if len > context || numbers.iter().any(|id| *id as usize >= vocabulary) {
        bail!("text embedding: an id beyond {vocabulary}, or {len} tokens for {context} positions");
    }
    let ids = ids.to_device(table.device())?;
    let (own_table, own_positions) = (table.detach(), positions.detach());
    let out = options.kernels.embed(&ids, &own_table, &own_positions, len, dtype)?;
    if !is_tracked(&[table, positions]) {
        return Ok(out);
    }
    let backward = move |d: &Tensor| {
        let d_table = options.kernels.embedding_gradient(d, &numbers, vocabulary)?;
        let d_positions = options.kernels.column_sums(&d.reshape((batch, len * width))?)?;
        let d_positions = d_positions.reshape((len, width))?.pad_with_zeros(0, 0, context - len)?;
        Ok([d_table, d_positions])
    };
    table.apply_op2(positions, Computed::new("text_embed", out, backward))
}
