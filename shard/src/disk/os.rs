//! Real files below one directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Disk, DiskFile};
use crate::room::Space;

/// Zeros are written in pieces of this size.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A directory of the operating system. Cheap to open; holds no handle.
#[derive(Debug, Clone)]
pub struct OsDisk {
    path: PathBuf,
}

impl OsDisk {
    /// Uses the directory `path` and creates it, with its parents, when it does not exist. The
    /// parent directory is synced, so that the new directory survives a power cut.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        fs::create_dir_all(&path)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { path })
    }
}

impl Disk for OsDisk {
    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.path)?;
        let unit = found.f_frsize;
        Ok(Space {
            free_bytes: found.f_bavail.saturating_mul(unit),
            total_bytes: found.f_blocks.saturating_mul(unit),
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // A name that is not UTF-8 is not ours.
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path.join(name))?;
        let file = OsFile { file };
        file.write_zeros(0, len_bytes)?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(OsFile { file }))
    }

    fn rename(&self, source: &str, target: &str) -> io::Result<()> {
        fs::rename(self.path.join(source), self.path.join(target))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// An open file of the operating system.
#[derive(Debug)]
struct OsFile {
    file: File,
}

impl OsFile {
    fn write_zeros(&self, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let piece = (end - offset).min(ZEROS.len() as u64);
            self.write_at(offset, ZEROS.get(..piece as usize).unwrap_or(&ZEROS))?;
            offset += piece;
        }
        Ok(())
    }
}

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let old = self.len()?;
        if len_bytes <= old {
            return self.file.set_len(len_bytes);
        }
        let (flags, more) = (FallocateFlags::empty(), len_bytes - old);
        match rustix::fs::fallocate(&self.file, flags, old, more) {
            Err(Errno::OPNOTSUPP) => self.write_zeros(old, len_bytes),
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_created_renamed_listed_and_removed() {
        let path = std::env::temp_dir().join(format!("atoll-os-disk-{}", std::process::id()));
        let disk = OsDisk::open(&path).unwrap();
        let file = disk.create("a", 100_000).unwrap();
        assert_eq!(file.len().unwrap(), 100_000);
        file.write_at(99_990, b"0123456789").unwrap();
        file.sync_data().unwrap();
        assert_eq!(disk.create("a", 1).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        disk.rename("a", "b").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), vec!["b".to_owned()]);
        let mut buffer = [1; 10];
        disk.open("b").unwrap().read_at(99_985, &mut buffer).unwrap();
        assert_eq!(&buffer, b"\0\0\0\0\x0001234");
        file.set_len(200_000).unwrap();
        file.read_at(199_990, &mut buffer).unwrap();
        assert_eq!((file.len().unwrap(), buffer), (200_000, [0; 10]));
        file.set_len(5).unwrap();
        let short = file.read_at(0, &mut buffer).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        disk.remove("b").unwrap();
        assert!(disk.list().unwrap().is_empty());
        fs::remove_dir(&path).unwrap();
    }
}
