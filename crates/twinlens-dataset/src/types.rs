//! Types of columns: their names, as in Arrow and on the Hugging Face hub, and which hold images.

use arrow::datatypes::{DataType, Field, TimeUnit};

/// `string`, `list<item: int32>`, `struct<bytes: large_binary, path: string>`, `timestamp[us,
/// tz=UTC]`.
pub fn name(kind: &DataType) -> String {
    use DataType::*;
    match kind {
        Utf8 => "string".into(),
        LargeUtf8 => "large_string".into(),
        Utf8View => "string_view".into(),
        Boolean => "bool".into(),
        LargeBinary => "large_binary".into(),
        BinaryView => "binary_view".into(),
        List(item) => format!("list<{}>", field(item)),
        LargeList(item) => format!("large_list<{}>", field(item)),
        Struct(fields) => {
            format!("struct<{}>", fields.iter().map(|f| field(f)).collect::<Vec<_>>().join(", "))
        }
        Timestamp(unit, None) => format!("timestamp[{}]", time_unit(unit)),
        Timestamp(unit, Some(zone)) => format!("timestamp[{}, tz={zone}]", time_unit(unit)),
        // Int32, Float64, Date32, Binary ...: Arrow's own name in lower case.
        other => other.to_string().to_lowercase(),
    }
}

/// Whether values are text, in any of Arrow's encodings.
pub fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Whether values are bytes, in any of Arrow's encodings.
pub fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Whether a column holds image bytes: binary, or the Hugging Face struct of bytes and path.
pub fn holds_image_bytes(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => fields.iter().any(|field| holds_image_bytes(field.data_type())),
        other => is_binary(other),
    }
}

fn field(field: &Field) -> String {
    format!("{}: {}", field.name(), name(field.data_type()))
}

fn time_unit(unit: &TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contracts;

    #[test]
    fn names_are_those_of_arrow() {
        let pairs = contracts::pairs();
        let named = |column: &str| name(pairs.field_with_name(column).unwrap().data_type());
        assert_eq!(named("uid"), "string");
        assert_eq!(named("width"), "int32");
        assert_eq!(named("keep_prob"), "float32");
        assert_eq!(named("query_ids"), "list<item: int32>");
        assert_eq!(named("image"), "struct<bytes: large_binary, path: string>");
        assert_eq!(named("fetched_at"), "timestamp[us, tz=UTC]");
    }
}
