//! What an agent asks of others, step by step, and its end at one of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How far a step has come when the agent is killed in the middle of it.
const IN_THE_MIDDLE: Duration = Duration::from_millis(10);

/// Where an agent is killed: at the `nth` step of this name, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) step: String,
    pub(crate) nth: usize,
    pub(crate) moment: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It is on its way, or done a moment ago.
    During,
    /// It is done, and the agent does not hear of it.
    After,
}

/// The steps of one agent.
#[derive(Default)]
pub(crate) struct Steps {
    counted: Mutex<Counted>,
    is_cut: watch::Sender<bool>,
    is_held: watch::Sender<bool>,
    is_late: watch::Sender<bool>,
}

#[derive(Default)]
struct Counted {
    taken: Vec<String>,
    cut: Option<Cut>,
}

impl Steps {
    /// Counts anew from here on, and says where the agent is killed.
    pub(crate) fn begin(&self, cut: Option<Cut>) {
        let taken = Vec::new();
        *self.lock() = Counted { taken, cut };
    }

    /// Takes a step. Once the agent is cut off, this never ends.
    pub(crate) async fn take<T>(&self, name: &str, step: impl Future<Output = T>) -> T {
        self.go_on().await;
        let moment = self.note(name);
        match moment {
            None => return step.await,
            Some(Moment::After) => drop(step.await),
            Some(Moment::During) => drop(tokio::time::timeout(IN_THE_MIDDLE, step).await),
        }
        self.is_cut.send_replace(true);
        std::future::pending().await
    }

    /// Whether every step has to wait.
    pub(crate) fn hold(&self, is_held: bool) {
        self.is_held.send_replace(is_held);
    }

    /// Whether no step is answered before the time is up of whoever waits for it.
    pub(crate) fn be_late(&self, is_late: bool) {
        self.is_late.send_replace(is_late);
    }

    pub(crate) fn is_late(&self) -> bool {
        *self.is_late.borrow()
    }

    /// Waits as long as steps are held, and for ever once the agent is cut off.
    pub(crate) async fn go_on(&self) {
        // The sender lives as long as this.
        let _ = self.is_held.subscribe().wait_for(|is_held| !is_held).await;
        if *self.is_cut.borrow() {
            std::future::pending().await
        }
    }

    /// Waits until the agent is cut off.
    pub(crate) async fn cut_off(&self) {
        let mut is_cut = self.is_cut.subscribe();
        // The sender lives as long as this.
        let _ = is_cut.wait_for(|is_cut| *is_cut).await;
    }

    /// The names of the steps that were begun.
    pub(crate) fn taken(&self) -> Vec<String> {
        self.lock().taken.clone()
    }

    fn note(&self, name: &str) -> Option<Moment> {
        let Counted { taken, cut } = &mut *self.lock();
        let nth = taken.iter().filter(|taken| *taken == name).count();
        taken.push(name.to_owned());
        let cut = cut.as_ref()?;
        (cut.step == name && cut.nth == nth).then_some(cut.moment)
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
