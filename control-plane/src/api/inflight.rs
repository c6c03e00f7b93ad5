//! How many requests are worked on at once: by user, and by class, so that a runaway client cannot starve the nodes'
//! heartbeats, nor one node the others'.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;
use super::shares::{Share, Shares};
use crate::auth::{CONTROLLER_MANAGER, MASTERS, NODES, SCHEDULER, User};

/// Requests at once for each class; upstream's numbers.
const READS: usize = 400;
const WRITES: usize = 200;
/// Requests at once for each user who is no administrator, those counted whose bodies are still being read.
const PER_USER: usize = 100;

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
pub struct Inflight {
    nodes: Class,
    administrators: Class,
    others: Class,
    users: Shares<String>,
}

impl Default for Inflight {
    fn default() -> Self {
        Inflight {
            nodes: Class::default(),
            administrators: Class::default(),
            others: Class::default(),
            users: Shares::new(PER_USER),
        }
    }
}

impl Inflight {
    /// One of the user's own share, or the advice to try again later. To be had before the request's body is read, which a
    /// slow client can draw out.
    pub fn share(&self, user: &User) -> Result<Option<Share<String>>, ApiError> {
        if is_part(user) || user.is_in(MASTERS) {
            return Ok(None);
        }
        let share = self.users.take(user.name.clone());
        share.map(Some).ok_or_else(ApiError::too_many_requests)
    }

    /// A slot for a request that has been read, or the advice to try again later.
    pub fn enter(&self, user: &User, verb: &str) -> Result<Option<SemaphorePermit<'_>>, ApiError> {
        let Some(class) = self.class(user) else {
            return Ok(None);
        };
        let slots = match verb {
            "get" | "list" | "watch" => &class.reads,
            _ => &class.writes,
        };
        slots
            .try_acquire()
            .map(Some)
            .map_err(|_| ApiError::too_many_requests())
    }

    /// How many slots are taken, for reading and for writing.
    pub fn running(&self) -> (usize, usize) {
        let classes = [&self.nodes, &self.administrators, &self.others];
        let taken = |of: fn(&Class) -> usize| classes.into_iter().map(of).sum();
        (
            taken(|class| READS - class.reads.available_permits()),
            taken(|class| WRITES - class.writes.available_permits()),
        )
    }

    fn class(&self, user: &User) -> Option<&Class> {
        if is_part(user) {
            None
        } else if user.is_in(NODES) {
            Some(&self.nodes)
        } else if user.is_in(MASTERS) {
            Some(&self.administrators)
        } else {
            Some(&self.others)
        }
    }
}

/// Scheduler and controllers bound their work themselves, and nothing goes on without them.
fn is_part(user: &User) -> bool {
    user.name == SCHEDULER || user.name == CONTROLLER_MANAGER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> User {
        User::authenticated(format!("system:node:n{number}"), [NODES.to_owned()])
    }

    fn code<T>(outcome: Result<T, ApiError>) -> u16 {
        outcome.map_or_else(|error| error.code.as_u16(), |_| 200)
    }

    #[test]
    fn a_runaway_client_leaves_room_for_nodes() {
        let inflight = Inflight::default();
        let client = User::authenticated("x", []);
        let held: Vec<_> = (0..WRITES)
            .map(|_| inflight.enter(&client, "create").expect("a slot"))
            .collect();
        assert_eq!(code(inflight.enter(&client, "update")), 429);
        assert!(inflight.enter(&client, "get").is_ok());
        assert!(inflight.enter(&node(1), "update").is_ok());
        drop(held);
        assert!(inflight.enter(&client, "create").is_ok());
    }

    #[test]
    fn a_node_has_its_share_and_the_controllers_need_none() {
        let inflight = Inflight::default();
        let held: Vec<_> = (0..PER_USER)
            .map(|_| inflight.share(&node(1)).expect("a share"))
            .collect();
        assert_eq!(code(inflight.share(&node(1))), 429);
        assert!(inflight.share(&node(2)).is_ok());
        drop(held);
        assert!(inflight.share(&node(1)).is_ok());
        let all: Vec<_> = (0..WRITES)
            .map(|_| inflight.enter(&node(1), "update").expect("a slot"))
            .collect();
        assert_eq!(code(inflight.enter(&node(2), "update")), 429);
        for part in [User::scheduler(), User::controller_manager()] {
            assert!(inflight.share(&part).is_ok() && inflight.enter(&part, "update").is_ok());
        }
        drop(all);
    }
}
