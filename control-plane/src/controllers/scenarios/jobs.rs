//! Jobs from their first pod to their end.

use k8s_openapi::api::batch::v1::{CronJob, Job};

use super::*;

fn job(image: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": "work"},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}], "restartPolicy": "Never"}}},
    })
}

/// Waits until the job has the condition; gives the job.
async fn ends(cluster: &Cluster, type_: &str) -> Job {
    let jobs: Api<Job> = cluster.default_namespace();
    until(type_, async || {
        let job = jobs.get("work").await.unwrap();
        let conditions = job.status.as_ref()?.conditions.as_ref()?;
        let mut conditions = conditions.iter();
        let ended = conditions.any(|it| it.type_ == type_ && it.status == "True");
        ended.then_some(job)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_completes_each_index_once() {
    let cluster = Cluster::new(&["node-1"]).await;
    let mut work = job("done");
    work["spec"]["completionMode"] = json!("Indexed");
    work["spec"]["completions"] = json!(5);
    work["spec"]["parallelism"] = json!(2);
    cluster.apply::<Job>(work).await;
    let status = ends(&cluster, "Complete").await.status.unwrap();
    assert_eq!(
        (status.succeeded, status.failed, status.active),
        (Some(5), None, None)
    );
    assert_eq!(status.completed_indexes.as_deref(), Some("0-4"));
    let pods: Api<Pod> = cluster.default_namespace();
    let pods = list(&pods, "batch.kubernetes.io/job-name=work").await;
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(|pod| pod.finalizers().is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_up() {
    let cluster = Cluster::new(&["node-1"]).await;
    let mut work = job("fails");
    work["spec"]["backoffLimit"] = json!(0);
    cluster.apply::<Job>(work).await;
    let status = ends(&cluster, "Failed").await.status.unwrap();
    assert_eq!((status.failed, status.succeeded), (Some(1), None));
    let conditions = status.conditions.unwrap();
    let failed = conditions.iter().find(|it| it.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("BackoffLimitExceeded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_until_it_may_go_on_and_goes_when_its_time_is_over() {
    let cluster = Cluster::new(&["node-1"]).await;
    let mut work = job("done");
    work["spec"]["suspend"] = json!(true);
    work["spec"]["ttlSecondsAfterFinished"] = json!(0);
    cluster.apply::<Job>(work).await;
    let waiting = ends(&cluster, "Suspended").await;
    assert_eq!(waiting.status.unwrap().start_time, None);
    let pods: Api<Pod> = cluster.default_namespace();
    assert!(list(&pods, "job-name=work").await.is_empty());
    let jobs: Api<Job> = cluster.default_namespace();
    let go_on = json!({"spec": {"suspend": false}});
    jobs.patch("work", &PatchParams::default(), &Patch::Merge(go_on))
        .await
        .unwrap();
    until("the job is done and gone, with its pod", async || {
        let job = jobs.get_opt("work").await.unwrap();
        let pods = list(&pods, "job-name=work").await;
        (job.is_none() && pods.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_job_that_is_deleted_are_held_for_nobody() {
    let cluster = Cluster::new(&["node-1"]).await;
    let jobs: Api<Job> = cluster.default_namespace();
    let pods: Api<Pod> = cluster.default_namespace();
    cluster.apply::<Job>(job("runs")).await;
    until("the pod runs", async || {
        let pods = list(&pods, "job-name=work").await;
        (pods.len() == 1).then_some(())
    })
    .await;
    jobs.delete("work", &DeleteParams::background())
        .await
        .unwrap();
    until("the pod is gone", async || {
        list(&pods, "job-name=work").await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_starts_jobs_and_forgets_those_that_are_over() {
    let cluster = Cluster::new(&["node-1"]).await;
    cluster
        .apply::<CronJob>(json!({
            "metadata": {"name": "tick"},
            "spec": {
                "schedule": "@every 1s",
                "concurrencyPolicy": "Forbid",
                "successfulJobsHistoryLimit": 1,
                "jobTemplate": {
                    "metadata": {"labels": {"app": "tick"}},
                    "spec": job("done")["spec"],
                },
            },
        }))
        .await;
    let jobs: Api<Job> = cluster.default_namespace();
    let cron_jobs: Api<CronJob> = cluster.default_namespace();
    until("a job is over", async || {
        let status = cron_jobs.get("tick").await.unwrap().status?;
        status.last_successful_time.and(status.last_schedule_time)
    })
    .await;
    let made = list(&jobs, "app=tick").await.remove(0);
    assert!(made.name_any().starts_with("tick-"));
    assert_eq!(made.owner_references()[0].kind, "CronJob");
    cron_jobs
        .delete("tick", &DeleteParams::background())
        .await
        .unwrap();
    until("its jobs go with it", async || {
        list(&jobs, "app=tick").await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_for_its_pods_ends_goes_on_when_their_node_is_gone() {
    let cluster = Cluster::new(&["node-1"]).await;
    let mut work = job("good");
    work["spec"]["podReplacementPolicy"] = json!("Failed");
    cluster.apply::<Job>(work).await;
    let pods: Api<Pod> = cluster.default_namespace();
    let first = until("it runs", async || {
        let mut pods = list(&pods, "batch.kubernetes.io/job-name=work").await;
        pods.pop()
            .filter(|pod| pod.spec.as_ref().is_some_and(|it| it.node_name.is_some()))
    })
    .await;
    cluster.silence("node-1");
    let nodes = cluster.cluster_wide::<Node>();
    nodes
        .delete("node-1", &DeleteParams::default())
        .await
        .unwrap();
    let jobs: Api<Job> = cluster.default_namespace();
    until("the pod has failed", async || {
        let status = jobs.get("work").await.unwrap().status?;
        (status.failed == Some(1)).then_some(())
    })
    .await;
    until("the pod is gone", async || {
        let found = pods.get_opt(&first.name_any()).await.unwrap();
        found.is_none().then_some(())
    })
    .await;
}
