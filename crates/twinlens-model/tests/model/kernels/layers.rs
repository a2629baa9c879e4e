//! Layer norm, activation, sums over rows, attention, embedding.

use super::machine::{Machine, rounded, wide};
use super::{EXACT, Fixtures, STORAGES, check, tolerance};
use crate::common::{noise, values};
use twinlens_model::Activation;
use twinlens_model::kernels::plain::{self, Attended, Norm};
use twinlens_model::kernels::{
    AddNorm, AddNormBackward, Attention, AttentionBackward, AttentionSizes, BiasActivation,
    BiasActivationBackward, ColumnSums, Embed, EmbeddingGradient, IdPieces, RowGroups, Storage,
};

/// Adds the sums of groups of rows.
fn sum_parts(machine: &mut Machine, parts: usize, groups: usize, width: usize) -> Vec<f64> {
    let sums = machine.fresh(width, Storage::F32);
    let all = RowGroups { group: groups, count: 1 };
    let launch = ColumnSums { x: parts, sums, shape: (groups, width), groups: all };
    machine.run(&launch.launch(Storage::F32).unwrap());
    machine.read_floats(sums)
}

struct NormCase {
    shape: (usize, usize),
    x: Vec<f32>,
    delta: Vec<f32>,
    gain: Vec<f32>,
    bias: Vec<f32>,
    delta_bias: Vec<f32>,
    dy: Vec<f32>,
    d_sum: Vec<f32>,
}

impl NormCase {
    fn new(rows: usize, width: usize) -> Self {
        let large = |seed| rounded(noise(rows * width, seed));
        Self {
            shape: (rows, width),
            x: large(1),
            delta: large(2),
            gain: noise(width, 3),
            bias: noise(width, 4),
            delta_bias: noise(width, 5),
            dy: large(6),
            d_sum: large(7),
        }
    }

    /// Sum, result, gradient of the sum, and those of gain, bias and the branch's bias.
    fn run(&self, storage: Storage) -> [Vec<f64>; 4] {
        let ((rows, width), mut m) = (self.shape, Machine::default());
        let [x, delta, dy, d_sum] =
            [&self.x, &self.delta, &self.dy, &self.d_sum].map(|v| m.stored(v, storage));
        let [gain, bias, delta_bias] = [&self.gain, &self.bias, &self.delta_bias].map(|v| m.floats(v));
        let [sum, y, d] = [(); 3].map(|()| m.fresh(rows * width, storage));
        let stats = m.fresh(2 * rows, Storage::F32);
        let (delta, delta_bias) = (Some((delta, sum)), Some(delta_bias));
        let forward = AddNorm { x, delta, delta_bias, gain, bias, y, stats, shape: self.shape };
        m.run(&forward.launch(storage).unwrap());
        let groups = RowGroups::of(rows).count;
        let parts = m.fresh(groups * 3 * width, Storage::F32);
        let backward =
            AddNormBackward { sum, stats, gain, dy, d_sum: Some(d_sum), d, parts, shape: self.shape };
        m.run(&backward.launch(storage).unwrap());
        let sums = sum_parts(&mut m, parts, groups, 3 * width);
        [m.read(sum, storage), m.read(y, storage), m.read(d, storage), sums]
    }

    fn twin(&self) -> [Vec<f64>; 4] {
        let (rows, width) = self.shape;
        let [x, delta, dy, d_sum] =
            [&self.x, &self.delta, &self.dy, &self.d_sum].map(|v| wide(v, &[rows, width]));
        let [gain, bias, delta_bias] = [&self.gain, &self.bias, &self.delta_bias].map(|v| wide(v, &[width]));
        let norm = Norm { gain: &gain, bias: &bias };
        let normed = plain::add_norm(&x, Some((&delta, &delta_bias)), norm).unwrap();
        let (d, sums) = plain::add_norm_backward(&normed, &gain, &dy, Some(&d_sum)).unwrap();
        [values(&normed.sum), values(&normed.y), values(&d), sums.iter().flat_map(values).collect()]
    }
}

#[test]
fn layer_norm_matches() {
    let fixtures = Fixtures::read();
    let of_pytorch = [
        fixtures.get("norm/sum"),
        fixtures.get("norm/y"),
        fixtures.get("norm/d"),
        ["d_gain", "d_bias", "d_delta_bias"]
            .iter()
            .flat_map(|n| fixtures.get(&format!("norm/{n}")))
            .collect(),
    ];
    let cases = [(37, 100, Some(of_pytorch)), (3, 768, None), (17, 1, None), (1, 129, None)];
    for (rows, width, of_pytorch) in cases {
        let case = NormCase::new(rows, width);
        let twin = case.twin();
        for storage in STORAGES {
            let got = case.run(storage);
            // With one number in a row, all is noise but the bias.
            let names: &[&str] = if width == 1 { &["sum", "y"] } else { &["sum", "y", "d", "sums"] };
            // The sums have the rounded sum in them.
            for (i, name) in names.iter().enumerate() {
                let what = format!("norm {rows} x {width} {storage:?} {name}");
                check(&format!("{what}, twin"), &got[i], &twin[i], tolerance(storage));
                if let Some(want) = &of_pytorch {
                    check(&format!("{what}, PyTorch"), &got[i], &want[i], tolerance(storage));
                }
            }
        }
    }
}

#[test]
fn layer_norm_without_a_branch_matches() {
    let (fixtures, case) = (Fixtures::read(), NormCase::new(37, 100));
    for storage in STORAGES {
        let mut m = Machine::default();
        let [gain, bias] = [&case.gain, &case.bias].map(|v| m.floats(v));
        let (x, y) = (m.stored(&case.x, storage), m.fresh(37 * 100, storage));
        let (stats, dy) = (m.fresh(2 * 37, Storage::F32), m.stored(&case.dy, storage));
        let forward = AddNorm { x, delta: None, delta_bias: None, gain, bias, y, stats, shape: (37, 100) };
        m.run(&forward.launch(storage).unwrap());
        check("norm alone, PyTorch", &m.read(y, storage), &fixtures.get("norm/y_alone"), tolerance(storage));
        let (d, parts) = (m.fresh(37 * 100, storage), m.fresh(5 * 3 * 100, Storage::F32));
        let backward = AddNormBackward { sum: x, stats, gain, dy, d_sum: None, d, parts, shape: (37, 100) };
        m.run(&backward.launch(storage).unwrap());
        let [gain, bias] = [&case.gain, &case.bias].map(|v| wide(v, &[100]));
        let normed =
            plain::add_norm(&wide(&case.x, &[37, 100]), None, Norm { gain: &gain, bias: &bias }).unwrap();
        let (want, _) = plain::add_norm_backward(&normed, &gain, &wide(&case.dy, &[37, 100]), None).unwrap();
        check("norm alone, gradient", &m.read(d, storage), &values(&want), tolerance(storage));
    }
}

#[test]
fn activations_match() {
    let fixtures = Fixtures::read();
    for (rows, width) in [(37, 133), (1, 1), (700, 5)] {
        for (activation, name) in [(Activation::Gelu, "gelu"), (Activation::QuickGelu, "quick_gelu")] {
            let x: Vec<f32> = rounded(noise(rows * width, 1)).iter().map(|x| 4.0 * x).collect();
            let (bias, dy) = (noise(width, 2), rounded(noise(rows * width, 3)));
            let wide_x = wide(&x, &[rows, width]);
            let wide_bias = wide(&bias, &[width]);
            let y = plain::bias_activation(&wide_x, &wide_bias, activation).unwrap();
            let (dx, d_bias) =
                plain::bias_activation_backward(&wide_x, &wide_bias, &wide(&dy, &[rows, width]), activation)
                    .unwrap();
            for storage in STORAGES {
                let mut m = Machine::default();
                let [x, dy] = [&x, &dy].map(|v| m.stored(v, storage));
                let bias = m.floats(&bias);
                let [y_at, dx_at] = [(); 2].map(|()| m.fresh(rows * width, storage));
                let (shape, groups) = ((rows, width), RowGroups::of(rows).count);
                m.run(&BiasActivation { x, bias, y: y_at, shape, activation }.launch(storage).unwrap());
                let parts = m.fresh(groups * width, Storage::F32);
                let backward = BiasActivationBackward { x, bias, dy, dx: dx_at, parts, shape, activation };
                m.run(&backward.launch(storage).unwrap());
                let sums = sum_parts(&mut m, parts, groups, width);
                let got = [m.read(y_at, storage), m.read(dx_at, storage), sums];
                let limits = [tolerance(storage), tolerance(storage), EXACT];
                for (i, (part, twin)) in [("y", &y), ("dx", &dx), ("d_bias", &d_bias)].into_iter().enumerate()
                {
                    let what = format!("{name} {rows} x {width} {storage:?} {part}");
                    check(&format!("{what}, twin"), &got[i], &values(twin), limits[i]);
                    if (rows, width) == (37, 133) {
                        let want = fixtures.get(&format!("{name}/{part}"));
                        check(&format!("{what}, PyTorch"), &got[i], &want, limits[i]);
                    }
                }
            }
        }
    }
}

#[test]
fn sums_over_rows_match() {
    for (rows, width) in [(5000, 3), (1, 200), (77, 129)] {
        let x = rounded(noise(rows * width, 1));
        let want = values(&plain::column_sums(&wide(&x, &[rows, width])).unwrap());
        for storage in STORAGES {
            let mut m = Machine::default();
            let (x, groups) = (m.stored(&x, storage), RowGroups::of(rows));
            let sums = m.fresh(groups.count * width, Storage::F32);
            m.run(&ColumnSums { x, sums, shape: (rows, width), groups }.launch(storage).unwrap());
            let got = sum_parts(&mut m, sums, groups.count, width);
            check(&format!("sums {rows} x {width} {storage:?}"), &got, &want, EXACT);
        }
    }
}

/// Result, ln sum exp, and the gradient of queries, keys and values.
fn attend(qkv: &[f32], s: AttentionSizes, lens: Option<&[u32]>, storage: Storage) -> [Vec<f64>; 3] {
    let (tokens, width, mut m) = (s.batch * s.len, s.heads * s.depth, Machine::default());
    let qkv_at = m.stored(qkv, storage);
    let (bias, lens) = (Some(m.floats(&noise(3 * width, 2))), lens.map(|lens| m.words(lens)));
    let (out, log_sums) = (m.fresh(tokens * width, storage), m.fresh(tokens * s.heads, Storage::F32));
    let forward = Attention { qkv: qkv_at, bias, out, log_sums, lens, sizes: s };
    m.run(&forward.launch(storage).unwrap());
    let d_out = m.stored(&rounded(noise(tokens * width, 3)), storage);
    let means = m.fresh(tokens * s.heads, Storage::F32);
    let d_qkv = m.fresh(tokens * 3 * width, storage);
    let backward =
        AttentionBackward { qkv: qkv_at, bias, out, log_sums, d_out, means, d_qkv, lens, sizes: s };
    backward.launches(storage).unwrap().iter().for_each(|launch| m.run(launch));
    [m.read(out, storage), m.read_floats(log_sums), m.read(d_qkv, storage)]
}

fn sizes(batch: usize, len: usize, heads: usize, depth: usize, causal: bool) -> AttentionSizes {
    AttentionSizes { batch, len, heads, depth, causal }
}

#[test]
fn attention_matches_pytorch() {
    let fixtures = Fixtures::read();
    for (name, s, lens) in [
        ("attention50", sizes(1, 50, 2, 32, false), None),
        ("attention197", sizes(1, 197, 1, 20, false), None),
        ("attention257", sizes(1, 257, 1, 20, false), None),
        ("attention77", sizes(1, 77, 1, 64, true), None),
        ("attention40", sizes(1, 40, 1, 80, false), None),
        ("attention_lens", sizes(2, 50, 1, 16, false), Some(&[50, 13][..])),
    ] {
        let numbers = s.batch * s.len * 3 * s.heads * s.depth;
        let qkv: Vec<f32> = rounded(noise(numbers, 1)).iter().map(|x| 4.0 * x).collect();
        for storage in STORAGES {
            let got = attend(&qkv, s, lens, storage);
            // The gradient's mean is of the rounded result.
            let limits = [tolerance(storage), EXACT, 2.0 * tolerance(storage)];
            for (i, part) in ["out", "log_sums", "d_qkv"].into_iter().enumerate() {
                let what = format!("{name} {storage:?} {part}");
                check(&what, &got[i], &fixtures.get(&format!("{name}/{part}")), limits[i]);
            }
        }
    }
}

#[test]
fn attention_matches_its_twin() {
    for s in [
        sizes(3, 33, 2, 64, true),
        sizes(2, 32, 3, 9, false),
        sizes(1, 1, 1, 64, true),
        sizes(2, 64, 1, 128, true),
        sizes(2, 97, 2, 8, false),
    ] {
        let (tokens, width) = (s.batch * s.len, s.heads * s.depth);
        let qkv: Vec<f32> = rounded(noise(tokens * 3 * width, 1)).iter().map(|x| 2.0 * x).collect();
        let (qkv_wide, bias) = (wide(&qkv, &[tokens, 3 * width]), wide(&noise(3 * width, 2), &[3 * width]));
        let (out, log_sums) = plain::attention(&qkv_wide, &bias, s).unwrap();
        let attended = Attended { qkv: &qkv_wide, bias: &bias, out: &out, log_sums: &log_sums };
        let d_out = wide(&rounded(noise(tokens * width, 3)), &[tokens, width]);
        let d_qkv = plain::attention_backward(attended, &d_out, s).unwrap();
        for storage in STORAGES {
            let got = attend(&qkv, s, None, storage);
            let limits = [tolerance(storage), EXACT, 2.0 * tolerance(storage)];
            for (i, (part, want)) in
                [("out", &out), ("log_sums", &log_sums), ("d_qkv", &d_qkv)].into_iter().enumerate()
            {
                check(&format!("{s:?} {storage:?} {part}"), &got[i], &values(want), limits[i]);
            }
        }
    }
    let too_deep = sizes(1, 2, 1, 129, false);
    let launch = Attention { qkv: 0, bias: None, out: 1, log_sums: 2, lens: None, sizes: too_deep };
    assert!(launch.launch(Storage::F32).unwrap_err().to_string().contains("128"));
}

#[test]
fn embeddings_match() {
    let fixtures = Fixtures::read();
    let (len, width, vocabulary) = (23, 33, 50);
    let id = |i: u32, t: u32| if t > 1 { 0 } else { (i * 7 + t * 13) % 50 };
    let ids: Vec<u32> = (0..9).flat_map(|i| (0..23).map(move |t| id(i, t))).collect();
    let rows = ids.len();
    let pieces = IdPieces::of(&ids);
    assert!(pieces.count() > pieces.ids.len(), "an id has several pieces");
    for storage in STORAGES {
        let mut m = Machine::default();
        let (table, positions) = (m.floats(&noise(vocabulary * width, 1)), m.floats(&noise(25 * width, 2)));
        let (ids_at, out) = (m.words(&ids), m.fresh(rows * width, storage));
        let forward = Embed { ids: ids_at, table, positions, out, shape: (rows, width), len };
        m.run(&forward.launch(storage).unwrap());
        check("embedding", &m.read(out, storage), &fixtures.get("embedding/out"), tolerance(storage));
        let d = rounded(noise(rows * width, 3));
        let [order, starts, used, firsts] =
            [&pieces.order, &pieces.starts, &pieces.ids, &pieces.firsts].map(|v| m.words(v));
        let (d_at, parts) = (m.stored(&d, storage), m.fresh(pieces.count() * width, Storage::F32));
        let d_table = m.floats(&vec![0.0; vocabulary * width]);
        let gradient = EmbeddingGradient { d: d_at, order, starts, ids: used, firsts, parts, d_table, width };
        gradient.launches(storage, &pieces).unwrap().iter().for_each(|launch| m.run(launch));
        let twin = plain::embedding_gradient(&wide(&d, &[rows, width]), &ids, vocabulary).unwrap();
        check("table, twin", &m.read_floats(d_table), &values(&twin), EXACT);
        check("table, PyTorch", &m.read_floats(d_table), &fixtures.get("embedding/d_table"), EXACT);
        // Positions: sums over the batch.
        let sums = m.fresh(len * width, Storage::F32);
        let all = RowGroups { group: 9, count: 1 };
        let launch = ColumnSums { x: d_at, sums, shape: (9, len * width), groups: all };
        m.run(&launch.launch(storage).unwrap());
        check("positions", &m.read_floats(sums), &fixtures.get("embedding/d_positions"), EXACT);
    }
    assert_eq!(IdPieces::of(&[]).count(), 0);
}
