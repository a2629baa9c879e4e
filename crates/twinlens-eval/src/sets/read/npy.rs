//! Arrays in NumPy's file format (NEP 1), in which CLIP_benchmark stores the labels of multi-label
//! sets.

/// The indices of the nonzero values, and the number of all values: little-endian numbers of any
/// width, or booleans.
///
/// # Errors
/// The file is malformed, or of an unsupported type.
pub(super) fn nonzero(bytes: &[u8]) -> Result<(Vec<i64>, usize), String> {
    const MAGIC: &[u8] = b"\x93NUMPY";
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as a NumPy file does")?;
    let (&[major, _], rest) = rest.split_first_chunk().ok_or("it ends within its head")?;
    let (length, rest) = match major {
        1 => rest.split_first_chunk().map(|(size, rest)| (usize::from(u16::from_le_bytes(*size)), rest)),
        2 | 3 => rest.split_first_chunk().map(|(size, rest)| (u32::from_le_bytes(*size) as usize, rest)),
        other => return Err(format!("its version is {other}")),
    }
    .ok_or("it ends within its head")?;
    let (head, data) = rest.split_at_checked(length).ok_or("it ends within its head")?;
    let head = String::from_utf8_lossy(head);
    let kind = head.split("'descr':").nth(1).and_then(|rest| rest.split('\'').nth(1));
    let kind = kind.ok_or("its head has no `descr`")?;
    let width = match kind {
        "|b1" | "|u1" | "|i1" => 1,
        "<i2" | "<u2" | "<f2" => 2,
        "<i4" | "<u4" | "<f4" => 4,
        "<i8" | "<u8" | "<f8" => 8,
        other => return Err(format!("its values are `{other}`")),
    };
    let shape = head.split("'shape':").nth(1).and_then(|rest| rest.split(['(', ')']).nth(1));
    let sizes: Vec<usize> = shape
        .ok_or("its head has no `shape`")?
        .split(',')
        .filter(|size| !size.trim().is_empty())
        .map(|size| size.trim().parse().map_err(|_| format!("a size of its shape is `{}`", size.trim())))
        .collect::<Result<_, _>>()?;
    let count = sizes.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
    if count.and_then(|count| count.checked_mul(width)) != Some(data.len()) {
        return Err(format!("it has {} bytes of values for the shape {sizes:?} of `{kind}`", data.len()));
    }
    // Minus zero is the only zero with a bit set.
    let float = kind.contains('f');
    let zero = |value: &[u8]| {
        value.iter().enumerate().all(|(at, byte)| *byte == 0 || (float && at + 1 == width && *byte == 0x80))
    };
    let values = data.chunks_exact(width).enumerate();
    let nonzero = values.filter(|(_, value)| !zero(value)).map(|(place, _)| place as i64).collect();
    Ok((nonzero, data.len() / width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let head = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
        [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), data].concat()
    }

    #[test]
    fn arrays_are_parsed_or_rejected() {
        let int = [0_i64, 1, 0, -1].map(i64::to_le_bytes).concat();
        assert_eq!(nonzero(&file("<i8", "(4,)", &int)), Ok((vec![1, 3], 4)));
        let float = [0_f32, -0.0, 0.5].map(f32::to_le_bytes).concat();
        assert_eq!(nonzero(&file("<f4", "(3,)", &float)), Ok((vec![2], 3)));
        assert_eq!(nonzero(&file("|b1", "(2, 1)", &[1, 0])), Ok((vec![0], 2)));
        let cases = [
            (file("<i8", "(5,)", &int), "bytes of values"),
            (file(">i8", "(4,)", &int), "`>i8`"),
            (file("<i8", "(x,)", &int), "`x`"),
            (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "ends within its head"),
            (b"PK".to_vec(), "does not begin"),
        ];
        for (bytes, expected) in cases {
            assert!(nonzero(&bytes).unwrap_err().contains(expected), "{expected}");
        }
    }
}
