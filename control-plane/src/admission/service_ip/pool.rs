//! Things that one holder has at a time, and what a request holds while it runs.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Things that are given to one holder at a time. A holder is a Service, by `namespace/name`.
#[derive(Debug)]
pub(super) struct Pool<T> {
    pub(super) holders: HashMap<T, String>,
}

impl<T: Copy + Eq + Hash> Pool<T> {
    pub(super) fn new() -> Self {
        Pool {
            holders: HashMap::new(),
        }
    }

    /// Takes `item` if nobody has it.
    pub(super) fn claim_free(&mut self, item: T, holder: &str) -> bool {
        let free = !self.holders.contains_key(&item);
        if free {
            self.holders.insert(item, holder.to_owned());
        }
        free
    }

    /// Takes note that `holder` has `item`. The first to have it keeps it.
    pub(super) fn note(&mut self, item: T, holder: &str) {
        self.holders
            .entry(item)
            .or_insert_with(|| holder.to_owned());
    }

    /// Takes the first free one of `size` candidates, beginning at `start` and going around.
    pub(super) fn take(
        &mut self,
        holder: &str,
        start: u32,
        size: u32,
        candidate: impl Fn(u32) -> T,
    ) -> Option<T> {
        let free = (0..size)
            .map(|step| candidate((start + step) % size))
            .find(|item| !self.holders.contains_key(item))?;
        self.holders.insert(free, holder.to_owned());
        Some(free)
    }

    pub(super) fn release(&mut self, item: T, holder: &str) {
        if self.holders.get(&item).is_some_and(|h| h == holder) {
            self.holders.remove(&item);
        }
    }
}

/// Addresses and ports that one Service has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::admission) struct Holding {
    pub(in crate::admission) addresses: Vec<IpAddr>,
    pub(in crate::admission) ports: Vec<(u16, &'static str)>,
}

#[derive(Debug)]
pub(super) struct Pools {
    pub(super) addresses: Pool<IpAddr>,
    /// A port may serve TCP for one Service and UDP for another.
    pub(super) ports: Pool<(u16, &'static str)>,
    /// How many requests run for each holder. What those took is stored soon, or given back.
    pub(super) running: HashMap<String, usize>,
}

/// What a request took. It is given back when this is dropped, unless [`Held::keep`] is called.
#[must_use]
pub struct Held {
    pub(super) pools: Option<Arc<Mutex<Pools>>>,
    pub(super) holder: String,
    pub(super) taken: Holding,
}

impl Held {
    pub fn nothing() -> Self {
        Held {
            pools: None,
            holder: String::new(),
            taken: Holding::default(),
        }
    }

    /// The write succeeded, or may have.
    pub fn keep(mut self) {
        self.taken = Holding::default();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(pools) = &self.pools {
            let mut pools = lock(pools);
            pools.release(&self.taken, &self.holder);
            match pools.running.get_mut(&self.holder) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    pools.running.remove(&self.holder);
                }
            }
        }
    }
}

pub(super) fn lock(pools: &Mutex<Pools>) -> std::sync::MutexGuard<'_, Pools> {
    pools.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pools {
    pub(super) fn release(&mut self, holding: &Holding, holder: &str) {
        for address in &holding.addresses {
            self.addresses.release(*address, holder);
        }
        for port in &holding.ports {
            self.ports.release(*port, holder);
        }
    }

    /// What everybody has, apart from those for whom a request runs.
    pub(super) fn settled(&self) -> HashMap<String, Holding> {
        let mut settled: HashMap<String, Holding> = HashMap::new();
        for (address, holder) in &self.addresses.holders {
            let holding = settled.entry(holder.clone()).or_default();
            holding.addresses.push(*address);
        }
        for (port, holder) in &self.ports.holders {
            let holding = settled.entry(holder.clone()).or_default();
            holding.ports.push(*port);
        }
        settled.retain(|holder, _| !self.running.contains_key(holder));
        settled
    }

    pub(super) fn note(&mut self, holding: &Holding, holder: &str) {
        for address in &holding.addresses {
            self.addresses.note(*address, holder);
        }
        for port in &holding.ports {
            self.ports.note(*port, holder);
        }
    }
}
