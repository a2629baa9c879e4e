//! Loops compiled for the widest vectors of the machine they run on.
//!
//! A function declared with [`vectorised!`] is compiled once for each instruction set (AVX-512,
//! AVX2 with FMA, the baseline), and one is selected at run time. Sums use 16 partial sums, in an
//! order that does not depend on the instruction set or on threads.

/// Compiles a function for each instruction set and selects one at run time.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<'a>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<'a>($($arg: $ty),*) $(-> $ret)? {
            struct Call<'a>($($ty,)* std::marker::PhantomData<&'a ()>);
            impl<'a> pulp::NullaryFnOnce for Call<'a> {
                type Output = vectorised!(@ret $($ret)?);
                // Without this the loop would stay outside the function that carries the
                // instruction set.
                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Call($($arg,)* _) = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Call($($arg,)* std::marker::PhantomData))
        }
    };
    (@ret) => { () };
    (@ret $ret:ty) => { $ret };
}
pub(crate) use vectorised;

const LANES: usize = 16;

/// Sum of `f(i)` over `0..len` in 16 partial sums.
#[inline(always)]
pub(crate) fn sum(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, acc) in lanes.iter_mut().enumerate() {
            *acc += f(start + lane);
        }
    }
    let mut total = 0.0;
    for i in whole..len {
        total += f(i);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0] + total
}

/// e^x to a relative error of about 2e-7: x = n ln 2 + r, a polynomial in r, and n added to the
/// exponent bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this shifts the fraction out of the mantissa: rounding that vectorises.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is not a normal number.
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits, so that n ln 2 is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    // Taylor coefficients adjusted on |r| <= ln(2) / 2 (minimax, degree 5 after 1 + r).
    let p = 1.987_569_1e-4_f32.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_65);
    let p = p.mul_add(r, 0.5);
    let value = (p * r).mul_add(r, r) + 1.0;
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

vectorised! {
    /// `dst[i] += src[i]`.
    pub(crate) fn add<'a>(dst: &'a mut [f32], src: &'a [f32]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d += s;
        }
    }
}

vectorised! {
    /// Adds every row of `rows` (`[n, sums.len()]`) to `sums`, first row first.
    pub(crate) fn add_rows<'a>(sums: &'a mut [f32], rows: &'a [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (s, x) in sums.iter_mut().zip(row) {
                *s += x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -86_000..88_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (exp(x) as f64, (x as f64).exp());
            assert!((got - want).abs() <= 3e-7 * want, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37 && exp(-1e30) >= 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_of_any_length() {
        for len in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum(len, |i| i as f32), (0..len).sum::<usize>() as f32);
        }
    }
}
