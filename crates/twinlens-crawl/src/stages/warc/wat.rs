//! WAT records of Common Crawl: the links of a page as JSON.

use serde::Deserialize;

use super::page::{Page, ReadOptions, Rejection, page_url};
use super::record::media_type;
use crate::html::PageBuilder;
use crate::net::Directives;

#[derive(Deserialize)]
struct Wat {
    #[serde(rename = "Envelope")]
    envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    #[serde(rename = "Payload-Metadata", default)]
    payload: Option<Payload>,
    #[serde(rename = "WARC-Header-Metadata", default)]
    header: Option<Header>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "WARC-Target-URI")]
    target: Option<String>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "HTTP-Response-Metadata")]
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "Response-Message")]
    message: Option<Message>,
    #[serde(rename = "Headers", default)]
    headers: serde_json::Map<String, serde_json::Value>,
    #[serde(rename = "HTML-Metadata")]
    html: Option<Html>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "Status")]
    status: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Html {
    head: Option<Head>,
    links: Option<Vec<Link>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Head {
    base: Option<String>,
    metas: Option<Vec<Meta>>,
}

#[derive(Deserialize)]
struct Meta {
    name: Option<String>,
    property: Option<String>,
    content: Option<String>,
}

#[derive(Deserialize)]
struct Link {
    path: Option<String>,
    url: Option<String>,
    alt: Option<String>,
    title: Option<String>,
}

/// Reads the images and texts of a record. `target` is the URL in its WARC header.
///
/// # Errors
/// The record cannot be read, or the owner of the page opted out.
pub(super) fn read(target: &str, block: &[u8], options: &ReadOptions) -> Result<Page, Rejection> {
    let wat = parse(block)?;
    let Some(response) = wat.envelope.payload.and_then(|payload| payload.response) else {
        return Ok(Page::default());
    };
    let status = response.message.and_then(|message| message.status);
    let is_success = match status {
        Some(serde_json::Value::String(status)) => matches!(status.as_str(), "200" | "203"),
        Some(serde_json::Value::Number(status)) => matches!(status.as_u64(), Some(200 | 203)),
        _ => true,
    };
    let (Some(html), true) = (response.html, is_success) else { return Ok(Page::default()) };
    let inner = wat.envelope.header.and_then(|header| header.target);
    let url = page_url(inner.as_deref().unwrap_or(target))?;
    let mut directives = Directives::default();
    for (name, value) in &response.headers {
        let words = value.as_str().unwrap_or_default();
        if name.eq_ignore_ascii_case("x-robots-tag") {
            directives.add(words, &options.product, "X-Robots-Tag");
        } else if name.eq_ignore_ascii_case("tdm-reservation") && words.trim() == "1" {
            directives.opt_out.get_or_insert_with(|| "TDM-Reservation: 1".into());
        }
    }
    let mut builder = PageBuilder::new(options.captions);
    if let Some(head) = html.head {
        head.base.iter().for_each(|base| builder.set_base(base));
        for meta in head.metas.into_iter().flatten() {
            if let (Some(name), Some(content)) = (meta.property.or(meta.name), meta.content) {
                builder.add_meta(&name, &content);
            }
        }
    }
    for link in html.links.into_iter().flatten() {
        let attribute = link.path.as_deref().and_then(|path| path.strip_prefix("IMG@/"));
        if let (Some(attribute), Some(url)) = (attribute, link.url) {
            builder.add_image_attributes(&[(attribute, &url)], [link.alt.as_deref(), link.title.as_deref()]);
        }
    }
    let mut page = builder.build(&url, &options.product);
    match directives.opt_out.or(page.directives.opt_out.take()).filter(|_| options.opt_outs) {
        Some(word) => Err(("opted_out", word)),
        None => Ok(Page { url: url.into(), charset: None, pairs: page.pairs }),
    }
}

/// Whether this is the content type of a WAT record.
pub(super) fn is_wat(content_type: &str) -> bool {
    media_type(content_type) == "application/json"
}

/// Parses the JSON, repaired if that is needed.
fn parse(block: &[u8]) -> Result<Wat, Rejection> {
    let first = match serde_json::from_slice(block) {
        Ok(wat) => return Ok(wat),
        Err(error) => error,
    };
    serde_json::from_str(&twinlens_text::repair_json(block))
        .map_err(|_| ("malformed_json", first.to_string()))
}
