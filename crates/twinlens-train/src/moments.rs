//! The moments of an optimiser.

use std::ops::Range;

/// First and second moments of one variable, in the order of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Moving average of the gradient.
    pub m: Vec<f32>,
    /// Moving average of the squared gradient.
    pub v: Vec<f32>,
}

impl Moments {
    /// Keeps these numbers alone, and frees the memory of the others.
    pub(crate) fn keep(&mut self, own: Range<usize>) {
        self.m = self.m[own.clone()].to_vec();
        self.v = self.v[own].to_vec();
    }
}
