//! Sources (web crawl, web archives, tables) and the fetcher.
//!
//! * [`net`]: the HTTP client that crawl and fetch share, made for a hostile web;
//! * [`html`]: pairs and links out of pages;
//! * [`frontier`]: which pages a crawl visits next, and what it knows, on disk;
//! * [`sitemap`]: lists of pages;
//! * [`pairs`]: what identifies a pair;
//! * [`stages`]: the kinds of stages.

mod coding;
pub mod frontier;
mod html;
pub mod net;
mod pairs;
mod sitemap;
pub mod stages;

use twinlens_pipeline::Registry;

/// Adds the kinds of this crate.
pub fn register(registry: &mut Registry) {
    registry.add::<stages::Crawl>();
    registry.add::<stages::Table>();
    registry.add::<stages::Warc>();
    registry.add::<stages::WebDataset>();
    registry.add::<stages::Folder>();
    registry.add::<stages::Fetch>();
}
