//! Matrix products on slices: the only place that calls the `gemm` kernel.
//!
//! The kernel takes raw pointers. They are made here, from slices whose bounds are checked first,
//! so that all other code is safe. A product runs on the calling thread: callers split work into
//! fixed pieces, so results never depend on the number of threads.

/// A matrix in a slice, with a stride for rows and one for columns.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major `[rows, cols]`.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major `[rows, cols]` whose rows start `row_stride` numbers apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// The destination of a product: row-major, rows `row_stride` numbers apart.
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Row-major `[rows, cols]`.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major `[rows, cols]` whose rows start `row_stride` numbers apart.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
    assert!(row_stride >= cols, "rows overlap: stride {row_stride} under {cols} columns");
    if rows > 0 && cols > 0 {
        assert!((rows - 1) * row_stride + cols <= len, "{rows} x {cols} does not fit in {len} numbers");
    }
}

/// `dst = scale * a b`.
pub(crate) fn multiply(dst: MatMut<'_>, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    product(dst, false, scale, a, b);
}

/// `dst += a b`.
pub(crate) fn multiply_add(dst: MatMut<'_>, a: Mat<'_>, b: Mat<'_>) {
    product(dst, true, 1.0, a, b);
}

#[expect(unsafe_code, reason = "the kernel's interface is raw pointers; bounds are asserted above the call")]
fn product(dst: MatMut<'_>, add: bool, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    assert!(
        dst.rows == a.rows && dst.cols == b.cols && a.cols == b.rows,
        "[{}, {}] = [{}, {}] x [{}, {}]",
        dst.rows,
        dst.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
    // SAFETY: `Mat` and `MatMut` are built only by constructors that assert that every element they
    // address lies inside their slice (a transpose addresses the same elements), and the shapes
    // agree. `dst` is an exclusive borrow, so it aliases neither operand, and its rows do not
    // overlap.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            a.cols,
            dst.data.as_mut_ptr(),
            1,
            dst.row_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0_f32,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
        let at = |m: Mat<'_>, r: usize, c: usize| m.data[r * m.row_stride + c * m.col_stride];
        let cell = |r, c| (0..a.cols).map(|k| at(a, r, k) * at(b, k, c)).sum();
        (0..a.rows).flat_map(|r| (0..b.cols).map(move |c| (r, c))).map(|(r, c)| cell(r, c)).collect()
    }

    #[test]
    fn products_of_views_and_transposes() {
        let data: Vec<f32> = (0..120).map(|i| ((i * 37) % 17) as f32 - 8.0).collect();
        let a = Mat::strided(&data, 5, 3, 7);
        let b = Mat::strided(&data[40..], 4, 3, 9).t();
        let mut dst = vec![1.0; 20];
        multiply(MatMut::new(&mut dst, 5, 4), 2.0, a, b);
        assert_eq!(dst, naive(a, b).iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        multiply_add(MatMut::new(&mut dst, 5, 4), a, b);
        assert_eq!(dst, naive(a, b).iter().map(|x| 3.0 * x).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_view_outside_its_slice_is_refused() {
        Mat::strided(&[0.0; 10], 3, 2, 5);
    }
}
