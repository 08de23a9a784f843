//! The data directory: who may use it, and who it belongs to.
//!
//! ```text
//!   lock       held by the running process
//!   identity   format, ids of cluster and node, this node's secret number
//!   log/       the node's log
//!   engine/    the engine: exactly one checkpoint
//!   pages/     large values
//!   placement  a copy of placement's ledger, for a start without placement
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Newest format of a data directory that this program knows.
const FORMAT: u32 = 1;

/// Who a data directory belongs to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Format of the directory.
    pub(crate) format: u32,
    /// The cluster, in hexadecimal.
    pub(crate) cluster: String,
    /// The node, in hexadecimal.
    pub(crate) node: String,
    /// Seeds the checksums of log and page files, in hexadecimal.
    pub(crate) salt: String,
}

/// A data directory that this process holds.
pub(crate) struct Directory {
    path: PathBuf,
    // Held until the process ends.
    _lock: File,
}

impl Directory {
    /// Takes the directory, and makes it if there is none.
    pub(crate) fn open(path: &Path) -> Result<Directory, String> {
        let failed =
            |what: &str, error: std::io::Error| format!("{what} {}: {error}", path.display());
        fs::create_dir_all(path).map_err(|e| failed("make", e))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(|e| failed("open the lock of", e))?;
        if lock.try_lock().is_err() {
            return Err(format!(
                "{} is used by another process: stop it, or give another --data-dir",
                path.display()
            ));
        }
        Ok(Directory { path: path.to_owned(), _lock: lock })
    }

    /// Who it belongs to, if it was ever used.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, String> {
        let path = self.path.join("identity");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("read {}: {error}", path.display())),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable = |error: toml::de::Error| {
            let line = error.to_string().replace('\n', " ");
            format!("{} cannot be read ({line}): restore it from a backup", path.display())
        };
        let Format { format } = toml::from_str(&text).map_err(unreadable)?;
        if format > FORMAT {
            return Err(format!(
                "{} has format {format}, this program knows formats up to {FORMAT}: run a newer \
                 program",
                self.path.display()
            ));
        }
        toml::from_str(&text).map(Some).map_err(unreadable)
    }

    /// Writes who it belongs to; durable on return.
    pub(crate) fn claim(&self, node: u64, cluster: u64, salt: u64) -> Result<Identity, String> {
        let hex = |number: u64| format!("{number:x}");
        let identity =
            Identity { format: FORMAT, cluster: hex(cluster), node: hex(node), salt: hex(salt) };
        let write = || -> std::io::Result<()> {
            let text = toml::to_string(&identity).map_err(std::io::Error::other)?;
            let next = self.path.join("identity.next");
            let mut file = File::create(&next)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&next, self.path.join("identity"))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| format!("write to {}: {error}", self.path.display()))?;
        Ok(identity)
    }

    /// Where the log is.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where large values are.
    pub(crate) fn pages(&self) -> PathBuf {
        self.path.join("pages")
    }

    /// Placement's ledger as it was last known here.
    pub(crate) fn ledger(&self) -> Option<Vec<u8>> {
        fs::read(self.path.join("placement")).ok()
    }

    /// Where the copy of placement's ledger is.
    pub(crate) fn ledger_path(&self) -> PathBuf {
        self.path.join("placement")
    }

    /// Where the engine is.
    pub(crate) fn engine(&self) -> PathBuf {
        self.path.join("engine")
    }
}

/// A number of an [`Identity`].
pub(crate) fn number(hex: &str) -> Result<u64, String> {
    u64::from_str_radix(hex, 16).map_err(|_| format!("\"{hex}\" is no hexadecimal number"))
}
