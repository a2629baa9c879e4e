//! The contrastive loss (see [`crate::ops::contrastive`]) with its gradients in closed form.

use super::computed::{Computed, DeviceOptions};
use candle_core::{Result, Tensor, bail};

/// Numbers of logits that are held at a time.
const LOGITS: usize = 1 << 28;

/// The scalar loss of `image` and `text` (`[n, embed]`, unit length, row i of each a pair) for the
/// scalar `logit_scale`, the logarithm of the factor on similarities. Logits are computed for some
/// rows at a time, twice, and not kept.
pub(crate) fn contrastive_loss(
    image: &Tensor,
    text: &Tensor,
    logit_scale: &Tensor,
    options: DeviceOptions,
) -> Result<Tensor> {
    if image.rank() != 2 || image.dims() != text.dims() {
        bail!("contrastive loss: images {:?}, texts {:?}", image.shape(), text.shape());
    }
    let scale = logit_scale.detach().exp()?;
    let sides = [image, text].map(|features| features.detach().contiguous());
    let [own_image, own_text] = sides;
    let pairs = Pairs { image: own_image?, text: own_text?, scale, options };
    let sums = [pairs.log_sums(&pairs.image, &pairs.text)?, pairs.log_sums(&pairs.text, &pairs.image)?];
    let (d_image, of_images) = pairs.gradient([&pairs.image, &pairs.text], [&sums[0], &sums[1]])?;
    let (d_text, of_texts) = pairs.gradient([&pairs.text, &pairs.image], [&sums[1], &sums[0]])?;
    // Each logit belongs to one image and one text: one side gives the temperature's gradient.
    let loss = (of_images.get(0)? + of_texts.get(0)?)?;
    let d_scale = of_images.get(1)?;
    let backward =
        move |d: &Tensor| Ok([d_image.broadcast_mul(d)?, d_text.broadcast_mul(d)?, (d_scale * d)?]);
    image.apply_op3(text, logit_scale, Computed::new("contrastive_loss", loss, backward))
}

struct Pairs {
    image: Tensor,
    text: Tensor,
    /// The factor on similarities, a scalar.
    scale: Tensor,
    options: DeviceOptions,
}

impl Pairs {
    /// The first row and the number of rows whose logits are held together.
    fn pieces(&self) -> Result<Vec<(usize, usize)>> {
        let n = self.image.dim(0)?;
        let rows = (LOGITS / n).max(1);
        Ok((0..n).step_by(rows).map(|first| (first, rows.min(n - first))).collect())
    }

    /// Logits of some rows of `from` against all of `to`.
    fn logits(&self, from: &Tensor, to: &Tensor, (first, rows): (usize, usize)) -> Result<Tensor> {
        from.narrow(0, first, rows)?.broadcast_mul(&self.scale)?.matmul(&to.t()?)
    }

    fn log_sums(&self, from: &Tensor, to: &Tensor) -> Result<Tensor> {
        let sums = self.pieces()?.into_iter().map(|piece| {
            let logits = self.logits(from, to, piece)?;
            self.options.kernels.row_log_sums(&logits)
        });
        Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0)
    }

    /// The gradient of the first side's features, and its shares of the loss and of the gradient of
    /// the temperature's logarithm, `[2]`.
    fn gradient(&self, [from, to]: [&Tensor; 2], [own, other]: [&Tensor; 2]) -> Result<(Tensor, Tensor)> {
        let (mut features, mut shares) = (Vec::new(), Vec::new());
        for piece in self.pieces()? {
            let logits = self.logits(from, to, piece)?;
            let (g, of_rows) = self.options.kernels.contrastive_gradient(&logits, own, other, piece.0)?;
            features.push(g.matmul(to)?.broadcast_mul(&self.scale)?);
            shares.push(of_rows);
        }
        let shares = Tensor::cat(&shares, 0)?;
        Ok((Tensor::cat(&features, 0)?, self.options.kernels.column_sums(&shares)?))
    }
}
