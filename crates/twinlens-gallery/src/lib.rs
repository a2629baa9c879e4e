//! A small untidy web site of real images, compiled in: the quickstart's public source.
//!
//! About 3,900 images (Twemoji, CC-BY 4.0) with their Unicode names, in nine groups, served over
//! real HTTP on loopback. The site has a stable host name, [`HOST`], so that the URLs in a dataset
//! are the same from run to run: the crawler is given [`Gallery::addr`] as that host's address. The
//! same request gets the same bytes each time (but for the two [quirks](QUIRKS) that are about
//! time). The images add 5 MB to a binary.
//!
//! # Layout
//!
//! | path | what |
//! |---|---|
//! | `/` | links to the groups |
//! | `/<group>/`, `/<group>/page-2/` ... | thumbnails of 60 concepts, with empty, boilerplate, or real alt texts |
//! | `/<group>/<concept>.html` | one concept with all its variants (skin tones), each with alt, title, figcaption |
//! | `/img/<code points>.png` | an image |
//! | `/attic/` | every [quirk](QUIRKS) of the web that fits on one page |
//! | `/private/` | forbidden by robots.txt; [`Gallery::requests_under`] tells whether anyone came |
//!
//! Only detail pages end in `.html`, and every image that they caption is one of their concept's,
//! so in SQL
//!
//! ```sql
//! regexp_replace(page_url, '^http://[^/]+/([^/]+)/([^/]+)[.]html$', '\1')   -- group: food-and-drink
//! regexp_replace(page_url, '^http://[^/]+/([^/]+)/([^/]+)[.]html$', '\2')   -- concept: red-apple
//! ```
//!
//! give group and concept of the pairs with `page_url like '%.html'`; those of other pages belong
//! in no split by concept. Captions write the group as `food & drink`: `replace(replace(slug,
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

/// The host name by which pipelines refer to the site; `.test` is reserved and never resolves (RFC
/// 6761).
pub const HOST: &str = "gallery.twinlens.test";
