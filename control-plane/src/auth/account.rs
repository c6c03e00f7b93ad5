//! A service account's name as a user.

/// What namespace and name follow in the user name.
const PREFIX: &str = "system:serviceaccount:";

/// The user name of a service account.
pub fn service_account(namespace: &str, name: &str) -> String {
    format!("{PREFIX}{namespace}:{name}")
}

/// Namespace and name of the service account that the user name is of, if it is.
pub fn service_account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}
