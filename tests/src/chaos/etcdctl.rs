//! A real `etcdctl watch --prefix "" --rev 1` that runs through all faults.
//!
//! Its client library reconnects by itself, so what it prints is one watch without a break: each
//! line is a message, which goes into the history for the same judges as our own watches. etcd's
//! client ends a watch that is told "no leader"; only then it is started again where it was.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use serde_json::Value;

use super::record::Record;
use crate::check::history::{Heard, WatchId, WatchSpec};
use crate::process::last_words;

/// How long it may take to print what has happened.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const CATCH_UP_POLL: Duration = Duration::from_millis(20);
/// How often it may end by itself in a run.
const LIVES_MAX: u64 = 100;
/// What the client library says when it gives a watch up for want of a leader.
const NO_LEADER: &str = "etcdserver: no leader";

/// A running `etcdctl watch` and the thread that reads it.
pub(super) struct Etcdctl {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    record: Arc<Record>,
    binary: PathBuf,
    endpoints: String,
    errors: PathBuf,
    watch: WatchId,
    child: Mutex<Option<Child>>,
    /// Newest revision it printed.
    newest: AtomicI64,
    lives: AtomicU64,
    stopping: AtomicBool,
}

// === impl Etcdctl ===

impl Etcdctl {
    /// Starts it; what it says on standard error goes to files in `work_dir`.
    pub(super) fn start(
        binary: &Path,
        urls: &[String],
        work_dir: &Path,
        record: Arc<Record>,
    ) -> io::Result<Etcdctl> {
        let spec = WatchSpec { prev_kv: false, ..WatchSpec::new(b"\0", b"\0", 1) };
        let shared = Arc::new(Shared {
            watch: record.watch(spec),
            record,
            binary: binary.to_owned(),
            endpoints: urls.join(","),
            errors: work_dir.join("etcdctl"),
            child: Mutex::new(None),
            newest: AtomicI64::new(0),
            lives: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let stdout = shared.spawn()?;
        let reader = shared.clone();
        let reader = thread::spawn(move || reader.read(stdout));
        Ok(Etcdctl { shared, reader: Some(reader) })
    }

    /// How often it was started.
    pub(super) fn lives(&self) -> u64 {
        self.shared.lives.load(Ordering::Relaxed)
    }

    /// Waits until it has printed the revision, then ends it. Returns how often it was started.
    pub(super) async fn finish(mut self, last: i64) -> u64 {
        let begun = Instant::now();
        while self.shared.newest.load(Ordering::Relaxed) < last {
            if begun.elapsed() > CATCH_UP_TIMEOUT {
                let newest = self.shared.newest.load(Ordering::Relaxed);
                let told = format!("etcdctl watch got stuck at revision {newest} of {last}");
                self.shared.record.complain(told);
                break;
            }
            tokio::time::sleep(CATCH_UP_POLL).await;
        }
        self.end();
        self.lives()
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(child) = &mut *self.shared.child.lock() {
            // One that is gone already is as good.
            let _ = child.kill();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Etcdctl {
    fn drop(&mut self) {
        self.end();
    }
}

// === impl Shared ===

impl Shared {
    fn error_log(&self) -> PathBuf {
        self.errors.with_extension(format!("log.{}", self.lives.load(Ordering::Relaxed)))
    }

    fn spawn(&self) -> io::Result<impl io::Read + use<>> {
        self.lives.fetch_add(1, Ordering::Relaxed);
        let next = self.newest.load(Ordering::Relaxed) + 1;
        let mut child = Command::new(&self.binary)
            .args(["--endpoints", &self.endpoints])
            .args(["watch", "--prefix", "", "--rev", &next.to_string(), "-w", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.error_log())?)
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("etcdctl has no output"));
        *self.child.lock() = Some(child);
        stdout
    }

    fn read(&self, first: impl io::Read) {
        self.read_life(first);
        while !self.stopping.load(Ordering::Relaxed) {
            let words = last_words(&self.error_log());
            let lives = self.lives.load(Ordering::Relaxed);
            if !words.contains(NO_LEADER) || lives > LIVES_MAX {
                self.record.complain(format!("etcdctl watch ended by itself: {words}"));
                return;
            }
            let next = self.newest.load(Ordering::Relaxed) + 1;
            self.record.hear(self.watch, Heard::Restarted(next));
            match self.spawn() {
                Ok(stdout) => self.read_life(stdout),
                Err(error) => return self.record.complain(format!("start etcdctl: {error}")),
            }
        }
    }

    fn read_life(&self, stdout: impl io::Read) {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            match message(&line) {
                Ok((heard, newest)) => {
                    self.record.hear(self.watch, heard);
                    self.newest.fetch_max(newest, Ordering::Relaxed);
                }
                // Its last line may be cut off when it is killed.
                Err(_) if self.stopping.load(Ordering::Relaxed) => return,
                Err(error) => {
                    self.record.complain(format!("etcdctl watch printed {line}: {error}"));
                }
            }
        }
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads a line that `etcdctl watch -w json` prints; also the newest revision in it.
fn message(line: &str) -> Result<(Heard, i64), String> {
    let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let yes = |value: &Value| value.as_bool().unwrap_or(false);
    let revision = number(&line["Header"]["revision"]);
    if number(&line["CompactRevision"]) != 0 {
        return Ok((Heard::Compacted(number(&line["CompactRevision"])), 0));
    }
    if yes(&line["Canceled"]) {
        return Ok((Heard::Canceled, 0));
    }
    let mut events = Vec::new();
    for event in line["Events"].as_array().unwrap_or(&Vec::new()) {
        let kv = &event["kv"];
        let bytes = |name: &str| base64(kv[name].as_str().unwrap_or(""));
        let delete = number(&event["type"]) == EventType::Delete as i64;
        events.push(Event {
            r#type: if delete { EventType::Delete } else { EventType::Put } as i32,
            kv: Some(KeyValue {
                key: bytes("key")?,
                value: bytes("value")?,
                create_revision: number(&kv["create_revision"]),
                mod_revision: number(&kv["mod_revision"]),
                version: number(&kv["version"]),
                lease: number(&kv["lease"]),
            }),
            prev_kv: None,
        });
    }
    let newest = events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
    let newest = newest.max().unwrap_or(0);
    Ok(match (events.is_empty(), yes(&line["Created"])) {
        (true, true) => (Heard::Created(revision), 0),
        (true, false) => (Heard::Progress(revision), 0),
        (false, _) => (Heard::Events { revision, events, fragment: false }, newest),
    })
}

/// Reads base64 as JSON has it: with padding.
fn base64(text: &str) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(format!("not base64: {text}")),
        };
        held = held << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_at_each_length() {
        for (text, bytes) in [("", ""), ("YQ==", "a"), ("eHk=", "xy"), ("eHl6", "xyz")] {
            assert_eq!(base64(text).expect("it is base64"), Bytes::from(bytes));
        }
        assert!(base64("Y!==").is_err());
    }

    #[test]
    fn a_line_is_a_message() {
        let line = r#"{"Header":{"revision":4},"Events":[{"kv":{"key":"YQ==","create_revision":2,
            "mod_revision":2,"version":1,"value":"MQ=="}},{"type":1,"kv":{"key":"YQ==",
            "mod_revision":3}}],"CompactRevision":0,"Canceled":false,"Created":false}"#;
        let (heard, newest) = message(line).expect("it is a message");
        assert_eq!(newest, 3);
        let Heard::Events { revision: 4, events, .. } = heard else { panic!("{heard:?}") };
        let told = crate::check::words::events_words(&events);
        assert_eq!(told, "[put a=1@2, delete a@3]");
    }
}
