//! Builds tar files member by member (POSIX ustar).

/// The end of an archive: two empty blocks.
pub const END: [u8; 1024] = [0; 1024];

/// A regular file, as `tar --format=ustar` writes it. `name` has at most 100 bytes.
pub fn member(name: &str, data: &[u8]) -> Vec<u8> {
    typed(name, b'0', data)
}

/// A member of another type: `L` a long name (GNU), `x` extended headers (pax), `5` a directory.
pub fn typed(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[148..156].copy_from_slice(b"        ");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = [&block[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}
