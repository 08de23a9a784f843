//! The worker's one queue: everybody puts in, the worker takes all at once.
//!
//! Two lanes: requests are bounded and refused when there are too many; everything else
//! (messages of peers, completions of writes) is bounded by its source and never refused.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// See the module.
pub struct Mailbox<R, C> {
    lanes: Mutex<Lanes<R, C>>,
    wake: Condvar,
    depth: usize,
}

struct Lanes<R, C> {
    requests: Vec<R>,
    control: Vec<C>,
    waiting: bool,
}

/// Room that an empty buffer keeps, unless about as much is needed again.
const KEPT: usize = 512;

/// Gives back room of an empty buffer if so much more than what comes now was needed once: else what
/// all groups of a node say together at its start would be kept for ever.
fn shrink<T>(empty: &mut Vec<T>, comes: usize) {
    if empty.capacity() / 4 > comes.max(KEPT) {
        empty.shrink_to(KEPT);
    }
}

impl<R, C> Mailbox<R, C> {
    /// A mailbox that holds at most `depth` requests.
    pub fn new(depth: usize) -> Mailbox<R, C> {
        let lanes = Lanes { requests: Vec::new(), control: Vec::new(), waiting: false };
        Mailbox { lanes: Mutex::new(lanes), wake: Condvar::new(), depth }
    }

    /// Puts a request in, or gives it back when too many wait.
    pub fn request(&self, request: R) -> Result<(), R> {
        let mut lanes = self.lanes.lock();
        if lanes.requests.len() >= self.depth {
            return Err(request);
        }
        lanes.requests.push(request);
        self.notify(lanes);
        Ok(())
    }

    /// Puts anything else in.
    pub fn control(&self, control: C) {
        let mut lanes = self.lanes.lock();
        lanes.control.push(control);
        self.notify(lanes);
    }

    fn notify(&self, mut lanes: parking_lot::MutexGuard<'_, Lanes<R, C>>) {
        if std::mem::take(&mut lanes.waiting) {
            drop(lanes);
            self.wake.notify_one();
        }
    }

    /// Takes everything; waits at most `timeout` for something to come. The buffers given
    /// are emptied by the caller and swapped in.
    pub fn take(&self, timeout: Duration, requests: &mut Vec<R>, control: &mut Vec<C>) {
        let mut lanes = self.lanes.lock();
        if lanes.requests.is_empty() && lanes.control.is_empty() && !timeout.is_zero() {
            lanes.waiting = true;
            self.wake.wait_for(&mut lanes, timeout);
            lanes.waiting = false;
        }
        shrink(requests, lanes.requests.len());
        shrink(control, lanes.control.len());
        std::mem::swap(&mut lanes.requests, requests);
        std::mem::swap(&mut lanes.control, control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_burst_is_given_back_and_that_of_steady_work_is_not() {
        let mailbox: Mailbox<(), u64> = Mailbox::new(1);
        let (mut requests, mut control) = (Vec::new(), Vec::new());
        let mut round = |inputs: u64| {
            (0..inputs).for_each(|input| mailbox.control(input));
            mailbox.take(Duration::ZERO, &mut requests, &mut control);
            let (taken, room) = (control.len() as u64, control.capacity());
            control.clear();
            assert_eq!(taken, inputs);
            room
        };
        for inputs in [10_000, 10_000, 9_000, 9_000] {
            assert!(round(inputs) >= 9_000);
        }
        let rooms = [1, 1, 1].map(&mut round);
        assert!(rooms[2] <= KEPT, "{rooms:?}");
    }
}
