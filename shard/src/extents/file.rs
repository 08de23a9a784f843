//! One page file, and the bytes of an extent in it.
//!
//! ```text
//!   page p            p + 1             p + pages
//!   | header | key | value ...        | zeros |
//!
//!   header, 40 bytes, little endian:
//!   checksum | magic | format | file | page | pages | shelf | key length | value length
//!      4         4       4       4      4      4       8         4             4
//! ```
//!
//! The checksum covers the salt of the node, file and page, the rest of the header, key and value.
//! Shelf and key say whose value it is, for the relocation, which finds an extent by its place.
//!
//! Invariants:
//!
//! * Whole pages are written, so that a write never has to read what was there before.
//! * What is returned has the checksum that the pointer names. Everything else is
//!   [`ExtentError::Damaged`].

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::pointer::{Pointer, Span};
use super::{ExtentError, FILE_PAGES, PAGE_BYTES};
use crate::disk::{Disk, DiskFile};
use crate::store::layout::Shelf;

/// Length of the header.
const HEADER_BYTES: usize = 40;
/// "AtEx".
const MAGIC: u32 = 0x7845_7441;
/// Number of this layout. It rises when a program that knows only the old one would misread.
const FORMAT: u32 = 1;
/// Extents up to this length are put together in memory and written with one call; of longer ones
/// the middle is written from where it is.
const JOINED_PAGES_MAX: u32 = 8;

/// Pages that an extent takes; `None` when no file can hold it.
pub(super) fn pages_of(key_len: usize, value_len: usize) -> Option<u32> {
    let bytes = HEADER_BYTES.checked_add(key_len)?.checked_add(value_len)?;
    let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).ok()?;
    (pages <= FILE_PAGES).then_some(pages)
}

/// Name of a page file.
pub(super) fn file_name(number: u32) -> String {
    format!("pages-{number:08x}")
}

/// Number in the name of a page file; `None` for other names.
pub(super) fn parse_name(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_prefix("pages-")?, 16).ok()?;
    (file_name(number) == name && number < super::FILES_MAX).then_some(number)
}

/// An extent as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Shelf it was written for.
    pub shelf: Shelf,
    /// Key it was written for.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// An open page file. Clones share it.
#[derive(Clone)]
pub(super) struct PageFile {
    number: u32,
    salt: u64,
    file: Arc<dyn DiskFile>,
}

impl PageFile {
    /// Creates the file with `pages` pages of zeros.
    pub(super) fn create(disk: &dyn Disk, number: u32, pages: u32, salt: u64) -> io::Result<Self> {
        let file = disk.create(&file_name(number), 0)?;
        file.set_len(offset_of(pages))?;
        Ok(Self { number, salt, file })
    }

    /// Opens the file.
    pub(super) fn open(disk: &dyn Disk, number: u32, salt: u64) -> io::Result<Self> {
        Ok(Self { number, salt, file: disk.open(&file_name(number))? })
    }

    /// Number of whole pages, at most `pages_max`.
    pub(super) fn pages(&self, pages_max: u32) -> io::Result<u32> {
        let pages = self.file.len()? / PAGE_BYTES as u64;
        Ok(u32::try_from(pages).unwrap_or(pages_max).min(pages_max))
    }

    /// Cuts the file to `pages` pages, or makes it so long with pages of zeros.
    pub(super) fn set_pages(&self, pages: u32) -> io::Result<()> {
        self.file.set_len(offset_of(pages))
    }

    /// Makes everything written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Writes an extent into `span`, which has exactly the pages that it takes, and returns its
    /// checksum. Not durable before [`PageFile::sync`].
    pub(super) fn write(
        &self,
        span: Span,
        shelf: Shelf,
        key: &[u8],
        value: &[u8],
    ) -> io::Result<u32> {
        assert_eq!(Some(span.pages), pages_of(key.len(), value.len()), "the extent fills its span");
        let mut head = head(span, shelf, key, value.len());
        let checksum = self.checksum(span.page, [head.get(4..).unwrap_or_default(), value]);
        for (target, source) in head.iter_mut().zip(checksum.to_le_bytes()) {
            *target = source;
        }
        let joined = span.pages <= JOINED_PAGES_MAX;
        let first = if joined { value.len() } else { to_page(head.len()).min(value.len()) };
        let (first, rest) = value.split_at(first);
        head.extend_from_slice(first);
        let (middle, last) = rest.split_at(rest.len() - rest.len() % PAGE_BYTES);
        let mut tail = last.to_vec();
        for part in [&mut head, &mut tail] {
            part.resize(part.len() + to_page(part.len()), 0);
        }
        let mut at = offset_of(span.page);
        for part in [head.as_slice(), middle, &tail] {
            if !part.is_empty() {
                self.file.write_at(at, part)?;
                at += part.len() as u64;
            }
        }
        assert_eq!(at, offset_of(span.page + span.pages), "all pages of the extent are written");
        Ok(checksum)
    }

    /// The checksum that [`PageFile::write`] would return.
    pub(super) fn checksum_of(&self, span: Span, shelf: Shelf, key: &[u8], value: &[u8]) -> u32 {
        let head = head(span, shelf, key, value.len());
        self.checksum(span.page, [head.get(4..).unwrap_or_default(), value])
    }

    /// Reads the extent that `pointer` names.
    pub(super) fn read(&self, pointer: &Pointer) -> Result<Extent, ExtentError> {
        let bytes = self.read_pages(pointer.page, pointer.pages)?;
        self.decode(pointer, bytes)
    }

    /// The extent that begins at `page`, with a pointer to it. The caller knows that one may.
    pub(super) fn at(&self, page: u32, pages_max: u32) -> Result<(Pointer, Extent), ExtentError> {
        let none = || damaged(self.number, page, "no extent begins here");
        let first = self.read_pages(page, 1)?;
        let header = Header::decode(&first).ok_or_else(none)?;
        if header.page != page || header.file != self.number {
            return Err(none());
        }
        let pages = header.pages;
        if page.checked_add(pages).is_none_or(|end| end > pages_max) {
            return Err(none());
        }
        let (length, checksum) = (header.value_len, header.checksum);
        let pointer = Pointer { file: self.number, page, pages, length, checksum };
        Ok((pointer, self.read(&pointer)?))
    }

    fn read_pages(&self, page: u32, pages: u32) -> Result<Bytes, ExtentError> {
        let mut bytes = vec![0; pages as usize * PAGE_BYTES];
        match self.file.read_at(offset_of(page), &mut bytes) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(self.number, page, "the file ends before it"))
            }
            Err(source) => Err(ExtentError::Io { action: "read an extent", source }),
        }
    }

    fn decode(&self, pointer: &Pointer, bytes: Bytes) -> Result<Extent, ExtentError> {
        let wrong = |what| damaged(pointer.file, pointer.page, what);
        let header = Header::decode(&bytes).ok_or_else(|| wrong("it has no header"))?;
        if header.checksum != pointer.checksum {
            return Err(wrong("another extent lies there"));
        }
        let key_end = HEADER_BYTES.saturating_add(header.key_len as usize);
        let end = key_end.saturating_add(header.value_len as usize);
        let body = bytes.get(4..end).ok_or_else(|| wrong("its lengths are wrong"))?;
        if self.checksum(pointer.page, [body, &[]]) != header.checksum {
            return Err(wrong("its checksum is wrong"));
        }
        // The checksum is right, so these were written like this.
        if header.format > FORMAT {
            return Err(ExtentError::Format { found: header.format, supported: FORMAT });
        }
        let written = Span { file: header.file, page: header.page, pages: header.pages };
        if written != pointer.span() || header.value_len != pointer.length {
            return Err(wrong("it was written for another place"));
        }
        let (key, value) = (bytes.slice(HEADER_BYTES..key_end), bytes.slice(key_end..end));
        Ok(Extent { shelf: header.shelf, key, value })
    }

    /// Checksum of an extent at `page`.
    fn checksum(&self, page: u32, parts: [&[u8]; 2]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.salt.to_le_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&page.to_le_bytes());
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// Header and key of an extent, without its checksum.
fn head(span: Span, shelf: Shelf, key: &[u8], value_len: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(2 * PAGE_BYTES + key.len());
    head.put_u32_le(0);
    head.put_u32_le(MAGIC);
    head.put_u32_le(FORMAT);
    head.put_u32_le(span.file);
    head.put_u32_le(span.page);
    head.put_u32_le(span.pages);
    head.put_u64_le(shelf.0);
    // Both fit: the extent fits into a file.
    head.put_u32_le(key.len() as u32);
    head.put_u32_le(value_len as u32);
    assert_eq!(head.len(), HEADER_BYTES, "the header has its length");
    head.extend_from_slice(key);
    head
}

fn damaged(file: u32, page: u32, what: &'static str) -> ExtentError {
    ExtentError::Damaged { file, page, what }
}

/// Offset of a page in bytes.
fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_BYTES as u64
}

/// Bytes from `len` to the next multiple of a page.
fn to_page(len: usize) -> usize {
    len.next_multiple_of(PAGE_BYTES) - len
}

// === impl Header ===

struct Header {
    checksum: u32,
    format: u32,
    file: u32,
    page: u32,
    pages: u32,
    shelf: Shelf,
    key_len: u32,
    value_len: u32,
}

impl Header {
    /// Reads the fields; only the magic is checked.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let words = bytes.first_chunk::<HEADER_BYTES>()?.as_chunks::<4>().0;
        let word = |at: usize| words.get(at).map(|word| u32::from_le_bytes(*word));
        if word(1)? != MAGIC {
            return None;
        }
        Some(Self {
            checksum: word(0)?,
            format: word(2)?,
            file: word(3)?,
            page: word(4)?,
            pages: word(5)?,
            shelf: Shelf(u64::from(word(6)?) | u64::from(word(7)?) << 32),
            key_len: word(8)?,
            value_len: word(9)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::sim::SimDisk;

    const PAGES: u32 = 64;

    fn value(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect()
    }

    fn written(file: &PageFile, page: u32, key: &[u8], value: &[u8]) -> Pointer {
        let pages = pages_of(key.len(), value.len()).unwrap();
        let span = Span { file: file.number, page, pages };
        let checksum = file.write(span, Shelf(9), key, value).unwrap();
        Pointer { file: file.number, page, pages, length: value.len() as u32, checksum }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn extents_of_any_length_come_back(
            key_len in prop_oneof![0usize..40, 4000usize..4200, 8000usize..8400],
            value_len in prop_oneof![0usize..100, 4000usize..8300, 30_000usize..60_000],
        ) {
            let disk = SimDisk::new();
            let file = PageFile::create(&disk, 3, PAGES, 5).unwrap();
            let (key, value) = (value(key_len, 1), value(value_len, 2));
            let pointer = written(&file, 7, &key, &value);
            let extent = file.read(&pointer).unwrap();
            prop_assert_eq!(extent.shelf, Shelf(9));
            prop_assert_eq!(&extent.key[..], &key[..]);
            prop_assert_eq!(&extent.value[..], &value[..]);
            prop_assert_eq!(file.at(7, PAGES).unwrap(), (pointer, extent));
            let mut around = [0; 1];
            file.file.read_at(offset_of(7) - 1, &mut around).unwrap();
            prop_assert_eq!(around[0], 0);
            file.file.read_at(offset_of(7 + pointer.pages), &mut around).unwrap();
            prop_assert_eq!(around[0], 0);
        }
    }

    #[test]
    fn every_flipped_bit_is_damage() {
        let disk = SimDisk::new();
        let file = PageFile::create(&disk, 1, 4, 5).unwrap();
        let pointer = written(&file, 1, b"key", &value(5000, 1));
        let used = HEADER_BYTES + 3 + 5000;
        for at in 0..used {
            let fork = disk.fork();
            fork.flip_bit(&file_name(1), (PAGE_BYTES + at) as u64, (at % 8) as u8).unwrap();
            let read = PageFile::open(&fork, 1, 5).unwrap().read(&pointer);
            assert!(matches!(read, Err(ExtentError::Damaged { file: 1, page: 1, .. })), "{at}");
        }
    }

    #[test]
    fn another_life_another_place_and_another_node_do_not_validate() {
        let disk = SimDisk::new();
        let file = PageFile::create(&disk, 1, 8, 5).unwrap();
        let former = written(&file, 0, b"key", &value(5000, 1));
        let pointer = written(&file, 0, b"key", &value(5000, 2));
        assert!(matches!(file.read(&former), Err(ExtentError::Damaged { .. })));
        let mut bytes = vec![0; 2 * PAGE_BYTES];
        file.file.read_at(0, &mut bytes).unwrap();
        file.file.write_at(2 * PAGE_BYTES as u64, &bytes).unwrap();
        let moved = Pointer { page: 2, ..pointer };
        assert!(matches!(file.read(&moved), Err(ExtentError::Damaged { .. })));
        assert!(matches!(file.at(2, 8), Err(ExtentError::Damaged { .. })));
        let other = PageFile::open(&disk, 1, 6).unwrap();
        assert!(matches!(other.read(&pointer), Err(ExtentError::Damaged { .. })));
        assert!(file.read(&pointer).is_ok());
    }

    #[test]
    fn names_say_their_number() {
        assert_eq!(parse_name(&file_name(255)), Some(255));
        assert_eq!(file_name(255), "pages-000000ff");
        assert_eq!(parse_name("pages-ff"), None);
        assert_eq!(parse_name("pages-ffffffff"), None);
        assert_eq!(parse_name("seg-0000000000000001"), None);
    }
}
