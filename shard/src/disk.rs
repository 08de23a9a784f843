//! The seam between storage code and the files of one directory.
//!
//! Storage code above this seam never names `std::fs`: it is given an `Arc<dyn Disk>`. The node
//! gives it [`os::OsDisk`], the simulator [`sim::SimDisk`], which forgets and tears what was not
//! synced. The contract is the weakest one that real disks keep:
//!
//! * A write is visible to every later read at once, and durable only after
//!   [`DiskFile::sync_data`].
//! * A creation, rename or removal is durable only after [`Disk::sync_dir`]. Until then a crash may
//!   undo any subset of them, in any order.
//! * After a failed sync nothing is known about the data it should have made durable, and a second
//!   sync that succeeds proves nothing about it.

pub mod os;
pub mod sim;

use std::io;
use std::sync::Arc;

use crate::room::Space;

/// One flat directory of files. Names are plain file names without separators.
pub trait Disk: Send + Sync {
    /// Names of all files in the directory, sorted.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates a file of `len_bytes` zero bytes and returns it. The zeros are written, not left as
    /// a hole, so that later writes inside them allocate nothing. Fails with `AlreadyExists` when
    /// the name is taken. On another error a shorter file of that name may remain.
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing. Fails with `NotFound` otherwise.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives the file `source` the name `target` and replaces a file of that name. Open handles of
    /// `source` stay valid.
    fn rename(&self, source: &str, target: &str) -> io::Result<()>;

    /// Removes a name. Open handles of the file stay valid.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// How much room there is.
    fn space(&self) -> io::Result<Space>;

    /// Makes all creations, renames and removals so far durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One open file. All methods take `&self`: reads may run beside a write elsewhere in the file.
#[allow(clippy::len_without_is_empty, reason = "no caller asks whether a file is empty")]
pub trait DiskFile: Send + Sync {
    /// Length of the file in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`. Fails with `UnexpectedEof` when the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`. On an error any part of it may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes the contents and the length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts the file or extends it with zeros, whose room is reserved: to write there does not run
    /// out of it.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
}
