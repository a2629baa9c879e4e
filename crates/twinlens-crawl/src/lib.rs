//! Sources (web crawl, tables) and the fetcher.
//!
//! * [`net`]: the HTTP client that crawl and fetch share, made for a hostile web;
//! * [`html`]: pairs and links out of pages;
//! * [`frontier`]: which pages a crawl visits next, as pure logic;
//! * [`pairs`]: what identifies a pair;
//! * [`stages`]: the kinds `crawl`, `table` and `fetch`.

pub mod frontier;
pub mod html;
pub mod net;
pub mod pairs;
pub mod stages;

use twinlens_pipeline::Registry;

/// Adds the kinds of this crate.
pub fn register(registry: &mut Registry) {
    registry.add::<stages::Crawl>();
    registry.add::<stages::Table>();
    registry.add::<stages::Fetch>();
}
