//! Computes the rank of the match of every image and caption without holding all similarities in
//! memory.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use twinlens_pipeline::RunError;

use crate::error::EvalError;

/// Rows per block of images, and of texts.
const BLOCK: usize = 1024;

/// Vectors in a file, in order.
pub(super) struct VectorFile {
    path: PathBuf,
    file: BufWriter<File>,
    width: usize,
    len: usize,
}

impl VectorFile {
    /// Creates an empty file, replacing an existing one.
    pub(super) fn create(path: &Path, width: usize) -> Result<Self, EvalError> {
        let open = File::options().create(true).truncate(true).read(true).write(true).open(path);
        let file = open.map_err(|error| RunError::io(path, error))?;
        Ok(Self { path: path.into(), file: BufWriter::new(file), width, len: 0 })
    }

    /// The number of vectors.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends vectors `[n, width]`.
    pub(super) fn push(&mut self, values: &[f32]) -> Result<(), EvalError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file.write_all(&bytes).map_err(|error| RunError::io(&self.path, error))?;
        self.len += values.len() / self.width;
        Ok(())
    }

    /// Reads a range of vectors: `[rows, width]`.
    fn read(&mut self, rows: &Range<usize>) -> Result<Tensor, EvalError> {
        let mut bytes = vec![0; rows.len() * self.width * 4];
        let io = |error| RunError::io(&self.path, error);
        self.file.flush().map_err(io)?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start((rows.start * self.width * 4) as u64)).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Tensor::from_vec(values, (rows.len(), self.width), &Device::Cpu)?)
    }
}

/// The ranks of the matches, from 0.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// Per caption: the rank of its image among all images.
    pub of_texts: Vec<u32>,
    /// Per image: the rank of its best caption among all captions; `None` without captions.
    pub of_images: Vec<Option<u32>>,
}

/// The match that other candidates are compared with. Among equal similarities the lower index
/// ranks first.
#[derive(Clone, Copy)]
struct Own {
    similarity: f32,
    index: usize,
}

impl Own {
    fn is_beaten(&self, similarity: f32, index: usize) -> bool {
        similarity > self.similarity || (similarity == self.similarity && index < self.index)
    }
}

/// Ranks all images for each text and all texts for each image; `image_of_text` is the index of the
/// image of each text.
///
/// # Errors
/// I/O, and an interruption.
pub(super) fn places(
    images: &mut VectorFile,
    texts: &mut VectorFile,
    image_of_text: &[usize],
    check_cancelled: impl Fn() -> Result<(), EvalError>,
) -> Result<Places, EvalError> {
    // The first pass computes the similarities of the matches, the second counts the candidates
    // that rank before them. Both use the same blocks and thus get the same bits.
    let mut of_text = vec![Own { similarity: f32::NAN, index: 0 }; image_of_text.len()];
    let mut of_image: Vec<Option<Own>> = vec![None; images.len()];
    let together = |texts: &Range<usize>, images: &Range<usize>| {
        image_of_text[texts.clone()].iter().any(|image| images.contains(image))
    };
    blocks(images, texts, &check_cancelled, together, |rows, columns, similarities| {
        for (text, row) in rows.zip(similarities) {
            let image = image_of_text[text];
            let Some(similarity) = columns.contains(&image).then(|| row[image - columns.start]) else {
                continue;
            };
            of_text[text] = Own { similarity, index: image };
            let best = &mut of_image[image];
            if best.is_none_or(|best| best.is_beaten(similarity, text)) {
                *best = Some(Own { similarity, index: text });
            }
        }
    })?;
    let mut of_texts = vec![0; image_of_text.len()];
    let mut before: Vec<u32> = vec![0; of_image.len()];
    blocks(
        images,
        texts,
        &check_cancelled,
        |_, _| true,
        |rows, columns, similarities| {
            for (text, row) in rows.zip(similarities) {
                for (image, similarity) in columns.clone().zip(row) {
                    of_texts[text] += u32::from(of_text[text].is_beaten(*similarity, image));
                    let own = of_image[image];
                    before[image] += u32::from(own.is_some_and(|own| own.is_beaten(*similarity, text)));
                }
            }
        },
    )?;
    let of_images = of_image.iter().zip(before).map(|(own, before)| own.map(|_| before)).collect();
    Ok(Places { of_texts, of_images })
}

/// Computes the similarities of texts (rows) and images (columns), block by block, for the selected
/// blocks.
fn blocks(
    images: &mut VectorFile,
    texts: &mut VectorFile,
    check_cancelled: &impl Fn() -> Result<(), EvalError>,
    wanted: impl Fn(&Range<usize>, &Range<usize>) -> bool,
    mut take: impl FnMut(Range<usize>, Range<usize>, &[Vec<f32>]),
) -> Result<(), EvalError> {
    let pieces = |len: usize| (0..len).step_by(BLOCK).map(move |first| first..len.min(first + BLOCK));
    for columns in pieces(images.len()) {
        let block = images.read(&columns)?.t()?.contiguous()?;
        for rows in pieces(texts.len()).filter(|rows| wanted(rows, &columns)) {
            check_cancelled()?;
            take(rows.clone(), columns.clone(), &texts.read(&rows)?.matmul(&block)?.to_vec2::<f32>()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::retrieval::rank;

    #[test]
    fn ranks_match_the_reference_implementation() {
        let folder = tempfile::tempdir().unwrap();
        // More than one block of each; small integers, for exact sums and many ties.
        let (n, m, width) = (BLOCK + 76, 2 * BLOCK + 5, 3);
        let number = |i: usize| ((i * 7919 + i / 7) % 5) as f32 - 2.0;
        let image: Vec<f32> = (0..n * width).map(number).collect();
        let text: Vec<f32> = (0..m * width).map(|i| number(i * 3 + 1)).collect();
        // Image 9 has no text.
        let image_of_text: Vec<usize> =
            (0..m).map(|text| (text * 13) % n).map(|image| if image == 9 { 10 } else { image }).collect();
        let mut images = VectorFile::create(&folder.path().join("i"), width).unwrap();
        let mut texts = VectorFile::create(&folder.path().join("t"), width).unwrap();
        image.chunks(300).for_each(|part| images.push(part).unwrap());
        texts.push(&text).unwrap();
        let found = places(&mut images, &mut texts, &image_of_text, || Ok(())).unwrap();
        let dot = |i: usize, t: usize| -> f32 {
            (0..width).map(|k| image[i * width + k] * text[t * width + k]).sum()
        };
        for t in (0..m).step_by(97) {
            let row: Vec<f32> = (0..n).map(|i| dot(i, t)).collect();
            assert_eq!(Some(found.of_texts[t] as usize), rank(&row, |i| i == image_of_text[t]), "text {t}");
        }
        for i in (0..n).step_by(41).chain([9]) {
            let row: Vec<f32> = (0..m).map(|t| dot(i, t)).collect();
            assert_eq!(
                found.of_images[i].map(|place| place as usize),
                rank(&row, |t| image_of_text[t] == i),
                "image {i}"
            );
        }
    }

    #[test]
    fn an_interruption_stops_the_ranking() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let mut file = VectorFile::create(&folder.path().join(name), 1).unwrap();
            file.push(&[1.0]).unwrap();
            file
        };
        let (mut images, mut texts) = (file("i"), file("t"));
        let stopped = places(&mut images, &mut texts, &[0], || Err(RunError::Interrupted.into()));
        assert!(matches!(stopped, Err(EvalError::Run(RunError::Interrupted))));
    }
}
