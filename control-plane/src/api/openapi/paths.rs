//! The paths of a document: which operations there are on which kind, and which parameters they take.

use serde_json::{Map, Value, json};

use super::Served;
use super::definitions::{self, Dialect, extension, list_name};
use crate::api::{discovery, reviews::Review};
use crate::resources::{
    Kind, Subresource,
    form::{self, Form},
};

/// A query parameter: name, type, meaning.
type Query = (&'static str, &'static str, &'static str);

const PRETTY: Query = (
    "pretty",
    "string",
    "Whether the answer is written for people.",
);
const DRY_RUN: Query = (
    "dryRun",
    "string",
    "All: do everything except storing the change.",
);
const FIELD_MANAGER: Query = ("fieldManager", "string", "Who makes the change.");
const FIELD_VALIDATION: Query = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.",
);
const FORCE: Query = (
    "force",
    "boolean",
    "Whether server-side apply takes over fields of others.",
);

const LIST: &[Query] = &[
    PRETTY,
    (
        "allowWatchBookmarks",
        "boolean",
        "Whether the watch may send bookmarks.",
    ),
    (
        "continue",
        "string",
        "Where the last page of the list ended.",
    ),
    ("fieldSelector", "string", "Which objects, by their fields."),
    ("labelSelector", "string", "Which objects, by their labels."),
    ("limit", "integer", "How many objects a page holds at most."),
    ("resourceVersion", "string", "How new the answer has to be."),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Whether the watch begins with what there is.",
    ),
    ("timeoutSeconds", "integer", "When the call ends."),
    ("watch", "boolean", "Whether changes follow the list."),
];
const READ: &[Query] = &[PRETTY];
const WRITE: &[Query] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Query] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Query] = &[
    PRETTY,
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "How long the object has to end.",
    ),
    ("orphanDependents", "boolean", "Whether dependents stay."),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];

const LOG: &[Query] = &[
    ("container", "string", "Whose output."),
    ("follow", "boolean", "Whether what comes later follows."),
    ("limitBytes", "integer", "How many bytes there are at most."),
    PRETTY,
    (
        "previous",
        "boolean",
        "Whether it is the one's before the last restart.",
    ),
    ("sinceSeconds", "integer", "How old the oldest line is."),
    ("stream", "string", "Which output: All, Stdout or Stderr."),
    ("tailLines", "integer", "How many of the last lines."),
    ("timestamps", "boolean", "Whether each line has its time."),
];
const ATTACH: &[Query] = &[
    ("container", "string", "To which container."),
    ("stderr", "boolean", "Whether there is a stream of errors."),
    ("stdin", "boolean", "Whether there is a stream of input."),
    ("stdout", "boolean", "Whether there is a stream of output."),
    ("tty", "boolean", "Whether there is a terminal."),
];
const EXEC: &[Query] = {
    let [container, stderr, stdin, stdout, tty] =
        [ATTACH[0], ATTACH[1], ATTACH[2], ATTACH[3], ATTACH[4]];
    &[
        ("command", "string", "What to run, and its arguments."),
        container,
        stderr,
        stdin,
        stdout,
        tty,
    ]
};
const PORT_FORWARD: &[Query] = &[("ports", "string", "To which ports.")];
const PROXY: &[Query] = &[("path", "string", "The rest of the path that is asked for.")];

/// An apply comes first, as upstream lists it.
const PATCH_TYPES: [&str; 4] = {
    let [json, merge, strategic] = crate::api::patch::PatchKind::CONTENT_TYPES;
    [crate::api::applying::CONTENT_TYPE, json, merge, strategic]
};

/// What a body holds.
#[derive(Clone, Copy)]
enum Content<'a> {
    /// A value of this definition.
    Of(&'a str),
    /// A patch in one of its forms.
    Patch,
    /// Whatever the one at the other end says.
    Anything,
}

struct Operation<'a> {
    /// In HTTP.
    verb: &'static str,
    action: &'static str,
    query: &'static [Query],
    takes: Option<Content<'a>>,
    gives: Content<'a>,
}

/// What nobody stores and a subresource takes or gives.
pub(super) fn form(subresource: Subresource) -> Option<Form> {
    Some(match subresource {
        Subresource::Scale => form::SCALE,
        Subresource::Binding => form::BINDING,
        Subresource::Eviction => form::EVICTION,
        Subresource::Token => form::TOKEN_REQUEST,
        Subresource::Status
        | Subresource::Approval
        | Subresource::Finalize
        | Subresource::EphemeralContainers
        | Subresource::Resize
        | Subresource::Log
        | Subresource::Exec
        | Subresource::Attach
        | Subresource::PortForward
        | Subresource::Proxy => return None,
    })
}

/// The parameters of a subresource whose body is a stream's.
fn streamed(subresource: Subresource) -> Option<&'static [Query]> {
    Some(match subresource {
        Subresource::Log => LOG,
        Subresource::Exec => EXEC,
        Subresource::Attach => ATTACH,
        Subresource::PortForward => PORT_FORWARD,
        Subresource::Proxy => PROXY,
        _ => return None,
    })
}

pub(super) fn of(served: &Served, dialect: Dialect) -> Map<String, Value> {
    let mut paths = Paths {
        dialect,
        items: Map::new(),
    };
    for kind in &served.kinds {
        paths.of_kind(kind);
    }
    for review in &served.reviews {
        paths.of_review(review);
    }
    paths.items.sort_keys();
    paths.items
}

fn root(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    }
}

struct Paths {
    dialect: Dialect,
    items: Map<String, Value>,
}

impl Paths {
    fn of_kind(&mut self, kind: &Kind) {
        let (own, list) = ((kind.definition)(), list_name(kind));
        let (options, status) = (definitions::delete_options(), definitions::status());
        let (own, list) = (Content::Of(&own), Content::Of(&list));
        let (options, status) = (Content::Of(&options), Content::Of(&status));
        let about = extension(kind.group, kind.version, kind.kind);
        let operation = |verb, action, query, takes, gives| Operation {
            verb,
            action,
            query,
            takes,
            gives,
        };
        let listing = operation("get", "list", LIST, None, list);
        let root = root(kind.group, kind.version);
        let collection = if kind.namespaced {
            let everywhere = format!("{root}/{}", kind.plural);
            self.add(everywhere, &about, &[listing]);
            format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
        } else {
            format!("{root}/{}", kind.plural)
        };
        let gone = if kind.returns_deleted_object {
            own
        } else {
            status
        };
        let object = format!("{collection}/{{name}}");
        if kind.computed {
            let reading = operation("get", "get", READ, None, own);
            self.add(object, &about, &[reading]);
            let listing = operation("get", "list", LIST, None, list);
            self.add(collection, &about, &[listing]);
            return;
        }
        self.add(
            object.clone(),
            &about,
            &[
                operation("get", "get", READ, None, own),
                operation("put", "put", WRITE, Some(own), own),
                operation("patch", "patch", PATCH, Some(Content::Patch), own),
                operation("delete", "delete", DELETE, Some(options), gone),
            ],
        );
        for subresource in kind.subresources {
            self.of_subresource(kind, *subresource, &object);
        }
        if kind.has(Subresource::Binding) {
            let bindings = format!("{root}/namespaces/{{namespace}}/bindings");
            self.of_form(bindings, &form::BINDING);
        }
        let mut operations = vec![
            operation("get", "list", LIST, None, list),
            operation("post", "post", WRITE, Some(own), own),
        ];
        if kind.deletes_collections() {
            let delete = operation("delete", "deletecollection", DELETE, Some(options), list);
            operations.push(delete);
        }
        self.add(collection, &about, &operations);
    }

    fn of_subresource(&mut self, kind: &Kind, subresource: Subresource, object: &str) {
        let Some(sub) = discovery::sub(kind, subresource) else {
            return;
        };
        let definition = match form(subresource) {
            Some(form) => (form.definition)(),
            None => (kind.definition)(),
        };
        let whole = Content::Of(&definition);
        let operations: Vec<Operation<'_>> = sub
            .verbs
            .iter()
            .map(|verb| {
                let (verb, action, query, takes) = match *verb {
                    "create" => ("post", "post", WRITE, Some(whole)),
                    "update" => ("put", "put", WRITE, Some(whole)),
                    "patch" => ("patch", "patch", PATCH, Some(Content::Patch)),
                    "delete" => ("delete", "delete", DELETE, None),
                    _ => ("get", "get", READ, None),
                };
                match streamed(subresource) {
                    Some(query) => Operation {
                        verb,
                        action: if subresource == Subresource::Log {
                            action
                        } else {
                            "connect"
                        },
                        query,
                        takes: None,
                        gives: Content::Anything,
                    },
                    None => Operation {
                        verb,
                        action,
                        query,
                        takes,
                        gives: whole,
                    },
                }
            })
            .collect();
        let about = extension(sub.group, sub.version, sub.kind);
        let path = format!("{object}/{}", sub.name);
        if subresource == Subresource::Proxy {
            self.add(format!("{path}/{{path}}"), &about, &operations);
        }
        self.add(path, &about, &operations);
    }

    fn of_review(&mut self, review: &Review) {
        let root = root(review.form.group, review.form.version);
        let path = if review.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", review.plural)
        } else {
            format!("{root}/{}", review.plural)
        };
        self.of_form(path, &review.form);
    }

    /// A path at which something is only created.
    fn of_form(&mut self, path: String, form: &Form) {
        let definition = (form.definition)();
        let whole = Content::Of(&definition);
        let post = Operation {
            verb: "post",
            action: "post",
            query: WRITE,
            takes: Some(whole),
            gives: whole,
        };
        let about = extension(form.group, form.version, form.kind);
        self.add(path, &about, &[post]);
    }

    fn add(&mut self, path: String, about: &Value, operations: &[Operation<'_>]) {
        let mut item: Map<String, Value> = operations
            .iter()
            .map(|one| {
                let operation = operation(&path, about, one, self.dialect);
                (one.verb.to_owned(), operation)
            })
            .collect();
        let parameters = [
            ("namespace", "The namespace of the object."),
            ("name", "The name of the object."),
            ("path", "The rest of the path that is asked for."),
        ];
        let parameters: Vec<_> = parameters
            .into_iter()
            .filter(|(name, _)| path.contains(&format!("{{{name}}}")))
            .map(|(name, description)| parameter(name, "path", "string", description, self.dialect))
            .collect();
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), Value::from(parameters));
        }
        self.items.insert(path, Value::Object(item));
    }
}

fn operation(path: &str, about: &Value, one: &Operation<'_>, dialect: Dialect) -> Value {
    let mut parameters: Vec<_> = one
        .query
        .iter()
        .filter(|(name, ..)| !path.contains(&format!("{{{name}}}")))
        .map(|(name, kind, description)| parameter(name, "query", kind, description, dialect))
        .collect();
    let schema = |content| match content {
        Content::Of(definition) => dialect.reference(definition),
        Content::Patch => json!({ "type": "object" }),
        Content::Anything => json!({ "type": "string" }),
    };
    let types: &[&str] = match one.takes {
        Some(Content::Patch) => &PATCH_TYPES,
        _ => &["application/json"],
    };
    // Without them a delete says nothing in particular.
    let required = one.verb != "delete";
    let gives = match one.gives {
        Content::Anything => "*/*",
        _ => "application/json",
    };
    // A form may be answered before its object is made.
    let codes: &[(&str, &str)] = match one.verb {
        _ if matches!(one.gives, Content::Anything) => &[("200", "OK")],
        "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
        "put" | "patch" => &[("200", "OK"), ("201", "Created")],
        "delete" => &[("200", "OK"), ("202", "Accepted")],
        _ => &[("200", "OK")],
    };
    let id: String = path.chars().filter(char::is_ascii_alphanumeric).collect();
    // One action may be had by several verbs.
    let verb = if one.action == "connect" {
        one.verb
    } else {
        ""
    };
    let mut operation = json!({
        "operationId": format!("{}{verb}{id}", one.action),
        "x-kubernetes-action": one.action,
        "x-kubernetes-group-version-kind": about,
    });
    let mut responses = Map::new();
    for (code, description) in codes {
        let mut response = json!({ "description": description });
        match dialect {
            Dialect::V2 => response["schema"] = schema(one.gives),
            Dialect::V3 => response["content"] = json!({ gives: { "schema": schema(one.gives) } }),
        }
        responses.insert((*code).to_owned(), response);
    }
    responses.insert("401".to_owned(), json!({ "description": "Unauthorized" }));
    operation["responses"] = Value::Object(responses);
    match dialect {
        Dialect::V2 => {
            if let Some(takes) = one.takes {
                parameters.push(json!({ "name": "body", "in": "body", "required": required, "schema": schema(takes) }));
                operation["consumes"] = json!(types);
            }
            operation["produces"] = json!([gives]);
        }
        Dialect::V3 => {
            if let Some(takes) = one.takes {
                let content: Map<_, _> = types
                    .iter()
                    .map(|content_type| {
                        (
                            (*content_type).to_owned(),
                            json!({ "schema": schema(takes) }),
                        )
                    })
                    .collect();
                operation["requestBody"] = json!({ "required": required, "content": content });
            }
        }
    }
    operation["parameters"] = Value::from(parameters);
    operation
}

fn parameter(name: &str, place: &str, kind: &str, description: &str, dialect: Dialect) -> Value {
    let mut parameter = json!({ "name": name, "in": place, "description": description });
    if place == "path" {
        parameter["required"] = json!(true);
    }
    match dialect {
        Dialect::V2 => parameter["type"] = json!(kind),
        Dialect::V3 => parameter["schema"] = json!({ "type": kind }),
    }
    parameter
}
