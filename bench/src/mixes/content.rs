//! Keys and values of all mixes, and filling a server with them.
//!
//! A key is its number in 8 hexadecimal digits, so neighbours in number are neighbours in order. A
//! value is a slice at a random place of one random buffer: cheap to make, and incompressible within
//! any block that a storage engine would compress, so that nobody wins by compressing test data.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use proto::etcd;

use crate::connection::Connection;
use crate::error::Error;
use crate::load::Shape;

/// Puts of one filling transaction (etcd allows 128) and their bytes, at most.
const FILL_PUTS_MAX: u64 = 128;
const FILL_BYTES_MAX: u64 = 512 * 1024;
const FILL_IN_FLIGHT: usize = 16;
/// Length of the buffer that values are cut from, beyond the length of a value: it shall stay in the
/// cache of a core.
const POOL_BYTES: usize = 1 << 20;

/// The key of a number.
pub(crate) fn key(number: u64) -> Bytes {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |place: usize| DIGITS[((number >> (28 - 4 * place)) & 15) as usize];
    Bytes::copy_from_slice(&std::array::from_fn::<u8, 8, _>(digit))
}

/// A small, fast source of numbers (splitmix64); a seed always gives the same ones.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0xA076_1D64_78BD_642F))
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

/// Values of one length.
#[derive(Clone)]
pub(crate) struct Values {
    pool: Bytes,
    value_bytes: usize,
}

impl Values {
    pub(crate) fn new(value_bytes: usize) -> Values {
        let mut dice = Dice::new(7);
        let words = (POOL_BYTES + value_bytes).div_ceil(8);
        let pool = (0..words).flat_map(|_| dice.roll().to_le_bytes()).collect();
        Values { pool, value_bytes }
    }

    /// A value from a random place.
    pub(crate) fn any(&self, dice: &mut Dice) -> Bytes {
        let at = dice.below(POOL_BYTES as u64) as usize;
        self.pool.slice(at..at + self.value_bytes)
    }
}

/// How keys are written before a measurement.
pub(crate) struct Filling {
    pub(crate) value_bytes: usize,
    /// How often each key is written.
    pub(crate) versions: u32,
    /// Puts of one transaction, at most.
    pub(crate) puts_max: u64,
    pub(crate) in_flight: usize,
}

impl Filling {
    /// As fast as it goes.
    pub(crate) fn of(shape: &Shape) -> Filling {
        Filling {
            value_bytes: shape.value_bytes,
            versions: shape.versions,
            puts_max: FILL_PUTS_MAX,
            in_flight: FILL_IN_FLIGHT,
        }
    }

    /// Writes these keys, in order, one version after the other.
    pub(crate) async fn fill(
        &self,
        connection: &Connection,
        numbers: Range<u64>,
    ) -> Result<(), Error> {
        let values = Values::new(self.value_bytes);
        let batch = (FILL_BYTES_MAX / self.value_bytes.max(1) as u64).clamp(1, self.puts_max);
        for version in 0..self.versions {
            let starts = numbers.clone().step_by(batch as usize);
            stream::iter(starts.map(|start| {
                let part = start..(start + batch).min(numbers.end);
                let dice = Dice::new(start ^ (u64::from(version) << 40));
                let request = put_all(part, &values, dice);
                let mut kv = connection.kv();
                async move { kv.txn(request).await.map(drop).map_err(Error::request("fill")) }
            }))
            .buffer_unordered(self.in_flight)
            .try_collect::<()>()
            .await?;
        }
        Ok(())
    }
}

fn put_all(numbers: Range<u64>, values: &Values, mut dice: Dice) -> etcd::TxnRequest {
    let success = numbers.map(|number| put_op(key(number), values.any(&mut dice))).collect();
    etcd::TxnRequest { success, ..Default::default() }
}

/// A put as part of a transaction.
pub(crate) fn put_op(key: Bytes, value: Bytes) -> etcd::RequestOp {
    let put = etcd::PutRequest { key, value, ..Default::default() };
    etcd::RequestOp { request: Some(etcd::request_op::Request::RequestPut(put)) }
}

/// A get of one key as part of a transaction.
pub(crate) fn get_op(key: Bytes) -> etcd::RequestOp {
    let get = etcd::RangeRequest { key, ..Default::default() };
    etcd::RequestOp { request: Some(etcd::request_op::Request::RequestRange(get)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_eight_bytes_in_the_order_of_their_numbers() {
        assert_eq!(key(0xbeef), "0000beef");
        assert!(key(9) < key(10) && key(255) < key(256));
    }

    #[test]
    fn values_have_their_length_wherever_they_are_cut() {
        let (values, mut dice) = (Values::new(1_000_001), Dice::new(1));
        for _ in 0..100 {
            assert_eq!(values.any(&mut dice).len(), 1_000_001);
        }
    }
}
