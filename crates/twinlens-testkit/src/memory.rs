//! Counts what each thread allocates, so that a test can hold code to a budget of memory.
//!
//! A test binary that measures declares the allocator:
//!
//! ```ignore
//! #[global_allocator]
//! static ALLOCATOR: twinlens_testkit::memory::Counting = twinlens_testkit::memory::Counting;
//! ```
#![allow(unsafe_code, reason = "an allocator, which hands every call to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has allocated and not freed since [`peak`] began, and their maximum.
    /// Negative where it frees what was allocated before.
    static CURRENT: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator with a count per thread.
pub struct Counting;

fn count(bytes: i64) {
    // After the end of a thread's locals nothing is counted.
    let _ = CURRENT.try_with(|current| {
        current.set(current.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(current.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing, since
// the thread locals are constants without destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment.
        count(size as i64);
        count(-(layout.size() as i64));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// The result of `work`, and the most bytes that this thread held at once while it ran, beyond what
/// it held before. Zero in a binary without [`Counting`].
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    CURRENT.set(0);
    PEAK.set(0);
    let result = work();
    (result, PEAK.get().unsigned_abs())
}

/// Seconds of a core that this thread has used since it began; `None` where the kernel does not
/// say.
pub fn cpu_seconds() -> Option<f64> {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(counted.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}
