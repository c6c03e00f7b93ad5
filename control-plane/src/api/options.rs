//! The parameters of list and watch, and the tokens that continue a list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::request::Query;
use super::selectors::{FieldSelector, LabelSelector};
use crate::resources::validate::Path;
use crate::store::Revision;

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

/// `ListOptions`, read and checked.
#[derive(Clone, Debug)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// None when unset; 0 means "any".
    pub resource_version: Option<u64>,
    pub version_match: Option<Match>,
    /// 0: everything.
    pub limit: usize,
    pub page: Option<Page>,
    pub allow_bookmarks: bool,
    /// None when unset: to say no is not the same as to say nothing.
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

/// Where a list goes on: after `after`, in the picture of `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub revision: Revision,
    /// The last key that was given, below the list's prefix.
    pub after: String,
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    start: String,
}

impl Page {
    pub fn token(&self) -> String {
        let token = Token {
            v: "meta.k8s.io/v1".into(),
            rv: self.revision.0,
            start: self.after.clone(),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, ApiError> {
        let invalid = || {
            ApiError::bad_request(
                "continue key is not valid: the token was not made by this server",
            )
        };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        if token.v != "meta.k8s.io/v1" || token.rv == 0 || token.start.is_empty() {
            return Err(invalid());
        }
        Ok(Page {
            revision: Revision(token.rv),
            after: token.start,
        })
    }
}

impl ListOptions {
    pub fn parse(query: &Query) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::bad_request(message);
        let invalid = |error| ApiError::invalid_options("ListOptions", error);
        let labels =
            LabelSelector::parse(query.get("labelSelector")).map_err(|e| bad(e.to_string()))?;
        let fields =
            FieldSelector::parse(query.get("fieldSelector")).map_err(|e| bad(e.to_string()))?;
        let resource_version = match query.get("resourceVersion") {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                let why = format!("strconv.ParseUint: parsing \"{text}\": invalid syntax");
                bad(Path::new("resourceVersion").invalid(text, why).to_string())
            })?),
        };
        let version_match = match query.get("resourceVersionMatch") {
            "" => None,
            "Exact" => Some(Match::Exact),
            "NotOlderThan" => Some(Match::NotOlderThan),
            other => {
                let wrong = Path::new("resourceVersionMatch")
                    .unsupported(other, &["Exact", "NotOlderThan", ""]);
                return Err(invalid(wrong));
            }
        };
        let page = match query.get("continue") {
            "" => None,
            text => Some(Page::parse(text)?),
        };
        let options = ListOptions {
            labels,
            fields,
            resource_version,
            version_match,
            limit: query.number("limit").map_err(bad)?.unwrap_or(0),
            page,
            allow_bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query
                .has("sendInitialEvents")
                .then(|| query.flag("sendInitialEvents")),
            timeout_seconds: query.number("timeoutSeconds").map_err(bad)?,
        };
        options.check(query.flag("watch"))?;
        Ok(options)
    }

    fn check(&self, watch: bool) -> Result<(), ApiError> {
        let forbidden = |field: &str, why: &str| {
            let error = Path::new(field).forbidden(why);
            Err(ApiError::invalid_options("ListOptions", error))
        };
        if watch {
            if self.send_initial_events.is_some() && self.version_match != Some(Match::NotOlderThan)
            {
                return forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                );
            }
            if self.send_initial_events.is_none() && self.version_match.is_some() {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
            return Ok(());
        }
        if self.send_initial_events.is_some() {
            return forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            );
        }
        match (self.version_match, self.resource_version) {
            (Some(_), None) => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            (Some(Match::Exact), Some(0)) => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            (Some(_), _) if self.page.is_some() => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ),
            (None, Some(version)) if self.page.is_some() && version != 0 => {
                Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Uri;

    fn options(query: &str) -> Result<ListOptions, ApiError> {
        let uri: Uri = format!("/x?{query}").parse().expect("a uri");
        ListOptions::parse(&Query::of(&uri))
    }

    #[test]
    fn tokens_come_back_as_they_went() {
        let page = Page {
            revision: Revision(42),
            after: "default/web-1".into(),
        };
        let parsed = options(&format!("continue={}&limit=2", page.token())).expect("options");
        assert_eq!(parsed.page, Some(page));
        assert_eq!(parsed.limit, 2);
        assert!(options("continue=nonsense").is_err());
    }

    #[test]
    fn parameters_that_contradict_each_other_are_refused() {
        for (code, query) in [
            (422, "resourceVersionMatch=Exact"),
            (422, "resourceVersionMatch=Exact&resourceVersion=0"),
            (422, "resourceVersionMatch=Maybe&resourceVersion=1"),
            (400, "resourceVersion=x"),
            (422, "sendInitialEvents=true"),
            (422, "sendInitialEvents=false"),
            (422, "watch=1&sendInitialEvents=true"),
            (422, "watch=1&sendInitialEvents=false"),
            (422, "watch=1&resourceVersionMatch=Exact&resourceVersion=1"),
            (400, "limit=x"),
            (400, "labelSelector=a+b"),
            (400, "fieldSelector=a"),
        ] {
            assert_eq!(
                options(query).map(|_| ()).map_err(|e| e.code.as_u16()),
                Err(code),
                "{query}"
            );
        }
        let refused = options("resourceVersionMatch=Exact").unwrap_err();
        assert_eq!(
            refused.message,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
        );
        assert!(options("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true").is_ok());
        assert!(
            options("watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan").is_ok()
        );
        assert!(options("resourceVersion=0&limit=500").is_ok());
    }
}
