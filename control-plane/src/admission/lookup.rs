//! What admission looks up of other objects: as new as the request that it judges.

use crate::api::error::ApiError;
use crate::api::stored;
use crate::resources::{self, Kind, Strategy};
use crate::store::cache::{Cache, Freshness};

pub(super) struct Lookup<'a> {
    pub(super) cache: &'a Cache,
    pub(super) fresh: Freshness,
}

impl Lookup<'_> {
    pub(super) async fn get<T: Strategy>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        let key = stored::key(kind::<T>()?, namespace, name);
        let found = self.cache.get(&key, self.fresh).await;
        let (object, _) = found.map_err(stored::read_error)?;
        let read = |object: std::sync::Arc<_>| object_of(&object);
        object.map(read).transpose()
    }

    /// Objects of a namespace, or (empty) all, in order of names.
    pub(super) async fn list<T: Strategy>(&self, namespace: &str) -> Result<Vec<T>, ApiError> {
        let prefix = stored::prefix(kind::<T>()?, namespace);
        let listing = self.cache.list(&prefix, self.fresh).await;
        let objects = listing.map_err(stored::read_error)?.objects;
        objects.iter().map(|object| object_of(object)).collect()
    }
}

pub(super) fn kind<T: Strategy>() -> Result<&'static Kind, ApiError> {
    resources::find(T::GROUP, T::VERSION, T::URL_PATH_SEGMENT).ok_or_else(ApiError::no_route)
}

fn object_of<T: Strategy>(object: &crate::store::cache::Object) -> Result<T, ApiError> {
    serde_json::from_slice(&object.json)
        .map_err(|error| ApiError::internal(format!("{}: {error}", object.key)))
}
