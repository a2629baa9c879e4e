//! The losses of [`super::pairs`] in candle's operations, for features that are on a GPU: comparing
//! them there takes a hundredth of the time that the CPU needs.

use crate::kernels::Kernels;
use candle_core::{Result, Tensor};
use std::ops::Range;

/// Logits that are held at a time.
const LOGITS: usize = 1 << 24;

/// Features of some rows of a batch, `[rows, embed]` each, f32.
#[derive(Clone, Copy)]
pub(crate) struct TensorBlock<'a> {
    pub image: &'a Tensor,
    pub text: &'a Tensor,
    /// The number of the first row.
    pub first: usize,
}

/// As [`super::pairs::Pairs`].
#[derive(Clone, Copy)]
pub(crate) struct TensorPairs<'a> {
    pub own: TensorBlock<'a>,
    pub others: TensorBlock<'a>,
    /// Rows of the batch.
    pub n: usize,
    /// The factor on the similarities.
    pub scale: f32,
    pub kernels: Kernels,
}

/// As [`super::pairs::Shares`].
pub(crate) struct TensorShares {
    pub loss: f64,
    /// `[own, embed]`.
    pub image: Tensor,
    /// `[own, embed]`.
    pub text: Tensor,
    pub scale: f64,
    pub bias: f64,
}

/// Sums over one side (images or texts).
struct Side {
    features: Tensor,
    loss: f64,
    scale: f64,
    bias: f64,
}

impl TensorPairs<'_> {
    /// Both sides: own rows, and the rows that they are compared with.
    fn sides(&self) -> [(&Tensor, &Tensor); 2] {
        [(self.own.image, self.others.text), (self.own.text, self.others.image)]
    }

    /// Calls `f` for pieces of the own rows: with their places, and their logits against all of
    /// `to`.
    fn pieces<R>(
        &self,
        own: &Tensor,
        to: &Tensor,
        mut f: impl FnMut(Range<usize>, Tensor) -> Result<R>,
    ) -> Result<Vec<R>> {
        let (rows, columns) = (own.dim(0)?, to.t()?.contiguous()?);
        let most = (LOGITS / to.dim(0)?.max(1)).max(1);
        let piece = |first: usize| {
            let count = most.min(rows - first);
            let logits = (own.narrow(0, first, count)?.matmul(&columns)? * f64::from(self.scale))?;
            f(first..first + count, logits)
        };
        (0..rows).step_by(most).map(piece).collect()
    }

    /// As [`super::pairs::Pairs::log_sums`].
    pub(crate) fn log_sums(&self) -> Result<[Vec<f32>; 2]> {
        let sums = |(own, to): (&Tensor, &Tensor)| {
            let pieces =
                self.pieces(own, to, |_, logits| self.kernels.row_log_sums(&logits)?.to_vec1::<f32>())?;
            Ok::<_, candle_core::Error>(pieces.concat())
        };
        let [image, text] = self.sides();
        Ok([sums(image)?, sums(text)?])
    }

    /// As [`super::pairs::Pairs::contrastive`]; the other rows are the whole batch.
    pub(crate) fn contrastive(&self, images: &[f32], texts: &[f32]) -> Result<TensorShares> {
        let side = |(own, to): (&Tensor, &Tensor), own_sums: &[f32], other_sums: &[f32]| {
            let sums = |sums: &[f32]| Tensor::from_slice(sums, self.n, own.device());
            let (own_sums, other_sums, mut shares) = (sums(own_sums)?, sums(other_sums)?, Vec::new());
            let features = self.pieces(own, to, |rows, logits| {
                let first = self.own.first + rows.start;
                let (gradient, of_rows) =
                    self.kernels.contrastive_gradient(&logits, &own_sums, &other_sums, first)?;
                shares.push(of_rows);
                gradient.matmul(to)
            })?;
            let features = (Tensor::cat(&features, 0)? * f64::from(self.scale))?;
            let shares = Tensor::cat(&shares, 0)?;
            let [loss, scale] = [sum(&shares.narrow(1, 0, 1)?)?, sum(&shares.narrow(1, 1, 1)?)?];
            Ok::<_, candle_core::Error>(Side { features, loss, scale, bias: 0.0 })
        };
        let [image, text] = self.sides();
        let (image, text) = (side(image, images, texts)?, side(text, texts, images)?);
        let loss = image.loss + text.loss;
        Ok(TensorShares { loss, image: image.features, text: text.features, scale: image.scale, bias: 0.0 })
    }

    /// As [`super::pairs::Pairs::sigmoid`].
    pub(crate) fn sigmoid(&self, bias: f32) -> Result<TensorShares> {
        let (n, bias) = (self.n as f64, f64::from(bias));
        let side = |(own, to): (&Tensor, &Tensor)| {
            let mut side = Side { features: own.zeros_like()?, loss: 0.0, scale: 0.0, bias: 0.0 };
            // As if no text belonged to an image.
            let features = self.pieces(own, to, |_, logits| {
                let biased = (&logits + bias)?;
                let softplus = (biased.relu()? + (biased.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
                side.loss += sum(&softplus)? / n;
                let gradient = (candle_nn::ops::sigmoid(&biased)? / n)?;
                side.scale += sum(&(&gradient * &logits)?)?;
                side.bias += sum(&gradient)?;
                gradient.matmul(to)
            })?;
            side.features = (Tensor::cat(&features, 0)? * f64::from(self.scale))?;
            self.count_pairs(&mut side, (own, to), bias)?;
            Ok::<_, candle_core::Error>(side)
        };
        let [image, text] = self.sides();
        let (image, text) = (side(image)?, side(text)?);
        let Side { features, loss, scale, bias } = image;
        Ok(TensorShares { loss, image: features, text: text.features, scale, bias })
    }

    /// Corrects sums of SigLIP's loss for the pairs that belong together, as far as both ranges
    /// have them: softplus(-x) = softplus(x) - x, and the slopes of both differ by 1.
    fn count_pairs(&self, side: &mut Side, (own, to): (&Tensor, &Tensor), bias: f64) -> Result<()> {
        let (rows, others) = (own.dim(0)?, to.dim(0)?);
        let start = self.own.first.max(self.others.first);
        let end = (self.own.first + rows).min(self.others.first + others);
        if start >= end {
            return Ok(());
        }
        let (n, count) = (self.n as f64, end - start);
        let pairs = to.narrow(0, start - self.others.first, count)?;
        let before = start - self.own.first;
        let logits = sum(&(own.narrow(0, before, count)? * &pairs)?)? * f64::from(self.scale);
        side.loss -= (logits + bias * count as f64) / n;
        side.scale -= logits / n;
        side.bias -= count as f64 / n;
        let pairs = (pairs * (f64::from(self.scale) / n))?;
        let pairs = pairs.pad_with_zeros(0, before, rows - before - count)?;
        side.features = (&side.features - pairs)?;
        Ok(())
    }
}

fn sum(values: &Tensor) -> Result<f64> {
    Ok(f64::from(values.sum_all()?.to_scalar::<f32>()?))
}

#[cfg(test)]
mod tests {
    use super::super::pairs::{Block, Pairs};
    use super::*;
    use candle_core::Device;

    const EMBED: usize = 24;
    const N: usize = 70;

    fn features(seed: u32) -> Vec<f32> {
        let mut state = seed;
        let rows = (0..N).flat_map(|_| {
            let row: Vec<f32> = (0..EMBED)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect();
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.into_iter().map(move |x| x / norm)
        });
        rows.collect()
    }

    fn close(a: &[f32], b: &[f32]) {
        let most = b.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-6 * most.max(1e-3)), "{a:?}\n{b:?}");
    }

    /// Both ways to compare give the same shares, whatever rows are compared.
    #[test]
    fn they_agree_with_slices() {
        let (image, text) = (features(1), features(2));
        let part = |side: &[f32], rows: &Range<usize>| side[rows.start * EMBED..rows.end * EMBED].to_vec();
        let tensor =
            |side: &[f32]| Tensor::from_slice(side, (side.len() / EMBED, EMBED), &Device::Cpu).unwrap();
        for (own, others) in [(0..N, 0..N), (10..35, 0..N), (10..35, 0..20), (10..35, 35..N), (0..1, 0..1)] {
            let sides = |rows: &Range<usize>| (part(&image, rows), part(&text, rows));
            let ((own_image, own_text), (image, text)) = (sides(&own), sides(&others));
            let pairs = Pairs {
                own: Block { image: &own_image, text: &own_text, first: own.start },
                others: Block { image: &image, text: &text, first: others.start },
                n: N,
                embed: EMBED,
                scale: 14.0,
            };
            let tensors = [&own_image, &own_text, &image, &text].map(|side| tensor(side));
            let on_device = TensorPairs {
                own: TensorBlock { image: &tensors[0], text: &tensors[1], first: own.start },
                others: TensorBlock { image: &tensors[2], text: &tensors[3], first: others.start },
                n: N,
                scale: 14.0,
                kernels: Kernels::Plain,
            };
            let mut both = vec![(pairs.sigmoid(-9.5), on_device.sigmoid(-9.5).unwrap())];
            if others == (0..N) {
                let sums = on_device.log_sums().unwrap();
                for (a, b) in sums.iter().zip(&pairs.log_sums()) {
                    close(a, b);
                }
                let all = Pairs { own: Block { first: 0, ..pairs.others }, ..pairs }.log_sums();
                both.push((
                    pairs.contrastive(&all[0], &all[1]),
                    on_device.contrastive(&all[0], &all[1]).unwrap(),
                ));
            }
            for (a, b) in both {
                assert!((a.loss - b.loss).abs() < 1e-5 * a.loss.abs(), "{} {}", a.loss, b.loss);
                for (a, b) in [(a.scale, b.scale), (a.bias, b.bias)] {
                    assert!((a - b).abs() < 1e-5 * a.abs().max(1e-2), "{a} {b}");
                }
                for (a, b) in [(&a.image, &b.image), (&a.text, &b.text)] {
                    close(&b.flatten_all().unwrap().to_vec1::<f32>().unwrap(), a);
                }
            }
        }
    }
}
