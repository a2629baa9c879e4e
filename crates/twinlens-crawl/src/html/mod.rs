//! Extracts image-text pairs and links from HTML, however broken.
//!
//! The page only goes through html5ever's tokenizer: building a tree is quadratic in the nesting
//! depth, and recursion could overflow the stack. What is taken from a page is bounded
//! ([`limits`]), and the work is linear in its length. No input panics.

mod builder;
mod candidates;
mod extract;
mod page;
mod srcset;
mod structured;

pub(crate) use builder::PageBuilder;
pub(crate) use extract::extract;
pub(crate) use page::{ExtractOptions, ImageText, Page, TextSource, TextSourceSet, default_captions};
