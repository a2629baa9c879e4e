//! The twinlens command.

fn main() {}
