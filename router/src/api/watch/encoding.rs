//! Watch responses as bytes.
//!
//! Events are shared between all watches that see them and are encoded once for all of them; no
//! response object is built around them, their bytes are copied behind its head. The list of events is the last field of a
//! response, so the bytes are: a response without events, then each event behind its tag.
//!
//! A response that grew too large is cut into fragments if the watch asked for that, as etcd
//! cuts it: each fragment takes events while it stays below the bound, at least one; all but
//! the last are marked.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use prost::Message;
use prost::encoding::{self, WireType};
use proto::etcd::WatchResponse;
use proto::group::WatchEvent;

use crate::grpc;

/// Field number of the events in a response.
const EVENTS_TAG: u32 = 11;

fn event_bytes(event: &WatchEvent) -> usize {
    let bytes = event.encoded().len();
    encoding::key_len(EVENTS_TAG) + encoding::encoded_len_varint(bytes as u64) + bytes
}

fn total_bytes(events: &[Arc<WatchEvent>]) -> usize {
    events.iter().map(|event| event_bytes(event)).sum()
}

/// Appends `head` with `events` to `buffer` as one message.
fn append(buffer: &mut BytesMut, head: &WatchResponse, events: &[Arc<WatchEvent>]) {
    assert!(head.events.is_empty(), "events stand beside the response, not in it");
    let length = head.encoded_len() + total_bytes(events);
    grpc::append_with(buffer, length, |buffer| {
        head.encode_raw(buffer);
        for event in events {
            encoding::encode_key(EVENTS_TAG, WireType::LengthDelimited, buffer);
            encoding::encode_varint(event.encoded().len() as u64, buffer);
            buffer.put_slice(event.encoded());
        }
    });
}

/// Appends a response, cut into fragments below `bound` bytes if a bound is given. Returns the
/// number of messages.
pub(super) fn append_response(
    buffer: &mut BytesMut,
    mut head: WatchResponse,
    events: &[Arc<WatchEvent>],
    bound: Option<usize>,
) -> u64 {
    let total = head.encoded_len() + total_bytes(events);
    let Some(bound) = bound.filter(|bound| total >= *bound && events.len() >= 2) else {
        append(buffer, &head, events);
        return 1;
    };
    let (mut rest, mut messages) = (events, 0);
    while !rest.is_empty() {
        head.fragment = true;
        let (fragment, behind) = rest.split_at(fitting(&head, rest, bound));
        head.fragment = !behind.is_empty();
        append(buffer, &head, fragment);
        messages += 1;
        rest = behind;
    }
    messages
}

/// How many of `events` fit behind `head` below `bound` bytes; at least one.
fn fitting(head: &WatchResponse, events: &[Arc<WatchEvent>], bound: usize) -> usize {
    let mut bytes = head.encoded_len();
    for (at, event) in events.iter().enumerate() {
        bytes += event_bytes(event);
        if at > 0 && bytes >= bound {
            return at;
        }
    }
    events.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::mvccpb::{Event, KeyValue};

    fn event(bytes: usize) -> Arc<WatchEvent> {
        let kv = KeyValue { key: vec![7; bytes].into(), mod_revision: 5, ..Default::default() };
        WatchEvent::new(Event { kv: Some(kv), ..Default::default() }, 0)
    }

    fn head() -> WatchResponse {
        WatchResponse { watch_id: 3, ..Default::default() }
    }

    fn decode(mut bytes: &[u8]) -> Vec<WatchResponse> {
        let mut responses = Vec::new();
        while !bytes.is_empty() {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            responses.push(WatchResponse::decode(&bytes[5..5 + length]).unwrap());
            bytes = &bytes[5 + length..];
        }
        responses
    }

    #[test]
    fn the_bytes_are_those_of_a_response_with_its_events() {
        let events = [event(3), event(300)];
        let mut buffer = BytesMut::new();
        assert_eq!(append_response(&mut buffer, head(), &events, None), 1);
        let mut whole = head();
        whole.events = events.iter().map(|event| Event::clone(event)).collect();
        assert_eq!(buffer.as_ref(), crate::grpc::frame(&whole).as_ref());
    }

    #[test]
    fn a_large_response_is_cut_and_all_but_the_last_are_marked() {
        let events: Vec<_> = (0..5).map(|_| event(100)).collect();
        let mut buffer = BytesMut::new();
        append_response(&mut buffer, head(), &events, Some(250));
        let responses = decode(&buffer);
        let shape: Vec<_> = responses.iter().map(|r| (r.events.len(), r.fragment)).collect();
        assert_eq!(shape, [(2, true), (2, true), (1, false)]);
        assert!(responses.iter().all(|r| r.watch_id == 3));
    }

    #[test]
    fn an_event_above_the_bound_is_a_fragment_of_its_own() {
        let mut buffer = BytesMut::new();
        append_response(&mut buffer, head(), &[event(500), event(500)], Some(100));
        let shape: Vec<_> = decode(&buffer).iter().map(|r| (r.events.len(), r.fragment)).collect();
        assert_eq!(shape, [(1, true), (1, false)]);
    }

    #[test]
    fn one_event_is_never_cut_and_small_responses_are_not_marked() {
        let mut buffer = BytesMut::new();
        append_response(&mut buffer, head(), &[event(500)], Some(100));
        append_response(&mut buffer, head(), &[event(1), event(1)], Some(100));
        let shape: Vec<_> = decode(&buffer).iter().map(|r| (r.events.len(), r.fragment)).collect();
        assert_eq!(shape, [(1, false), (2, false)]);
    }
}
