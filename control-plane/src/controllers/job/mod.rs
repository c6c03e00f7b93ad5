//! Job: pods until enough of them have succeeded, or too many have failed; and jobs that have been over for long enough go.

mod plan;
mod pods;
mod policy;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::plan::{Plan, plan};
use self::pods::{JOB_NAME, TRACKED, is_tracked};
use super::cache::Key;
use super::driver::{Queue, Result, queue};
use super::events::reference;
use super::pod_control::{PodControl, let_go};
use super::pods::{controller_of, orphans_in, owned_by, selects, uid};
use super::{Caches, Context};

const WORKERS: usize = 8;
/// Jobs that somebody else manages name another one.
const MANAGER: &str = "kubernetes.io/job-controller";

struct Controller {
    context: Context,
    pods: PodControl,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let pods = PodControl::start(context, "Job", "job-controller");
    subscribe(&context.caches, &keys, &pods);
    let controller = Controller {
        context: context.clone(),
        pods,
    };
    let context = context.clone();
    context.drive("job", wakeups, WORKERS, async move |_, key| {
        controller.reconcile(key).await
    })
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>, pods: &PodControl) {
    let (queue, control) = (keys.clone(), pods.clone());
    caches.jobs.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            control.forget(uid(&old.metadata));
        }
        if let Some(job) = new.or(old) {
            queue.add(Key::of(&**job));
        }
    });
    let (queue, control, jobs) = (keys.clone(), pods.clone(), caches.jobs.clone());
    caches.pods.on_change(move |old, new| {
        control.observe(old, new);
        for pod in [old, new].into_iter().flatten() {
            if let Some((key, _)) = control.owner_of(pod) {
                queue.add(key);
            } else if controller_of(&pod.metadata).is_none() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                queue_candidates(&queue, &jobs.list_in(namespace), pod);
            }
        }
    });
}

/// A pod that nobody manages may be some job's, or was one's.
fn queue_candidates(queue: &Queue<Key>, jobs: &[Arc<Job>], pod: &Pod) {
    for job in jobs {
        let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        if selector.is_some_and(|selector| selects(selector, &pod.metadata)) {
            queue.add(Key::of(&**job));
        }
    }
    if let Some(name) = job_named(pod).filter(|_| is_tracked(pod)) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        queue.add(Key::new(namespace, name));
    }
}

/// The job whose pod this is by its label.
fn job_named(pod: &Pod) -> Option<&String> {
    pod.metadata.labels.as_ref()?.get(JOB_NAME)
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let job = caches.jobs.get(key);
        self.let_strays_go(key, job.as_deref()).await?;
        let Some(job) = job else {
            return Ok(None);
        };
        let manager = job
            .spec
            .as_ref()
            .and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != MANAGER) {
            return Ok(None);
        }
        let owner = uid(&job.metadata);
        let wait = self.pods.wait(owner);
        let mut pods = caches.pods.by_index(&owned_by(owner));
        pods.extend(caches.pods.by_index(&orphans_in(&key.namespace)));
        let plan = plan(&job, &pods, wait.is_none(), Timestamp::now());
        if plan.expired {
            self.remove(&job).await?;
            return Ok(None);
        }
        let look_again = [wait, plan.look_again].into_iter().flatten().min();
        self.perform(&job, plan, wait.is_none()).await?;
        Ok(look_again)
    }

    async fn perform(&self, job: &Job, plan: Plan, settled: bool) -> Result<()> {
        if settled {
            self.pods.claim(job, &plan.claims, Some(TRACKED)).await?;
        }
        // An end that is not stored must not be forgotten with the pod that holds it.
        self.write_status(job, plan.status).await?;
        for (severity, reason, message) in plan.events {
            self.pods
                .events
                .report(reference(job), severity, reason, message);
        }
        self.let_go(&plan.release).await?;
        if settled {
            self.scale(job, &plan.dismiss, &plan.stop, &plan.create)
                .await?;
        }
        Ok(())
    }

    async fn scale(
        &self,
        job: &Job,
        dismiss: &[Arc<Pod>],
        stop: &[Arc<Pod>],
        create: &[Pod],
    ) -> Result<()> {
        // Not expected before this: what fails here is asked of nobody.
        self.let_go(dismiss).await?;
        let doomed = [dismiss, stop].concat();
        self.pods.expect(uid(&job.metadata), create.len(), &doomed);
        // Both, whatever becomes of the other: each takes back what it could not do.
        let deleted = self.pods.delete(job, &doomed).await;
        let created = self.pods.create(job, create).await;
        Ok(deleted.and(created)?)
    }

    async fn let_go(&self, pods: &[Arc<Pod>]) -> std::result::Result<(), kube::Error> {
        let held = pods.iter().filter(|pod| is_tracked(pod));
        let releases = held.map(|pod| async move {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let_go(&self.pods.api(namespace), pod, TRACKED).await
        });
        try_join_all(releases).await?;
        Ok(())
    }

    /// Pods whose job is gone, or another one of its name, are held for nobody.
    async fn let_strays_go(&self, key: &Key, job: Option<&Job>) -> Result<()> {
        let owner = job.map(|job| uid(&job.metadata)).unwrap_or_default();
        let is_stray = |pod: &Arc<Pod>| {
            let theirs = match controller_of(&pod.metadata) {
                Some(manager) => manager.kind == "Job" && manager.name == key.name,
                None => job_named(pod).is_some_and(|name| *name == key.name),
            };
            let manager = controller_of(&pod.metadata).map(|manager| manager.uid.as_str());
            theirs && is_tracked(pod) && manager.is_none_or(|manager| manager != owner)
        };
        let mut strays = self.context.caches.pods.list_in(&key.namespace);
        strays.retain(is_stray);
        // What the job takes in is no stray.
        let selector = job.and_then(|job| job.spec.as_ref()?.selector.as_ref());
        strays.retain(|pod| {
            let is_free = controller_of(&pod.metadata).is_none();
            !(is_free && selector.is_some_and(|selector| selects(selector, &pod.metadata)))
        });
        Ok(self.let_go(&strays).await?)
    }

    async fn remove(&self, job: &Job) -> Result<()> {
        let Key { namespace, name } = Key::of(job);
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &namespace);
        let same = Preconditions {
            uid: job.metadata.uid.clone(),
            resource_version: None,
        };
        let params = DeleteParams::foreground().preconditions(same);
        api.delete(&name, &params).await?;
        Ok(())
    }

    async fn write_status(&self, job: &Job, status: JobStatus) -> Result<()> {
        if job.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let Key { namespace, name } = Key::of(job);
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut job = job.clone();
        job.status = Some(status);
        let written = api
            .replace_status(&name, &PostParams::default(), &job)
            .await?;
        self.context.caches.jobs.wait_for(&written).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::json;
    use tower::service_fn;

    use super::*;
    use crate::controllers::testing::{context, pod};

    /// A server that has conflicts with all requests of one method, does the others, and notes them.
    fn refusing(method: Method, done: Arc<Mutex<Vec<Method>>>) -> kube::Client {
        let service = service_fn(move |request: Request<Body>| {
            let refused = *request.method() == method;
            let answer = match refused {
                true => {
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409})
                }
                false => json!(pod("new").build()),
            };
            if !refused {
                done.lock().unwrap().push(request.method().clone());
            }
            let mut answer = Response::new(Body::from(answer.to_string().into_bytes()));
            if refused {
                *answer.status_mut() = StatusCode::CONFLICT;
            }
            async { Ok::<_, std::convert::Infallible>(answer) }
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_could_not_be_asked_for_is_not_waited_for() {
        let mut job = Job::default();
        job.metadata.name = Some("j".into());
        job.metadata.namespace = Some("default".into());
        job.metadata.uid = Some("uid-j".into());
        let held = pod("a").with(|pod| pod.metadata.finalizers = Some(vec![TRACKED.into()]));
        let (doomed, new) = ([Arc::new(held.build())], [pod("new").build()]);
        for method in [Method::PATCH, Method::DELETE, Method::POST] {
            let done = Arc::default();
            let context = context(refusing(method.clone(), Arc::clone(&done)));
            let pods = PodControl::start(&context, "Job", "job-controller");
            let controller = Controller { context, pods };
            let outcome = controller.scale(&job, &doomed, &[], &new).await;
            assert!(outcome.is_err(), "{method}");
            // What was done is seen by the watch.
            let (control, owner) = (&controller.pods, uid(&job.metadata));
            for done in done.lock().unwrap().iter() {
                match *done {
                    Method::POST => control.expectations().created(owner),
                    Method::DELETE => control.expectations().deleted(owner, "uid-a"),
                    _ => {}
                }
            }
            assert_eq!(control.wait(owner), None, "{method}");
        }
    }
}
