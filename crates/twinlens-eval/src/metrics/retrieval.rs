//! Retrieval: finding the image of a text, and a text of an image, among all of a set.
//!
//! "Recall@k" is used for several things. Here, where every text belongs to one image, and an image may have several texts:
//! * **text to image**: of all texts, the share whose own image is among the `k` images most similar to the text;
//! * **image to text**: of all images that have a text, the share of which **at least one** own text is among the `k` texts most
//!   similar to the image (not the share of its texts that are).
//!
//! Every text and every image of the set is a candidate. Of equal similarities the lowest index comes first, as in
//! [`top_k`](super::top_k). Similarities that are not numbers come last, so that they never count as found.

use super::{Interval, wilson};

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

    /// `(k, recall, interval)` for each `k`; nothing without queries. The interval is Wilson's, which takes the queries as independent:
    /// several texts of one image are not quite, and theirs is a little too narrow.
    pub fn values(&self) -> Vec<(usize, f64, Interval)> {
        let value = |(k, hits): (&usize, &u64)| {
            let interval = wilson(*hits as f64, self.n as f64)?;
            Some((*k, *hits as f64 / self.n as f64, interval))
        };
        self.ks.iter().zip(&self.hits).filter_map(value).collect()
    }
}

/// The place, from 0, of the first relevant candidate when all are sorted by falling score; `None` when none is relevant. One
/// pass for the best relevant one, one for those before it: nothing is sorted.
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

/// Recall@k of finding images by their texts. `similarities`: a row for each text, `[texts, images]`; `image_of_text`: the index
/// of each text's image. A text whose image is not among the candidates is no query.
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

/// Recall@k of finding texts by their image. `similarities`: a row for each image, `[images, texts]`; `image_of_text`: the index
/// of each text's image. An image without a text is no query.
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
