//! Outputs of hubs as messages between nodes, and back. Pure.
//!
//! An event that many watches see stands once in a message, as the bytes that it has anyway; the
//! outputs name it by its place. A message ends when it is large enough, also within an output:
//! the asking side puts the parts together, because an output has whole revisions.
//!
//! Invariants:
//! - The parts of an output follow each other, with nothing of the same sink between.
//! - [`cost`] is the same on both sides, so that credit comes back as it was spent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proto::cluster::group::sink_tell::Body;
use proto::cluster::group::{SinkTell, WatchEvents, WatchGone, WatchRevision, WatchTell};
use proto::group::{WatchEvent, WatchOutput};

/// Size from which on a message is large enough.
const TELL_BYTES: usize = 1 << 20;
/// What an output costs beside its events.
const OUTPUT_BYTES: usize = 64;

/// Names a client stream between two nodes.
pub(super) type SinkNumber = u64;

/// What an output takes of its sink's credit, in bytes.
pub(super) fn cost(output: &WatchOutput) -> i64 {
    let bytes = match output {
        WatchOutput::Events { events, .. } => events.iter().map(|e| e.encoded().len()).sum(),
        _ => 0,
    };
    i64::try_from(OUTPUT_BYTES + bytes).unwrap_or(i64::MAX)
}

/// Makes messages of outputs.
#[derive(Default)]
pub(super) struct Packer {
    ready: VecDeque<WatchTell>,
    open: WatchTell,
    open_bytes: usize,
    /// Places of the events in the open message, by address; `kept` holds the addresses.
    places: HashMap<usize, u32>,
    kept: Vec<Arc<WatchEvent>>,
}

// === impl Packer ===

impl Packer {
    /// Adds an output, or that the hub has let go of the sink.
    pub(super) fn add(&mut self, sink: SinkNumber, output: Option<WatchOutput>) {
        let body = match output {
            None => Body::Gone(WatchGone {}),
            Some(WatchOutput::Events { key, revision, events }) => {
                return self.add_events(sink, WatchEvents { key, revision, ..empty() }, events);
            }
            Some(WatchOutput::Progress { revision, newest }) => {
                Body::Progress(WatchRevision { key: newest, revision })
            }
            Some(WatchOutput::WatchProgress { key, revision }) => {
                Body::WatchProgress(WatchRevision { key, revision })
            }
            Some(WatchOutput::Compacted { key, revision }) => {
                Body::Compacted(WatchRevision { key, revision })
            }
            Some(WatchOutput::Closed { key }) => Body::Closed(key),
        };
        self.tell(sink, body);
    }

    /// Takes a message; the last one even if it could hold more.
    pub(super) fn take(&mut self) -> Option<WatchTell> {
        if self.ready.is_empty() && !self.open.tells.is_empty() {
            self.end();
        }
        self.ready.pop_front()
    }

    fn add_events(
        &mut self,
        sink: SinkNumber,
        mut part: WatchEvents,
        events: Vec<Arc<WatchEvent>>,
    ) {
        for event in events {
            if self.open_bytes >= TELL_BYTES {
                let rest = WatchEvents { key: part.key, revision: part.revision, ..empty() };
                let full = std::mem::replace(&mut part, rest);
                self.tell(sink, Body::Events(WatchEvents { unfinished: true, ..full }));
                self.end();
            }
            part.events.push(self.place(event));
        }
        self.tell(sink, Body::Events(part));
    }

    /// The place of an event in the open message.
    fn place(&mut self, event: Arc<WatchEvent>) -> u32 {
        let address = Arc::as_ptr(&event) as usize;
        self.open_bytes += size_of::<u32>();
        if let Some(place) = self.places.get(&address) {
            return *place;
        }
        let place = u32::try_from(self.open.events.len()).expect("a message ends long before");
        self.open_bytes += event.encoded().len();
        self.open.events.push(event.encoded().clone());
        self.open.places.push(event.place());
        self.places.insert(address, place);
        self.kept.push(event);
        place
    }

    fn tell(&mut self, sink: SinkNumber, body: Body) {
        self.open.tells.push(SinkTell { sink, body: Some(body) });
        self.open_bytes += OUTPUT_BYTES;
        if self.open_bytes >= TELL_BYTES {
            self.end();
        }
    }

    fn end(&mut self) {
        self.open_bytes = 0;
        self.places.clear();
        self.kept.clear();
        if !self.open.tells.is_empty() {
            self.ready.push_back(std::mem::take(&mut self.open));
        }
    }
}

fn empty() -> WatchEvents {
    WatchEvents::default()
}

/// A message that does not make sense: its stream is given up.
#[derive(Debug, thiserror::Error)]
#[error("a message about watches cannot be read")]
pub(super) struct Garbled;

/// Reads the events of a message. Their bytes are copied, so that an event that waits for a slow
/// client does not keep the whole message.
pub(super) fn events(tell: &WatchTell) -> Result<Vec<Arc<WatchEvent>>, Garbled> {
    // A program of before does not tell places.
    let places = tell.places.iter().copied().chain(std::iter::repeat(0));
    let read = |(bytes, place): (&Bytes, u32)| {
        WatchEvent::from_encoded(Bytes::copy_from_slice(bytes), place).map_err(|_| Garbled)
    };
    tell.events.iter().zip(places).map(read).collect()
}

/// What a sink has been told.
#[derive(Debug)]
pub(super) enum Told {
    /// An output, whole.
    Output(WatchOutput),
    /// A part of one, which is kept.
    Part,
    /// The hub has let go of it.
    Gone,
}

/// Reads an output of a sink, whose parts so far are in `parts`.
pub(super) fn read(
    body: Body,
    events: &[Arc<WatchEvent>],
    parts: &mut Vec<Arc<WatchEvent>>,
) -> Result<Told, Garbled> {
    let output = match body {
        Body::Events(told) => {
            for place in told.events {
                parts.push(events.get(place as usize).ok_or(Garbled)?.clone());
            }
            if told.unfinished {
                return Ok(Told::Part);
            }
            let events = std::mem::take(parts);
            WatchOutput::Events { key: told.key, revision: told.revision, events }
        }
        Body::Progress(told) => WatchOutput::Progress { revision: told.revision, newest: told.key },
        Body::WatchProgress(told) => {
            WatchOutput::WatchProgress { key: told.key, revision: told.revision }
        }
        Body::Compacted(told) => WatchOutput::Compacted { key: told.key, revision: told.revision },
        Body::Closed(key) => WatchOutput::Closed { key },
        Body::Gone(_) => return Ok(Told::Gone),
    };
    Ok(Told::Output(output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::mvccpb::{Event, KeyValue};

    fn event(revision: i64, bytes: usize) -> Arc<WatchEvent> {
        let value = vec![7; bytes].into();
        let kv = KeyValue { value, mod_revision: revision, ..Default::default() };
        WatchEvent::new(Event { kv: Some(kv), ..Default::default() }, 0)
    }

    fn seen(key: u64, revision: i64, events: &[Arc<WatchEvent>]) -> WatchOutput {
        WatchOutput::Events { key, revision, events: events.to_vec() }
    }

    /// What came in, as it comes out on the other side.
    fn through(outputs: Vec<(SinkNumber, Option<WatchOutput>)>) -> (usize, Vec<(u64, String)>) {
        let mut packer = Packer::default();
        for (sink, output) in outputs {
            packer.add(sink, output);
        }
        let (mut messages, mut told) = (0, Vec::new());
        let mut parts = HashMap::new();
        while let Some(tell) = packer.take() {
            messages += 1;
            let tell = WatchTell::clone(&tell);
            let events = events(&tell).unwrap();
            for SinkTell { sink, body } in tell.tells {
                match read(body.unwrap(), &events, parts.entry(sink).or_default()).unwrap() {
                    Told::Output(output) => told.push((sink, format!("{output:?}"))),
                    Told::Part => {}
                    Told::Gone => told.push((sink, "gone".into())),
                }
            }
        }
        (messages, told)
    }

    #[test]
    fn every_kind_of_output_comes_through_in_order() {
        let outputs = vec![
            seen(1, 5, &[event(4, 3), event(5, 0)]),
            WatchOutput::Progress { revision: 9, newest: 7 },
            WatchOutput::WatchProgress { key: 1, revision: 9 },
            WatchOutput::Compacted { key: 2, revision: 8 },
            WatchOutput::Closed { key: 3 },
        ];
        for output in &outputs {
            // So that the encoding, which is kept, shows on both sides.
            cost(output);
        }
        let expected: Vec<_> = outputs.iter().map(|output| (6, format!("{output:?}"))).collect();
        let (messages, told) = through(outputs.into_iter().map(|o| (6, Some(o))).collect());
        assert_eq!((messages, told), (1, expected));
        assert_eq!(through(vec![(4, None)]).1, [(4, "gone".to_owned())]);
    }

    #[test]
    fn an_event_that_many_watches_see_travels_once() {
        let shared = event(5, 10_000);
        let mut packer = Packer::default();
        for key in 0..1000 {
            packer.add(key % 3, Some(seen(key, 5, std::slice::from_ref(&shared))));
        }
        let tell = packer.take().unwrap();
        assert_eq!((tell.events.len(), tell.tells.len()), (1, 1000));
        assert!(packer.take().is_none());
    }

    #[test]
    fn a_large_output_is_cut_and_put_together_again() {
        let events: Vec<_> = (0..50).map(|n| event(n, 100_000)).collect();
        let output = seen(1, 50, &events);
        cost(&output);
        let expected = format!("{output:?}");
        let between = WatchOutput::Closed { key: 9 };
        let (messages, told) = through(vec![(1, Some(output)), (2, Some(between))]);
        assert!(messages >= 5, "{messages} messages");
        assert_eq!(told.len(), 2);
        assert_eq!(told[0], (1, expected));
    }

    #[test]
    fn a_place_that_is_not_there_is_an_error() {
        let body = Body::Events(WatchEvents { events: vec![1], ..empty() });
        assert!(read(body, &[event(1, 1)], &mut Vec::new()).is_err());
        let events = vec![Bytes::from_static(&[0xff])];
        assert!(super::events(&WatchTell { events, ..Default::default() }).is_err());
    }
}
