//! What can go wrong in a run: one enum, because every such thing ends the command.

use std::path::PathBuf;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or folder of ours could not be used.
    #[error("{what} {path}: {source}", path = path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    /// An endpoint took no connection.
    #[error("connect to {endpoint}: {reason}")]
    Connect { endpoint: String, reason: String },
    /// A request of the preparation failed (those of the measured part are only counted).
    #[error("{what}: {status}")]
    Request { what: &'static str, status: Box<tonic::Status> },
    /// A server did not start, or ended while it was needed.
    #[error("server {name}: {reason}")]
    Server { name: String, reason: String },
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// Rows that could not be done; what went wrong was told when it did.
    #[error("{} failed: {}", .0.len(), .0.join(", "))]
    Rows(Vec<String>),
    /// A signal asked the program to end.
    #[error("interrupted; everything that was started is stopped")]
    Interrupted,
}

impl Error {
    /// Names the request of a preparation that failed; for `map_err`.
    pub(crate) fn request(what: &'static str) -> impl Fn(tonic::Status) -> Error {
        move |status| Error::Request { what, status: Box::new(status) }
    }

    /// Names the use of a file that failed; for `map_err`.
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { what, path, source }
    }
}
