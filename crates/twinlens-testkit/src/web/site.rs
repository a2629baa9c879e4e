//! What a server serves.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{Answer, Faults};

/// Answers a path that has no answer of its own.
type Otherwise = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// What is where. A path may have several answers: one a request, the last one for all further
/// requests.
#[derive(Clone, Default)]
pub struct Site {
    answers: BTreeMap<String, Vec<Answer>>,
    otherwise: Option<Otherwise>,
    pub(super) faults: Option<Faults>,
    pub(super) keep_alive: bool,
    pub(super) quiet: bool,
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

    /// Answers all other paths, for sites that are too large to be listed.
    pub fn otherwise(self, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self { otherwise: Some(Arc::new(answer)), ..self }
    }

    /// Some requests fail, each in its way, until the server is [healed](super::Web::heal).
    pub fn failing(self, faults: Faults) -> Self {
        Self { faults: Some(faults), ..self }
    }

    /// Connections are kept open after well-formed answers.
    pub fn keep_alive(self) -> Self {
        Self { keep_alive: true, ..self }
    }

    /// Requests are kept without their headers, for runs with very many of them.
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The answer to the request number `before` (from 0) for a path.
    pub(super) fn answer(&self, path: &str, before: usize) -> Answer {
        let answers = self.answers.get(path).map(Vec::as_slice).unwrap_or_default();
        match (answers.get(before).or(answers.last()), &self.otherwise) {
            (Some(answer), _) => answer.clone(),
            (None, Some(otherwise)) => otherwise(path),
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

/// A PNG of a colour gradient; its size is part of the pattern, so that two sizes are two images.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, ((width + 3 * height) % 256) as u8])
    });
    let mut bytes = io::Cursor::new(Vec::new());
    // Encoding a plain RGB image into memory does not fail; if it does, the test that uses it will.
    let written = pixels.write_to(&mut bytes, image::ImageFormat::Png);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes.into_inner()
}
