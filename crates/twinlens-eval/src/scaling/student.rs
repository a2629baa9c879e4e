//! Student's t distribution for integer degrees of freedom.

use std::f64::consts::PI;

/// The probability that |t| is below `t`, with `freedom` degrees of freedom (Abramowitz and Stegun,
/// 26.7.3 and 26.7.4: finite sums).
fn within(t: f64, freedom: u32) -> f64 {
    let angle = (t / f64::from(freedom).sqrt()).atan();
    let (sin, cos) = angle.sin_cos();
    let (mut term, mut sum) = match freedom % 2 {
        0 => (1.0, 1.0),
        _ => (cos, if freedom > 1 { cos } else { 0.0 }),
    };
    // Powers up to cos^(freedom - 2); each coefficient follows from the previous one.
    let mut power = 2 + freedom % 2;
    while power + 2 <= freedom {
        let factor = f64::from(power - 1) / f64::from(power);
        term *= factor * cos * cos;
        sum += term;
        power += 2;
    }
    match freedom % 2 {
        0 => sin * sum,
        _ => 2.0 / PI * (angle + sin * sum),
    }
}

/// The bound that |t| stays below with probability 0.95; `None` for 0 degrees of freedom.
pub(super) fn t95(freedom: u32) -> Option<f64> {
    if freedom == 0 {
        return None;
    }
    let (mut low, mut high) = (1.0, 13.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if within(middle, freedom) < 0.95 { low = middle } else { high = middle }
    }
    Some(f64::midpoint(low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_match_published_tables() {
        for (freedom, expected) in [
            (1, 12.706_205),
            (2, 4.302_653),
            (3, 3.182_446),
            (4, 2.776_445),
            (5, 2.570_582),
            (6, 2.446_912),
            (7, 2.364_624),
            (10, 2.228_139),
            (29, 2.045_230),
            (30, 2.042_272),
            (120, 1.979_930),
            (10_001, 1.960_201),
        ] {
            let found = t95(freedom).unwrap();
            assert!((found - expected).abs() < 2e-6, "{freedom}: {found}");
        }
        assert_eq!(t95(0), None);
    }
}
