"""What programs are made of that are written with the Python client: patches of each kind, watches that resume, informers, the
dynamic client, leader election."""

import os
import queue
import sys
import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.informer import SharedInformer
from kubernetes.leaderelection.electionconfig import Config
from kubernetes.leaderelection.leaderelection import LeaderElection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

namespace = sys.argv[1]
config.load_kube_config()
core = client.CoreV1Api()
WAIT = 60


def labelled(name, **data):
    return {"metadata": {"name": name, "labels": {"by": "program"}}, "data": data}


# Patches: what the client calls them, and what each makes of the object.
core.create_namespaced_config_map(namespace, labelled("patched", a="1", b="2"))
for content_type, body, data in [
    ("application/merge-patch+json", {"data": {"a": None, "c": "3"}}, {"b": "2", "c": "3"}),
    ("application/strategic-merge-patch+json", {"data": {"$patch": "replace", "d": "4"}}, {"d": "4"}),
    ("application/json-patch+json", [{"op": "add", "path": "/data/e", "value": "5"}], {"d": "4", "e": "5"}),
]:
    patched = core.patch_namespaced_config_map("patched", namespace, body, _content_type=content_type)
    assert patched.data == data, (content_type, patched.data)
applied = dict(labelled("patched", d="mine"), apiVersion="v1", kind="ConfigMap")
ways = {"_content_type": "application/apply-patch+yaml", "field_manager": "program"}
try:
    core.patch_namespaced_config_map("patched", namespace, applied, **ways)
    raise AssertionError("no conflict")
except ApiException as refused:
    assert refused.status == 409 and ".data.d" in refused.body, refused
patched = core.patch_namespaced_config_map("patched", namespace, applied, force=True, **ways)
assert patched.data == {"d": "mine", "e": "5"}, patched.data
assert {one.manager for one in patched.metadata.managed_fields} >= {"program"}

# A watch goes on where it was: what happens while nobody watches is not lost, and its server may end it at any time.
listed = core.list_namespaced_config_map(namespace, label_selector="by=program")
watcher = watch.Watch()
core.create_namespaced_config_map(namespace, labelled("first"))
for event in watcher.stream(
    core.list_namespaced_config_map, namespace, resource_version=listed.metadata.resource_version,
    label_selector="by=program", timeout_seconds=WAIT,
):
    assert (event["type"], event["object"].metadata.name) == ("ADDED", "first"), event
    watcher.stop()
core.create_namespaced_config_map(namespace, labelled("second"))
core.delete_namespaced_config_map("first", namespace)
seen = []
for event in watcher.stream(
    core.list_namespaced_config_map, namespace, resource_version=watcher.resource_version,
    label_selector="by=program", allow_watch_bookmarks=True, timeout_seconds=WAIT,
):
    if event["type"] != "BOOKMARK":
        seen.append((event["type"], event["object"].metadata.name))
    if len(seen) == 2:
        watcher.stop()
assert seen == [("ADDED", "second"), ("DELETED", "first")], seen
assert not list(watcher.stream(core.list_namespaced_config_map, namespace, label_selector="by=nobody", timeout_seconds=1))
streamed = watch.Watch().stream(
    core.list_namespaced_config_map, namespace, label_selector="by=program", resource_version_match="NotOlderThan",
    send_initial_events=True, allow_watch_bookmarks=True, timeout_seconds=WAIT,
)
first = [next(streamed) for _ in range(3)]
assert [event["type"] for event in first] == ["ADDED", "ADDED", "BOOKMARK"], first
assert first[2]["raw_object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
streamed.close()

# An informer's cache becomes what is there.
heard = queue.Queue()
informer = SharedInformer(core.list_namespaced_config_map, namespace=namespace, label_selector="by=program")
for kind in ["ADDED", "MODIFIED", "DELETED"]:
    informer.add_event_handler(kind, lambda one, kind=kind: heard.put((kind, one.metadata.name)))
informer.start()
assert {heard.get(timeout=WAIT) for _ in range(2)} == {("ADDED", "patched"), ("ADDED", "second")}
core.patch_namespaced_config_map("second", namespace, {"data": {"k": "v"}})
assert heard.get(timeout=WAIT) == ("MODIFIED", "second")
core.delete_namespaced_config_map("second", namespace)
assert heard.get(timeout=WAIT) == ("DELETED", "second")
assert [one.metadata.name for one in informer.cache.list()] == ["patched"]
informer.stop()

# The dynamic client finds kinds by discovery.
anything = dynamic.DynamicClient(client.ApiClient())
maps = anything.resources.get(api_version="v1", kind="ConfigMap")
assert maps.get(name="patched", namespace=namespace).data.d == "mine"
assert [one.metadata.name for one in maps.get(namespace=namespace, label_selector="by=program").items] == ["patched"]
applied["data"] = {"d": "again"}
done = maps.server_side_apply(body=applied, name="patched", namespace=namespace, field_manager="program")
assert done.data.to_dict() == {"d": "again", "e": "5"}, done
maps.patch(body={"data": {"e": None}}, name="patched", namespace=namespace, content_type="application/merge-patch+json")
event = next(maps.watch(namespace=namespace, name="patched", timeout=WAIT))
assert event["object"].data.to_dict() == {"d": "again"}, event
scales = anything.resources.get(api_version="apps/v1", kind="Deployment").subresources["scale"]
assert scales.kind == "Scale" or scales.name == "deployments/scale", scales
maps.delete(name="patched", namespace=namespace)
created = utils.create_from_dict(
    client.ApiClient(), {"apiVersion": "v1", "kind": "List", "items": [dict(applied, metadata={"name": "made"})]},
    namespace=namespace,
)
assert created[0].metadata.name == "made", created

# One of two leads, and the other one when the first stops.
turns = queue.Queue()


def candidate(name, work):
    lock = LeaseLock("program", namespace, name)
    LeaderElection(Config(lock, 4, 3, 1, work, lambda: turns.put((name, "stopped")))).run()


def leads_a_moment():
    turns.put(("one", "leads"))
    raise RuntimeError("enough")


threading.Thread(target=candidate, args=("one", leads_a_moment), daemon=True).start()
assert turns.get(timeout=WAIT) == ("one", "leads")
threading.Thread(target=candidate, args=("two", lambda: turns.put(("two", "leads"))), daemon=True).start()
assert [turns.get(timeout=WAIT) for _ in range(2)] == [("one", "stopped"), ("two", "leads")]
print("done", flush=True)
# A candidate never ends by itself.
os._exit(0)
