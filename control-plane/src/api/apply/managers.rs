//! Who owns which fields of an object: `metadata.managedFields`, read and written.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::resources::Kind;

/// So many managers that did not apply are told apart; what the ones that wrote longest ago own counts as one's.
const UPDATERS: usize = 10;
/// The name of that one.
const ANCIENT: &str = "ancient-changes";
/// Who owns what was there when an object without owners is applied for the first time.
const BEFORE: &str = "before-first-apply";

/// How a manager came to own its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who writes, through what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    /// Empty for the object itself.
    pub subresource: String,
}

impl Manager {
    /// The API server itself, where it keeps objects of a kind as they should be.
    pub fn server(kind: &Kind) -> Self {
        Self {
            name: "kube-apiserver".to_owned(),
            operation: Operation::Update,
            api_version: kind.api_version(),
            subresource: String::new(),
        }
    }

    fn before_first_apply(api_version: &str) -> Self {
        Self {
            name: BEFORE.to_owned(),
            operation: Operation::Update,
            api_version: api_version.to_owned(),
            subresource: String::new(),
        }
    }
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub manager: Manager,
    /// As it stands in the object; empty where it is not known.
    pub time: String,
    pub fields: Fields,
}

/// All owners of an object's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(pub Vec<Owner>);

impl Owners {
    /// What an object says; the message when it says nonsense.
    pub fn of(object: &Value) -> Result<Self, String> {
        let Some(entries) = object["metadata"]["managedFields"].as_array() else {
            return Ok(Self::default());
        };
        let mut owners = Self::default();
        for (index, entry) in entries.iter().enumerate() {
            let owner = owner(entry)
                .map_err(|why| format!("metadata.managedFields[{index}]: Invalid value: {why}"))?;
            owners.add(owner);
        }
        Ok(owners)
    }

    /// The entries for `metadata.managedFields`: those who applied first, then the others by time.
    pub fn to_json(&self) -> Value {
        let mut owners: Vec<&Owner> = self.0.iter().collect();
        owners.sort_by(|a, b| {
            let rank = |o: &Owner| (o.manager.operation, o.time.clone(), o.manager.name.clone());
            rank(a).cmp(&rank(b))
        });
        owners.into_iter().map(entry).collect()
    }

    /// What this manager owns.
    pub fn get(&self, manager: &Manager) -> Option<&Owner> {
        self.0.iter().find(|owner| owner.manager == *manager)
    }

    pub fn others<'a>(&'a self, manager: &'a Manager) -> impl Iterator<Item = &'a Owner> {
        self.0.iter().filter(|owner| owner.manager != *manager)
    }

    /// Gives everything that is there to whoever wrote an object before anybody was noted.
    pub fn or_before_first_apply(mut self, there: Fields, api_version: &str, time: &str) -> Self {
        if self.0.is_empty() && !there.is_empty() {
            self.0.push(Owner {
                manager: Manager::before_first_apply(api_version),
                time: time.to_owned(),
                fields: there,
            });
        }
        self
    }

    /// Takes fields from everybody but `manager`.
    pub fn take_from_others(&mut self, manager: &Manager, fields: &Fields) {
        for owner in &mut self.0 {
            if owner.manager != *manager {
                owner.fields.remove(fields);
            }
        }
        self.drop_empty();
    }

    /// Takes fields that are gone from everybody.
    pub fn take(&mut self, fields: &Fields) {
        for owner in &mut self.0 {
            owner.fields.remove(fields);
        }
        self.drop_empty();
    }

    fn drop_empty(&mut self) {
        self.0.retain(|owner| !owner.fields.is_empty());
    }

    /// Says what a manager owns from now on. Its time stays when that is what it owned before.
    pub fn set(&mut self, manager: &Manager, fields: Fields, now: &str) {
        let at = self.0.iter().position(|owner| owner.manager == *manager);
        match at {
            Some(at) if self.0[at].fields == fields => {}
            Some(at) => {
                self.0[at].fields = fields;
                now.clone_into(&mut self.0[at].time);
            }
            None => self.0.push(Owner {
                manager: manager.clone(),
                time: now.to_owned(),
                fields,
            }),
        }
        self.drop_empty();
        self.forget_ancient();
    }

    fn add(&mut self, owner: Owner) {
        match self.0.iter_mut().find(|o| o.manager == owner.manager) {
            Some(there) => there.fields.add(&owner.fields),
            None => self.0.push(owner),
        }
    }

    /// Keeps the number of managers bounded: each program that writes once would leave an entry for good.
    fn forget_ancient(&mut self) {
        let updaters = |owner: &&Owner| owner.manager.operation == Operation::Update;
        while self.0.iter().filter(updaters).count() > UPDATERS {
            let oldest = self
                .0
                .iter()
                .enumerate()
                .filter(|(_, owner)| updaters(owner) && owner.manager.name != ANCIENT)
                .min_by(|(_, a), (_, b)| a.time.cmp(&b.time))
                .map(|(at, _)| at);
            let Some(oldest) = oldest else { return };
            let mut owner = self.0.remove(oldest);
            ANCIENT.clone_into(&mut owner.manager.name);
            owner.manager.subresource.clear();
            self.add(owner);
        }
    }
}

fn owner(entry: &Value) -> Result<Owner, String> {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let operation = match &*text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        other => return Err(format!("operation: {other:?}: must be Apply or Update")),
    };
    if !matches!(&*text("fieldsType"), "" | "FieldsV1") {
        return Err("fieldsType: must be FieldsV1".to_owned());
    }
    let fields = match &entry["fieldsV1"] {
        Value::Null => Fields::default(),
        fields => Fields::from_json(fields).map_err(|why| format!("fieldsV1: {why}"))?,
    };
    Ok(Owner {
        manager: Manager {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
        },
        time: text("time"),
        fields,
    })
}

fn entry(owner: &Owner) -> Value {
    let Owner {
        manager,
        time,
        fields,
    } = owner;
    let mut entry = Map::new();
    entry.insert("apiVersion".to_owned(), json!(manager.api_version));
    entry.insert("fieldsType".to_owned(), json!("FieldsV1"));
    entry.insert("fieldsV1".to_owned(), fields.to_json());
    entry.insert("manager".to_owned(), json!(manager.name));
    entry.insert("operation".to_owned(), json!(manager.operation.name()));
    if !manager.subresource.is_empty() {
        entry.insert("subresource".to_owned(), json!(manager.subresource));
    }
    if !time.is_empty() {
        entry.insert("time".to_owned(), json!(time));
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::super::fields::Step;
    use super::*;

    fn manager(name: &str, operation: Operation) -> Manager {
        Manager {
            name: name.into(),
            operation,
            api_version: "v1".into(),
            subresource: String::new(),
        }
    }

    fn field(name: &str) -> Fields {
        let mut fields = Fields::default();
        fields.put(Step::field(name), Fields::place());
        fields
    }

    #[test]
    fn entries_come_back_as_they_went() {
        let mut owners = Owners::default();
        owners.set(
            &manager("b", Operation::Update),
            field("x"),
            "2026-01-02T00:00:00Z",
        );
        owners.set(
            &manager("a", Operation::Apply),
            field("y"),
            "2026-01-03T00:00:00Z",
        );
        let json = owners.to_json();
        assert_eq!(json[0]["operation"], "Apply");
        assert_eq!(json[1]["fieldsV1"], json!({"f:x": {}}));
        let read = Owners::of(&json!({"metadata": {"managedFields": json}})).unwrap();
        assert_eq!(read.to_json(), owners.to_json());
    }

    #[test]
    fn the_time_says_when_what_one_owns_changed() {
        let mut owners = Owners::default();
        let one = manager("one", Operation::Update);
        owners.set(&one, field("x"), "1");
        owners.set(&one, field("x"), "2");
        assert_eq!(owners.get(&one).unwrap().time, "1");
        owners.set(&one, field("y"), "3");
        assert_eq!(owners.get(&one).unwrap().time, "3");
        owners.take(&field("y"));
        assert_eq!(owners, Owners::default(), "who owns nothing is not named");
    }

    #[test]
    fn the_oldest_updaters_become_one() {
        let mut owners = Owners::default();
        for n in 0..UPDATERS + 5 {
            let name = format!("m{n:02}");
            owners.set(
                &manager(&name, Operation::Update),
                field(&name),
                &format!("{n:02}"),
            );
        }
        assert_eq!(owners.0.len(), UPDATERS);
        let ancient = owners.get(&manager(ANCIENT, Operation::Update)).unwrap();
        assert_eq!(ancient.fields.paths().len(), 6);
    }

    #[test]
    fn nonsense_is_named() {
        let of = |entry: Value| Owners::of(&json!({"metadata": {"managedFields": [entry]}}));
        assert!(of(json!({"operation": "Apply", "fieldsV1": {"f:a": {}}})).is_ok());
        for entry in [
            json!({"operation": "Delete"}),
            json!({"operation": "Apply", "fieldsV1": {"a": {}}}),
            json!({"operation": "Apply", "fieldsType": "FieldsV2"}),
        ] {
            let why = of(entry).unwrap_err();
            assert!(why.starts_with("metadata.managedFields[0]"), "{why}");
        }
    }
}
