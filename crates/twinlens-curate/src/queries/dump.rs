//! Streams the pages of a Wikipedia dump (`pages-articles.xml`), one page in memory at a time.

use std::io::BufRead;
use std::path::Path;

use quick_xml::events::Event;
use quick_xml::reader::Reader;

use super::open::open;
use super::wikitext::Namespaces;
use crate::error::{CurateError, Result};

/// An article: a page of the main namespace that is not a redirect.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Page {
    /// With spaces.
    pub title: String,
    /// The wikitext of its last revision.
    pub text: String,
}

/// The elements whose text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Title,
    Namespace,
    Text,
    NamespaceName,
}

/// Reads a dump (plain or compressed) and calls `take` with each article and the namespaces of the
/// dump's header. An error of `take` stops the reading.
///
/// # Errors
/// [`CurateError::Read`] if the file cannot be opened, [`CurateError::Dump`] if it is not a dump,
/// is damaged or truncated; those of `take`.
pub fn read_dump(path: &Path, take: impl FnMut(&Page, &Namespaces) -> Result<()>) -> Result<()> {
    Dump {
        path,
        reader: Reader::from_reader(open(path)?),
        page: Page::default(),
        namespace: String::new(),
        redirect: false,
        namespaces: Namespaces::default(),
        hidden_namespace: None,
        pages: 0,
        ended: false,
    }
    .read(take)
}

struct Dump<'a, R> {
    path: &'a Path,
    reader: Reader<R>,
    page: Page,
    /// The number of the page's namespace: "0" for articles.
    namespace: String,
    redirect: bool,
    namespaces: Namespaces,
    /// The name of a file or category namespace while it is being read.
    hidden_namespace: Option<String>,
    pages: u64,
    ended: bool,
}

impl<R: BufRead> Dump<'_, R> {
    fn read(mut self, mut take: impl FnMut(&Page, &Namespaces) -> Result<()>) -> Result<()> {
        let (mut buffer, mut field) = (Vec::new(), None);
        loop {
            buffer.clear();
            let event = self.reader.read_event_into(&mut buffer);
            match event.map_err(|error| self.damaged(error.to_string()))? {
                Event::Start(tag) => {
                    let name = tag.name().into_inner();
                    let key = match name {
                        "namespace" => {
                            tag.try_get_attribute("key").ok().flatten().map(|key| key.value.into_owned())
                        }
                        _ => None,
                    };
                    field = self.begin(name, key.as_deref());
                }
                Event::Empty(tag) if tag.name().into_inner() == "redirect" => self.redirect = true,
                Event::Text(text) => self.add(field, &text.xml10_content()),
                Event::CData(text) => self.add(field, &text.xml10_content()),
                Event::GeneralRef(reference) => {
                    let number = reference.resolve_char_ref();
                    let number = number.map_err(|error| self.damaged(error.to_string()))?;
                    match (number, quick_xml::escape::resolve_predefined_entity(&reference)) {
                        (Some(character), _) => self.add(field, character.encode_utf8(&mut [0; 4])),
                        (None, Some(text)) => self.add(field, text),
                        (None, None) => return Err(self.damaged(format!("unknown entity &{};", &*reference))),
                    }
                }
                Event::End(tag) => {
                    field = None;
                    match tag.name().into_inner() {
                        "namespace" => {
                            if let Some(name) = self.hidden_namespace.take() {
                                self.namespaces.add(&name);
                            }
                        }
                        "page" => {
                            self.pages += 1;
                            if self.namespace.trim() == "0" && !self.redirect {
                                take(&self.page, &self.namespaces)?;
                            }
                        }
                        "mediawiki" => self.ended = true,
                        _ => {}
                    }
                }
                Event::Eof if self.ended => return Ok(()),
                Event::Eof => {
                    let message = "the file ends without `</mediawiki>`: it is truncated or not a dump";
                    return Err(self.damaged(message.into()));
                }
                _ => {}
            }
        }
    }

    /// The field that a tag begins, if any.
    fn begin(&mut self, name: &str, key: Option<&str>) -> Option<Field> {
        match name {
            "page" => {
                self.page.title.clear();
                self.page.text.clear();
                self.namespace.clear();
                self.redirect = false;
                None
            }
            "title" => Some(Field::Title),
            "ns" => Some(Field::Namespace),
            "text" => {
                // The last of several revisions wins.
                self.page.text.clear();
                Some(Field::Text)
            }
            "redirect" => {
                self.redirect = true;
                None
            }
            // Files and categories.
            "namespace" if matches!(key, Some("6" | "14")) => {
                self.hidden_namespace = Some(String::new());
                Some(Field::NamespaceName)
            }
            _ => None,
        }
    }

    fn add(&mut self, field: Option<Field>, text: &str) {
        match field {
            Some(Field::Title) => self.page.title.push_str(text),
            Some(Field::Namespace) => self.namespace.push_str(text),
            Some(Field::Text) => self.page.text.push_str(text),
            Some(Field::NamespaceName) => self.hidden_namespace.get_or_insert_default().push_str(text),
            None => {}
        }
    }

    fn damaged(&self, message: String) -> CurateError {
        CurateError::Dump {
            path: self.path.into(),
            byte: self.reader.buffer_position(),
            pages: self.pages,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const DUMP: &str = r#"<mediawiki xml:lang="de">
  <siteinfo><namespaces>
    <namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace>
  </namespaces></siteinfo>
  <page><title>Caf&#233; &amp; Bar</title><ns>0</ns><id>1</id>
    <revision><id>9</id><text bytes="3" xml:space="preserve">A &lt;ref&gt;x&lt;/ref&gt; ''dog''&#10;[[Datei:a.jpg|b]]</text></revision></page>
  <page><title>Old</title><ns>0</ns><redirect title="New" /><revision><text>#REDIRECT [[New]]</text></revision></page>
  <page><title>Talk:Dog</title><ns>1</ns><revision><text>talk</text></revision></page>
  <page><title>犬</title><ns>0</ns><revision><text /></revision></page>
</mediawiki>
"#;

    fn pages(path: &Path) -> Result<Vec<(String, String)>> {
        let mut pages = Vec::new();
        read_dump(path, |page, namespaces| {
            let text = super::super::wikitext::plain_text(&page.text, namespaces);
            pages.push((page.title.clone(), text.trim().to_string()));
            Ok(())
        })?;
        Ok(pages)
    }

    #[test]
    fn articles_are_read_whatever_the_compression() {
        let folder = tempfile::tempdir().unwrap();
        let expected = [("Café & Bar".to_string(), "A  dog".to_string()), ("犬".into(), String::new())];
        let plain = folder.path().join("dump.xml");
        std::fs::write(&plain, DUMP).unwrap();
        assert_eq!(pages(&plain).unwrap(), expected);
        // Like multistream dumps: several concatenated bzip2 streams.
        let (first, second) = DUMP.split_at(700);
        let packed = folder.path().join("dump.xml.bz2");
        let mut bytes = Vec::new();
        for part in [first, second] {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(part.as_bytes()).unwrap();
            bytes.extend(encoder.finish().unwrap());
        }
        std::fs::write(&packed, &bytes).unwrap();
        assert_eq!(pages(&packed).unwrap(), expected);
        let zipped = folder.path().join("dump.xml.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(DUMP.as_bytes()).unwrap();
        std::fs::write(&zipped, encoder.finish().unwrap()).unwrap();
        assert_eq!(pages(&zipped).unwrap(), expected);

        std::fs::write(&packed, &bytes[..bytes.len() - 40]).unwrap();
        assert!(pages(&packed).unwrap_err().to_string().contains("dump.xml.bz2"));
    }

    #[test]
    fn damaged_and_truncated_dumps_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.xml");
        let cut = DUMP.find("  <page><title>Old").unwrap();
        for (text, part) in [
            (&DUMP[..cut], "after 1 pages: the file ends without `</mediawiki>`"),
            ("", "dump.xml is an empty file"),
            ("<mediawiki><page></title></mediawiki>", "dump.xml: at byte"),
            ("<mediawiki><title>&nbsp;</title></mediawiki>", "unknown entity &nbsp;"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = pages(&path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let stopped = |_: &Page, _: &Namespaces| Err(CurateError::TooManyQueries);
        std::fs::write(&path, DUMP).unwrap();
        assert!(matches!(read_dump(&path, stopped), Err(CurateError::TooManyQueries)));
    }
}
