//! Checks of report pages: self-contained, well-formed and accessible.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Elements without a closing tag.
const VOID: [&str; 4] = ["meta", "img", "br", "input"];

struct Tag<'a> {
    name: &'a str,
    attributes: &'a str,
}

impl<'a> Tag<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let (_, rest) = self.attributes.split_once(&format!(" {name}=\""))?;
        rest.split('"').next()
    }
}

/// Every opening tag. Panics if elements are not properly nested.
fn tags(html: &str) -> Vec<Tag<'_>> {
    let (head, body) = html.split_once("<style>").unwrap();
    let (_, rest) = body.split_once("</style>").unwrap();
    let (mut open, mut tags) = (Vec::new(), Vec::new());
    for part in [head, rest] {
        for piece in part.split('<').skip(1) {
            let (tag, _) = piece.split_once('>').unwrap_or_else(|| panic!("`<{piece}` is not closed"));
            if tag.starts_with('!') {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "</{name}> closes another element");
                continue;
            }
            let closed = tag.ends_with('/');
            let name = tag.split([' ', '/', '\n']).next().unwrap();
            tags.push(Tag { name, attributes: tag.strip_prefix(name).unwrap() });
            if !closed && !VOID.contains(&name) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    tags
}

/// Panics if the page has external resources, is not well-formed, or is not accessible.
pub(crate) fn check(html: &str) {
    let tags = tags(html);
    let of = |name: &str| tags.iter().filter(|tag| tag.name == name).collect::<Vec<_>>();
    assert!(html.starts_with("<!DOCTYPE html><html lang=\"en\">"));
    for name in ["script", "link", "iframe", "object", "use", "image"] {
        assert!(of(name).is_empty(), "<{name}> in a self-contained page");
    }
    for tag in &tags {
        for name in ["src", "href", "srcset", "action", "data", "poster", "xlink:href"] {
            let Some(url) = tag.get(name) else { continue };
            // Downloads are opened by nothing: the browser stores them.
            let is_download = tag.get("download").is_some()
                && ["data:text/csv;", "data:image/svg+xml;"].iter().any(|kind| url.starts_with(kind));
            assert!(
                url.starts_with('#') || url.starts_with("data:image/jpeg;base64,") || is_download,
                "<{} {name}={url}",
                tag.name
            );
        }
        let handler = tag.attributes.split('"').step_by(2).any(|outside| outside.contains(" on"));
        assert!(!tag.attributes.contains("url(") && !handler, "<{}{}>", tag.name, tag.attributes);
    }
    let style = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    assert!(
        !style.contains("url(") && !style.contains("@import") && style.contains("prefers-color-scheme: dark")
    );

    for name in ["header", "nav", "main", "footer", "h1", "title"] {
        assert_eq!(of(name).len(), 1, "<{name}>");
    }
    let mut ids = BTreeSet::new();
    for id in tags.iter().filter_map(|tag| tag.get("id")) {
        assert!(ids.insert(id), "two elements have the id {id}");
    }
    for tag in &tags {
        let to = tag.get("href").and_then(|href| href.strip_prefix('#'));
        for id in to.into_iter().chain(tag.get("aria-labelledby").into_iter().flat_map(|ids| ids.split(' ')))
        {
            assert!(ids.contains(id), "no element has the id {id}");
        }
    }
    assert!(of("img").iter().all(|img| img.get("alt").is_some_and(|alt| !alt.is_empty())));
    assert!(
        of("svg").iter().all(|svg| svg.get("role") == Some("img") && svg.get("aria-labelledby").is_some())
    );
    assert!(of("section").iter().all(|section| section.get("aria-labelledby").is_some()));
    assert_eq!(of("section").len(), of("h2").len());
    assert_eq!(of("table").len(), of("caption").len());
    assert!(of("th").iter().all(|th| th.get("scope").is_some()));
    // Every figure, or group of figures, is followed by a table with its numbers.
    let ends = html.split("</figure>").skip(1);
    for after in ends {
        let follows = ["<details>", "<figure>", "</div><details>"];
        assert!(follows.iter().any(|next| after.starts_with(next)), "{}", &after[..after.len().min(80)]);
    }
}

/// An installed browser.
pub(crate) fn browser() -> Option<PathBuf> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .map(|name| Path::new("/usr/bin").join(name))
        .find(|path| path.exists())
}

/// Opens a page in a browser without network: all of it must render, without console messages.
pub(crate) fn open(browser: &Path, page: &Path, profile: &Path) {
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]);
    command
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!("--user-data-dir={}", profile.display()));
    let output = command.arg(format!("file://{}", page.display())).output().unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!log.contains("CONSOLE"), "{log}");
    let sections = std::fs::read_to_string(page).unwrap().matches("<section ").count();
    assert_eq!(dom.matches("<section ").count(), sections, "{log}");
}
