//! Bytes sent to a gRPC method as they are, and bytes that are wrong in many ways.

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::dice::Dice;

/// Sends `body` to `method` (`/package.Service/Method`); returns the answer's bytes.
pub async fn send(channel: Channel, method: &'static str, body: Bytes) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = PathAndQuery::from_static(method);
    let response = grpc.unary(tonic::Request::new(body), path, Verbatim).await?;
    Ok(response.into_inner())
}

/// A codec that leaves bytes alone.
#[derive(Clone, Copy, Debug, Default)]
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// Methods that broken messages are sent to: each takes one message and gives one back.
pub const METHODS: &[&str] = &[
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Maintenance/MoveLeader",
    "/etcdserverpb.Maintenance/HashKV",
    "/v3lockpb.Lock/Unlock",
];

/// Methods that no server has.
pub const NO_METHODS: &[&str] = &[
    "/etcdserverpb.KV/Renge",
    "/etcdserverpb.Kv/Range",
    "/etcdserverpb.KV/",
    "/v3lockpb.Lock/TryLock",
    "/grpc.reflection.v1.ServerReflection/Info",
];

/// Returns a message for `method` broken in one of many ways, and in which.
pub fn broken(dice: &mut Dice, method: &str) -> (Bytes, &'static str) {
    // Field 1 as bytes "k", field 2 as bytes "v": fits Range, Put, DeleteRange.
    // Elsewhere these numbers are integers: Go's decoder takes a known field of another wire
    // type for an unknown one, ours refuses the message, so nothing sound goes before.
    let bytes_first = ["/Range", "/Put", "/DeleteRange"].iter().any(|end| method.ends_with(end));
    let sound: &[u8] = if bytes_first { b"\x0a\x01k\x12\x01v" } else { b"" };
    let tails: &[(&[u8], &'static str)] = &[
        (b"\x0a", "no length"),
        (b"\x0a\x05ab", "length beyond the end"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "length of all ones"),
        (b"\x00\x01", "field number 0"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "overlong varint tag"),
        (b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "overlong varint value"),
        (b"\x18", "varint cut off"),
        (b"\xfa\x3f\x03abc", "unknown field"),
        (b"\xf9\x3f\x01\x02", "unknown fixed64 cut off"),
        (b"\xfb\x3f\x08\x01\xfc\x3f", "unknown group"),
        (b"\xfb\x3f\x08\x01", "group without end"),
        (b"\xfc\x3f", "end of no group"),
    ];
    let (tail, why) = *dice.pick(tails);
    let body = if dice.chance(50) { [sound, tail].concat() } else { tail.to_vec() };
    // Noise might spell a compaction, which the runner would not know of.
    if method.ends_with("/Compact") {
        return (body.into(), why);
    }
    if dice.one_in(8) {
        let noise: Vec<u8> = (0..1 + dice.below(24)).map(|_| dice.draw() as u8).collect();
        return (noise.into(), "noise");
    }
    (body.into(), why)
}
