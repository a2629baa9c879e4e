//! Sources (web crawl, tables) and the fetcher.
