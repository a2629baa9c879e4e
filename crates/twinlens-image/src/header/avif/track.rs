//! The tracks of an image sequence (ISO/IEC 14496-12, section 8): where their first frames lie.

use super::boxes::{Cursor, Kind, child, children};
use crate::header::walk::Fault;

/// A track of AV1 frames.
pub(super) struct Track<'a> {
    id: u32,
    /// The track that this one is the alpha of.
    alpha_of: Option<u32>,
    /// The track by whose alpha this one's colours are multiplied.
    multiplied_by: Option<u32>,
    width: u32,
    height: u32,
    pub(super) frames: u32,
    /// Place and length of the first frame in the file.
    first: (u64, u64),
    /// The boxes `colr` of the first sample entry.
    colours: Vec<&'a [u8]>,
}

/// What a sequence shows first.
pub(super) struct Still<'a> {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) colour: &'a [u8],
    pub(super) alpha: Option<&'a [u8]>,
    pub(super) premultiplied: bool,
    pub(super) colours: Vec<&'a [u8]>,
}

/// The number of frames of a sequence that begins with what its still image shows. Others are
/// refused: decoders do not agree on which of the two they show.
pub(super) fn frames(file: &[u8], movie: &[u8], still: &Still<'_>) -> Result<u32, Fault> {
    let mut tracks = Vec::new();
    for part in children(movie) {
        let (kind, body) = part?;
        if kind == *b"trak" {
            tracks.extend(read(body)?);
        }
    }
    let colour = tracks.iter().find(|track| track.alpha_of.is_none());
    let colour = colour.ok_or(Fault::Damaged("an AVIF sequence without frames"))?;
    let alpha = tracks.iter().find(|track| track.alpha_of == Some(colour.id));
    let begins_with = |track: &Track<'_>, bytes: &[u8]| {
        let (place, length) = (track.first.0 as usize, track.first.1 as usize);
        place.checked_add(length).and_then(|end| file.get(place..end)) == Some(bytes)
    };
    let multiplied = alpha.is_some_and(|alpha| colour.multiplied_by == Some(alpha.id));
    let same = begins_with(colour, still.colour)
        && (colour.width, colour.height) == (still.width, still.height)
        && colour.colours == still.colours
        && multiplied == still.premultiplied
        && match (alpha, still.alpha) {
            (Some(alpha), Some(bytes)) => begins_with(alpha, bytes),
            (None, None) => true,
            _ => false,
        };
    if same {
        Ok(colour.frames)
    } else {
        Err(Fault::Unsupported("AVIF sequence that begins with another image than its still one"))
    }
}

/// `None` if the track does not hold AV1 frames.
fn read(body: &[u8]) -> Result<Option<Track<'_>>, Fault> {
    let Some(table) = descend(body, &[b"mdia", b"minf", b"stbl"])? else { return Ok(None) };
    let head = child(body, b"tkhd")?.ok_or(Fault::Damaged("an AVIF track without a header"))?;
    let (Some(entries), Some(sizes)) = (child(table, b"stsd")?, child(table, b"stsz")?) else {
        return Ok(None);
    };
    let (Some(colours), Some(place)) = (entry_colours(entries)?, first_place(table)?) else {
        return Ok(None);
    };
    let (id, width, height) = header(head)?;
    let (length, frames) = first_length(sizes)?;
    let (mut alpha_of, mut multiplied_by) = (None, None);
    for part in children(child(body, b"tref")?.unwrap_or_default()) {
        let (kind, body) = part?;
        match &kind {
            b"auxl" => alpha_of = Some(Cursor(body).small(4)?),
            b"prem" => multiplied_by = Some(Cursor(body).small(4)?),
            _ => {}
        }
    }
    Ok(Some(Track { id, alpha_of, multiplied_by, width, height, frames, first: (place, length), colours }))
}

fn descend<'a>(mut body: &'a [u8], path: &[&Kind]) -> Result<Option<&'a [u8]>, Fault> {
    for kind in path {
        let Some(inner) = child(body, kind)? else { return Ok(None) };
        body = inner;
    }
    Ok(Some(body))
}

/// Number, width and height of a track, by `tkhd`.
fn header(body: &[u8]) -> Result<(u32, u32, u32), Fault> {
    let mut cursor = Cursor(body);
    let (version, _) = cursor.version()?;
    let (times, duration) = if version == 1 { (16, 8) } else { (8, 4) };
    cursor.take(times)?;
    let id = cursor.small(4)?;
    cursor.take(4 + duration + 16 + 36)?;
    // 16 bits before the point and 16 behind it.
    Ok((id, cursor.small(4)? >> 16, cursor.small(4)? >> 16))
}

/// The colours of the first sample entry, if it is AV1's.
fn entry_colours(body: &[u8]) -> Result<Option<Vec<&[u8]>>, Fault> {
    let mut cursor = Cursor(body);
    cursor.version()?;
    cursor.take(4)?;
    let Some(Ok((kind, entry))) = children(cursor.0).next() else { return Ok(None) };
    if kind != *b"av01" {
        return Ok(None);
    }
    let mut cursor = Cursor(entry);
    cursor.take(78)?;
    let mut colours = Vec::new();
    for part in children(cursor.0) {
        let (kind, body) = part?;
        if kind == *b"colr" {
            colours.push(body);
        }
    }
    Ok(Some(colours))
}

/// The place of the first chunk, by `stco` or `co64`.
fn first_place(table: &[u8]) -> Result<Option<u64>, Fault> {
    let (body, size) = match (child(table, b"stco")?, child(table, b"co64")?) {
        (Some(body), _) => (body, 4),
        (None, Some(body)) => (body, 8),
        (None, None) => return Ok(None),
    };
    let mut cursor = Cursor(body);
    cursor.version()?;
    if cursor.small(4)? == 0 { Ok(None) } else { cursor.number(size).map(Some) }
}

/// The length of the first frame, and the number of frames, by `stsz`.
fn first_length(body: &[u8]) -> Result<(u64, u32), Fault> {
    let mut cursor = Cursor(body);
    cursor.version()?;
    let (common, count) = (cursor.number(4)?, cursor.small(4)?);
    if common == 0 && count > 0 { Ok((cursor.number(4)?, count)) } else { Ok((common, count)) }
}
