//! All roles and bindings as one value that answers who may do what. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef as Reference, Subject,
};

use super::{GROUP, Rule};
use crate::auth::{Attributes, User, service_account};

/// What a binding may refer to, from where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleRef {
    ClusterRole(String),
    /// Namespace and name.
    Role(String, String),
}

impl RoleRef {
    /// What a binding in `namespace` (empty for those of the cluster) means by its reference.
    pub fn of(reference: &Reference, namespace: &str) -> Self {
        match reference.kind.as_str() {
            "Role" => Self::Role(namespace.to_owned(), reference.name.clone()),
            _ => Self::ClusterRole(reference.name.clone()),
        }
    }

    /// The plural of its kind, its namespace, its name.
    pub fn place(&self) -> (&'static str, &str, &str) {
        match self {
            Self::ClusterRole(name) => ("clusterroles", "", name),
            Self::Role(namespace, name) => ("roles", namespace, name),
        }
    }
}

/// The objects that a policy is made of, by key. What is absent is the empty default.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    pub rules: BTreeMap<RoleRef, Arc<[Rule]>>,
    /// Namespace and name.
    pub bindings: BTreeMap<(String, String), RoleBinding>,
    pub cluster_bindings: BTreeMap<String, ClusterRoleBinding>,
}

impl Roles {
    pub fn put_cluster_role(&mut self, name: &str, role: ClusterRole) {
        let key = RoleRef::ClusterRole(name.to_owned());
        self.rules.insert(key, rules(role.rules));
    }

    pub fn put_role(&mut self, namespace: &str, name: &str, role: Role) {
        let key = RoleRef::Role(namespace.to_owned(), name.to_owned());
        self.rules.insert(key, rules(role.rules));
    }
}

fn rules(rules: Option<Vec<PolicyRule>>) -> Arc<[Rule]> {
    rules.into_iter().flatten().map(Rule::from).collect()
}

/// A role that a subject has.
struct Grant {
    /// None: there is no such role.
    rules: Option<Arc<[Rule]>>,
    role: RoleRef,
    /// Which binding gives which role to whom, in words.
    origin: String,
}

/// Who has what: by user, and by group.
#[derive(Default)]
struct Grants {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

impl Grants {
    fn add(&mut self, subject: &Subject, namespace: &str, grant: Grant) {
        let name = subject.name.clone();
        let (map, key) = match subject.kind.as_str() {
            "Group" if subject.api_group.as_deref() == Some(GROUP) => (&mut self.groups, name),
            "User" if subject.api_group.as_deref() == Some(GROUP) => (&mut self.users, name),
            "ServiceAccount" => {
                let own = subject.namespace.as_deref().filter(|own| !own.is_empty());
                let namespace = own.unwrap_or(namespace);
                (&mut self.users, service_account(namespace, &name))
            }
            _ => return,
        };
        map.entry(key).or_default().push(grant);
    }

    fn of<'a>(&'a self, user: &User) -> impl Iterator<Item = &'a Grant> {
        let by_name = self.users.get(&user.name).into_iter();
        let by_group: Vec<_> = user
            .groups
            .iter()
            .filter_map(|group| self.groups.get(group))
            .collect();
        by_name.chain(by_group).flatten()
    }
}

/// What RBAC says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Which binding allows it, in words.
    Allowed(String),
    /// No rule allows it. `problems` says which roles that are bound to the user are not there; empty if none.
    NoOpinion { problems: String },
}

/// All that RBAC allows.
#[derive(Default)]
pub struct Policy {
    rules: BTreeMap<RoleRef, Arc<[Rule]>>,
    cluster: Grants,
    namespaces: HashMap<String, Grants>,
}

impl Policy {
    pub fn new(roles: &Roles) -> Self {
        let mut policy = Self {
            rules: roles.rules.clone(),
            ..Self::default()
        };
        for (name, binding) in &roles.cluster_bindings {
            let origin = format!("ClusterRoleBinding {name:?}");
            let role = RoleRef::of(&binding.role_ref, "");
            for subject in binding.subjects.iter().flatten() {
                let grant = policy.grant(&origin, &role, subject, "");
                policy.cluster.add(subject, "", grant);
            }
        }
        for ((namespace, name), binding) in &roles.bindings {
            let origin = format!("RoleBinding {:?}", format!("{name}/{namespace}"));
            let role = RoleRef::of(&binding.role_ref, namespace);
            for subject in binding.subjects.iter().flatten() {
                let grant = policy.grant(&origin, &role, subject, namespace);
                let grants = policy.namespaces.entry(namespace.clone()).or_default();
                grants.add(subject, namespace, grant);
            }
        }
        policy
    }

    fn grant(&self, origin: &str, role: &RoleRef, subject: &Subject, namespace: &str) -> Grant {
        let whom = match subject.kind.as_str() {
            "ServiceAccount" => {
                let namespace = subject.namespace.as_deref().unwrap_or(namespace);
                format!(
                    "ServiceAccount {:?}",
                    format!("{}/{namespace}", subject.name)
                )
            }
            kind => format!("{kind} {:?}", subject.name),
        };
        let (kind, name) = match role {
            RoleRef::ClusterRole(name) => ("ClusterRole", name),
            RoleRef::Role(_, name) => ("Role", name),
        };
        Grant {
            rules: self.rules.get(role).cloned(),
            role: role.clone(),
            origin: format!("{origin} of {kind} {name:?} to {whom}"),
        }
    }

    /// What is granted to the user in the namespace; in the whole cluster if that is empty.
    fn grants<'a>(&'a self, user: &User, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let here = self.namespaces.get(namespace).map(|grants| grants.of(user));
        self.cluster.of(user).chain(here.into_iter().flatten())
    }

    /// Whether a rule allows the request to the user.
    pub fn authorize(&self, user: &User, a: &Attributes<'_>) -> Verdict {
        let mut problems: Vec<String> = Vec::new();
        // Paths belong to no namespace.
        let namespace = if a.is_resource_request() {
            a.namespace
        } else {
            ""
        };
        for grant in self.grants(user, namespace) {
            match &grant.rules {
                Some(rules) if rules.iter().any(|rule| rule.allows(a)) => {
                    return Verdict::Allowed(format!("RBAC: allowed by {}", grant.origin));
                }
                Some(_) => {}
                None => problems.push(not_found(&grant.role)),
            }
        }
        problems.dedup();
        let problems = match problems.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        };
        Verdict::NoOpinion { problems }
    }

    /// All rules that the user has in the namespace, and whether they may be incomplete.
    pub fn rules_of(&self, user: &User, namespace: &str) -> (Vec<Rule>, bool) {
        let (mut all, mut incomplete) = (Vec::new(), false);
        for grant in self.grants(user, namespace) {
            match &grant.rules {
                Some(rules) => all.extend(rules.iter().cloned()),
                None => incomplete = true,
            }
        }
        (all, incomplete)
    }

    /// The rules of a role; None if there is none such.
    pub fn role(&self, role: &RoleRef) -> Option<&[Rule]> {
        self.rules.get(role).map(|rules| &**rules)
    }
}

fn not_found(role: &RoleRef) -> String {
    let (plural, _, name) = role.place();
    format!(
        "{}.{GROUP} {name:?} not found",
        plural.trim_end_matches('s')
    )
}
