//! Reads what the programs record in ring buffers. Whoever reads takes the records away, so one does.

use std::marker::PhantomData;
use std::path::Path;

use agent_ebpf::abi::policy::PolicyDrop;
use agent_ebpf::abi::{FlowEvent, maps as names};
use aya::Pod;
use aya::maps::{Map, MapData, MapError as AyaError, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::maps::MapError;

/// A record, and the ring buffer that it is in.
pub trait Record: Pod {
    const MAP: &'static str;
}

impl Record for FlowEvent {
    const MAP: &'static str = names::EVENTS;
}

impl Record for PolicyDrop {
    const MAP: &'static str = names::POLICY_DROPS;
}

/// A ring buffer's one reader.
pub struct Records<T>(AsyncFd<RingBuf<MapData>>, PhantomData<fn() -> T>);

/// The reader of `EVENTS`.
pub type Events = Records<FlowEvent>;

impl<T: Record> Records<T> {
    /// Opens the ring buffer pinned in `dir`, which [`super::Dataplane::dir`] names. What nobody read while no agent ran
    /// is old by now, and goes.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        let path = dir.join(T::MAP);
        let ring = MapData::from_pin(&path).and_then(|data| RingBuf::try_from(Map::RingBuf(data)));
        let mut ring = ring.map_err(|source| MapError::Open {
            path: path.clone(),
            source,
        })?;
        while ring.next().is_some() {}
        // SAFETY: the ring buffer owns a valid descriptor, which is neither replaced nor closed while it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| MapError::Open {
            path,
            source: AyaError::IoError(error.into()),
        })?;
        Ok(Self(ring, PhantomData))
    }

    /// Waits until something is recorded and adds it to `batch`, at most `most` records. Cancel-safe: it takes nothing
    /// before it returns.
    pub async fn next(&mut self, batch: &mut Vec<T>, most: usize) -> Result<(), MapError> {
        loop {
            let mut ready = self
                .0
                .readable_mut()
                .await
                .map_err(|error| MapError::Read {
                    map: T::MAP,
                    source: AyaError::IoError(error),
                })?;
            let ring = ready.get_inner_mut();
            while batch.len() < most {
                let Some(record) = ring.next() else { break };
                // A record of another length was written by programs of another version, which are replaced by now.
                batch.extend(self::record::<T>(&record));
            }
            if batch.len() < most {
                ready.clear_ready();
            }
            if !batch.is_empty() {
                return Ok(());
            }
        }
    }
}

fn record<T: Record>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: `T` is plain bytes, for which any value is one, and there are as many as it needs.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}
