//! Acting as somebody else: the `Impersonate-*` headers, and what the caller has to be allowed for them.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue};

use super::access;
use super::error::ApiError;
use super::registry::Registry;
use super::request;
use crate::auth::{
    AUTHENTICATED, Attributes, SERVICE_ACCOUNTS, UNAUTHENTICATED, User, service_account_of,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Who the request wants to be; the caller itself if it says nothing. Refused if the caller may not be that.
pub(super) async fn effective(
    registry: &Registry,
    caller: User,
    headers: &HeaderMap,
) -> Result<User, ApiError> {
    let Some(wanted) = asked(headers)? else {
        return Ok(caller);
    };
    for attributes in wanted.needs() {
        if let Some(why) = access::refusal(registry, &caller, &attributes).await? {
            let (group, resource, name) = (attributes.group, attributes.resource, attributes.name);
            return Err(ApiError::forbidden(group, resource, name, &why));
        }
    }
    Ok(wanted.user())
}

/// What the headers say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Impersonation {
    name: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

fn asked(headers: &HeaderMap) -> Result<Option<Impersonation>, ApiError> {
    let texts = |name: &str| -> Result<Vec<String>, ApiError> {
        let all = headers.get_all(name).iter();
        all.map(|value| text(name, value)).collect()
    };
    let first = |name: &str| -> Result<String, ApiError> {
        Ok(texts(name)?.into_iter().next().unwrap_or_default())
    };
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.insert(request::decoded(key).to_lowercase(), texts(name.as_str())?);
        }
    }
    let wanted = Impersonation {
        name: first(USER)?,
        groups: texts(GROUP)?,
        uid: first(UID)?,
        extra,
    };
    if wanted == Impersonation::default() {
        return Ok(None);
    }
    if wanted.name.is_empty() {
        return Err(ApiError::internal(
            "groups, a uid or extra values are to be impersonated, without a user: send Impersonate-User too",
        ));
    }
    Ok(Some(wanted))
}

/// What a header says. One that cannot be read is refused: without it the request would run as somebody else.
fn text(name: &str, value: &HeaderValue) -> Result<String, ApiError> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::to_owned)
        .map_err(|_| ApiError::bad_request(format!("the header {name} is not valid UTF-8")))
}

impl Impersonation {
    /// What the caller must be allowed, each with the verb `impersonate`.
    fn needs(&self) -> Vec<Attributes<'_>> {
        let of = |group, resource, name| Attributes {
            verb: "impersonate",
            group,
            resource,
            name,
            ..Attributes::default()
        };
        let who = match service_account_of(&self.name) {
            Some((namespace, name)) => Attributes {
                namespace,
                ..of("", "serviceaccounts", name)
            },
            None => of("", "users", &self.name),
        };
        let mut all = vec![who];
        all.extend(self.groups.iter().map(|group| of("", "groups", group)));
        if !self.uid.is_empty() {
            all.push(of(AUTHENTICATION, "uids", &self.uid));
        }
        for (key, values) in &self.extra {
            all.extend(values.iter().map(|value| Attributes {
                subresource: key,
                ..of(AUTHENTICATION, "userextras", value)
            }));
        }
        all
    }

    fn user(self) -> User {
        let mut groups = self.groups;
        if groups.is_empty()
            && let Some((namespace, _)) = service_account_of(&self.name)
        {
            groups.push(SERVICE_ACCOUNTS.to_owned());
            groups.push(format!("{SERVICE_ACCOUNTS}:{namespace}"));
        }
        let anonymous = User::anonymous();
        let known = if self.name == anonymous.name {
            UNAUTHENTICATED
        } else {
            AUTHENTICATED
        };
        if !groups
            .iter()
            .any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED)
        {
            groups.push(known.to_owned());
        }
        User {
            name: self.name,
            groups,
            uid: self.uid,
            extra: self.extra,
            same_machine: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Option<Impersonation> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        asked(&headers).expect("a user is named")
    }

    #[test]
    fn each_thing_that_is_claimed_has_to_be_allowed() {
        assert_eq!(read(&[]), None);
        let wanted = read(&[
            ("impersonate-user", "jo"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-example.com%2fscope", "x"),
        ])
        .expect("somebody");
        let needs: Vec<_> = wanted
            .needs()
            .iter()
            .map(|a| (a.group, a.resource, a.subresource, a.name))
            .collect();
        assert_eq!(
            needs,
            [
                ("", "users", "", "jo"),
                ("", "groups", "", "a"),
                ("", "groups", "", "b"),
                (AUTHENTICATION, "uids", "", "7"),
                (AUTHENTICATION, "userextras", "example.com/scope", "x"),
            ]
        );
        let user = wanted.user();
        assert_eq!(user.groups, ["a", "b", AUTHENTICATED]);
        assert_eq!(user.extra["example.com/scope"], ["x"]);
    }

    #[test]
    fn a_service_account_has_its_groups_and_anonymous_is_not_authenticated() {
        let account =
            read(&[("impersonate-user", "system:serviceaccount:ns:me")]).expect("somebody");
        let need = account.needs()[0];
        assert_eq!(
            (need.resource, need.namespace, need.name),
            ("serviceaccounts", "ns", "me")
        );
        assert_eq!(
            account.user().groups,
            [SERVICE_ACCOUNTS, "system:serviceaccounts:ns", AUTHENTICATED]
        );
        let nobody = read(&[("impersonate-user", "system:anonymous")]).expect("somebody");
        assert_eq!(nobody.user().groups, [UNAUTHENTICATED]);
    }

    #[test]
    fn names_of_any_letters_are_read_and_what_is_no_text_is_refused() {
        let of = |bytes: &[u8]| {
            let value = HeaderValue::from_bytes(bytes).expect("a value");
            asked(&HeaderMap::from_iter([(
                http::HeaderName::from_static(USER),
                value,
            )]))
        };
        let jose = of("josé".as_bytes()).expect("text").expect("somebody");
        assert_eq!(jose.name, "josé");
        assert!(of(b"jos\xe9").is_err());
    }

    #[test]
    fn groups_without_a_user_are_nobody() {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static(GROUP),
            "system:masters".parse().expect("a value"),
        )]);
        assert!(asked(&headers).is_err());
    }
}
