//! RBAC without a server: matching, escalation, the default roles, their repair.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::repair::{self, Repair};
use super::*;
use crate::auth::{Attributes, MASTERS, SERVICE_ACCOUNTS, User};

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn rule(value: Value) -> Rule {
    Rule::from(of::<k8s_openapi::api::rbac::v1::PolicyRule>(value))
}

fn request<'a>(
    verb: &'a str,
    resource: &'a str,
    namespace: &'a str,
    name: &'a str,
) -> Attributes<'a> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        verb,
        resource,
        subresource,
        namespace,
        name,
        ..Attributes::default()
    }
}

fn user(name: &str, groups: &[&str]) -> User {
    User::authenticated(name, groups.iter().map(|group| (*group).to_owned()))
}

#[test]
fn a_rule_allows_what_it_names() {
    let cases = [
        (
            true,
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}),
            request("get", "pods", "n", "p"),
        ),
        (
            false,
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}),
            request("get", "pods/log", "n", "p"),
        ),
        (
            false,
            json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["pods"]}),
            request("get", "pods", "n", "p"),
        ),
        (
            true,
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
            request("sing", "pods/log", "n", "p"),
        ),
        (
            true,
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["*/log"]}),
            request("get", "pods/log", "n", "p"),
        ),
        (
            false,
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["*/log"]}),
            request("get", "pods", "n", "p"),
        ),
        (
            true,
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p", "q"]}),
            request("get", "pods", "n", "q"),
        ),
        (
            false,
            json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"]}),
            request("list", "pods", "n", ""),
        ),
        (
            false,
            json!({"verbs": ["get"], "nonResourceURLs": ["*"]}),
            request("get", "pods", "n", "p"),
        ),
    ];
    for (allowed, text, a) in cases {
        assert_eq!(rule(text.clone()).allows(&a), allowed, "{text} {a:?}");
    }
    let urls = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/logs/*"]}));
    for (allowed, path) in [
        (true, "/healthz"),
        (false, "/healthz/etcd"),
        (true, "/logs/a/b"),
        (false, "/logs"),
    ] {
        let a = Attributes {
            verb: "get",
            path,
            ..Attributes::default()
        };
        assert_eq!(urls.allows(&a), allowed, "{path}");
    }
}

fn policy() -> Policy {
    let mut roles = Roles::default();
    let reads =
        |what: &str| json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [what]}]});
    roles.put_cluster_role("pods", of::<ClusterRole>(reads("pods")));
    roles.put_role("a", "maps", of::<Role>(reads("configmaps")));
    let subject = |kind: &str, name: &str| match kind {
        "ServiceAccount" => json!({"kind": kind, "name": name}),
        _ => json!({"kind": kind, "name": name, "apiGroup": GROUP}),
    };
    let bound = |role: (&str, &str), subjects: Vec<Value>| json!({"roleRef": {"apiGroup": GROUP, "kind": role.0, "name": role.1}, "subjects": subjects});
    let mut put = |namespace: &str, name: &str, value: Value| {
        let key = (namespace.to_owned(), name.to_owned());
        roles.bindings.insert(key, of::<RoleBinding>(value));
    };
    put(
        "a",
        "b",
        bound(
            ("Role", "maps"),
            vec![subject("User", "u"), subject("ServiceAccount", "s")],
        ),
    );
    put(
        "a",
        "c",
        bound(
            ("ClusterRole", "pods"),
            vec![subject("Group", "system:serviceaccounts:b")],
        ),
    );
    put(
        "b",
        "lost",
        bound(("Role", "maps"), vec![subject("User", "u")]),
    );
    let all = bound(("ClusterRole", "pods"), vec![subject("Group", "readers")]);
    roles
        .cluster_bindings
        .insert("readers".to_owned(), of::<ClusterRoleBinding>(all));
    Policy::new(&roles)
}

#[test]
fn bindings_give_roles_to_users_groups_and_accounts_where_they_are() {
    let policy = policy();
    let allowed = |user: &User, what: &str, namespace: &str| {
        matches!(
            policy.authorize(user, &request("get", what, namespace, "x")),
            Verdict::Allowed(_)
        )
    };
    assert!(allowed(&user("u", &[]), "configmaps", "a"));
    assert!(
        !allowed(&user("u", &[]), "configmaps", "b"),
        "the binding there has no role"
    );
    assert!(!allowed(&user("u", &[]), "pods", "a"));
    assert!(allowed(
        &user("system:serviceaccount:a:s", &[]),
        "configmaps",
        "a"
    ));
    assert!(!allowed(
        &user("system:serviceaccount:b:s", &[]),
        "configmaps",
        "a"
    ));
    let other = user(
        "system:serviceaccount:b:t",
        &[SERVICE_ACCOUNTS, "system:serviceaccounts:b"],
    );
    assert!(allowed(&other, "pods", "a") && !allowed(&other, "pods", "b"));
    for namespace in ["a", "z", ""] {
        assert!(allowed(&user("v", &["readers"]), "pods", namespace));
    }
    // The name of a group is no name of a user.
    assert!(!allowed(&user("readers", &[]), "pods", "a"));
}

#[test]
fn a_verdict_says_why() {
    let policy = policy();
    let verdict = |user: &User, namespace: &str| {
        policy.authorize(user, &request("get", "configmaps", namespace, "x"))
    };
    assert_eq!(
        verdict(&user("u", &[]), "a"),
        Verdict::Allowed(
            "RBAC: allowed by RoleBinding \"b/a\" of Role \"maps\" to User \"u\"".to_owned()
        )
    );
    assert_eq!(
        verdict(&user("system:serviceaccount:a:s", &[]), "a"),
        Verdict::Allowed(
            "RBAC: allowed by RoleBinding \"b/a\" of Role \"maps\" to ServiceAccount \"s/a\""
                .to_owned()
        )
    );
    let problems = "RBAC: role.rbac.authorization.k8s.io \"maps\" not found".to_owned();
    assert_eq!(
        verdict(&user("u", &[]), "b"),
        Verdict::NoOpinion { problems }
    );
    assert_eq!(
        verdict(&user("w", &[]), "b"),
        Verdict::NoOpinion {
            problems: String::new()
        }
    );
}

#[test]
fn what_is_missing_is_named_as_upstream_names_it() {
    let own = [rule(
        json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}),
    )];
    let asked = [
        rule(
            json!({"verbs": ["get", "create", "delete"], "apiGroups": [""], "resources": ["pods", "secrets"]}),
        ),
        rule(json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]})),
        rule(
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}),
        ),
    ];
    assert_eq!(
        described(&missing(&own, &asked)),
        "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\" \"delete\"]}\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"create\" \"delete\"]}\n\
         {NonResourceURLs:[\"/metrics\"], Verbs:[\"get\"]}"
    );
    assert_eq!(missing(&asked, &asked), []);
}

fn words(all: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    subsequence(all, 0..=all.len()).prop_map(|some| some.into_iter().map(str::to_owned).collect())
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let of_resources = (
        words(&["get", "list", "*"]),
        words(&["", "apps", "*"]),
        words(&["pods", "pods/log", "*/log", "*"]),
        words(&["a", "b"]),
    );
    let of_resources = of_resources.prop_map(|(verbs, groups, resources, names)| Rule {
        verbs,
        groups,
        resources,
        names,
        urls: Vec::new(),
    });
    let of_paths = (
        words(&["get", "list", "*"]),
        words(&["/a", "/a/*", "/*", "*"]),
    );
    let of_paths = of_paths.prop_map(|(verbs, urls)| Rule {
        verbs,
        urls,
        ..Rule::default()
    });
    prop_oneof![3 => of_resources, 1 => of_paths]
}

fn any_request() -> impl Strategy<Value = Attributes<'static>> {
    let resource = (
        select(&["get", "list", "sing"][..]),
        select(&["", "apps", "x"][..]),
        select(&["pods", "pods/log", "x", "x/log"][..]),
        select(&["", "a", "b", "c"][..]),
    );
    let resource = resource.prop_map(|(verb, group, resource, name)| Attributes {
        group,
        ..request(verb, resource, "n", name)
    });
    let path = (
        select(&["get", "list", "sing"][..]),
        select(&["/a", "/a/b", "/c"][..]),
    );
    let path = path.prop_map(|(verb, path)| Attributes {
        verb,
        path,
        ..Attributes::default()
    });
    prop_oneof![3 => resource, 1 => path]
}

proptest! {
    #[test]
    fn nobody_gains_by_rules_that_it_may_give(
        own in prop::collection::vec(any_rule(), 0..4),
        asked in prop::collection::vec(any_rule(), 0..3),
        a in any_request(),
    ) {
        let allows = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(&a));
        let lacking = missing(&own, &asked);
        if allows(&asked) && !allows(&own) {
            prop_assert!(allows(&lacking), "{lacking:?}");
        }
        // With what was missing, nothing is.
        let all: Vec<Rule> = own.into_iter().chain(lacking).collect();
        prop_assert_eq!(missing(&all, &asked), vec![]);
    }
}

#[test]
fn the_defaults_are_valid_and_refer_to_each_other() {
    let mut names = BTreeSet::new();
    for role in defaults::cluster_roles() {
        assert_eq!(
            crate::resources::Strategy::validate(&role, None),
            vec![],
            "{:?}",
            role.metadata.name
        );
        assert!(names.insert(role.metadata.name.unwrap()));
    }
    for binding in defaults::cluster_role_bindings() {
        assert_eq!(crate::resources::Strategy::validate(&binding, None), vec![]);
        assert!(
            names.contains(&binding.role_ref.name),
            "{}",
            binding.role_ref.name
        );
    }
    for (role, binding) in defaults::local_roles() {
        assert_eq!(crate::resources::Strategy::validate(&role, None), vec![]);
        assert_eq!(crate::resources::Strategy::validate(&binding, None), vec![]);
        assert_eq!(
            role.metadata.name.as_deref(),
            Some(binding.role_ref.name.as_str())
        );
    }
}

#[test]
fn the_defaults_let_the_parts_work_and_no_more() {
    let policy = defaults::policy();
    let may =
        |user: &User, a: &Attributes<'_>| matches!(policy.authorize(user, a), Verdict::Allowed(_));
    let scheduler = User::scheduler();
    assert!(may(
        &scheduler,
        &request("create", "pods/binding", "n", "p")
    ));
    assert!(!may(&scheduler, &request("get", "secrets", "n", "s")));
    assert!(may(
        &User::controller_manager(),
        &request("delete", "pods", "n", "p")
    ));
    assert!(!may(
        &User::controller_manager(),
        &request("create", "nodes", "", "")
    ));
    let joining = user("system:bootstrap:x", &["system:bootstrappers"]);
    let csr = Attributes {
        group: "certificates.k8s.io",
        ..request("create", "certificatesigningrequests", "", "")
    };
    assert!(may(&joining, &csr) && !may(&user("x", &[]), &csr));
    assert!(may(
        &user("x", &[MASTERS]),
        &request("sing", "anything", "", "")
    ));
}

#[test]
fn a_repair_gives_back_what_is_missing_and_keeps_what_was_added() {
    let wanted: ClusterRole = of(json!({
        "metadata": {"name": "r", "labels": {"l": "1"}, "annotations": {repair::AUTO_UPDATE: "true"}},
        "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}],
    }));
    assert_eq!(repair::cluster_role(&wanted, &wanted), None);
    let mut there = wanted.clone();
    there.metadata.labels = Some([("mine".to_owned(), "2".to_owned())].into());
    there.rules = of(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["*"]}]));
    let mended = repair::cluster_role(&there, &wanted).unwrap();
    assert_eq!(mended.metadata.labels.clone().unwrap().len(), 2);
    assert_eq!(mended.rules.clone().unwrap().len(), 2);
    assert_eq!(repair::cluster_role(&mended, &wanted), None);
    there.metadata.annotations =
        Some([(repair::AUTO_UPDATE.to_owned(), "false".to_owned())].into());
    assert_eq!(repair::cluster_role(&there, &wanted), None);
}

#[test]
fn a_binding_gets_its_subjects_back_and_with_another_role_is_replaced() {
    let wanted = defaults::cluster_role_bindings()
        .into_iter()
        .find(|b| b.subjects.is_some())
        .unwrap();
    let mut there = wanted.clone();
    there.subjects = Some(of(
        json!([{"kind": "User", "name": "me", "apiGroup": GROUP}]),
    ));
    let Repair::Update(mended) = repair::cluster_binding(&there, &wanted) else {
        panic!("nothing was repaired");
    };
    assert_eq!(
        mended.subjects.clone().unwrap().len(),
        1 + wanted.subjects.clone().unwrap().len()
    );
    assert_eq!(repair::cluster_binding(&mended, &wanted), Repair::Nothing);
    there.role_ref.name = "other".to_owned();
    assert_eq!(repair::cluster_binding(&there, &wanted), Repair::Replace);
}
