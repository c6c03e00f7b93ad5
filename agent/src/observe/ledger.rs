//! Counters that only grow, from map rows that come and go. Pure.
//!
//! A backend's row goes with the backend, and its service's sums must not shrink. So what a row last said stays with each
//! service that the backend stood for.

use std::collections::BTreeMap;

use crate::cluster::ObjectKey;
use crate::dataplane::Sum;

/// Sums by service over rows that a key of type `R` names.
#[derive(Debug)]
pub(super) struct Ledger<R, T> {
    accounts: BTreeMap<ObjectKey, Account<R, T>>,
}

impl<R, T> Default for Ledger<R, T> {
    fn default() -> Self {
        Self {
            accounts: BTreeMap::new(),
        }
    }
}

#[derive(Debug)]
struct Account<R, T> {
    /// Rows that have stood for the service at any time and are still there, as they were last read.
    rows: BTreeMap<R, T>,
    /// Rows that are gone.
    gone: T,
}

impl<R: Copy + Ord, T: Copy + Default + Sum> Ledger<R, T> {
    /// Reads anew. `rows` are all rows there are, `gone` the last words of some that went since, `users` the services
    /// that each row stands for now, and `exists` says whether there still is such a service: one that is deleted takes
    /// its sums along.
    pub(super) fn read<'a>(
        &mut self,
        rows: &BTreeMap<R, T>,
        gone: &BTreeMap<R, T>,
        users: impl Iterator<Item = (R, &'a ObjectKey)>,
        exists: impl Fn(&ObjectKey) -> bool,
    ) {
        self.accounts.retain(|service, _| exists(service));
        for (row, service) in users {
            if !rows.contains_key(&row) && !gone.contains_key(&row) {
                continue;
            }
            if !self.accounts.contains_key(service) {
                let account = Account {
                    rows: BTreeMap::new(),
                    gone: T::default(),
                };
                self.accounts.insert(service.clone(), account);
            }
            if let Some(account) = self.accounts.get_mut(service) {
                account.rows.entry(row).or_default();
            }
        }
        for account in self.accounts.values_mut() {
            let Account {
                rows: own,
                gone: sum,
            } = account;
            own.retain(|row, last| match rows.get(row) {
                Some(now) => {
                    *last = *now;
                    true
                }
                None => {
                    *sum = sum.add(gone.get(row).copied().unwrap_or(*last));
                    false
                }
            });
        }
    }

    /// Every service that something was ever counted for, with its sum.
    pub(super) fn totals(&self) -> impl Iterator<Item = (&ObjectKey, T)> {
        self.accounts.iter().map(|(service, account)| {
            let here = account.rows.values().copied();
            (service, here.fold(account.gone, T::add))
        })
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::abi::ServiceStats;
    use proptest::prelude::*;

    use super::*;

    type Rows = BTreeMap<u32, ServiceStats>;

    fn refused(no_backend: u64) -> ServiceStats {
        ServiceStats {
            no_backend,
            hole: 0,
        }
    }

    fn total(ledger: &Ledger<u32, ServiceStats>, service: &ObjectKey) -> Option<u64> {
        let mut totals = ledger.totals();
        totals
            .find(|(key, _)| *key == service)
            .map(|(_, sum)| sum.no_backend)
    }

    #[test]
    fn a_row_that_goes_leaves_its_last_words() {
        let (web, mut ledger) = (ObjectKey::new("shop", "web"), Ledger::default());
        let used = |row: u32| std::iter::once((row, &web));
        let rows = |row: u32, count| Rows::from([(row, refused(count))]);
        ledger.read(&rows(1, 5), &Rows::new(), used(1), |_| true);
        assert_eq!(total(&ledger, &web), Some(5));
        ledger.read(&rows(1, 6), &Rows::new(), std::iter::empty(), |_| true);
        assert_eq!(total(&ledger, &web), Some(6), "its connections go on");
        ledger.read(&rows(2, 1), &rows(1, 9), used(2), |_| true);
        assert_eq!(total(&ledger, &web), Some(10), "9 and 1");
        ledger.read(&Rows::new(), &Rows::new(), std::iter::empty(), |_| true);
        assert_eq!(total(&ledger, &web), Some(10), "nobody kept the last words");
        ledger.read(&Rows::new(), &Rows::new(), std::iter::empty(), |_| false);
        assert_eq!(total(&ledger, &web), None, "the service is gone");
    }

    proptest! {
        /// Rows that grow, come and go in any order.
        #[test]
        fn sums_never_shrink(steps in prop::collection::vec((0_u32..4, 0_u64..9, any::<bool>(), any::<bool>()), 1..60)) {
            let (web, mut ledger) = (ObjectKey::new("shop", "web"), Ledger::default());
            let (mut rows, mut last, mut born) = (Rows::new(), 0, 0);
            for (row, more, goes, told) in steps {
                let mut gone = Rows::new();
                // An id does not come back, as backends' do not.
                let row = row + 10 * born;
                rows.entry(row).or_default().no_backend += more;
                if goes {
                    let words = rows.remove(&row).unwrap();
                    born += 1;
                    if told { gone.insert(row, words); }
                }
                let used: Vec<u32> = rows.keys().copied().collect();
                ledger.read(&rows, &gone, used.iter().map(|row| (*row, &web)), |_| true);
                let sum = total(&ledger, &web).unwrap_or(0);
                prop_assert!(sum >= last, "{sum} after {last}");
                last = sum;
            }
        }
    }
}
