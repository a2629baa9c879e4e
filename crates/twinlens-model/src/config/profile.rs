//! The cost of a model: parameters, and the arithmetic of one image and one text.
//!
//! Counted as open_clip counts: a multiplication and an addition are two operations; matrix
//! products, convolutions and attention count, everything else does not; every text has the full
//! context.

use super::shape::ClipConfig;
use crate::towers::Kept;

/// Parameters and forward arithmetic, by tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Parameters of the image tower.
    pub image_parameters: u64,
    /// All other parameters.
    pub text_parameters: u64,
    /// Operations (additions and multiplications) for one image.
    pub image_flops: u64,
    /// Operations for one text.
    pub text_flops: u64,
    /// What the backward pass of one image needs.
    pub image_kept: Kept,
    /// What the backward pass of one text needs.
    pub text_kept: Kept,
}

impl Profile {
    /// All parameters.
    pub fn parameters(&self) -> u64 {
        self.image_parameters + self.text_parameters
    }

    /// Operations for one pair.
    pub fn flops(&self) -> u64 {
        self.image_flops + self.text_flops
    }
}

impl ClipConfig {
    /// The cost of a model of this shape.
    pub fn profile(&self) -> Profile {
        let [image, others] = self.declarations();
        Profile {
            image_parameters: image.parameters() as u64,
            text_parameters: others.parameters() as u64,
            image_flops: self.vision.tower().flops(self.embed) as u64,
            text_flops: self.objective.kind().text_flops(&self.text, self.embed) as u64,
            image_kept: self.vision.tower().kept(),
            text_kept: self.text.kept(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ClipConfig;

    /// The nine models' rows of open_clip's published profile (its `docs/model_profile.csv`).
    #[test]
    fn the_papers_models_cost_what_open_clip_says() {
        let table = include_str!("../../tests/parity/model_profile.csv");
        let mut lines = table.lines();
        let header: Vec<_> = lines.next().unwrap().split(',').collect();
        let mut seen = 0;
        for line in lines {
            let row: Vec<_> = line.split(',').collect();
            let at = |column: &str| row[header.iter().position(|h| *h == column).unwrap()];
            let profile = ClipConfig::preset(row[0]).unwrap().profile();
            for (column, got) in [
                ("mparams", profile.parameters()),
                ("image_mparams", profile.image_parameters),
                ("text_mparams", profile.text_parameters),
                ("gflops", profile.flops()),
                ("image_gflops", profile.image_flops),
                ("text_gflops", profile.text_flops),
            ] {
                let unit = if column.contains("mparams") { 1e6 } else { 1e9 };
                let (got, want) = (got as f64 / unit, at(column).parse::<f64>().unwrap());
                // To two decimals.
                assert!((got - want).abs() < 0.0051, "{} {column}: {got}, not {want}", row[0]);
            }
            seen += 1;
        }
        assert_eq!(seen, 9);
    }
}
