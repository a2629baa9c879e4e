//! The stages: sources of pairs ([`Crawl`], [`Warc`], [`Table`]), sources of pairs with images
//! ([`WebDataset`], [`Folder`]), and [`Fetch`].

mod captions;
mod column_names;
mod common;
mod crawl;
mod fetch;
mod files;
mod folder;
mod local;
mod network;
mod options;
mod remote;
mod samples;
mod split_reader;
mod table;
mod warc;
mod webdataset;

pub use column_names::CAPTIONS as CAPTION_NAMES;
pub use crawl::Crawl;
pub use fetch::{Fetch, VERIFY_CODES, Verify};
pub use folder::Folder;
pub use local::CODES as LOCAL_CODES;
pub use samples::CODES as SAMPLE_CODES;
pub use table::{CODES as TABLE_CODES, Table};
pub use warc::{CODES as WARC_CODES, Warc};
pub use webdataset::WebDataset;
