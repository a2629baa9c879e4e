//! Records of an uncompressed file. Where a record ends is checked before it is read, by looking
//! there.

use std::io::{self, Read, Seek};

use super::super::input::Input;
use super::super::record::{self, Format, Header};
use super::item::{Item, Place, Record, RecordError, damaged};
use super::{Records, State};

/// Length from which a record that ends beyond the file has a wrong length; of a shorter one, the
/// file is cut.
const MAX_PLAUSIBLE: u64 = 1 << 30;
/// Bytes that are looked at behind a record: its line ends, and the beginning of the next one.
const LOOK_AHEAD: usize = 32;

impl<F: Read + Seek> Records<F> {
    pub(super) fn next_plain(&mut self, mut input: Input<F>, format: Format) -> io::Result<Option<Item>> {
        let start = input.position()?;
        if input.peek(1)?.is_empty() {
            return Ok(None);
        }
        let place = Place { offset: start, within: None };
        let item = match self.read_plain(&mut input, format, place) {
            Ok(item) => item,
            Err(RecordError::Io(error)) => return Err(error),
            Err(RecordError::Compression(why)) => return Err(io::Error::other(why)),
            Err(RecordError::Damage(code, detail)) => {
                input.go_to(start + 1)?;
                format.find(&mut input)?;
                damaged(place, code, detail)
            }
        };
        self.state = Some(State::Plain(input, format));
        Ok(item)
    }

    fn read_plain(
        &mut self,
        input: &mut Input<F>,
        format: Format,
        place: Place,
    ) -> Result<Option<Item>, RecordError> {
        let header = format.header(input)?.map_err(|why| RecordError::Damage("bad_record", why))?;
        let end = input.position()?.checked_add(header.length).filter(|end| *end <= input.length());
        let Some(end) = end else {
            let (length, plausible) = (header.length, header.length <= MAX_PLAUSIBLE);
            return Err(if plausible {
                RecordError::Damage("truncated", "the file ends within the record".into())
            } else {
                RecordError::Damage("record_too_long", format!("{length} bytes"))
            });
        };
        let after = input.peek_at(end, LOOK_AHEAD)?;
        let line_ends = after.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if !format.is_end(line_ends, &after[line_ends..]) {
            return Err(RecordError::Damage("bad_record", "it does not end where its length says so".into()));
        }
        self.intact += 1;
        let item = self.take_plain(input, header, place)?;
        input.go_to(end)?;
        record::skip_line_ends(input)?;
        Ok(item)
    }

    /// The record whose block comes next; `None` if it is not wanted.
    fn take_plain(
        &self,
        input: &mut Input<F>,
        header: Header,
        place: Place,
    ) -> Result<Option<Item>, RecordError> {
        if !(self.selection.is_wanted)(&header) {
            return Ok(None);
        }
        if header.length > self.selection.max_block {
            let detail =
                format!("{} bytes are more than the limit of {}", header.length, self.selection.max_block);
            return Ok(damaged(place, "record_too_long", detail));
        }
        let mut block = Vec::new();
        input.take(header.length).read_to_end(&mut block)?;
        Ok(Some(Item::Record(Record { place, header, block })))
    }
}
