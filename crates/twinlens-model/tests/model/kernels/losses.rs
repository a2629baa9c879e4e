//! The contrastive loss and the optimiser.

use super::machine::{Machine, rounded, wide};
use super::{EXACT, Fixtures, check};
use crate::common::{noise, values};
use candle_core::{DType, Device, Tensor};
use twinlens_model::kernels::plain::{self, AdamWState};
use twinlens_model::kernels::{
    AdamWFactors, AdamWLaunch, ContrastiveGradient, RowLogSums, Storage, SumOfSquares, VariableBlocks,
};

const N: usize = 45;

/// Logits of some rows: their gradient, and the shares of each.
fn gradient(
    logits: &[f32],
    [own, other]: [&[f32]; 2],
    first: usize,
    storage: Storage,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (rows, mut m) = (logits.len() / N, Machine::default());
    let logits = m.stored(logits, storage);
    let log_sums = m.fresh(rows, Storage::F32);
    m.run(&RowLogSums { logits, log_sums, shape: (rows, N) }.launch(storage).unwrap());
    let [own, other] = [own, other].map(|sums| m.floats(sums));
    let shares = m.fresh(2 * rows, Storage::F32);
    let launch = ContrastiveGradient { logits, own, other, shares, shape: (rows, N), first };
    m.run(&launch.launch(storage).unwrap());
    (m.read_floats(log_sums), m.read(logits, storage), m.read_floats(shares))
}

#[test]
fn the_contrastive_loss_matches() {
    let fixtures = Fixtures::read();
    let narrow = |name: &str| -> Vec<f32> { fixtures.get(name).iter().map(|x| *x as f32).collect() };
    let (logits, rows, columns) =
        (narrow("contrastive/logits"), narrow("contrastive/rows"), narrow("contrastive/columns"));
    let want = fixtures.get("contrastive/d_logits");
    let (mut loss, mut scale) = (0.0, 0.0);
    // Ranges of rows, as several ranks have them: of images, and for the other half of the loss
    // of texts.
    let transposed: Vec<f32> = (0..N * N).map(|i| logits[i % N * N + i / N]).collect();
    for range in [0..13, 13..N] {
        let numbers = range.start * N..range.end * N;
        let (sums, g, shares) =
            gradient(&logits[numbers.clone()], [&rows, &columns], range.start, Storage::F32);
        let own: Vec<f64> = rows[range.clone()].iter().map(|x| f64::from(*x)).collect();
        check("ln sum exp", &sums, &own, EXACT);
        check("logits' gradient, PyTorch", &g, &want[numbers.clone()], EXACT);
        let tensor = |values: &[f32]| wide(values, &[values.len()]);
        let wide_logits = wide(&logits[numbers.clone()], &[range.len(), N]);
        let (twin, twin_shares) =
            plain::contrastive_gradient(&wide_logits, &tensor(&rows), &tensor(&columns), range.start)
                .unwrap();
        check("logits' gradient, twin", &g, &values(&twin), EXACT);
        check("shares, twin", &shares, &values(&twin_shares), 1e-4);
        check("sums, twin", &sums, &values(&plain::row_log_sums(&wide_logits).unwrap()), EXACT);
        let (_, _, of_texts) = gradient(&transposed[numbers], [&columns, &rows], range.start, Storage::F32);
        loss += shares.iter().chain(&of_texts).step_by(2).sum::<f64>();
        scale += shares.iter().skip(1).step_by(2).sum::<f64>();
    }
    check("loss", &[loss], &fixtures.get("contrastive/loss"), EXACT);
    check("temperature's gradient", &[scale], &fixtures.get("contrastive/d_scale"), 1e-4);
}

#[test]
fn half_precision_logits_match() {
    let logits = rounded(noise(N * N, 4));
    let wide_logits = wide(&logits, &[N, N]);
    let rows = plain::row_log_sums(&wide_logits).unwrap();
    let columns = plain::row_log_sums(&wide_logits.t().unwrap().contiguous().unwrap()).unwrap();
    let (want, shares) = plain::contrastive_gradient(&wide_logits, &rows, &columns, 0).unwrap();
    let narrow = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let (sums, g, got) = gradient(&logits, [&narrow(&rows), &narrow(&columns)], 0, Storage::Bf16);
    check("bf16 sums", &sums, &values(&rows), EXACT);
    check("bf16 gradient", &g, &values(&want), 4e-3);
    check("bf16 shares", &got, &values(&shares), 1e-4);
}

#[test]
fn the_optimiser_matches() {
    let fixtures = Fixtures::read();
    let (lens, groups) = ([1, 4096, 133, 4097], [(1e-3, 0.0), (1e-3, 0.2), (5e-4, 0.2), (2e-3, 0.1)]);
    let blocks = VariableBlocks::new(lens).unwrap();
    assert_eq!(blocks.variables().collect::<Vec<_>>(), [0, 1, 2, 3, 3]);
    let start: Vec<Vec<f32>> = lens.iter().zip(1..).map(|(&len, seed)| noise(len, seed)).collect();
    let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let twin = |values: &[f32]| {
        let weights = tensor(values).to_dtype(DType::F64).unwrap();
        let zeros = weights.zeros_like().unwrap();
        AdamWState { weights, m: zeros.clone(), v: zeros }
    };
    let mut twins: Vec<AdamWState> = start.iter().map(|values| twin(values)).collect();
    let mut m = Machine::default();
    let weights: Vec<usize> = start.iter().map(|values| m.floats(values)).collect();
    let [first, second] = [(); 2].map(|()| lens.map(|len| m.floats(&vec![0.0; len])).to_vec());
    let lens_at = m.bytes(blocks.lens.iter().flat_map(|len| len.to_le_bytes()).collect());
    let blocks_at = m.words(&blocks.blocks);
    for step in 1..=3 {
        // The factor on gradients is that of clipping.
        let factors = AdamWFactors { beta1: 0.9, beta2: 0.98, eps: 1e-6, step, scale: 0.5 };
        let seed = |i: usize| 10 * (step as u32 - 1) + 100 + i as u32;
        let given: Vec<Vec<f32>> = lens.iter().enumerate().map(|(i, &len)| noise(len, seed(i))).collect();
        let gradients: Vec<usize> = given.iter().map(|values| m.floats(values)).collect();
        let table: Vec<f32> = groups.iter().flat_map(|&(rate, decay)| factors.of(rate, decay)).collect();
        let table = m.floats(&table);
        let launch = AdamWLaunch {
            weights: weights.clone(),
            gradients: gradients.clone(),
            m: first.clone(),
            v: second.clone(),
            lens: lens_at,
            blocks: blocks_at,
            factors: table,
        };
        m.run(&launch.launch(&blocks, &factors).unwrap());
        for (i, twin) in twins.iter_mut().enumerate() {
            let gradient = tensor(&given[i]).to_dtype(DType::F64).unwrap();
            *twin = plain::adamw(twin, &gradient, groups[i], &factors).unwrap();
        }
        let parts = m.bytes(vec![0xff; 8 * blocks.count() as usize]);
        let squares = SumOfSquares { gradients, lens: lens_at, blocks: blocks_at, parts };
        m.run(&squares.launch(&blocks).unwrap());
        let parts: Vec<f64> =
            m.read_bytes(parts).chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().unwrap())).collect();
        let mut sums = [0.0; 4];
        blocks.variables().zip(&parts).for_each(|(variable, part)| sums[variable] += part);
        let want: Vec<f64> =
            given.iter().map(|g| g.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect();
        check("squares", &sums, &want, 1e-12);
    }
    let all = |buffers: &[usize]| -> Vec<f64> { buffers.iter().flat_map(|&b| m.read_floats(b)).collect() };
    for (i, (&buffer, twin)) in weights.iter().zip(&twins).enumerate() {
        let got = m.read_floats(buffer);
        check("weights, PyTorch", &got, &fixtures.get(&format!("adamw/weights{i}")), 1e-6);
        check("weights, twin", &got, &values(&twin.weights), 1e-6);
    }
    check("first moments", &all(&first), &fixtures.get("adamw/m"), 1e-6);
    check("second moments", &all(&second), &fixtures.get("adamw/v"), EXACT);
}
