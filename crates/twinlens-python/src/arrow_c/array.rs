//! Buffers of columns.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use twinlens::datafusion::arrow::array::{ArrayData, BooleanBufferBuilder, layout};
use twinlens::datafusion::arrow::buffer::Buffer;
use twinlens::datafusion::arrow::datatypes::DataType;

/// `struct ArrowArray`.
#[repr(C)]
pub(crate) struct ArrowArray {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut Self,
    dictionary: *mut Self,
    release: Option<unsafe extern "C" fn(*mut Self)>,
    private_data: *mut c_void,
}

/// What an array points to.
struct Private {
    /// Keeps the buffers alive.
    _data: ArrayData,
    _nulls: Option<Buffer>,
    /// Lengths of the data buffers of a view type.
    _lengths: Vec<i64>,
    buffers: Vec<*const c_void>,
    children: Vec<*mut ArrowArray>,
    dictionary: *mut ArrowArray,
}

impl ArrowArray {
    /// What ends a stream.
    pub(super) fn released() -> Self {
        Self {
            length: 0,
            null_count: 0,
            offset: 0,
            n_buffers: 0,
            n_children: 0,
            buffers: null_mut(),
            children: null_mut(),
            dictionary: null_mut(),
            release: None,
            private_data: null_mut(),
        }
    }

    /// Passes an array on; its buffers are shared.
    pub(super) fn of(data: ArrayData) -> Self {
        let kind = data.data_type();
        let nulls = aligned_nulls(&data);
        let mut buffers: Vec<*const c_void> = Vec::new();
        if layout(kind).can_contain_null_mask {
            buffers.push(nulls.as_ref().map_or(null(), |nulls| nulls.as_ptr().cast()));
        }
        buffers.extend(data.buffers().iter().map(|buffer| buffer.as_ptr().cast::<c_void>()));
        // The first buffer of a view type holds the views.
        let is_view = matches!(kind, DataType::Utf8View | DataType::BinaryView);
        let views = data.buffers().iter().skip(1).filter(|_| is_view);
        let lengths: Vec<i64> = views.map(|buffer| buffer.len() as i64).collect();
        if is_view {
            buffers.push(lengths.as_ptr().cast());
        }
        let boxed = |data: &ArrayData| Box::into_raw(Box::new(Self::of(data.clone())));
        let mut children: Vec<*mut Self> = data.child_data().iter().map(boxed).collect();
        // The values of a dictionary are a child here, and not one of the interface.
        let dictionary = match kind {
            DataType::Dictionary(..) => children.pop().unwrap_or(null_mut()),
            _ => null_mut(),
        };
        let (length, null_count, offset) = (data.len(), data.null_count(), data.offset());
        let private =
            Private { _data: data, _nulls: nulls, _lengths: lengths, buffers, children, dictionary };
        let mut private = Box::new(private);
        Self {
            length: length as i64,
            null_count: null_count as i64,
            offset: offset as i64,
            n_buffers: private.buffers.len() as i64,
            n_children: private.children.len() as i64,
            buffers: private.buffers.as_mut_ptr(),
            children: private.children.as_mut_ptr(),
            dictionary,
            release: Some(release),
            private_data: Box::into_raw(private).cast(),
        }
    }
}

/// The bits of valid values, beginning where the values do: at the offset of the array.
fn aligned_nulls(data: &ArrayData) -> Option<Buffer> {
    let nulls = data.nulls()?;
    if nulls.offset() == data.offset() {
        return Some(nulls.buffer().clone());
    }
    if data.offset() == 0 {
        return Some(nulls.buffer().bit_slice(nulls.offset(), nulls.len()));
    }
    let mut bits = BooleanBufferBuilder::new(data.offset() + nulls.len());
    bits.append_n(data.offset(), true);
    bits.append_buffer(nulls.inner());
    Some(bits.finish().into_inner())
}

unsafe extern "C" fn release(array: *mut ArrowArray) {
    // SAFETY: it is called once, since it sets itself to null; each child is a `Box` of this
    // module, which the consumer may have moved away.
    unsafe {
        let private = Box::from_raw((*array).private_data.cast::<Private>());
        (*array).release = None;
        (*array).private_data = null_mut();
        let children = private.children.iter().copied();
        for child in children.chain([private.dictionary]).filter(|child| !child.is_null()) {
            if let Some(release) = (*child).release {
                release(child);
            }
            drop(Box::from_raw(child));
        }
    }
}
