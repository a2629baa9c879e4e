//! Text from the web: detecting its charset, and cleaning it.
//!
//! HTML entities are decoded in two ways: [`unescape_html`] follows the HTML standard, for text of
//! pages; [`clean_caption`] follows Python's `html.unescape`, so that token ids match open_clip's.

mod charset;
mod clean;
mod html;
mod json;

pub use charset::{decode_html, decode_text};
pub use clean::clean_caption;
pub use html::{collapse_whitespace, drop_invisible, unescape_html};
pub use json::repair_json;
