//! The allocator of the program: mimalloc, with one of its options changed.
//!
//! glibc gives the large, short-lived buffers of a training step back to the system each time; with pages that are kept, a step
//! takes two thirds of the time. mimalloc keeps them for a second, in which a fetch goes through hundreds of megabytes of pixels:
//! then what it holds grows with the rows. With a tenth of a second it hardly does (247 MB at 4,000 images of 1000 x 800, 264 MB at
//! 20,000), at the same speed, and a step finds most of its pages again; with ten milliseconds a training takes a seventh more.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3: how long pages that are free are kept, in milliseconds. The binding has no name for it.
const PURGE_DELAY: c_int = 15;
const MILLISECONDS: c_long = 100;

/// To be called before there is a second thread. `MIMALLOC_PURGE_DELAY` in the environment goes before.
#[expect(unsafe_code, reason = "options are set through the C interface alone")]
pub fn set_up() {
    // SAFETY: the function writes one number of a static table if the option, which is checked there, is in it; no other thread is there
    // to read it meanwhile.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, MILLISECONDS) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of an option may change with the library: its default says which one it is.
    #[test]
    #[expect(unsafe_code, reason = "options are read through the C interface alone")]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number of a static table, which nothing in this test binary writes but `set_up`, below.
        let value = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(value(), 1000);
        set_up();
        assert_eq!(value(), MILLISECONDS);
    }
}
