//! Where a value lies: what a log record and a row hold instead of it.
//!
//! ```text
//!   0        4      8      12      16       20         24
//!   | format | file | page | pages | length | checksum |      little endian
//! ```
//!
//! The checksum is that of the extent, so a pointer names contents, not only a place: what another
//! life of the pages left there does not pass for it.

use super::file::pages_of;
use super::{FILE_PAGES, FILES_MAX};

/// Length of an encoded pointer in bytes.
pub const POINTER_BYTES: usize = 24;

/// Number of this layout.
const FORMAT: u32 = 1;

/// A place and the contents that are expected there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pointer {
    /// Number of the page file.
    pub file: u32,
    /// First page in the file.
    pub page: u32,
    /// Number of pages.
    pub pages: u32,
    /// Length of the value in bytes.
    pub length: u32,
    /// Checksum of the extent, seeded with its place.
    pub checksum: u32,
}

/// Some pages of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) file: u32,
    pub(super) page: u32,
    pub(super) pages: u32,
}

impl Pointer {
    /// Bytes for a row or a log record.
    pub fn encode(&self) -> [u8; POINTER_BYTES] {
        let mut out = [0; POINTER_BYTES];
        let fields = [FORMAT, self.file, self.page, self.pages, self.length, self.checksum];
        for (target, field) in out.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *target = field.to_le_bytes();
        }
        out
    }

    /// Reads what [`Pointer::encode`] wrote; `None` for another length, an unknown format, and a
    /// place that no extent can have.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; POINTER_BYTES] = bytes.try_into().ok()?;
        let [format, file, page, pages, length, checksum] = fields(bytes);
        let least = pages_of(0, length as usize)?;
        let fits = file < FILES_MAX
            && pages >= least
            && page.checked_add(pages).is_some_and(|end| end <= FILE_PAGES);
        let pointer = Self { file, page, pages, length, checksum };
        (format == FORMAT && fits).then_some(pointer)
    }

    pub(super) fn span(&self) -> Span {
        Span { file: self.file, page: self.page, pages: self.pages }
    }
}

/// All fields in their order.
fn fields(bytes: &[u8; POINTER_BYTES]) -> [u32; POINTER_BYTES / 4] {
    let mut out = [0; POINTER_BYTES / 4];
    for (target, source) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *target = u32::from_le_bytes(*source);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pointers_come_back(
            file in 0..FILES_MAX, page in 0..FILE_PAGES, length in 0u32..70_000_000,
            more in 0u32..3, checksum: u32,
        ) {
            let pages = pages_of(0, length as usize).unwrap_or(FILE_PAGES) + more;
            let pointer = Pointer { file, page, pages, length, checksum };
            let valid = pages_of(0, length as usize).is_some() && page + pages <= FILE_PAGES;
            prop_assert_eq!(Pointer::decode(&pointer.encode()), valid.then_some(pointer));
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>, fixed: [u8; POINTER_BYTES]) {
            prop_assert!(Pointer::decode(&bytes).is_none_or(|p| p.encode()[..] == bytes[..]));
            prop_assert!(Pointer::decode(&fixed).is_none_or(|p| p.encode() == fixed));
        }
    }

    #[test]
    fn bytes_on_disk_do_not_change() {
        let pointer = Pointer { file: 1, page: 2, pages: 3, length: 9000, checksum: 0x0403_0201 };
        let expected =
            [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0x28, 0x23, 0, 0, 1, 2, 3, 4];
        assert_eq!(pointer.encode(), expected);
    }
}
