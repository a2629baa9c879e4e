//! Retrieval metrics: recall@k between the images and texts of a set.
//!
//! Definitions of recall@k vary. Here every text belongs to one image, an image may have several
//! texts, and
//! * **text to image** is the share of texts whose image is among the `k` images most similar to
//!   the text;
//! * **image to text** is the share of images with texts for which **at least one** of their texts
//!   is among the `k` texts most similar to the image (not the share of its texts that are).
//!
//! All texts and images of the set are candidates. Ties go to the lowest index, as in
//! [`top_k`](super::top_k). NaN similarities rank last and are never hits.

use std::collections::BTreeMap;

use rand::Rng;
use rand_distr::{Binomial, Distribution};

use super::{Interval, REPLICATES, percentile, wilson};

/// Hits of queries among the first `k` candidates, for several `k`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recall {
    ks: Vec<usize>,
    hits: Vec<u64>,
    n: u64,
}

impl Recall {
    pub fn new(ks: &[usize]) -> Self {
        Self { ks: ks.to_vec(), hits: vec![0; ks.len()], n: 0 }
    }

    /// Counts a query whose first relevant candidate has this [`rank`].
    pub fn add(&mut self, rank: usize) {
        self.n += 1;
        for (k, hits) in self.ks.iter().zip(&mut self.hits) {
            *hits += u64::from(rank < *k);
        }
    }

    /// Number of queries.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// `(k, recall, interval)` for each `k`; empty without queries. Wilson's interval assumes
    /// independent queries, and is slightly too narrow when images have several texts.
    pub fn values(&self) -> Vec<(usize, f64, Interval)> {
        let value = |(k, hits): (&usize, &u64)| {
            let interval = wilson(*hits as f64, self.n as f64)?;
            Some((*k, *hits as f64 / self.n as f64, interval))
        };
        self.ks.iter().zip(&self.hits).filter_map(value).collect()
    }
}

/// Hits grouped by image, for intervals that allow for the correlation between the captions of one
/// image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupedRecall {
    /// `(hits, queries)` of an image to the number of such images.
    images: BTreeMap<(u64, u64), u64>,
}

impl GroupedRecall {
    /// Counts an image with `hits` among `queries`. An image without queries does not count.
    pub fn add(&mut self, hits: u64, queries: u64) {
        if queries > 0 {
            *self.images.entry((hits, queries)).or_default() += 1;
        }
    }

    fn share(counts: impl Iterator<Item = ((u64, u64), u64)>) -> Option<f64> {
        let (hits, queries) =
            counts.fold((0, 0), |(hits, queries), ((h, q), n)| (hits + h * n, queries + q * n));
        (queries > 0).then(|| hits as f64 / queries as f64)
    }

    /// The share of queries that are hits; `None` without queries.
    pub fn value(&self) -> Option<f64> {
        Self::share(self.images.iter().map(|(of, n)| (*of, *n)))
    }

    /// The 95 % percentile interval of a bootstrap that resamples images, each with all of its
    /// queries. If all queries are hits, or none, Wilson's interval for that many images.
    pub fn interval(&self, rng: &mut impl Rng) -> Option<Interval> {
        let (value, images) = (self.value()?, self.images.values().sum::<u64>());
        if value == 0.0 || value == 1.0 {
            return wilson(value * images as f64, images as f64);
        }
        let mut drawn: Vec<f64> =
            (0..REPLICATES).filter_map(|_| Self::share(self.redraw(images, rng).into_iter())).collect();
        drawn.sort_by(f64::total_cmp);
        Some(Interval { low: percentile(&drawn, 0.025)?, high: percentile(&drawn, 0.975)? })
    }

    /// A resample of the images with replacement, as counts.
    fn redraw(&self, images: u64, rng: &mut impl Rng) -> Vec<((u64, u64), u64)> {
        let (mut left, mut to_draw) = (images, images);
        let mut draw = |n: u64| {
            let share = n as f64 / left as f64;
            left -= n;
            // A binomial distribution exists for every share within 0..=1.
            let drawn = Binomial::new(to_draw, share.min(1.0)).map_or(0, |binomial| binomial.sample(rng));
            to_draw -= drawn;
            drawn
        };
        self.images.iter().map(|(of, n)| (*of, draw(*n))).collect()
    }
}

/// The probability that a random ranking of `candidates` has a given one among the first `k`.
pub fn chance_of_one(k: u64, candidates: u64) -> f64 {
    (k as f64 / candidates.max(1) as f64).min(1.0)
}

/// The probability that a random ranking of `candidates` has at least one of `own` among the first
/// `k`.
pub fn chance_of_any(k: u64, own: u64, candidates: u64) -> f64 {
    let others = candidates.saturating_sub(own);
    let none: f64 = (0..k.min(candidates))
        .map(|drawn| others.saturating_sub(drawn) as f64 / (candidates - drawn) as f64)
        .product();
    1.0 - none
}

/// The rank, from 0, of the first relevant candidate by descending score; `None` if none is
/// relevant. Two passes, no sort.
pub fn rank(scores: &[f32], relevant: impl Fn(usize) -> bool) -> Option<usize> {
    // NaN ranks below everything else.
    let score = |index: usize| if scores[index].is_nan() { f32::NEG_INFINITY } else { scores[index] };
    let before = |a: usize, b: usize| score(a) > score(b) || (score(a) == score(b) && a < b);
    let best =
        (0..scores.len()).filter(|index| relevant(*index)).reduce(|a, b| if before(b, a) { b } else { a })?;
    if scores[best].is_nan() {
        return Some(scores.len());
    }
    Some((0..scores.len()).filter(|index| before(*index, best)).count())
}

/// Text-to-image recall@k. `similarities`: `[texts, images]`; `image_of_text`: the index of each
/// text's image. A text whose image is not a candidate is not a query.
pub fn text_to_image<'a>(
    similarities: impl IntoIterator<Item = &'a [f32]>,
    image_of_text: &[usize],
    ks: &[usize],
) -> Recall {
    let mut recall = Recall::new(ks);
    for (row, image) in similarities.into_iter().zip(image_of_text) {
        if let Some(rank) = rank(row, |candidate| candidate == *image) {
            recall.add(rank);
        }
    }
    recall
}

/// Image-to-text recall@k. `similarities`: `[images, texts]`; `image_of_text`: the index of each
/// text's image. An image without texts is not a query.
pub fn image_to_text<'a>(
    similarities: impl IntoIterator<Item = &'a [f32]>,
    image_of_text: &[usize],
    ks: &[usize],
) -> Recall {
    let mut recall = Recall::new(ks);
    for (image, row) in similarities.into_iter().enumerate() {
        if let Some(rank) = rank(row, |text| image_of_text.get(text) == Some(&image)) {
            recall.add(rank);
        }
    }
    recall
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(recall: &Recall) -> Vec<f64> {
        recall.values().iter().map(|(_, value, _)| *value).collect()
    }

    #[test]
    fn both_directions_on_a_small_table() {
        // Three images; texts 0 and 1 belong to image 0, text 2 to image 1; image 2 has none.
        let image_of_text = [0, 0, 1];
        let images: [[f32; 3]; 3] = [[0.1, 0.9, 0.5], [0.8, 0.3, 0.2], [0.0, 0.0, 0.0]];
        let texts: Vec<Vec<f32>> = (0..3).map(|text| images.iter().map(|row| row[text]).collect()).collect();
        // Image 0 finds text 1 first; image 1 finds its text last.
        let found = image_to_text(images.iter().map(|row| &row[..]), &image_of_text, &[1, 2, 3]);
        assert_eq!((found.n(), shares(&found)), (2, vec![0.5, 0.5, 1.0]));
        // Text 0 finds its image second, text 1 first, text 2 second.
        let found = text_to_image(texts.iter().map(|row| &row[..]), &image_of_text, &[1, 2]);
        assert_eq!((found.n(), shares(&found)), (3, vec![1.0 / 3.0, 1.0]));
        let (k, value, interval) = found.values()[0];
        assert!(k == 1 && interval.low < value && value < interval.high, "{interval:?}");
        assert_eq!(Recall::new(&[1]).values(), []);
    }

    #[test]
    fn intervals_resample_images_not_captions() {
        use rand::SeedableRng;
        let rng = || rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let width = |found: &GroupedRecall| {
            found.interval(&mut rng()).map(|interval| interval.high - interval.low).unwrap()
        };
        let (mut together, mut apart) = (GroupedRecall::default(), GroupedRecall::default());
        for image in 0..100 {
            // All five captions of an image are hits or none is; or each is independent.
            together.add(if image % 2 == 0 { 5 } else { 0 }, 5);
            (0..5).for_each(|caption| apart.add((image + caption) % 2, 1));
        }
        assert_eq!((together.value(), apart.value()), (Some(0.5), Some(0.5)));
        // 1.96 * 0.5 / sqrt(n) on either side, n = 100 and 500.
        assert!((width(&together) - 0.196).abs() < 0.02 && (width(&apart) - 0.0877).abs() < 0.01);
        let mut all = GroupedRecall::default();
        (0..20).for_each(|_| all.add(5, 5));
        assert_eq!(all.interval(&mut rng()), wilson(20.0, 20.0));
        all.add(0, 0);
        assert_eq!(
            (all.value(), GroupedRecall::default().value(), GroupedRecall::default().interval(&mut rng())),
            (Some(1.0), None, None)
        );
    }

    #[test]
    fn chance_levels() {
        assert_eq!((chance_of_one(5, 20), chance_of_one(9, 3)), (0.25, 1.0));
        // 2 of 6 captions are relevant; the first two ranks hold neither with 4/6 * 3/5.
        assert!((chance_of_any(2, 2, 6) - (1.0 - 0.4)).abs() < 1e-12);
        assert_eq!((chance_of_any(5, 1, 5), chance_of_any(10, 2, 6)), (1.0, 1.0));
        assert!((chance_of_any(1, 1, 4) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn nan_is_never_a_hit() {
        assert_eq!(rank(&[f32::NAN, 0.5], |index| index == 0), Some(2));
        assert_eq!(rank(&[f32::NAN, 0.5], |index| index == 1), Some(0));
        assert_eq!(rank(&[0.5], |_| false), None);
    }

    proptest! {
        /// Reference implementation: a stable sort. Few distinct values make many ties.
        #[test]
        fn rank_matches_a_stable_sort(scores in prop::collection::vec(-3_i8..3, 1..30), owner in 0_usize..4) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let mut sorted: Vec<usize> = (0..scores.len()).collect();
            sorted.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            prop_assert_eq!(rank(&scores, |index| index % 4 == owner), sorted.iter().position(|index| index % 4 == owner));
        }
    }
}
