//! RangeStream: one range in chunks of one revision.
//!
//! The first chunk is a range as the client asked for it, cut to a few keys; its header fixes
//! the revision. The others are ranges at that revision from behind the last key, read from
//! any replica that has it (the floor says so). Chunks grow and shrink as etcd's do: doubled
//! while an answer is under half the size of a request, halved above twice it. Only the last
//! chunk has header, count and "more", so that all chunks merged are the answer of a Range.
//!
//! Invariant: what the chunks add up to is what one Range at the fixed revision answers.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use proto::{
    etcd::{RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader},
    group::Request,
};
use tonic::Status;

use crate::{
    caller::{Caller, answer},
    grpc::{self, live::Outlet},
    validate,
};

/// Keys of the first chunk (etcd's initialStreamChunkLimit).
const FIRST_CHUNK_KEYS: i64 = 10;

pub(super) fn check(_caller: &Caller, request: &RangeRequest) -> Result<(), Status> {
    validate::range_stream(request)
}

pub(super) async fn run(
    caller: Caller,
    mut request: RangeRequest,
    outlet: Outlet,
) -> Result<(), Status> {
    if request.count_only {
        let response = page(&caller, &request).await?;
        let header = pinned(&caller, &response, response.revision());
        let out = RangeResponse { header, count: response.count, ..Default::default() };
        send(&outlet, out).await;
        return Ok(());
    }
    let wanted = if request.limit > 0 { request.limit } else { i64::MAX };
    request.limit = FIRST_CHUNK_KEYS.min(wanted);
    let (mut revision, mut sent) = (0, 0i64);
    loop {
        let mut response = page(&caller, &request).await?;
        if revision == 0 {
            revision = response.revision();
            caller.visit().show(revision);
            if request.revision <= 0 {
                request.revision = revision;
            }
            request.serializable = true;
        }
        let bytes = response.encoded_len();
        let last_key = response.kvs.last().map(|kv| kv.key.clone());
        let keys = i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
        let count = sent.saturating_add(response.count);
        sent = sent.saturating_add(keys);
        let header = pinned(&caller, &response, revision);
        let mut out =
            RangeResponse { kvs: std::mem::take(&mut response.kvs), ..Default::default() };
        let next = last_key.filter(|_| response.more && sent < wanted);
        let Some(last_key) = next else {
            (out.header, out.more, out.count) = (header, response.more, count);
            send(&outlet, out).await;
            return Ok(());
        };
        send(&outlet, out).await;
        request.key = behind(&last_key);
        let target = caller.door().config.max_request_bytes;
        request.limit = adjust(request.limit, bytes, target).min(wanted - sent);
    }
}

async fn page(caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Status> {
    Ok(answer!(caller.ask(Request::Range(request.clone())).await?, Range))
}

/// The header of the last chunk.
fn pinned(caller: &Caller, response: &RangeResponse, revision: i64) -> Option<ResponseHeader> {
    caller.fill(Some(ResponseHeader { revision, ..response.header.unwrap_or_default() }))
}

async fn send(outlet: &Outlet, out: RangeResponse) {
    outlet.send(grpc::frame(&RangeStreamResponse { range_response: Some(out) }), 1).await;
}

/// The first key above `key`.
fn behind(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The next chunk's number of keys.
fn adjust(keys: i64, bytes: usize, target: usize) -> i64 {
    let keys = if bytes < target / 2 {
        keys.saturating_mul(2)
    } else if bytes > target.saturating_mul(2) {
        keys / 2
    } else {
        keys
    };
    keys.max(1)
}

/// The revision in a header.
trait Revision {
    fn revision(&self) -> i64;
}

impl Revision for RangeResponse {
    fn revision(&self) -> i64 {
        self.header.map_or(0, |header| header.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_double_while_small_and_halve_while_large() {
        assert_eq!(adjust(10, 499, 1000), 20);
        assert_eq!(adjust(10, 500, 1000), 10);
        assert_eq!(adjust(10, 2000, 1000), 10);
        assert_eq!(adjust(10, 2001, 1000), 5);
        assert_eq!(adjust(1, 9999, 1000), 1);
    }

    #[test]
    fn the_next_chunk_begins_right_behind_the_last_key() {
        assert_eq!(behind(b"ab").as_ref(), b"ab\0");
    }
}
