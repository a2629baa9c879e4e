//! What an AVIF file says of its image (AV1 Image File Format 1.1, on HEIF).
//!
//! What libavif refuses is refused, and what it takes but is rare: layers, a clean aperture, frames
//! of another size than the image.

mod boxes;
mod items;
mod sequence;
mod track;

use std::borrow::Cow;
use std::collections::BTreeSet;

use image::metadata::Orientation;

use self::boxes::{Cursor, Kind, parts};
use self::items::{Meta, Property};
pub(crate) use self::sequence::{Colours, Layout, Sequence};
use super::walk::{Fault, Walk};

/// The types of auxiliary images that mean alpha.
const ALPHA: [&[u8]; 2] = [b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1"];
/// What a decoder holds beside its frames: masks, motion, rows of filters.
const OTHER_BYTES_PER_PIXEL: u64 = 2;

/// An AVIF file.
pub(crate) struct Avif<'a> {
    pub(crate) colour: Grid<'a>,
    pub(crate) alpha: Option<Grid<'a>>,
    /// Whether the colours are multiplied by alpha.
    pub(crate) premultiplied: bool,
    pub(crate) colours: Colours,
    pub(crate) orientation: Orientation,
    pub(crate) icc: Option<&'a [u8]>,
    pub(crate) exif: Option<Cow<'a, [u8]>>,
    frames: u32,
}

/// Frames that lie beside each other, row by row. Those at the right and lower edge may be cut.
pub(crate) struct Grid<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) columns: u32,
    /// Of one tile, in pixels.
    pub(crate) tile_width: u32,
    pub(crate) tile_height: u32,
    /// AV1 streams of one frame each.
    pub(crate) tiles: Vec<Cow<'a, [u8]>>,
    /// That of all tiles.
    pub(crate) sequence: Sequence,
}

pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let avif = read(bytes)?;
    let grids = [Some(&avif.colour), avif.alpha.as_ref()];
    let tiles = || grids.iter().flatten().flat_map(|grid| &grid.tiles);
    let longest = tiles().map(|tile| tile.len()).max().unwrap_or(0);
    let joined: usize = tiles().filter(|tile| matches!(tile, Cow::Owned(_))).map(|tile| tile.len()).sum();
    let pixels = u64::from(avif.colour.width) * u64::from(avif.colour.height);
    let coded = avif.colour.coded_pixels();
    let values = avif.colour.values_of_two_pixels();
    // The frame, again with film grain, and its copy with two bytes per value.
    let decoding = values * if avif.colour.sequence.depth > 8 { 2 } else { 1 } + values;
    // That copy, alpha, RGBA.
    let converting = values + 2 + 4;
    let per_pixel = decoding.max(converting) + OTHER_BYTES_PER_PIXEL;
    Ok(Walk {
        av1_values: grids.iter().flatten().map(|grid| grid.values()).sum(),
        frames: avif.frames,
        // The decoder's copy of a stream, and streams that lie in pieces.
        other_bytes: (2 * longest + joined) as u64 + (coded - pixels.min(coded)) * per_pixel,
        ..Walk::new(avif.colour.width, avif.colour.height, per_pixel)
    })
}

pub(crate) fn read(bytes: &[u8]) -> Result<Avif<'_>, Fault> {
    let file = top_level(bytes)?;
    let meta = Meta::read(bytes, file.meta)?;
    let id = meta.primary;
    let colour = grid(&meta, id)?;
    let alpha_id = alpha(&meta, id)?;
    let alpha = alpha_id.map(|id| grid(&meta, id)).transpose()?;
    if let Some(alpha) = &alpha {
        let same = (alpha.width, alpha.height, alpha.sequence.depth)
            == (colour.width, colour.height, colour.sequence.depth);
        if !same {
            return Err(Fault::Unsupported("AVIF whose alpha has another size or depth"));
        }
    }
    let premultiplied = alpha_id.is_some_and(|alpha| meta.targets(b"prem", id).contains(&alpha));
    let properties = meta.properties(id)?;
    let (nclx, icc) = profiles(&properties)?;
    let mut avif = Avif {
        colours: nclx.unwrap_or(colour.sequence.colours),
        orientation: orientation(&properties)?,
        icc,
        exif: exif(&meta, id),
        frames: 1,
        colour,
        alpha,
        premultiplied,
    };
    if let Some(movie) = file.movie {
        avif.frames = track::frames(bytes, movie, &avif.still(&properties)?)?;
    }
    Ok(avif)
}

impl Grid<'_> {
    fn coded_pixels(&self) -> u64 {
        self.tiles.len() as u64 * u64::from(self.tile_width) * u64::from(self.tile_height)
    }

    /// The values to decode, each of more than 8 bits counted twice.
    fn values(&self) -> u64 {
        let values = self.coded_pixels().saturating_mul(self.values_of_two_pixels()) / 2;
        values.saturating_mul(if self.sequence.depth > 8 { 2 } else { 1 })
    }

    fn values_of_two_pixels(&self) -> u64 {
        match self.sequence.layout {
            Layout::Grey => 2,
            Layout::Yuv420 => 3,
            Layout::Yuv422 => 4,
            Layout::Yuv444 => 6,
        }
    }
}

impl<'a> Avif<'a> {
    /// What the file's sequence must begin with.
    fn still<'b>(&'b self, properties: &[&Property<'b>]) -> Result<track::Still<'b>, Fault> {
        let one = |grid: &'b Grid<'a>| match grid.tiles.as_slice() {
            [tile] => Ok(tile.as_ref()),
            _ => Err(Fault::Unsupported("AVIF sequence with a still image in tiles")),
        };
        let colours = properties.iter().filter(|property| property.kind == *b"colr");
        Ok(track::Still {
            width: self.colour.width,
            height: self.colour.height,
            colour: one(&self.colour)?,
            alpha: self.alpha.as_ref().map(one).transpose()?,
            premultiplied: self.premultiplied,
            colours: colours.map(|property| property.body).collect(),
        })
    }
}

struct File<'a> {
    meta: &'a [u8],
    /// The tracks, if the file is a sequence more than an image.
    movie: Option<&'a [u8]>,
}

fn top_level(bytes: &[u8]) -> Result<File<'_>, Fault> {
    let (mut brand, mut meta, mut movie) = (None, None, None);
    for part in parts(bytes) {
        let known = matches!(&part.kind, b"ftyp" | b"meta" | b"moov");
        if !part.complete && known {
            return Err(Fault::Truncated);
        }
        match &part.kind {
            b"ftyp" => brand = part.body.get(..4),
            b"meta" if meta.is_none() => meta = Some(part.body),
            b"moov" if movie.is_none() => movie = Some(part.body),
            _ => {}
        }
    }
    // As libavif chooses between the two.
    let movie = match brand {
        Some(b"avif") => None,
        Some(b"avis") => Some(movie.ok_or(Fault::Truncated)?),
        _ => movie,
    };
    Ok(File { meta: meta.ok_or(Fault::Truncated)?, movie })
}

fn grid<'a>(meta: &Meta<'a>, id: u32) -> Result<Grid<'a>, Fault> {
    let properties = meta.properties(id)?;
    refuse_rare(&properties)?;
    let (width, height) = size(&properties)?;
    match &meta.kind(id) {
        b"av01" => {
            let data = meta.data(id)?;
            let sequence = tile(&data, &properties, (width, height))?;
            Ok(Grid {
                width,
                height,
                columns: 1,
                tile_width: width,
                tile_height: height,
                tiles: vec![data],
                sequence,
            })
        }
        b"grid" => {
            let grid = tiles(meta, id, (width, height))?;
            depths(&properties, &grid.sequence)?;
            Ok(grid)
        }
        _ => Err(Fault::Unsupported("AVIF whose image is made of others")),
    }
}

/// A grid of tiles (ISO/IEC 23008-12, section 6.6.2.3).
fn tiles<'a>(meta: &Meta<'a>, id: u32, (width, height): (u32, u32)) -> Result<Grid<'a>, Fault> {
    let data = meta.data(id)?;
    let mut cursor = Cursor(&data);
    let (version, flags) = (cursor.small(1)?, cursor.small(1)?);
    let (rows, columns) = (cursor.small(1)? + 1, cursor.small(1)? + 1);
    let side = if flags & 1 == 1 { 4 } else { 2 };
    if version != 0 || (cursor.small(side)?, cursor.small(side)?) != (width, height) {
        return Err(Fault::Damaged("an AVIF grid of another size than its image"));
    }
    let ids = meta.targets(b"dimg", id);
    if ids.len() as u64 != u64::from(rows * columns) {
        return Err(Fault::Damaged("an AVIF grid with another number of tiles"));
    }
    let tile_size = size(&meta.properties(ids[0])?)?;
    let (mut tiles, mut sequence, mut total) = (Vec::new(), None, 0);
    for id in ids {
        let (properties, data) = (meta.properties(id)?, meta.data(id)?);
        refuse_rare(&properties)?;
        total += data.len();
        if total > 2 * meta.file.len() + MAX_SHARED_BYTES {
            return Err(Fault::Damaged("AVIF tiles that share their bytes too often"));
        }
        let found = tile(&data, &properties, tile_size)?;
        if meta.kind(id) != *b"av01"
            || size(&properties)? != tile_size
            || *sequence.get_or_insert(found) != found
        {
            return Err(Fault::Damaged("an AVIF grid of unequal tiles"));
        }
        tiles.push(data);
    }
    let sequence = sequence.ok_or(Fault::Damaged("an AVIF grid without tiles"))?;
    let (tile_width, tile_height) = tile_size;
    let grid = Grid { width, height, columns, tile_width, tile_height, tiles, sequence };
    grid.check(rows)?;
    Ok(grid)
}

/// How many more bytes than twice the file's a grid may have in its tiles: equal ones may share
/// theirs.
const MAX_SHARED_BYTES: usize = 1 << 20;
/// How many more pixels than twice its own a grid may have in its tiles.
const MAX_CUT_PIXELS: u64 = 1 << 20;

impl Grid<'_> {
    /// The rules of MIAF (ISO/IEC 23000-22, section 7.3.11.4.2), which libavif enforces.
    fn check(&self, rows: u32) -> Result<(), Fault> {
        let (across, down) = self.sequence.layout.shifts();
        let covers = |side: u32, tile: u32, count: u32| {
            let (side, tile, count) = (u64::from(side), u64::from(tile), u64::from(count));
            tile * count >= side && tile * (count - 1) < side && tile >= 64
        };
        let odd = |side: u32, shift: u32| shift == 1 && side % 2 == 1;
        if !covers(self.width, self.tile_width, self.columns) || !covers(self.height, self.tile_height, rows)
        {
            return Err(Fault::Damaged("an AVIF grid whose tiles do not cover it"));
        }
        let (widths, heights) = ([self.width, self.tile_width], [self.height, self.tile_height]);
        if widths.iter().any(|side| odd(*side, across)) || heights.iter().any(|side| odd(*side, down)) {
            return Err(Fault::Damaged("an AVIF grid of odd sides with fewer colours"));
        }
        let pixels = u64::from(self.width) * u64::from(self.height);
        if self.coded_pixels() > 2 * pixels + MAX_CUT_PIXELS {
            return Err(Fault::Unsupported("AVIF grid whose tiles are far larger than the image"));
        }
        Ok(())
    }
}

/// The sequence of an AV1 stream, if it is what the properties say.
fn tile(data: &[u8], properties: &[&Property<'_>], size: (u32, u32)) -> Result<Sequence, Fault> {
    let sequence = sequence::read(data)?;
    if (sequence.width, sequence.height) != size {
        return Err(Fault::Unsupported("AVIF with a frame of another size than the image"));
    }
    let configuration = body(properties, b"av1C").ok_or(Fault::Damaged("AVIF without a configuration"))?;
    let packed = configuration.get(2).ok_or(Fault::Damaged("an AVIF configuration that is cut"))?;
    let depth = match packed >> 5 & 3 {
        0 => 8,
        3 => 12,
        _ => 10,
    };
    let layout = match packed >> 2 & 7 {
        4.. => Layout::Grey,
        3 => Layout::Yuv420,
        2 => Layout::Yuv422,
        _ => Layout::Yuv444,
    };
    if (sequence.depth, sequence.layout) != (depth, layout) {
        return Err(Fault::Damaged("an AVIF configuration that is not its frame's"));
    }
    depths(properties, &sequence)?;
    Ok(sequence)
}

/// The item with the alpha of an image.
fn alpha(meta: &Meta<'_>, id: u32) -> Result<Option<u32>, Fault> {
    let alphas = |of: &BTreeSet<u32>| -> Result<Vec<u32>, Fault> {
        let mut found = Vec::new();
        for id in meta.sources(b"auxl", of) {
            let properties = meta.properties(id)?;
            // Version and flags, and the type up to a zero.
            let kind =
                body(&properties, b"auxC").and_then(|body| body.get(4..)?.split(|byte| *byte == 0).next());
            if kind.is_some_and(|kind| ALPHA.contains(&kind)) {
                found.push(id);
            }
        }
        Ok(found)
    };
    if !alphas(&meta.targets(b"dimg", id).into_iter().collect())?.is_empty() {
        return Err(Fault::Unsupported("AVIF grid whose tiles have alpha of their own"));
    }
    match alphas(&BTreeSet::from([id]))?.as_slice() {
        [] => Ok(None),
        [alpha] => Ok(Some(*alpha)),
        _ => Err(Fault::Unsupported("AVIF with several alphas")),
    }
}

fn body<'a>(properties: &[&Property<'a>], kind: &Kind) -> Option<&'a [u8]> {
    properties.iter().find(|property| property.kind == *kind).map(|property| property.body)
}

fn size(properties: &[&Property<'_>]) -> Result<(u32, u32), Fault> {
    let mut cursor = Cursor(body(properties, b"ispe").ok_or(Fault::Damaged("an AVIF item without a size"))?);
    cursor.version()?;
    Ok((cursor.small(4)?, cursor.small(4)?))
}

fn refuse_rare(properties: &[&Property<'_>]) -> Result<(), Fault> {
    let has = |kinds: &[&Kind]| kinds.iter().any(|kind| body(properties, kind).is_some());
    if has(&[b"a1op", b"a1lx", b"lsel"]) {
        return Err(Fault::Unsupported("AVIF of several layers"));
    }
    if has(&[b"clap"]) {
        return Err(Fault::Unsupported("AVIF with a clean aperture"));
    }
    Ok(())
}

/// Checks `pixi` against the stream, as libavif does.
fn depths(properties: &[&Property<'_>], sequence: &Sequence) -> Result<(), Fault> {
    let Some(body) = body(properties, b"pixi") else { return Ok(()) };
    let mut cursor = Cursor(body);
    cursor.version()?;
    let count = cursor.small(1)? as usize;
    if cursor.take(count)?.iter().all(|depth| u32::from(*depth) == sequence.depth) {
        Ok(())
    } else {
        Err(Fault::Damaged("an AVIF item of another depth than its frame"))
    }
}

/// The colours and the ICC profile of the boxes `colr`.
fn profiles<'a>(properties: &[&Property<'a>]) -> Result<(Option<Colours>, Option<&'a [u8]>), Fault> {
    let (mut nclx, mut icc) = (None, None);
    let mut twice = false;
    for property in properties.iter().filter(|property| property.kind == *b"colr") {
        let mut cursor = Cursor(property.body);
        match &cursor.kind()? {
            b"nclx" => {
                let (primaries, _transfer, matrix) = (cursor.small(2)?, cursor.small(2)?, cursor.small(2)?);
                let full_range = cursor.small(1)? >> 7 == 1;
                twice |= nclx.replace(Colours { primaries, matrix, full_range }).is_some();
            }
            b"prof" | b"rICC" => twice |= icc.replace(cursor.0).is_some(),
            _ => {}
        }
    }
    if twice { Err(Fault::Damaged("AVIF with two colour profiles of a kind")) } else { Ok((nclx, icc)) }
}

/// How the image must be turned, by Pillow's reading of `irot` and `imir`: first the one, then the
/// other. The orientation that EXIF may say means nothing.
fn orientation(properties: &[&Property<'_>]) -> Result<Orientation, Fault> {
    let number = |kind| body(properties, kind).map(|body| Cursor(body).small(1)).transpose();
    let (angle, axis) = (number(b"irot")?.unwrap_or(0) & 3, number(b"imir")?.map(|axis| axis & 1));
    let exif = match (angle, axis) {
        (0, None) => 1,
        (0, Some(1)) | (2, Some(0)) => 2,
        (2, None) => 3,
        (0, Some(_)) | (2, Some(_)) => 4,
        (1, Some(0)) | (3, Some(1)) => 5,
        (3, None) => 6,
        (1, Some(_)) | (3, Some(_)) => 7,
        (_, None) | (4.., _) => 8,
    };
    Ok(Orientation::from_exif(exif).unwrap_or(Orientation::NoTransforms))
}

/// The EXIF block of an image, if it has one that can be read.
fn exif<'a>(meta: &Meta<'a>, id: u32) -> Option<Cow<'a, [u8]>> {
    let ids = meta.sources(b"cdsc", &BTreeSet::from([id]));
    let data = meta.data(ids.into_iter().find(|id| meta.kind(*id) == *b"Exif")?).ok()?;
    let start = Cursor(&data).number(4).ok()?.checked_add(4)? as usize;
    match data {
        Cow::Borrowed(data) => data.get(start..).map(Cow::Borrowed),
        Cow::Owned(data) => data.get(start..).map(|exif| Cow::Owned(exif.to_vec())),
    }
}
