//! Tells streams that require a leader when their group has none.
//!
//! etcd cancels such streams after three election timeouts without a leader. Groups know that
//! ([`Groups::leaderless`]); this file turns the question into a signal, so that ten thousand
//! streams cost one timer and not ten thousand. The task lives while somebody follows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use proto::{GroupId, group::Groups};
use tokio::sync::watch;

/// Who follows which group.
pub(crate) struct Leadership {
    groups: Arc<dyn Groups>,
    period: Duration,
    followed: Mutex<HashMap<GroupId, watch::Sender<bool>>>,
}

// === impl Leadership ===

impl Leadership {
    pub(crate) fn new(groups: Arc<dyn Groups>, election_timeout: Duration) -> Leadership {
        let period = (election_timeout / 4).max(Duration::from_millis(5));
        Leadership { groups, period, followed: Mutex::default() }
    }

    /// A signal that is true while `group` is leaderless.
    pub(crate) fn follow(self: &Arc<Self>, group: GroupId) -> watch::Receiver<bool> {
        let mut followed = self.followed.lock();
        if followed.is_empty() {
            tokio::spawn(self.clone().look());
        }
        let sender = followed.entry(group).or_default();
        let leaderless = self.groups.leaderless(group);
        sender.send_if_modified(|now| std::mem::replace(now, leaderless) != leaderless);
        sender.subscribe()
    }

    /// Looks at all followed groups until nobody follows any more.
    async fn look(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.period).await;
            let mut followed = self.followed.lock();
            followed.retain(|group, sender| {
                let leaderless = self.groups.leaderless(*group);
                sender.send_if_modified(|now| std::mem::replace(now, leaderless) != leaderless);
                sender.receiver_count() > 0
            });
            if followed.is_empty() {
                return;
            }
        }
    }
}
