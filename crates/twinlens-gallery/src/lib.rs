//! The quickstart's web site: a small, messy site of real images, compiled in.
//!
//! It serves about 3,900 images (Twemoji, CC-BY 4.0) with their Unicode names, in nine groups, over
//! real HTTP on loopback. The host name [`HOST`] is fixed, so that URLs in datasets do not change
//! between runs; the crawler resolves it to [`Gallery::addr`]. Every request is answered with the
//! same bytes each time, except for two [quirks](QUIRKS) about timing. The images add 5 MB to a
//! binary.
//!
//! # Layout
//!
//! | path | content |
//! |---|---|
//! | `/` | links to the groups |
//! | `/<group>/`, `/<group>/page-2/` ... | thumbnails of 60 concepts, with empty, boilerplate, or real alt texts |
//! | `/<group>/<concept>.html` | one concept with all its variants (skin tones), each with alt, title, figcaption |
//! | `/img/<code points>.png` | an image |
//! | `/attic/` | links to every [quirk](QUIRKS) |
//! | `/private/` | disallowed by robots.txt; [`Gallery::requests_under`] counts violations |
//!
//! Only detail pages end in `.html`, and all images with captions on them show their concept. So in
//! SQL
//!
//! ```sql
//! regexp_replace(page_url, '^http://[^/]+/([^/]+)/([^/]+)[.]html$', '\1')   -- group: food-and-drink
//! regexp_replace(page_url, '^http://[^/]+/([^/]+)/([^/]+)[.]html$', '\2')   -- concept: red-apple
//! ```
//!
//! give the group and concept of pairs with `page_url like '%.html'`; pairs of other pages do not
//! belong in a split by concept. Captions write the group as `food & drink`: `replace(replace(slug,
//! '-and-', ' & '), '-', ' ')`.

mod captions;
mod catalog;
mod pages;
mod quirks;
mod server;
mod site;

pub use catalog::{Catalog, Concept, Group, Variant};
pub use quirks::{QUIRKS, Quirk};
pub use server::{Gallery, GalleryError, serve};

/// The site's host name in pipelines. `.test` is reserved and never resolves (RFC 6761).
pub const HOST: &str = "gallery.twinlens.test";
