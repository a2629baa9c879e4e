//! Records of a compressed file: a sequence of members (of gzip) or frames (of zstd), each of which
//! holds one record or several.

use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};

use super::super::record::{self, Format, Header};
use super::codec::{Codec, Counted};
use super::item::{DamagedRecord, Item, Place, Record, RecordError, damaged};
use super::member::{Between, Member};
use super::{Records, State};

/// Longest unwanted record that is read past, in bytes.
const MAX_SKIP: u64 = 1 << 30;
/// What a read of a record in a member gave.
enum InMember {
    /// The record, if it is wanted.
    Read(Option<Item>),
    /// A record that ends as it should, but is not followed by another.
    Unclear(Option<Item>),
    /// A record that does not end as it should; its block, if it was kept.
    Damaged(&'static str, String, Vec<u8>),
}

impl<F: Read + Seek> Records<F> {
    pub(super) fn open_member(&mut self, mut between: Between<F>) -> io::Result<Option<Item>> {
        let start = between.input.position()?;
        let place = Place { offset: start, within: None };
        let magic = between.input.peek(4)?;
        if magic.is_empty() {
            return Ok(None);
        }
        let codec = between.codec;
        let skipped = match codec {
            Codec::Zstd => between.read_skippable(),
            Codec::Gzip => Ok(false),
        };
        if skipped.as_ref().is_ok_and(|skipped| *skipped) {
            self.state = Some(State::Between(between));
            return Ok(None);
        }
        if skipped.is_err() || !magic.starts_with(codec.magic()) {
            let what = if codec == Codec::Gzip { "not a gzip member" } else { "not a zstd frame" };
            self.skip_to_member(between, start + 1)?;
            return Ok(damaged(place, codec.damage(), what.into()));
        }
        let Between { input, dictionary, format, .. } = between;
        let decoder = codec.decoder(input, &dictionary)?;
        let mut decoder = BufReader::new(Counted { inner: decoder, bytes: 0 });
        let mut begin = Vec::new();
        let error = decoder.by_ref().take(16).read_to_end(&mut begin).err();
        let format = Format::of(&begin).or(format).unwrap_or(Format::Warc);
        let member = Member { start, pushed_back: Cursor::new(begin), decoder, codec, dictionary, format };
        match error {
            None => {
                self.state = Some(State::Member(Box::new(member)));
                Ok(None)
            }
            Some(error) => {
                let (code, detail) = codec.damage_of(error.into())?;
                self.leave_member(member, DamagedRecord { place, code, detail })
            }
        }
    }

    pub(super) fn next_in_member(&mut self, mut member: Box<Member<F>>) -> io::Result<Option<Item>> {
        let position = member.position();
        let place = Place { offset: member.start, within: Some(position).filter(|at| *at > 0) };
        let read = self.read_in_member(&mut member, place);
        let (damage, block) = match read {
            Ok(InMember::Read(item)) => {
                self.intact += 1;
                self.state = Some(if member.reader().fill_buf().is_ok_and(<[u8]>::is_empty) {
                    State::Between(member.into_between())
                } else {
                    State::Member(member)
                });
                return Ok(item);
            }
            Err(error) => {
                let (code, detail) = member.codec.damage_of(error)?;
                let is_compression = code == member.codec.damage() || code == "truncated";
                let damage = DamagedRecord { place, code, detail };
                if is_compression || member.format == Format::Arc {
                    return self.leave_member(*member, damage);
                }
                (damage, Vec::new())
            }
            Ok(InMember::Unclear(item)) => return self.confirm(member, place, item),
            Ok(InMember::Damaged(code, detail, block)) => (DamagedRecord { place, code, detail }, block),
        };
        // The length may be too large, and the next record in the block.
        if self.allowance.charge(member.start, block.len() as u64) {
            member.push_back(&block);
        }
        match member.find_record() {
            Ok(true) => {
                self.state = Some(State::Member(member));
                Ok(Some(Item::Damaged(damage)))
            }
            Ok(false) if position > 0 => {
                self.state = Some(State::Between(member.into_between()));
                Ok(Some(Item::Damaged(damage)))
            }
            _ => self.leave_member(*member, damage),
        }
    }

    /// Decides about a record that is not followed by another: if one comes later, what is between
    /// is damaged; otherwise the record is.
    fn confirm(
        &mut self,
        mut member: Box<Member<F>>,
        place: Place,
        item: Option<Item>,
    ) -> io::Result<Option<Item>> {
        let after = Place { within: Some(member.position()), ..place };
        let (code, detail) = ("bad_record", "the record is not followed by another".to_string());
        if !member.find_record().is_ok_and(|found| found) {
            return self.leave_member(*member, DamagedRecord { place, code, detail });
        }
        self.intact += 1;
        self.state = Some(State::Member(member));
        self.pending = damaged(after, code, "a record begins with `WARC/`".into());
        Ok(item)
    }

    /// Goes on with the member after a damaged one. If the damage hid the end of this member, parts
    /// of the next ones were consumed: it is searched from its beginning.
    fn leave_member(&mut self, member: Member<F>, mut damage: DamagedRecord) -> io::Result<Option<Item>> {
        let (start, decompressed) = (member.start, member.decoder.get_ref().bytes);
        let mut between = member.into_between();
        let end = between.input.position()?;
        let from = if self.allowance.charge(start, decompressed + (end - start)) {
            start + 1
        } else {
            damage.detail.push_str(&format!("; what follows is searched for records from byte {end} on"));
            end.max(start + 1)
        };
        self.skip_to_member(between, from)?;
        Ok(Some(Item::Damaged(damage)))
    }

    /// Reads one record. In a member it must be followed by another, or by the end, where the
    /// checksum is verified.
    fn read_in_member(&self, member: &mut Member<F>, place: Place) -> Result<InMember, RecordError> {
        let format = member.format;
        let mut reader = member.reader();
        let header = format.header(&mut reader)?.map_err(|why| RecordError::Damage("bad_record", why))?;
        let (is_wanted, length) = ((self.selection.is_wanted)(&header), header.length);
        let mut block = Vec::new();
        if is_wanted && length <= self.selection.max_block {
            (&mut reader).take(length).read_to_end(&mut block)?;
            if (block.len() as u64) < length {
                let why = "the member ends within the record".to_string();
                return Ok(InMember::Damaged("truncated", why, block));
            }
        } else if length > MAX_SKIP {
            return Ok(InMember::Damaged("record_too_long", format!("{length} bytes"), block));
        } else if io::copy(&mut (&mut reader).take(length), &mut io::sink())? < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let line_ends = record::skip_line_ends(&mut reader)?;
        let next = reader.fill_buf()?;
        if format == Format::Warc && line_ends >= 4 && !next.is_empty() && !format.begins(next) {
            drop(reader);
            return Ok(InMember::Unclear(self.select(is_wanted, header, block, place)));
        }
        if !format.is_end(line_ends, next) {
            let why = "the record is not followed by another".to_string();
            return Ok(InMember::Damaged("bad_record", why, block));
        }
        Ok(InMember::Read(self.select(is_wanted, header, block, place)))
    }

    fn select(&self, is_wanted: bool, header: Header, block: Vec<u8>, place: Place) -> Option<Item> {
        if !is_wanted {
            None
        } else if header.length > self.selection.max_block {
            let detail =
                format!("{} bytes are more than the limit of {}", header.length, self.selection.max_block);
            damaged(place, "record_too_long", detail)
        } else {
            Some(Item::Record(Record { place, header, block }))
        }
    }

    /// Skips to the first member from byte `from` on that holds a record.
    fn skip_to_member(&mut self, mut between: Between<F>, from: u64) -> io::Result<()> {
        let mut from = from;
        loop {
            between.input.go_to(from)?;
            if !between.input.find(between.codec.magic(), 0)? {
                return Ok(());
            }
            let position = between.input.position()?;
            let (holds_record, seen) = between.holds_record(position)?;
            if holds_record {
                self.state = Some(State::Between(between));
                return Ok(());
            }
            from = position + if self.allowance.charge(position, seen) { 1 } else { seen.max(1) };
        }
    }
}
