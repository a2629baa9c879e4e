//! The table of paths and their answers.

use std::collections::HashMap;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::pages::{self, PER_PAGE};
use crate::quirks::{self, Alteration, QUIRKS, QuirkResponse, SAMPLE};

/// The content of a path.
#[derive(Debug, Clone, Copy)]
enum Route {
    Index,
    Robots,
    Attic,
    /// Group, page number from 1.
    Category(usize, usize),
    /// Group, concept.
    Detail(usize, usize),
    Image(&'static [u8]),
    /// A redirect to the image's path without `/moved`.
    Moved,
    /// Index into [`QUIRKS`].
    Quirk(usize),
}

/// An answer to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) header: Option<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) delay: Duration,
}

const HTML: &str = "text/html; charset=utf-8";

impl Answer {
    fn ok(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type, header: None, body: body.into(), delay: Duration::ZERO }
    }

    fn html(status: u16, title: &str) -> Self {
        Self { status, ..Self::ok(HTML, pages::page(title, &format!("<h1>{title}</h1>"))) }
    }

    fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.header = Some((name, value.into()));
        self
    }

    fn redirect(status: u16, location: &str) -> Self {
        Self::html(status, "This way").with_header("location", location)
    }
}

#[derive(Debug)]
pub(crate) struct Site {
    catalog: Catalog,
    routes: HashMap<String, Route>,
    sample: &'static [u8],
}

impl Site {
    pub(crate) fn build() -> Self {
        let catalog = Catalog::load();
        let mut routes = HashMap::new();
        for (path, route) in [("/", Route::Index), ("/robots.txt", Route::Robots), ("/attic/", Route::Attic)]
        {
            routes.insert(path.to_owned(), route);
        }
        for (g, group) in catalog.groups.iter().enumerate() {
            for number in 1..=group.concepts.len().div_ceil(PER_PAGE) {
                routes.insert(pages::category_path(group, number), Route::Category(g, number));
            }
            for (c, concept) in group.concepts.iter().enumerate() {
                routes.insert(format!("/{}/{}.html", group.slug, concept.slug), Route::Detail(g, c));
                for variant in &concept.variants {
                    routes.insert(format!("/img/{}.png", variant.code), Route::Image(variant.png));
                    routes.insert(format!("/img/moved/{}.png", variant.code), Route::Moved);
                }
            }
        }
        let sample = match routes.get(&format!("/img/{SAMPLE}.png")) {
            Some(Route::Image(png)) => *png,
            _ => &[], // a test checks that the sample exists
        };
        for (at, quirk) in QUIRKS.iter().enumerate() {
            routes.insert(quirk.path.to_owned(), Route::Quirk(at));
        }
        Self { catalog, routes, sample }
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.routes.contains_key(path)
    }

    /// The answer to a path (without query). `is_repeated`: whether the path was requested before.
    pub(crate) fn answer(&self, path: &str, is_repeated: bool) -> Answer {
        match self.routes.get(path) {
            None => Answer::html(404, "Not found"),
            Some(Route::Index) => Answer::ok(HTML, pages::index(&self.catalog)),
            Some(Route::Robots) => Answer::ok("text/plain", pages::ROBOTS),
            Some(Route::Attic) => Answer::ok(HTML, quirks::attic()),
            Some(Route::Category(group, number)) => {
                Answer::ok(HTML, pages::category(&self.catalog.groups[*group], *number))
            }
            Some(Route::Detail(group, concept)) => {
                Answer::ok(HTML, pages::detail(&self.catalog.groups[*group], *concept))
            }
            Some(Route::Image(png)) => Answer::ok("image/png", *png),
            Some(Route::Moved) => Answer::redirect(302, &path.replacen("/moved", "", 1)),
            Some(Route::Quirk(at)) => self.quirk(&QUIRKS[*at].response, is_repeated),
        }
    }

    fn quirk(&self, response: &QuirkResponse, is_repeated: bool) -> Answer {
        match response {
            QuirkResponse::Redirect(status, location) => Answer::redirect(*status, location),
            QuirkResponse::Failure(status) => Answer::html(*status, "Sorry"),
            QuirkResponse::Windows1252(body) => {
                let page = pages::page("Old text", body).replace("<meta charset=utf-8>", "");
                Answer::ok("text/html; charset=windows-1252", quirks::windows_1252(&page))
            }
            QuirkResponse::Page { header, body } => {
                let answer = Answer::ok(HTML, pages::page("A page", body));
                match header {
                    Some((name, value)) => answer.with_header(name, *value),
                    None => answer,
                }
            }
            QuirkResponse::Image(alteration) => self.altered_sample(alteration, is_repeated),
        }
    }

    fn altered_sample(&self, alteration: &Alteration, is_repeated: bool) -> Answer {
        let image = Answer::ok("image/png", self.sample);
        match alteration {
            Alteration::FirstHalf => Answer::ok("image/png", &self.sample[..self.sample.len() / 2]),
            Alteration::DeclaredSide(side) => {
                Answer::ok("image/png", quirks::with_declared_side(self.sample, *side))
            }
            Alteration::Html => {
                Answer { content_type: "image/png", ..Answer::html(200, "Hotlinking is forbidden") }
            }
            Alteration::ContentType(content_type) => Answer { content_type, ..image },
            Alteration::Header(name, value) => image.with_header(name, *value),
            Alteration::Delay(delay) => Answer { delay: *delay, ..image },
            Alteration::BusyOnce if is_repeated => image,
            Alteration::BusyOnce => Answer::html(429, "Too many requests").with_header("retry-after", "1"),
        }
    }
}
