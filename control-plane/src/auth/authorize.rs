//! The authorizer: may this user do this? Pure; the API server calls it once for each request.

use super::rbac::{Policy, Verdict};
use super::{MASTERS, NODES, Referenced, User, node};

/// What a request asks for. Fields that do not apply are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for paths that are no resource the
    /// HTTP method in lower case.
    pub verb: &'a str,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// The plural; empty when the request is not for a resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty for list, watch, create and deletecollection.
    pub name: &'a str,
    /// The `fieldSelector` of a list or watch, as it was sent. It limits what a node may list.
    pub field_selector: &'a str,
    /// The URL's path.
    pub path: &'a str,
}

impl Attributes<'_> {
    pub(super) fn is_resource_request(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// The authorizer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and why, where there is more to say than who the user is.
    Allow(String),
    /// Allowed to the node `node` if one of its pods, in the request's namespace, refers to the object (see
    /// [`super::references`]); else forbidden, and `hint` says why.
    IfReferredTo {
        node: String,
        object: Referenced,
        hint: String,
    },
    /// Forbidden. The hint says why, where there is more to say than that nothing allows it.
    Deny { hint: String },
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
}

/// Decides on the attributes alone, by `policy` and by what nodes may do. A node's access to one object also needs
/// [`super::node_may_touch`].
pub fn authorize(policy: &Policy, user: &User, a: &Attributes<'_>) -> Decision {
    if user.is_in(MASTERS) {
        return Decision::Allow(String::new());
    }
    let mut hint = String::new();
    let mut if_referred_to = None;
    if user.is_in(NODES)
        && let Some(node) = super::node_name(user)
    {
        match node::authorize(node, a) {
            Ok(()) => return Decision::Allow(String::new()),
            Err(reason) => reason.clone_into(&mut hint),
        }
        if_referred_to = node::if_referred_to(a).map(|object| (node, object));
    }
    match policy.authorize(user, a) {
        Verdict::Allowed(why) => return Decision::Allow(why),
        Verdict::NoOpinion { problems } if hint.is_empty() => hint = problems,
        Verdict::NoOpinion { .. } => {}
    }
    match if_referred_to {
        Some((node, object)) => Decision::IfReferredTo {
            node: node.to_owned(),
            object,
            hint,
        },
        None => Decision::Deny { hint },
    }
}

/// What was refused, in the sentence that clients show after `<resource> "<name>" is forbidden: `.
pub fn refusal(user: &User, a: &Attributes<'_>, hint: &str) -> String {
    let mut text = if a.is_resource_request() {
        let slash = if a.subresource.is_empty() { "" } else { "/" };
        let scope = if a.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", a.namespace)
        };
        format!(
            "User \"{}\" cannot {} resource \"{}{slash}{}\" in API group \"{}\" {scope}",
            user.name, a.verb, a.resource, a.subresource, a.group
        )
    } else {
        format!(
            "User \"{}\" cannot {} path \"{}\"",
            user.name, a.verb, a.path
        )
    };
    if !hint.is_empty() {
        text.push_str(": ");
        text.push_str(hint);
    }
    text
}
