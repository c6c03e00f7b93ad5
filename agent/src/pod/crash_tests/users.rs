//! Agents that are killed at the steps that are other where a pod has users of its own.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::{Cuts, cuts, live_as, pod};
use crate::pod::testing::node::Node;
use crate::runtime::testing::layered_archive;

/// A pod with everything that takes steps of its own, with users of its own and an image of several layers, each of which is mounted under the pod's ids.
fn pod_with_users(notes: &Path) -> Value {
    let mut pod = pod(notes);
    pod["hostUsers"] = json!(false);
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        let container = &mut pod[kind][0];
        let script = container["args"][0].as_str().unwrap();
        let script = format!(
            "test -s /opt/last -a ! -e /opt/first -a $(busybox stat -c %u /opt/last) = 0 || exit 8; \
             read _ first _ </proc/self/uid_map; test $first != 0 || exit 7; {script}"
        );
        container["args"] = json!([script]);
        container["image"] = json!("layered:test");
    }
    pod["volumes"][3]["image"]["reference"] = json!("layered:test");
    pod
}

/// What is other where a pod has users of its own: its containers' roots, the images of its volumes, and its network namespace,
/// which its users own.
fn is_of_users(step: &str) -> bool {
    let kinds = ["Snapshots/", "Containers/", "Tasks/", "attach", "detach"];
    kinds.iter().any(|kind| step.starts_with(kind))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_be_killed_whenever_it_has_done_something_for_a_pod_with_users_of_its_own() {
    let Some(node) = Node::new().await else {
        return;
    };
    // Roots are reached through it.
    set_permissions(node.daemon.path(), Permissions::from_mode(0o711)).unwrap();
    let archive = node.daemon.path().join("images/layered.tar");
    layered_archive(
        &archive,
        "layered:test",
        json!({"Entrypoint": ["/bin/sh", "-c"]}),
    );
    node.api
        .put_config_map("authority", json!({"ca.crt": "authority"}));
    let [making, removing] = live_as(&node, "mapped", Cuts::default(), pod_with_users).await;
    let mut making = cuts(&making, is_of_users).into_iter();
    let mut removing = cuts(&removing, is_of_users).into_iter();
    for round in 0.. {
        let cuts = Cuts {
            making: making.next(),
            removing: removing.next(),
        };
        if cuts.making.is_none() && cuts.removing.is_none() {
            break;
        }
        live_as(&node, &format!("mapped-{round}"), cuts, pod_with_users).await;
    }
}
