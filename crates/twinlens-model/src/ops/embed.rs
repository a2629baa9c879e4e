//! Embeddings: from pixels and from token ids to a transformer's input rows, as one operation each.
//!
//! A patch embedding is a convolution whose stride equals its kernel. Patches are copied to rows
//! and multiplied, which has a faster gradient than candle's convolution.

use super::block::sized;
use super::matmul::{Mat, MatMut, multiply_add};
use super::norm::{layer_norm, layer_norm_backward, layer_norm_stats};
use super::{f32_slice, simd, with_f32};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Images that one thread embeds at a time.
const CHUNK_IMAGES: usize = 8;

/// The sizes of a patch embedding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatchShape {
    /// Side of the image, in pixels.
    pub image: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Numbers in a token.
    pub width: usize,
}

impl PatchShape {
    fn grid(self) -> usize {
        self.image / self.patch
    }

    /// Rows of an image: the class token and its patches.
    pub(crate) fn tokens(self) -> usize {
        self.grid() * self.grid() + 1
    }

    fn patch_len(self) -> usize {
        3 * self.patch * self.patch
    }

    /// Numbers in the packed parameters: convolution `[width, 3, patch, patch]`, class token
    /// `[width]`, positions `[tokens, width]`, gain and bias of the layer norm (`[width]` each).
    pub(crate) fn parameters_len(self) -> usize {
        self.width * (self.patch_len() + 1 + self.tokens() + 2)
    }

    fn split(self, params: &[f32]) -> [&[f32]; 5] {
        let (conv, rest) = params.split_at(self.width * self.patch_len());
        let (class, rest) = rest.split_at(self.width);
        let (positions, rest) = rest.split_at(self.tokens() * self.width);
        let (gain, bias) = rest.split_at(self.width);
        [conv, class, positions, gain, bias]
    }

    /// One image (`[3, image, image]`) to its patches (`[grid^2, 3 patch^2]`).
    fn patchify(self, pixels: &[f32], patches: &mut [f32]) {
        let (side, grid) = (self.patch, self.grid());
        let mut lines = patches.chunks_exact_mut(side);
        for row in 0..grid {
            for column in 0..grid {
                for channel in 0..3 {
                    for y in 0..side {
                        let start = (channel * self.image + row * side + y) * self.image + column * side;
                        if let Some(line) = lines.next() {
                            line.copy_from_slice(&pixels[start..start + side]);
                        }
                    }
                }
            }
        }
    }

    /// Extracts the patches of a chunk's images and computes their rows before the layer norm.
    fn embed(self, pixels: &[f32], params: &[f32], patches: &mut Vec<f32>, rows: &mut [f32]) {
        let [conv, class, positions, ..] = self.split(params);
        let (width, inner, n) = (self.width, self.patch_len(), self.tokens() - 1);
        let images = rows.len() / (self.tokens() * width);
        let patches = sized(patches, images * n * inner);
        for (i, rows) in rows.chunks_exact_mut(self.tokens() * width).enumerate() {
            let pixels = &pixels[i * 3 * self.image * self.image..(i + 1) * 3 * self.image * self.image];
            let patches = &mut patches[i * n * inner..(i + 1) * n * inner];
            self.patchify(pixels, patches);
            rows.copy_from_slice(positions);
            let (first, rest) = rows.split_at_mut(width);
            simd::add(first, class);
            multiply_add(
                MatMut::new(rest, n, width),
                Mat::new(patches, n, inner),
                Mat::new(conv, width, inner).t(),
            );
        }
    }
}

struct PatchEmbed(PatchShape);

/// Embeds `pixels` (`[batch, 3, image, image]`) as rows (`[batch * tokens, width]`): the class
/// token and the projected patches, plus positions, then layer norm. Pixels get no gradient.
pub(crate) fn patch_embed(
    pixels: &Tensor,
    params: &Tensor,
    shape: PatchShape,
    train: bool,
) -> Result<Tensor> {
    let (_, channels, height, width) = pixels.dims4()?;
    if (channels, height, width) != (3, shape.image, shape.image)
        || params.elem_count() != shape.parameters_len()
    {
        bail!("patch embedding of {:?} for images of {} pixels", pixels.shape(), shape.image);
    }
    let op = PatchEmbed(shape);
    if train { pixels.apply_op2(params, op) } else { pixels.apply_op2_no_bwd(params, &op) }
}

impl PatchEmbed {
    fn pixels_of_chunk(&self) -> usize {
        CHUNK_IMAGES * 3 * self.0.image * self.0.image
    }

    fn rows_of_chunk(&self) -> usize {
        CHUNK_IMAGES * self.0.tokens() * self.0.width
    }

    fn run(&self, pixels: &[f32], params: &[f32]) -> Vec<f32> {
        let shape = self.0;
        let [.., gain, bias] = shape.split(params);
        let images = pixels.len() / (3 * shape.image * shape.image);
        let mut out = vec![0.0; images * shape.tokens() * shape.width];
        let chunks = out.par_chunks_mut(self.rows_of_chunk()).zip(pixels.par_chunks(self.pixels_of_chunk()));
        chunks.for_each_init(
            <(Vec<f32>, Vec<f32>, Vec<f32>)>::default,
            |(patches, rows, stats), (out, pixels)| {
                let rows = sized(rows, out.len());
                shape.embed(pixels, params, patches, rows);
                let stats = sized(stats, 2 * rows.len() / shape.width);
                layer_norm_stats(rows, shape.width, stats);
                layer_norm(rows, stats, gain, bias, out);
            },
        );
        out
    }

    fn run_back(&self, pixels: &[f32], params: &[f32], d_out: &[f32]) -> Vec<f32> {
        let shape = self.0;
        let (width, inner, n) = (shape.width, shape.patch_len(), shape.tokens() - 1);
        let [_, _, _, gain, _] = shape.split(params);
        let chunks = d_out.par_chunks(self.rows_of_chunk()).zip(pixels.par_chunks(self.pixels_of_chunk()));
        let parts: Vec<Vec<f32>> = chunks
            .map(|(d_out, pixels)| {
                let (mut patches, mut rows) = (Vec::new(), vec![0.0; d_out.len()]);
                shape.embed(pixels, params, &mut patches, &mut rows);
                let mut stats = vec![0.0; 2 * rows.len() / width];
                layer_norm_stats(&rows, width, &mut stats);
                let mut part = vec![0.0; params.len()];
                let (d_conv, rest) = part.split_at_mut(width * inner);
                let (d_class, rest) = rest.split_at_mut(width);
                let (d_positions, rest) = rest.split_at_mut(shape.tokens() * width);
                let (d_gain, d_bias) = rest.split_at_mut(width);
                let mut d_rows = vec![0.0; d_out.len()];
                layer_norm_backward(&rows, &stats, gain, d_out, &mut d_rows, d_gain, d_bias);
                for (d_rows, patches) in
                    d_rows.chunks_exact(shape.tokens() * width).zip(patches.chunks_exact(n * inner))
                {
                    simd::add(d_positions, d_rows);
                    simd::add(d_class, &d_rows[..width]);
                    let d_patches = Mat::new(&d_rows[width..], n, width);
                    multiply_add(
                        MatMut::new(d_conv, width, inner),
                        d_patches.t(),
                        Mat::new(patches, n, inner),
                    );
                }
                part
            })
            .collect();
        let mut total = vec![0.0; params.len()];
        for part in &parts {
            simd::add(&mut total, part);
        }
        total
    }
}

impl CustomOp2 for PatchEmbed {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn cpu_fwd(
        &self,
        pixels: &CpuStorage,
        pixels_at: &Layout,
        params: &CpuStorage,
        params_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let rows = pixels_at.dims()[0] * self.0.tokens();
        let out = self.run(f32_slice(pixels, pixels_at)?, f32_slice(params, params_at)?);
        Ok((CpuStorage::F32(out), (rows, self.0.width).into()))
    }

    fn bwd(
        &self,
        pixels: &Tensor,
        params: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d_params = with_f32(pixels, |pixels| {
            with_f32(params, |params| with_f32(d_out, |d_out| Ok(self.run_back(pixels, params, d_out))))
        })?;
        Ok((None, Some(Tensor::from_vec(d_params, params.shape(), params.device())?)))
    }
}

/// Token ids of a batch of texts, each up to its end token.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    /// The ids of all texts, one text after another.
    pub ids: Vec<u32>,
    /// Tokens of each text.
    pub lens: Vec<usize>,
}

impl Texts {
    /// Cuts each text after its first highest id, its end token: with a causal mask, later tokens
    /// have no effect.
    pub(crate) fn until_end(ids: &[Vec<u32>]) -> Self {
        let mut texts = Self { ids: Vec::new(), lens: Vec::with_capacity(ids.len()) };
        for row in ids {
            let end = row.iter().enumerate().fold(0, |best, (i, id)| if *id > row[best] { i } else { best });
            texts.ids.extend_from_slice(&row[..=end]);
            texts.lens.push(end + 1);
        }
        texts
    }

    /// The ids of each text.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = &self.ids[..];
        self.lens.iter().map(move |&len| {
            let (text, tail) = rest.split_at(len);
            rest = tail;
            text
        })
    }

    /// The distinct ids of each text between its first and its last, in ascending order.
    pub(crate) fn bags(&self) -> Vec<Vec<u32>> {
        let bag = |text: &[u32]| {
            let words = text.get(1..text.len() - 1).unwrap_or_default();
            BTreeSet::from_iter(words.iter().copied()).into_iter().collect()
        };
        self.iter().map(bag).collect()
    }
}

struct TextEmbed(Texts);

/// Rows of the texts' tokens (`[tokens, width]`): `table` (`[vocabulary, width]`) at each id, plus
/// `positions` (`[context, width]`).
pub(crate) fn text_embed(table: &Tensor, positions: &Tensor, texts: Texts, train: bool) -> Result<Tensor> {
    let ((vocabulary, _), (context, _)) = (table.dims2()?, positions.dims2()?);
    let longest = texts.lens.iter().copied().max().unwrap_or(0);
    if texts.ids.iter().any(|&id| id as usize >= vocabulary) || longest > context {
        bail!("text embedding: an id beyond {vocabulary}, or {longest} tokens for {context} positions");
    }
    let op = TextEmbed(texts);
    if train { table.apply_op2(positions, op) } else { table.apply_op2_no_bwd(positions, &op) }
}

impl TextEmbed {
    /// Id and position of each row.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let positions = self.0.lens.iter().flat_map(|&len| 0..len);
        self.0.ids.iter().map(|&id| id as usize).zip(positions)
    }
}

impl CustomOp2 for TextEmbed {
    fn name(&self) -> &'static str {
        "text_embed"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        table_at: &Layout,
        positions: &CpuStorage,
        positions_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = table_at.dims()[1];
        let (table, positions) = (f32_slice(table, table_at)?, f32_slice(positions, positions_at)?);
        let mut out = Vec::with_capacity(self.0.ids.len() * width);
        for (id, position) in self.rows() {
            let token = &table[id * width..(id + 1) * width];
            out.extend(token.iter().zip(&positions[position * width..]).map(|(a, b)| a + b));
        }
        Ok((CpuStorage::F32(out), (self.0.ids.len(), width).into()))
    }

    fn bwd(
        &self,
        table: &Tensor,
        positions: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = table.dim(1)?;
        let (mut d_table, mut d_positions) =
            (vec![0.0; table.elem_count()], vec![0.0; positions.elem_count()]);
        with_f32(d_out, |d_out| {
            for ((id, position), d) in self.rows().zip(d_out.chunks_exact(width)) {
                simd::add(&mut d_table[id * width..(id + 1) * width], d);
                simd::add(&mut d_positions[position * width..(position + 1) * width], d);
            }
            Ok(())
        })?;
        Ok((
            Some(Tensor::from_vec(d_table, table.shape(), table.device())?),
            Some(Tensor::from_vec(d_positions, positions.shape(), positions.device())?),
        ))
    }
}
