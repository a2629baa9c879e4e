//! What the server serves.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::answer::Answer;
use super::faults::Faults;

/// Answers the paths that have no answer of their own.
type Fallback = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// Answers by path. A path may have several: one per request, and the last one for all further
/// requests.
#[derive(Clone, Default)]
pub struct Site {
    answers: BTreeMap<String, Vec<Answer>>,
    fallback: Option<Fallback>,
    pub(super) faults: Option<Faults>,
    pub(super) keep_alive: bool,
    pub(super) omit_headers: bool,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("answers", &self.answers).finish_non_exhaustive()
    }
}

impl Site {
    /// A site where everything is 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer for a path (with its query).
    pub fn at(mut self, path: &str, answer: Answer) -> Self {
        self.answers.entry(path.into()).or_default().push(answer);
        self
    }

    /// Answers all other paths, for sites that are too large to list.
    pub fn fallback(self, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self { fallback: Some(Arc::new(answer)), ..self }
    }

    /// Some requests fail, until [`disable_faults`](super::WebServer::disable_faults).
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults: Some(faults), ..self }
    }

    /// Keeps connections open after well-formed answers.
    pub fn keep_alive(self) -> Self {
        Self { keep_alive: true, ..self }
    }

    /// Records requests without their headers, to save memory when there are very many.
    pub fn without_headers(self) -> Self {
        Self { omit_headers: true, ..self }
    }

    /// The answer to a request for `path` after `before` earlier ones.
    pub(super) fn answer(&self, path: &str, before: usize) -> Answer {
        let answers = self.answers.get(path).map(Vec::as_slice).unwrap_or_default();
        match (answers.get(before).or(answers.last()), &self.fallback) {
            (Some(answer), _) => answer.clone(),
            (None, Some(fallback)) => fallback(path),
            (None, None) => Answer::status(404),
        }
    }

    /// Adds an HTML page.
    pub fn page(self, path: &str, html: &str) -> Self {
        self.at(path, Answer::page(html))
    }

    /// Adds a PNG image.
    pub fn image(self, path: &str, width: u32, height: u32) -> Self {
        self.at(path, Answer::body("image/png", png(width, height)))
    }
}

/// A PNG of a colour gradient. The pattern depends on the size, so two sizes are different images.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, ((width + 3 * height) % 256) as u8])
    });
    let mut bytes = io::Cursor::new(Vec::new());
    // Encoding an RGB image into memory does not fail; if it did, the test would.
    let written = pixels.write_to(&mut bytes, image::ImageFormat::Png);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes.into_inner()
}
