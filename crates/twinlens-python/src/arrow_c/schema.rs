//! Types of columns.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};

use twinlens::datafusion::arrow::datatypes::{DataType, Field, IntervalUnit, Schema, TimeUnit};
use twinlens::dataset::types;

const DICTIONARY_ORDERED: i64 = 1;
const NULLABLE: i64 = 2;
const MAP_KEYS_SORTED: i64 = 4;

/// `struct ArrowSchema`.
#[repr(C)]
pub(crate) struct ArrowSchema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut Self,
    dictionary: *mut Self,
    release: Option<unsafe extern "C" fn(*mut Self)>,
    private_data: *mut c_void,
}

// SAFETY: all that it points to is owned by it, and `Send`.
unsafe impl Send for ArrowSchema {}

/// What a schema points to.
struct Private {
    _format: CString,
    _name: CString,
    _metadata: Option<Vec<u8>>,
    children: Vec<*mut ArrowSchema>,
    dictionary: *mut ArrowSchema,
}

impl ArrowSchema {
    /// The schema of a batch: a struct of its columns.
    ///
    /// # Errors
    /// A type, or a name, that the interface has no word for.
    pub(crate) fn of_schema(schema: &Schema) -> Result<Self, String> {
        let children = schema.fields().iter().map(|field| Self::of_field(field)).collect::<Result<_, _>>()?;
        Self::new("+s".into(), "", schema.metadata(), 0, (children, None))
    }

    fn of_field(field: &Field) -> Result<Self, String> {
        let kind = field.data_type();
        let format = format(kind).ok_or_else(|| {
            let (name, kind) = (field.name(), types::name(kind));
            format!("column `{name}` is of type {kind}, which cannot be passed on; cast it in the query")
        })?;
        let children = match kind {
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::Map(item, _) => vec![Self::of_field(item)?],
            DataType::Struct(fields) => {
                fields.iter().map(|field| Self::of_field(field)).collect::<Result<_, _>>()?
            }
            _ => Vec::new(),
        };
        let dictionary = match kind {
            DataType::Dictionary(_, values) => {
                Some(Self::of_field(&Field::new("", (**values).clone(), true))?)
            }
            _ => None,
        };
        let mut flags = if field.is_nullable() { NULLABLE } else { 0 };
        if field.dict_is_ordered() == Some(true) {
            flags |= DICTIONARY_ORDERED;
        }
        if matches!(kind, DataType::Map(_, true)) {
            flags |= MAP_KEYS_SORTED;
        }
        Self::new(format, field.name(), field.metadata(), flags, (children, dictionary))
    }

    fn new(
        format: String,
        name: &str,
        metadata: &HashMap<String, String>,
        flags: i64,
        (children, dictionary): (Vec<Self>, Option<Self>),
    ) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("`{text}` has a null byte"));
        let (format, name) = (text(&format)?, text(name)?);
        let metadata = (!metadata.is_empty()).then(|| encode(metadata));
        let boxed = |schema| Box::into_raw(Box::new(schema));
        let mut private = Box::new(Private {
            children: children.into_iter().map(boxed).collect(),
            dictionary: dictionary.map_or(null_mut(), boxed),
            _format: format,
            _name: name,
            _metadata: metadata,
        });
        Ok(Self {
            format: private._format.as_ptr(),
            name: private._name.as_ptr(),
            metadata: private._metadata.as_ref().map_or(null(), |metadata| metadata.as_ptr().cast()),
            flags,
            n_children: private.children.len() as i64,
            children: private.children.as_mut_ptr(),
            dictionary: private.dictionary,
            release: Some(release),
            private_data: Box::into_raw(private).cast(),
        })
    }
}

impl Drop for ArrowSchema {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: it was not released, or `release` would be null.
            unsafe { release(self) };
        }
    }
}

unsafe extern "C" fn release(schema: *mut ArrowSchema) {
    // SAFETY: it is called once, since it sets itself to null; each child is a `Box` of this
    // module, and is released when it is dropped unless it was moved away.
    unsafe {
        let private = Box::from_raw((*schema).private_data.cast::<Private>());
        (*schema).release = None;
        (*schema).private_data = null_mut();
        private.children.iter().for_each(|child| drop(Box::from_raw(*child)));
        if !private.dictionary.is_null() {
            drop(Box::from_raw(private.dictionary));
        }
    }
}

/// Keys and values with their lengths, as the interface encodes them.
fn encode(metadata: &HashMap<String, String>) -> Vec<u8> {
    let mut sorted: Vec<_> = metadata.iter().collect();
    sorted.sort();
    let mut bytes = (sorted.len() as i32).to_ne_bytes().to_vec();
    for text in sorted.into_iter().flat_map(|(key, value)| [key, value]) {
        bytes.extend((text.len() as i32).to_ne_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The interface's word for a type; `None` if this program never makes such columns.
fn format(kind: &DataType) -> Option<String> {
    let fixed = match kind {
        DataType::Null => "n",
        DataType::Boolean => "b",
        DataType::Int8 => "c",
        DataType::UInt8 => "C",
        DataType::Int16 => "s",
        DataType::UInt16 => "S",
        DataType::Int32 => "i",
        DataType::UInt32 => "I",
        DataType::Int64 => "l",
        DataType::UInt64 => "L",
        DataType::Float16 => "e",
        DataType::Float32 => "f",
        DataType::Float64 => "g",
        DataType::Binary => "z",
        DataType::LargeBinary => "Z",
        DataType::BinaryView => "vz",
        DataType::Utf8 => "u",
        DataType::LargeUtf8 => "U",
        DataType::Utf8View => "vu",
        DataType::Date32 => "tdD",
        DataType::Date64 => "tdm",
        DataType::Interval(IntervalUnit::YearMonth) => "tiM",
        DataType::Interval(IntervalUnit::DayTime) => "tiD",
        DataType::Interval(IntervalUnit::MonthDayNano) => "tin",
        DataType::List(_) => "+l",
        DataType::LargeList(_) => "+L",
        DataType::Struct(_) => "+s",
        DataType::Map(..) => "+m",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(fixed.into());
    }
    Some(match kind {
        DataType::FixedSizeBinary(width) => format!("w:{width}"),
        DataType::FixedSizeList(_, width) => format!("+w:{width}"),
        DataType::Decimal32(precision, scale) => format!("d:{precision},{scale},32"),
        DataType::Decimal64(precision, scale) => format!("d:{precision},{scale},64"),
        DataType::Decimal128(precision, scale) => format!("d:{precision},{scale}"),
        DataType::Decimal256(precision, scale) => format!("d:{precision},{scale},256"),
        DataType::Time32(unit) | DataType::Time64(unit) => format!("tt{}", letter(unit)),
        DataType::Duration(unit) => format!("tD{}", letter(unit)),
        DataType::Timestamp(unit, zone) => format!("ts{}:{}", letter(unit), zone.as_deref().unwrap_or("")),
        DataType::Dictionary(key, _) => return format(key),
        _ => return None,
    })
}

fn letter(unit: &TimeUnit) -> char {
    match unit {
        TimeUnit::Second => 's',
        TimeUnit::Millisecond => 'm',
        TimeUnit::Microsecond => 'u',
        TimeUnit::Nanosecond => 'n',
    }
}
