//! The items of a HEIF file (ISO/IEC 23008-12, ISO/IEC 14496-12 section 8.11): where their bytes
//! lie, what they are and how they refer to each other.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::boxes::{Cursor, Kind, child, children};
use crate::header::walk::Fault;

/// More items, or references between them, are refused. The largest photographs in tiles have about
/// a thousand.
const MAX_ITEMS: u64 = 10_000;
/// An association names a property by 15 bits.
const MAX_PROPERTIES: usize = (1 << 15) - 1;
/// What is known of the properties that an image may have.
const KNOWN: [&Kind; 13] = [
    b"ispe", b"pixi", b"av1C", b"colr", b"irot", b"imir", b"clap", b"auxC", b"pasp", b"clli", b"a1op",
    b"a1lx", b"lsel",
];

pub(super) struct Property<'a> {
    pub(super) kind: Kind,
    pub(super) body: &'a [u8],
}

struct Reference<'a> {
    kind: Kind,
    from: u32,
    /// Numbers of items, of two or four bytes.
    to: &'a [u8],
    wide: bool,
}

#[derive(Default)]
struct Item<'a> {
    kind: Kind,
    location: Option<Location<'a>>,
    /// Numbers of properties, of one or two bytes, each with the bit that says whether it must be
    /// known.
    properties: &'a [u8],
    wide: bool,
}

#[derive(Clone, Copy)]
struct Location<'a> {
    in_meta: bool,
    base: u64,
    count: u64,
    /// Pairs of offset and length, each after an index that means nothing here.
    extents: &'a [u8],
    sizes: Sizes,
}

/// Of the numbers of a location, in bytes.
#[derive(Clone, Copy)]
struct Sizes {
    offset: usize,
    length: usize,
    index: usize,
}

/// The box `meta`.
pub(super) struct Meta<'a> {
    pub(super) file: &'a [u8],
    data: &'a [u8],
    pub(super) primary: u32,
    items: BTreeMap<u32, Item<'a>>,
    properties: Vec<Property<'a>>,
    references: Vec<Reference<'a>>,
}

impl<'a> Meta<'a> {
    pub(super) fn read(file: &'a [u8], body: &'a [u8]) -> Result<Self, Fault> {
        let mut cursor = Cursor(body);
        cursor.version()?;
        let body = cursor.0;
        let must = |kind: &Kind, what| child(body, kind)?.ok_or(Fault::Damaged(what));
        let mut meta = Self {
            file,
            data: child(body, b"idat")?.unwrap_or_default(),
            primary: primary(must(b"pitm", "AVIF without a primary item")?)?,
            items: kinds(must(b"iinf", "AVIF without a list of its items")?)?,
            properties: Vec::new(),
            references: child(body, b"iref")?.map(references).transpose()?.unwrap_or_default(),
        };
        locations(must(b"iloc", "AVIF without the places of its items")?, &mut meta.items)?;
        let properties = must(b"iprp", "AVIF without properties")?;
        let container = child(properties, b"ipco")?.unwrap_or_default();
        for part in children(container).take(MAX_PROPERTIES) {
            let (kind, body) = part?;
            meta.properties.push(Property { kind, body });
        }
        for part in children(properties) {
            let (kind, body) = part?;
            if kind == *b"ipma" {
                associations(body, &mut meta.items)?;
            }
        }
        Ok(meta)
    }

    pub(super) fn kind(&self, id: u32) -> Kind {
        self.items.get(&id).map_or([0; 4], |item| item.kind)
    }

    /// The bytes of an item.
    pub(super) fn data(&self, id: u32) -> Result<Cow<'a, [u8]>, Fault> {
        let location = self.items.get(&id).and_then(|item| item.location);
        let location = location.ok_or(Fault::Damaged("an AVIF item without bytes"))?;
        let source = if location.in_meta { self.data } else { self.file };
        let (mut cursor, mut pieces, mut total) = (Cursor(location.extents), Vec::new(), 0_u64);
        for _ in 0..location.count {
            cursor.take(location.sizes.index)?;
            let offset = location.base.checked_add(cursor.number(location.sizes.offset)?);
            let length = cursor.number(location.sizes.length)?;
            if length == 0 {
                return Err(Fault::Damaged("an AVIF item with a piece of no bytes"));
            }
            let range = offset.and_then(|offset| Some(offset as usize..offset.checked_add(length)? as usize));
            total = total.saturating_add(length);
            let piece = range.and_then(|range| source.get(range));
            let cut = if location.in_meta {
                Fault::Damaged("an AVIF item outside of its box")
            } else {
                Fault::Truncated
            };
            pieces.push(piece.ok_or(cut)?);
            if total > source.len() as u64 {
                return Err(Fault::Damaged("an AVIF item that is longer than the file"));
            }
        }
        match pieces.as_slice() {
            [] => Err(Fault::Damaged("an AVIF item without bytes")),
            [piece] => Ok(Cow::Borrowed(piece)),
            pieces => Ok(Cow::Owned(pieces.concat())),
        }
    }

    /// The properties of an item in their order.
    pub(super) fn properties(&self, id: u32) -> Result<Vec<&Property<'a>>, Fault> {
        let Some(item) = self.items.get(&id) else { return Ok(Vec::new()) };
        let (size, must) = if item.wide { (2, 0x8000) } else { (1, 0x80) };
        let (mut cursor, mut found) = (Cursor(item.properties), Vec::new());
        while !cursor.0.is_empty() {
            let number = cursor.small(size)?;
            let index = (number & !must) as usize;
            if index == 0 {
                continue;
            }
            let property = self
                .properties
                .get(index - 1)
                .ok_or(Fault::Damaged("an AVIF property that does not exist"))?;
            if number & must != 0 && !KNOWN.contains(&&property.kind) {
                return Err(Fault::Unsupported("AVIF with an unknown essential property"));
            }
            found.push(property);
        }
        Ok(found)
    }

    /// The items that an item refers to.
    pub(super) fn targets(&self, kind: &Kind, from: u32) -> Vec<u32> {
        let found =
            self.references.iter().filter(|reference| reference.kind == *kind && reference.from == from);
        found.flat_map(Reference::targets).collect()
    }

    /// The items that refer to one of some items.
    pub(super) fn sources(&self, kind: &Kind, to: &BTreeSet<u32>) -> Vec<u32> {
        let found = self.references.iter().filter(|reference| reference.kind == *kind);
        found
            .filter(|reference| reference.targets().any(|id| to.contains(&id)))
            .map(|found| found.from)
            .collect()
    }
}

impl Reference<'_> {
    fn targets(&self) -> impl Iterator<Item = u32> {
        let ids = self.to.chunks_exact(if self.wide { 4 } else { 2 });
        ids.map(|id| id.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }
}

/// How many entries a list has.
fn bounded(count: u64) -> Result<u64, Fault> {
    if count > MAX_ITEMS { Err(Fault::Unsupported("AVIF of more than 10,000 items")) } else { Ok(count) }
}

fn primary(body: &[u8]) -> Result<u32, Fault> {
    let mut cursor = Cursor(body);
    let (version, _) = cursor.version()?;
    cursor.small(if version == 0 { 2 } else { 4 })
}

/// The items of `iinf`.
fn kinds<'a>(body: &[u8]) -> Result<BTreeMap<u32, Item<'a>>, Fault> {
    let mut cursor = Cursor(body);
    let (version, _) = cursor.version()?;
    bounded(cursor.number(if version == 0 { 2 } else { 4 })?)?;
    let mut items = BTreeMap::new();
    for part in children(cursor.0) {
        let (kind, body) = part?;
        if kind != *b"infe" {
            continue;
        }
        let mut cursor = Cursor(body);
        let (version, _) = cursor.version()?;
        let id = match version {
            2 => cursor.small(2)?,
            3 => cursor.small(4)?,
            _ => return Err(Fault::Unsupported("AVIF whose items have no kinds")),
        };
        cursor.take(2)?;
        if items.insert(id, Item { kind: cursor.kind()?, ..Item::default() }).is_some() {
            return Err(Fault::Damaged("an AVIF item that is listed twice"));
        }
        bounded(items.len() as u64)?;
    }
    Ok(items)
}

/// The places of `iloc`.
fn locations<'a>(body: &'a [u8], items: &mut BTreeMap<u32, Item<'a>>) -> Result<(), Fault> {
    let mut cursor = Cursor(body);
    let (version, _) = cursor.version()?;
    if version > 2 {
        return Err(Fault::Unsupported("AVIF with places of a later version"));
    }
    let packed = cursor.small(2)? as usize;
    let (base, index) = (packed >> 4 & 15, if version == 0 { 0 } else { packed & 15 });
    let sizes = Sizes { offset: packed >> 12, length: packed >> 8 & 15, index };
    if [sizes.offset, sizes.length, base, index].iter().any(|size| ![0, 4, 8].contains(size)) {
        return Err(Fault::Damaged("AVIF with places of odd sizes"));
    }
    let wide = if version < 2 { 2 } else { 4 };
    for _ in 0..bounded(cursor.number(wide)?)? {
        let id = cursor.small(wide)?;
        let method = if version == 0 { 0 } else { cursor.small(2)? & 15 };
        let elsewhere = cursor.small(2)? != 0;
        let base = cursor.number(base)?;
        let count = cursor.number(2)?;
        let extents = cursor.take(count as usize * (sizes.index + sizes.offset + sizes.length))?;
        // Locations without an item are ignored.
        let Some(item) = items.get_mut(&id) else { continue };
        let location = Location { in_meta: method == 1, base, count, extents, sizes };
        if method > 1 || elsewhere {
            return Err(Fault::Unsupported("AVIF whose bytes lie in another item or file"));
        }
        if item.location.replace(location).is_some() {
            return Err(Fault::Damaged("an AVIF item with two places"));
        }
    }
    Ok(())
}

/// The properties of items, by `ipma`.
fn associations<'a>(body: &'a [u8], items: &mut BTreeMap<u32, Item<'a>>) -> Result<(), Fault> {
    let mut cursor = Cursor(body);
    let (version, flags) = cursor.version()?;
    let wide = flags & 1 == 1;
    for _ in 0..bounded(cursor.number(4)?)? {
        let id = cursor.small(if version == 0 { 2 } else { 4 })?;
        let count = cursor.small(1)? as usize;
        let properties = cursor.take(count * if wide { 2 } else { 1 })?;
        let Some(item) = items.get_mut(&id) else { continue };
        if !item.properties.is_empty() {
            return Err(Fault::Damaged("an AVIF item with two lists of properties"));
        }
        (item.properties, item.wide) = (properties, wide);
    }
    Ok(())
}

fn references(body: &[u8]) -> Result<Vec<Reference<'_>>, Fault> {
    let mut cursor = Cursor(body);
    let (version, _) = cursor.version()?;
    let (wide, mut found) = (version != 0, Vec::new());
    for part in children(cursor.0) {
        let (kind, body) = part?;
        let mut cursor = Cursor(body);
        let size = if wide { 4 } else { 2 };
        let from = cursor.small(size)?;
        let count = cursor.small(2)? as usize;
        found.push(Reference { kind, from, to: cursor.take(count * size)?, wide });
        bounded(found.len() as u64)?;
    }
    Ok(found)
}
