//! Bootstrap tokens: Secrets of `kube-system` with which machines that are to join, or programs that bring them, say who they
//! are (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>). Pure.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;

use super::token::JoinToken;
use super::{BOOTSTRAPPERS, User};

/// The type of such Secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// What the token's id follows in a Secret's name.
const NAME_PREFIX: &str = "bootstrap-token-";
/// How long the name of a group may be beyond its prefix, in bytes.
const GROUP: usize = 256;

/// The name of the Secret that a token would be in.
pub fn secret_name(token: &JoinToken) -> String {
    format!("{NAME_PREFIX}{}", token.id())
}

fn text<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value
        .and_then(|value| std::str::from_utf8(&value.0).ok())
        .unwrap_or_default()
}

/// When a Secret's token ends. None: never. A time that nobody can read is over.
pub fn expiration(secret: &Secret) -> Option<Timestamp> {
    match text(secret, "expiration") {
        "" => None,
        time => Some(time.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
    }
}

/// Who shows `token`, if that is the one in `secret` and it may be shown; else why not.
pub fn bearer(token: &JoinToken, secret: &Secret, now: Timestamp) -> Result<User, String> {
    if secret.type_.as_deref() != Some(TYPE) {
        return Err(format!("the Secret is not of type {TYPE}"));
    }
    if secret.metadata.deletion_timestamp.is_some() {
        return Err("the Secret is being deleted".to_owned());
    }
    let held = format!(
        "{}.{}",
        text(secret, "token-id"),
        text(secret, "token-secret")
    );
    if !token.is(&held) {
        return Err("the Secret holds another token".to_owned());
    }
    if expiration(secret).is_some_and(|end| end <= now) {
        return Err("the token has expired".to_owned());
    }
    if text(secret, "usage-bootstrap-authentication") != "true" {
        return Err("the token is not for authentication".to_owned());
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    for group in text(secret, "auth-extra-groups").split(',') {
        let group = group.trim();
        if group.is_empty() || groups.iter().any(|known| known == group) {
            continue;
        }
        if !is_group(group) {
            return Err(format!(
                "auth-extra-groups: {group:?} is no group of bootstrappers"
            ));
        }
        groups.push(group.to_owned());
    }
    Ok(User::authenticated(token.user_name(), groups))
}

/// No token makes its bearer a member of other groups: who may write Secrets could be anybody then.
fn is_group(name: &str) -> bool {
    let rest = name
        .strip_prefix(BOOTSTRAPPERS)
        .and_then(|rest| rest.strip_prefix(':'));
    rest.is_some_and(|rest| {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        rest.len() <= GROUP
            && rest.bytes().next_back().is_some_and(is_plain)
            && rest
                .bytes()
                .all(|byte| is_plain(byte) || matches!(byte, b':' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(change: &[(&str, &str)]) -> Secret {
        let mut secret = Secret {
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        };
        let good = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("expiration", "2030-01-01T00:00:00Z"),
            ("usage-bootstrap-authentication", "true"),
        ];
        let data = secret.data.get_or_insert_default();
        for (key, value) in good.iter().chain(change) {
            data.insert((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        }
        secret
    }

    fn shown(change: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let token = "abcdef.0123456789abcdef".parse().unwrap();
        let now = "2029-12-31T23:59:59Z".parse().unwrap();
        bearer(&token, &secret(change), now).map(|user| {
            assert_eq!(user.name, "system:bootstrap:abcdef");
            user.groups
        })
    }

    #[test]
    fn a_token_is_good_while_its_secret_says_so() {
        let all = ["system:bootstrappers", "system:authenticated"];
        assert_eq!(shown(&[]).unwrap(), all);
        assert!(shown(&[("expiration", "")]).is_ok());
        for wrong in [
            ("token-secret", "0123456789abcdeg"),
            ("token-id", "abcdeg"),
            ("expiration", "2029-12-31T23:59:59Z"),
            ("expiration", "tomorrow"),
            ("usage-bootstrap-authentication", "True"),
        ] {
            assert!(shown(&[wrong]).is_err(), "{wrong:?}");
        }
        let token = "abcdef.0123456789abcdef".parse().unwrap();
        let mut opaque = secret(&[]);
        opaque.type_ = Some("Opaque".to_owned());
        assert!(bearer(&token, &opaque, Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn further_groups_are_of_bootstrappers_only() {
        let groups = |text| shown(&[("auth-extra-groups", text)]);
        let kubeadm = "system:bootstrappers:kubeadm:default-node-token";
        assert!(groups(kubeadm).unwrap().contains(&kubeadm.to_owned()));
        assert_eq!(groups(" , ").unwrap().len(), 2);
        for wrong in [
            "system:masters",
            "system:bootstrappers:",
            "system:bootstrappers:a-",
            "system:bootstrappers:A",
            "system:bootstrappersa",
        ] {
            assert!(groups(wrong).is_err(), "{wrong}");
        }
    }
}
