//! What is known of policies, namespaces and pods, and how one object's change alters it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::types::{Labels, Pod, Policy};
use crate::cluster::{Name, ObjectKey};

/// Everything that decides on packets and comes from the API.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// This node.
    pub node: Name,
    pub policies: BTreeMap<ObjectKey, Arc<Policy>>,
    /// The labels of namespaces. Known only while there are policies.
    pub namespaces: BTreeMap<Name, Labels>,
    /// All pods with a network of their own. Known only while there are policies.
    pub pods: BTreeMap<ObjectKey, Arc<Pod>>,
    /// Everything above has been listed in full, so that an absence means something.
    pub complete: bool,
}

impl Default for View {
    fn default() -> Self {
        Self {
            node: "".into(),
            policies: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            complete: false,
        }
    }
}

impl View {
    /// The pods of this node, by the names of their links.
    pub fn local(&self) -> BTreeMap<&str, (&ObjectKey, &Pod)> {
        let pods = self.pods.iter();
        pods.filter_map(|(key, pod)| Some((pod.link.as_deref()?, (key, &**pod))))
            .collect()
    }

    /// The policies that select a pod, in the order of their names.
    pub fn selecting<'a>(
        &'a self,
        key: &'a ObjectKey,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Policy)> + 'a {
        use kube::core::SelectorExt as _;
        let first = ObjectKey {
            namespace: key.namespace.clone(),
            name: "".into(),
        };
        self.policies
            .range(first..)
            .take_while(|(of, _)| of.namespace == key.namespace)
            .filter(|(_, policy)| policy.pods.matches(&pod.labels))
            .map(|(of, policy)| (of, &**policy))
    }
}
