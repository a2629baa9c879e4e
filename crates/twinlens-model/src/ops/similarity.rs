//! The similarities of all pairs of a batch, and the gradients of the features that follow from
//! theirs.

use super::matmul::{Mat, MatMut, multiply};
use super::with_f32;
use candle_core::{Result, Tensor};

/// `factor` I T^T (`[n, n]`) of features `[n, embed]`.
pub(super) fn similarities(image: &[f32], text: &[f32], n: usize, factor: f32) -> Vec<f32> {
    let embed = image.len() / n;
    let mut all = vec![0.0; n * n];
    let (images, texts) = (Mat::new(image, n, embed), Mat::new(text, n, embed));
    multiply(MatMut::new(&mut all, n, n), factor, images, texts.t());
    all
}

/// The gradients of image and text features `[n, embed]`: `factor` G T and `factor` G^T I, where G
/// (`[n, n]`) is that of the logits.
pub(super) fn feature_gradients(
    g: &[f32],
    factor: f32,
    image: &Tensor,
    text: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (n, embed) = image.dims2()?;
    let (mut d_image, mut d_text) = (vec![0.0; n * embed], vec![0.0; n * embed]);
    let g = Mat::new(g, n, n);
    with_f32(text, |text| {
        multiply(MatMut::new(&mut d_image, n, embed), factor, g, Mat::new(text, n, embed));
        Ok(())
    })?;
    with_f32(image, |image| {
        multiply(MatMut::new(&mut d_text, n, embed), factor, g.t(), Mat::new(image, n, embed));
        Ok(())
    })?;
    let d_image = Tensor::from_vec(d_image, (n, embed), image.device())?;
    Ok((d_image, Tensor::from_vec(d_text, (n, embed), text.device())?))
}
