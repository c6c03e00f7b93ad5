//! Pods from files, and the mirrors by which the API shows them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::super::mirror::{self, Mirror};
use super::super::spec::PodView;
use super::{Handle, Pods, full_name};

impl Pods {
    /// The pods that files have now. Those that run and have none any more go.
    pub(super) fn static_pods(&mut self, found: Vec<PodView>) {
        let wanted: BTreeSet<&str> = found.iter().map(|pod| pod.id.uid.as_str()).collect();
        let gone: Vec<String> = self
            .workers
            .iter()
            .filter(|(uid, handle)| handle.is_static() && !wanted.contains(uid.as_str()))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.vanished(&uid);
        }
        self.waiting = found;
        self.start_waiting();
    }

    /// Starts the pods from files whose predecessors are gone.
    pub(super) fn start_waiting(&mut self) {
        for pod in std::mem::take(&mut self.waiting) {
            let mut workers = self.workers.iter();
            let holder = workers.find(|(_, handle)| {
                handle.is_static() && full_name(&handle.id) == full_name(&pod.id)
            });
            match holder {
                None => self.take(pod),
                // It runs, and is not on its way out.
                Some((uid, handle))
                    if *uid == pod.id.uid && handle.orders.borrow().vanished_by.is_none() => {}
                Some(_) => self.waiting.push(pod),
            }
        }
    }

    /// The API shows a mirror.
    pub(super) fn mirrored(&mut self, mirror: Mirror) {
        let name = full_name(&mirror.id);
        match self.shown_by(&name) {
            Some(handle) => handle
                .orders
                .send_modify(|order| order.mirror = Some(mirror.clone())),
            // Before all is listed its file may not have been read, or its pod waits for another to go.
            None if self.waiting.iter().any(|pod| full_name(&pod.id) == name) => {}
            None => {
                let api = Api::<Pod>::namespaced(self.shared.client.clone(), &mirror.id.namespace);
                self.tasks.spawn(mirror::see_off(api, mirror.id.clone()));
            }
        }
        self.mirrors.insert(name, mirror);
    }

    /// The worker of the pod from a file that has this name.
    fn shown_by(&self, name: &(String, String)) -> Option<&Handle> {
        let mut workers = self.workers.values();
        workers.find(|handle| handle.is_static() && full_name(&handle.id) == *name)
    }

    pub(super) fn deleted(&mut self, pod: Pod) {
        let Some(view) = PodView::new(pod) else {
            return;
        };
        let name = full_name(&view.id);
        if self
            .mirrors
            .get(&name)
            .is_some_and(|mirror| mirror.id == view.id)
        {
            self.mirrors.remove(&name);
            if let Some(handle) = self.shown_by(&name) {
                handle.orders.send_modify(|order| order.mirror = None);
            }
            return;
        }
        self.vanished(&view.id.uid);
    }
}
