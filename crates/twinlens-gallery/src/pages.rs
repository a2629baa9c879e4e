//! The pages as HTML, with attributes in odd order and unclosed tags like hand-written pages.

use std::fmt::Write;

use crate::captions::{figcaption, hash, thumbnail_alt, title};
use crate::catalog::{Catalog, Concept, Group, Variant};

/// Thumbnails on one category page.
pub(crate) const PER_PAGE: usize = 60;

/// One in this many images is linked through a redirect.
const MOVED: u64 = 97;

pub(crate) const ROBOTS: &str = "# The gallery is open to all but for the part that is not.\n\
    User-agent: *\nDisallow: /private/\nAllow: /\n";

/// Escapes text for an element's content or a double-quoted attribute.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The layout of every page: navigation, a logo, a footer with the licence of the images.
pub(crate) fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=en>\n<head><meta charset=utf-8><title>{title} | the twinlens gallery</title>\n\
         <body>\n<p><a href=\"/\"><img src=\"/img/1f5bc.png\" alt=logo width=24></a> <a href='/?ref=top#nav'>home</a>\n\
         {body}\n<hr><small>Graphics: Twemoji, \
         <a rel=\"license\" href=\"https://creativecommons.org/licenses/by/4.0/\">CC-BY 4.0</a>. \
         <a href=\"javascript:void(0)\">top</a> <a href=\"mailto:nobody@gallery.twinlens.test\">write to us</a></small>\n"
    )
}

pub(crate) fn index(catalog: &Catalog) -> String {
    let mut body = String::from("<h1>The twinlens gallery</h1>\n<ul>\n");
    for group in &catalog.groups {
        let (slug, title, count) = (&group.slug, escape(group.title), group.concepts.len());
        let _ = writeln!(body, "<li><a href=\"/{slug}/\">{title}</a> ({count})");
    }
    // Links to the same pages in other forms, as newsletters and share buttons use them.
    body.push_str(
        "</ul>\n<p>Popular: <a href=\"/flags/?utm_source=home&amp;utm_medium=teaser\">flags</a>, \
         <A HREF=flags/#f>more flags</A>, <a href=\"./food-and-drink/?\">food</a>\n\
         <p><a href=\"/attic/\">The attic</a>, <a href=\"/private/\">members only</a>\n",
    );
    page("Welcome", &body)
}

/// Page `number` (from 1) of a group.
pub(crate) fn category(group: &Group, number: usize) -> String {
    let pages = group.concepts.len().div_ceil(PER_PAGE);
    let mut body =
        format!("<h1>{}</h1>\n<p>page {number} of {pages}\n<div class=grid>\n", escape(group.title));
    for concept in group.concepts.iter().skip((number - 1) * PER_PAGE).take(PER_PAGE) {
        let alt = thumbnail_alt(concept).map(|alt| format!(" alt=\"{}\"", escape(alt))).unwrap_or_default();
        let (slug, src) = (&concept.slug, &concept.variants[0].code);
        let _ =
            writeln!(body, "<a href=\"/{}/{slug}.html\"><img{alt} src=\"/img/{src}.png\"></a>", group.slug);
    }
    body.push_str("</div>\n");
    for other in (1..=pages).filter(|other| *other != number) {
        let _ = write!(body, "<a href=\"{}\">{other}</a> ", category_path(group, other));
    }
    page(group.title, &body)
}

pub(crate) fn category_path(group: &Group, number: usize) -> String {
    if number == 1 { format!("/{}/", group.slug) } else { format!("/{}/page-{number}/", group.slug) }
}

/// The page of concept `at` of a group. Neighbours are linked by name only, so that every image
/// shows this concept.
pub(crate) fn detail(group: &Group, at: usize) -> String {
    let concept = &group.concepts[at];
    let mut body = format!("<h1>{}</h1>\n", escape(concept.name));
    for variant in &concept.variants {
        body.push_str(&figure(group, concept, variant));
    }
    let _ = write!(body, "<p>in <a href=\"./\">{}</a>", escape(group.title));
    for neighbour in [at.checked_sub(1), Some(at + 1)].into_iter().flatten() {
        if let Some(other) = group.concepts.get(neighbour) {
            let _ = write!(body, ", <a href=\"{}.html\">{}</a>", other.slug, escape(other.name));
        }
    }
    page(concept.name, &body)
}

fn figure(group: &Group, concept: &Concept, variant: &Variant) -> String {
    let folder = if hash(variant.name, 4).is_multiple_of(MOVED) { "/img/moved" } else { "/img" };
    let title =
        title(group, concept, variant).map(|t| format!(" title=\"{}\"", escape(&t))).unwrap_or_default();
    format!(
        "<figure><img src=\"{folder}/{}.png\" alt=\"{}\"{title}><figcaption>{}</figcaption></figure>\n",
        variant.code,
        escape(variant.name),
        escape(&figcaption(group, variant)),
    )
}
