//! What a crawl visits.

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum VisitKind {
    /// A robots.txt, for the sitemaps it lists.
    Robots,
    /// A list of pages or of sitemaps.
    Sitemap,
    Page,
}

impl VisitKind {
    /// The value in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Robots => "robots",
            Self::Sitemap => "sitemap",
            Self::Page => "page",
        }
    }

    /// The kind with this name; unknown names are pages.
    pub fn from_name(name: &str) -> Self {
        [Self::Robots, Self::Sitemap].into_iter().find(|kind| kind.name() == name).unwrap_or(Self::Page)
    }

    pub(super) fn from_number(number: u8) -> Self {
        [Self::Robots, Self::Sitemap].into_iter().find(|kind| *kind as u8 == number).unwrap_or(Self::Page)
    }
}

/// Something to visit. The order is the crawl order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Visit {
    pub kind: VisitKind,
    /// For a page, the number of links from a seed; a redirect counts as none, and a sitemap as
    /// one. For a sitemap, the number of sitemaps that lead to it.
    pub depth: u32,
    /// The normalized URL.
    pub url: String,
}

impl Visit {
    pub fn page(depth: u32, url: impl Into<String>) -> Self {
        Self { kind: VisitKind::Page, depth, url: url.into() }
    }
}

/// What a committed wave recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaveRecord {
    /// The visits, and the canonical URL of each that was not known before.
    pub visits: Vec<(Visit, Option<String>)>,
    pub found: Vec<Visit>,
}
