"""What a user of the Python client does, in a namespace with the pod `reached`."""

import sys
import threading

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

namespace = sys.argv[1]
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()

name = "from-python"
created = core.create_namespaced_config_map(
    namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"by": "python"}), data={"k": "v"})
)
assert created.metadata.creation_timestamp.tzinfo is not None
try:
    core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)))
    raise AssertionError("made twice")
except ApiException as refused:
    assert refused.status == 409 and "already exists" in refused.body, refused

# A dict is a strategic merge, a list a JSON patch.
core.patch_namespaced_config_map(name, namespace, {"data": {"l": "w"}})
patched = core.patch_namespaced_config_map(name, namespace, [{"op": "remove", "path": "/data/k"}])
assert patched.data == {"l": "w"}, patched.data

listed = core.list_namespaced_config_map(namespace, label_selector="by=python")
assert [one.metadata.name for one in listed.items] == [name]
first = core.list_namespaced_config_map(namespace, limit=1)
rest = core.list_namespaced_config_map(namespace, _continue=first.metadata._continue)
assert len(first.items) == 1 and len(rest.items) >= 1

seen, watcher = [], watch.Watch()
started = listed.metadata.resource_version


def change():
    core.patch_namespaced_config_map(name, namespace, {"data": {"l": "x"}})
    core.delete_namespaced_config_map(name, namespace)


thread = threading.Thread(target=change)
thread.start()
for event in watcher.stream(
    core.list_namespaced_config_map, namespace, label_selector="by=python", resource_version=started, timeout_seconds=60
):
    seen.append((event["type"], event["object"].data))
    if event["type"] == "DELETED":
        watcher.stop()
thread.join()
assert seen == [("MODIFIED", {"l": "x"}), ("DELETED", {"l": "x"})], seen

apps.create_namespaced_deployment(
    namespace,
    {
        "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"by": "python"}},
            "template": {
                "metadata": {"labels": {"by": "python"}},
                "spec": {"containers": [{"name": "c", "image": "backend:v0.0.1"}]},
            },
        },
    },
)
scale = apps.read_namespaced_deployment_scale(name, namespace)
assert scale.spec.replicas in (0, None) and scale.status.selector == "by=python", scale
apps.patch_namespaced_deployment_scale(name, namespace, {"spec": {"replicas": 0}})
apps.delete_namespaced_deployment(name, namespace, propagation_policy="Foreground")

container = core.read_namespaced_pod("reached", namespace).spec.containers[0].name
said = stream(
    core.connect_get_namespaced_pod_exec, "reached", namespace, container=container,
    command=["/bin/sh", "-c", "echo out; echo err >&2"], stdout=True, stderr=True,
)
assert said.split() == ["out", "err"], said
shell = stream(
    core.connect_get_namespaced_pod_exec, "reached", namespace, container=container,
    command=["/bin/sh", "-c", "read line; echo $line; exit 3"],
    stdin=True, stdout=True, stderr=True, _preload_content=False,
)
shell.write_stdin("a line\n")
shell.run_forever(timeout=60)
assert shell.read_stdout() == "a line\n" and shell.returncode == 3, shell.returncode
assert isinstance(core.read_namespaced_pod_log("reached", namespace, container=container), str)
assert client.VersionApi().get_code().major == "1"
review = client.AuthorizationV1Api().create_self_subject_access_review(
    {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": namespace}}}
)
assert review.status.allowed
print("done")
