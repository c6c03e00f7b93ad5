//! How many of something each holder has at once, with a bound for each.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

type Held<K> = Arc<Mutex<HashMap<K, usize>>>;

/// Counts what holders hold: connections by address, requests by user.
pub struct Shares<K> {
    limit: usize,
    held: Held<K>,
}

/// One of a holder's; given back when dropped.
#[must_use]
pub struct Share<K: Eq + Hash> {
    holder: K,
    held: Held<K>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `limit` for each holder.
    pub fn new(limit: usize) -> Self {
        Shares {
            limit,
            held: Arc::default(),
        }
    }

    /// One more for `holder`, unless it has its share.
    pub fn take(&self, holder: K) -> Option<Share<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&holder).copied().unwrap_or_default();
        if count >= self.limit {
            return None;
        }
        held.insert(holder.clone(), count + 1);
        Some(Share {
            holder,
            held: self.held.clone(),
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                held.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_its_own_share() {
        let shares = Shares::new(2);
        let first = shares.take("a");
        let second = shares.take("a");
        assert!(first.is_some() && second.is_some());
        assert!(shares.take("a").is_none());
        assert!(shares.take("b").is_some());
        drop(first);
        assert!(shares.take("a").is_some());
        drop(second);
        assert!(shares.held.lock().expect("nobody panicked").is_empty());
    }
}
