//! A report as one page that needs nothing else: no script, no network, no font; charts are SVG in
//! the page, images data URIs.
//!
//! Landmarks, headings in order, a table with the numbers beside every chart, a text for every
//! picture; colours are variables of the style sheet, which follows light and dark. The same report
//! gives the same bytes.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::model::{Block, Chart, Picture, Report, Section, Table};
use super::svg;
use crate::errors::Failure;
use crate::text::counted;

const STYLE: &str = include_str!("page.css");

/// Text as HTML takes it, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Direction marks off the web must not turn the page around; other control characters
            // are no HTML.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.push('\u{fffd}'),
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// The page.
pub fn page(report: &Report) -> Result<String, Failure> {
    let mut page = Page { html: String::new(), charts: 0 };
    let title = escape(&report.title);
    page.html += &format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <title>{title}: a twinlens run</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the results</a>\n<header>\n<h1>{title}</h1>\n\
         <p class=\"soft\">A run of twinlens: what was built, how good it is, and where it fails.</p>\n"
    );
    if !report.summary.is_empty() {
        page.html += "<dl class=\"facts\">\n";
        for fact in &report.summary {
            let (value, about) = (escape(&fact.value), escape(&fact.about));
            page.html += &format!(
                "<div><dt>{}</dt><dd class=\"value\">{value}</dd><dd>{about}</dd></div>\n",
                fact.name
            );
        }
        page.html += "</dl>\n";
    }
    page.html += "</header>\n<nav aria-label=\"Sections\">\n<ul>\n";
    for section in &report.sections {
        page.html += &format!("<li><a href=\"#{}\">{}</a></li>\n", section.id, escape(section.title));
    }
    page.html += "</ul>\n</nav>\n<main id=\"main\" tabindex=\"-1\">\n";
    for section in &report.sections {
        page.section(section)?;
    }
    let version = env!("CARGO_PKG_VERSION");
    page.html += &format!(
        "</main>\n<footer>\n<p>Made by twinlens {version} from the datasets of the run alone.</p>\n</footer>\n</body>\n</html>\n"
    );
    Ok(page.html)
}

struct Page {
    html: String,
    charts: usize,
}

impl Page {
    fn section(&mut self, section: &Section) -> Result<(), Failure> {
        let (id, title) = (section.id, escape(section.title));
        self.html += &format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n");
        for block in &section.blocks {
            match block {
                Block::Text(text) => self.html += &format!("<p>{}</p>\n", escape(text)),
                Block::Table { table, folded: false } => self.table(table),
                Block::Table { table, folded: true } => self.folded(table),
                Block::Chart { chart, numbers } => {
                    self.chart(chart)?;
                    self.folded(numbers);
                }
                Block::Pictures(pictures) => self.pictures(pictures),
            }
        }
        self.html += "</section>\n";
        Ok(())
    }

    fn chart(&mut self, chart: &Chart) -> Result<(), Failure> {
        self.charts += 1;
        let (number, title) = (self.charts, escape(&chart.title));
        let drawn = svg::draw(&chart.plot)?;
        let head = format!(
            "<svg role=\"img\" aria-labelledby=\"chart-{number} alt-{number}\" viewBox=\"0 0 {} {}\"><desc id=\"alt-{number}\">{}</desc>",
            drawn.width,
            drawn.height,
            escape(&chart.alt)
        );
        self.html += &format!(
            "<figure>\n<figcaption id=\"chart-{number}\">{title}</figcaption>\n{head}\n{}</svg>\n</figure>\n",
            drawn.content
        );
        Ok(())
    }

    fn folded(&mut self, table: &Table) {
        self.html += &format!(
            "<details>\n<summary>The numbers ({})</summary>\n",
            counted(table.rows.len() as u64, "row")
        );
        self.table(table);
        self.html += "</details>\n";
    }

    fn table(&mut self, table: &Table) {
        let caption = escape(&table.caption);
        // A region of its own, so that it can be scrolled by keys.
        self.html += &format!(
            "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">\n<table>\n<caption>{caption}</caption>\n"
        );
        let class = |column: usize| {
            if table.head.get(column).is_some_and(|head| head.1) { " class=\"n\"" } else { "" }
        };
        self.html += "<thead><tr>";
        for (column, (name, _)) in table.head.iter().enumerate() {
            self.html += &format!("<th scope=\"col\"{}>{}</th>", class(column), escape(name));
        }
        self.html += "</tr></thead>\n<tbody>\n";
        for row in &table.rows {
            self.html += "<tr>";
            for (column, cell) in row.iter().enumerate() {
                self.html += &format!("<td{}>{}</td>", class(column), escape(cell));
            }
            self.html += "</tr>\n";
        }
        self.html += "</tbody>\n</table>\n</div>\n";
        if table.more > 0 {
            self.html += &format!("<p class=\"soft\">And {} more.</p>\n", table.more);
        }
    }

    fn pictures(&mut self, pictures: &[Picture]) {
        self.html += "<ul class=\"pictures\">\n";
        for picture in pictures {
            let (class, word) = if picture.right { ("right", "right") } else { ("wrong", "wrong") };
            let said = match picture.right {
                true => escape(&picture.label),
                false => format!("{}, taken for {}", escape(&picture.label), escape(&picture.predicted)),
            };
            let data = BASE64_STANDARD.encode(&picture.png);
            // Writing to a string does not fail.
            let _ = writeln!(
                self.html,
                "<li><img alt=\"{}\" src=\"data:image/png;base64,{data}\"><strong class=\"{class}\">{word}</strong>: {said}</li>",
                escape(&picture.alt)
            );
        }
        self.html += "</ul>\n";
    }
}
