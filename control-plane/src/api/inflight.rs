//! How many requests are worked on at once, by class, so that a runaway client cannot starve the nodes' heartbeats.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;
use crate::auth::{CONTROLLER_MANAGER, MASTERS, NODES, SCHEDULER, User};

/// Requests at once for each class; upstream's numbers.
const READS: usize = 400;
const WRITES: usize = 200;

/// The slots of one class.
struct Class {
    reads: Semaphore,
    writes: Semaphore,
}

impl Default for Class {
    fn default() -> Self {
        Class {
            reads: Semaphore::new(READS),
            writes: Semaphore::new(WRITES),
        }
    }
}

/// The slots of the server.
#[derive(Default)]
pub struct Inflight {
    /// Nodes, scheduler and controllers.
    system: Class,
    administrators: Class,
    others: Class,
}

impl Inflight {
    /// A slot for a request, or the advice to try again later.
    pub fn enter(&self, user: &User, verb: &str) -> Result<SemaphorePermit<'_>, ApiError> {
        let class = self.class(user);
        let slots = match verb {
            "get" | "list" | "watch" => &class.reads,
            _ => &class.writes,
        };
        slots
            .try_acquire()
            .map_err(|_| ApiError::too_many_requests())
    }

    fn class(&self, user: &User) -> &Class {
        if user.is_in(NODES) || user.name == SCHEDULER || user.name == CONTROLLER_MANAGER {
            &self.system
        } else if user.is_in(MASTERS) {
            &self.administrators
        } else {
            &self.others
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runaway_client_leaves_room_for_nodes() {
        let inflight = Inflight::default();
        let client = User::authenticated("x", []);
        let node = User::authenticated("system:node:n", [NODES.to_owned()]);
        let held: Vec<_> = (0..WRITES)
            .map(|_| inflight.enter(&client, "create").expect("a slot"))
            .collect();
        assert_eq!(
            inflight
                .enter(&client, "update")
                .map(|_| ())
                .map_err(|e| e.code.as_u16()),
            Err(429)
        );
        assert!(inflight.enter(&client, "get").is_ok());
        assert!(inflight.enter(&node, "update").is_ok());
        drop(held);
        assert!(inflight.enter(&client, "create").is_ok());
    }
}
