//! Retrieval: finding the image of a text, and a text of an image, among all of a set.
//!
//! "Recall@k" is used for several things. Here, where every text belongs to one image, and an image
//! may have several texts:
//! * **text to image**: of all texts, the share whose own image is among the `k` images most
//!   similar to the text;
//! * **image to text**: of all images that have a text, the share of which **at least one** own
//!   text is among the `k` texts most
//!   similar to the image (not the share of its texts that are).
//!
//! Every text and every image of the set is a candidate. Of equal similarities the lowest index
//! comes first, as in [`top_k`](super::top_k). Similarities that are not numbers come last, so that
//! they never count as found.

use std::collections::BTreeMap;

use rand::Rng;
use rand_distr::{Binomial, Distribution};

use super::{Interval, REPLICATES, percentile, wilson};

/// How many queries found what they were to find among the first `k`, for several `k`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recall {
    ks: Vec<usize>,
    hits: Vec<u64>,
    n: u64,
}

impl Recall {
    /// Of no queries yet.
    pub fn new(ks: &[usize]) -> Self {
        Self { ks: ks.to_vec(), hits: vec![0; ks.len()], n: 0 }
    }

    /// Counts a query whose first relevant candidate has that place, from 0.
    pub fn add(&mut self, place: usize) {
        self.n += 1;
        for (k, hits) in self.ks.iter().zip(&mut self.hits) {
            *hits += u64::from(place < *k);
        }
    }

    /// Queries.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// `(k, recall, interval)` for each `k`; nothing without queries. The interval is Wilson's,
    /// which takes the queries as independent: several texts of one image are not quite, and theirs
    /// is a little too narrow.
    pub fn values(&self) -> Vec<(usize, f64, Interval)> {
        let value = |(k, hits): (&usize, &u64)| {
            let interval = wilson(*hits as f64, self.n as f64)?;
            Some((*k, *hits as f64 / self.n as f64, interval))
        };
        self.ks.iter().zip(&self.hits).filter_map(value).collect()
    }
}

/// Queries by the image that they belong to, for intervals that take the captions of one image as
/// what they are: alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// How many images have so many queries that found, of so many.
    images: BTreeMap<(u64, u64), u64>,
}

impl Found {
    /// Counts an image with `queries`, of which `hits` found what they were to find. Without
    /// queries it does not count.
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

    /// The share of all queries that found; `None` without any.
    pub fn value(&self) -> Option<f64> {
        Self::share(self.images.iter().map(|(of, n)| (*of, *n)))
    }

    /// The 95 % interval of that share: the percentile interval of a bootstrap that draws images,
    /// each with all of its queries. Where all queries found, or none, every draw would be the
    /// same: Wilson's interval for as many images then.
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

    /// As many images, drawn with replacement: how many of each sort, one sort after another.
    fn redraw(&self, images: u64, rng: &mut impl Rng) -> Vec<((u64, u64), u64)> {
        let (mut left, mut to_draw) = (images, images);
        let mut draw = |n: u64| {
            let share = n as f64 / left as f64;
            left -= n;
            // A share is within 0..=1, and the distribution takes all of those.
            let drawn = Binomial::new(to_draw, share.min(1.0)).map_or(0, |binomial| binomial.sample(rng));
            to_draw -= drawn;
            drawn
        };
        self.images.iter().map(|(of, n)| (*of, draw(*n))).collect()
    }
}

/// How often guessing finds one of `candidates` within `k` places.
pub fn chance_of_one(k: u64, candidates: u64) -> f64 {
    (k as f64 / candidates.max(1) as f64).min(1.0)
}

/// How often guessing finds at least one of `own` among `candidates` within `k` places: 1 minus the
/// share of draws without any.
pub fn chance_of_any(k: u64, own: u64, candidates: u64) -> f64 {
    let others = candidates.saturating_sub(own);
    let none: f64 = (0..k.min(candidates))
        .map(|place| others.saturating_sub(place) as f64 / (candidates - place) as f64)
        .product();
    1.0 - none
}

/// The place, from 0, of the first relevant candidate when all are sorted by falling score; `None`
/// when none is relevant. One pass for the best relevant one, one for those before it: nothing is
/// sorted.
pub fn place(scores: &[f32], relevant: impl Fn(usize) -> bool) -> Option<usize> {
    // NaN below everything else.
    let score = |index: usize| if scores[index].is_nan() { f32::NEG_INFINITY } else { scores[index] };
    let before = |a: usize, b: usize| score(a) > score(b) || (score(a) == score(b) && a < b);
    let best =
        (0..scores.len()).filter(|index| relevant(*index)).reduce(|a, b| if before(b, a) { b } else { a })?;
    if scores[best].is_nan() {
        return Some(scores.len());
    }
    Some((0..scores.len()).filter(|index| before(*index, best)).count())
}

/// Recall@k of finding images by their texts. `similarities`: a row for each text, `[texts,
/// images]`; `image_of_text`: the index of each text's image. A text whose image is not among the
/// candidates is no query.
pub fn text_to_image<'a>(
    similarities: impl IntoIterator<Item = &'a [f32]>,
    image_of_text: &[usize],
    ks: &[usize],
) -> Recall {
    let mut recall = Recall::new(ks);
    for (row, image) in similarities.into_iter().zip(image_of_text) {
        if let Some(place) = place(row, |candidate| candidate == *image) {
            recall.add(place);
        }
    }
    recall
}

/// Recall@k of finding texts by their image. `similarities`: a row for each image, `[images,
/// texts]`; `image_of_text`: the index of each text's image. An image without a text is no query.
pub fn image_to_text<'a>(
    similarities: impl IntoIterator<Item = &'a [f32]>,
    image_of_text: &[usize],
    ks: &[usize],
) -> Recall {
    let mut recall = Recall::new(ks);
    for (image, row) in similarities.into_iter().enumerate() {
        if let Some(place) = place(row, |text| image_of_text.get(text) == Some(&image)) {
            recall.add(place);
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
    fn both_directions_by_hand() {
        // Three images; texts 0 and 1 are of image 0, text 2 of image 1; image 2 has none.
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
    fn intervals_draw_images_and_not_captions() {
        use rand::SeedableRng;
        let rng = || rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let width =
            |found: &Found| found.interval(&mut rng()).map(|interval| interval.high - interval.low).unwrap();
        let (mut together, mut apart) = (Found::default(), Found::default());
        for image in 0..100 {
            // The five captions of an image all find it or none does; or each for itself.
            together.add(if image % 2 == 0 { 5 } else { 0 }, 5);
            (0..5).for_each(|caption| apart.add((image + caption) % 2, 1));
        }
        assert_eq!((together.value(), apart.value()), (Some(0.5), Some(0.5)));
        // 1.96 * 0.5 / sqrt(n) on either side, n = 100 and 500.
        assert!((width(&together) - 0.196).abs() < 0.02 && (width(&apart) - 0.0877).abs() < 0.01);
        let mut all = Found::default();
        (0..20).for_each(|_| all.add(5, 5));
        assert_eq!(all.interval(&mut rng()), wilson(20.0, 20.0));
        all.add(0, 0);
        assert_eq!(
            (all.value(), Found::default().value(), Found::default().interval(&mut rng())),
            (Some(1.0), None, None)
        );
    }

    #[test]
    fn chances_by_hand() {
        assert_eq!((chance_of_one(5, 20), chance_of_one(9, 3)), (0.25, 1.0));
        // Of 6 captions 2 are right; the first two places hold neither in 4/6 * 3/5.
        assert!((chance_of_any(2, 2, 6) - (1.0 - 0.4)).abs() < 1e-12);
        assert_eq!((chance_of_any(5, 1, 5), chance_of_any(10, 2, 6)), (1.0, 1.0));
        assert!((chance_of_any(1, 1, 4) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_a_number_is_not_found() {
        assert_eq!(place(&[f32::NAN, 0.5], |index| index == 0), Some(2));
        assert_eq!(place(&[f32::NAN, 0.5], |index| index == 1), Some(0));
        assert_eq!(place(&[0.5], |_| false), None);
    }

    proptest! {
        /// Against the plain twin, a stable sort; few distinct values make many ties.
        #[test]
        fn a_place_is_that_in_a_stable_sort(scores in prop::collection::vec(-3_i8..3, 1..30), owner in 0_usize..4) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let mut sorted: Vec<usize> = (0..scores.len()).collect();
            sorted.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            prop_assert_eq!(place(&scores, |index| index % 4 == owner), sorted.iter().position(|index| index % 4 == owner));
        }
    }
}
