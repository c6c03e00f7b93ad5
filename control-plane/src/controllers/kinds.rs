//! Which kinds the API server has, asked of itself, so that kinds that nobody here knows are handled too.

use kube::api::ApiResource;
use kube::discovery::{Discovery, Scope};

#[derive(Clone, Debug)]
pub(super) struct ServedKind {
    pub(super) resource: ApiResource,
    pub(super) namespaced: bool,
    verbs: Vec<String>,
}

/// A kind as one text: `apps/v1/Deployment`.
pub(super) fn name_of(api_version: &str, kind: &str) -> String {
    format!("{api_version}/{kind}")
}

impl ServedKind {
    #[cfg(test)]
    pub(super) fn namespaced(api_version: &str, kind: &str, verbs: &[&str]) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = kube::core::GroupVersionKind::gvk(group, version, kind);
        Self {
            resource: ApiResource::from_gvk(&kind),
            namespaced: true,
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        }
    }

    pub(super) fn name(&self) -> String {
        name_of(&self.resource.api_version, &self.resource.kind)
    }

    pub(super) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// Events are many, own nothing and are owned by nothing.
    pub(super) fn is_event(&self) -> bool {
        self.resource.kind == "Event"
            && matches!(self.resource.group.as_str(), "" | "events.k8s.io")
    }
}

/// Every kind in its group's preferred version.
pub(super) async fn served(client: &kube::Client) -> Result<Vec<ServedKind>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let resources = discovery
        .groups_alphabetical()
        .into_iter()
        .flat_map(|group| group.recommended_resources());
    let kinds = resources.map(|(resource, capabilities)| ServedKind {
        resource,
        namespaced: capabilities.scope == Scope::Namespaced,
        verbs: capabilities.operations,
    });
    Ok(kinds.collect())
}
