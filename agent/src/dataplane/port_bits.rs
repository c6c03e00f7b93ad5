//! The bits of `HOST_PORTS` and `SERVICE_PORTS`: derived from the rows of `SERVICES`, so that a port that nobody has costs its
//! dialler one look at an array.

use agent_ebpf::abi::{
    FLAG_HOST_PORT, Port, Scope, ServiceEntry, ServiceKey, host_port_bit, maps as names,
    service_port_bit,
};
use aya::maps::{Array, MapData};

use super::maps::{MapError, Maps, read};

/// Whether a row is a pod's host port.
pub(super) const fn is_one(entry: &ServiceEntry) -> bool {
    entry.flags & FLAG_HOST_PORT != 0
}

impl Maps {
    /// Marks the port of a row: to be done before the row is there, or not everybody would find it.
    pub(super) fn mark_port(
        &mut self,
        key: &ServiceKey,
        entry: &ServiceEntry,
    ) -> Result<(), MapError> {
        if key.scope == Scope::CLUSTER {
            let at = service_port_bit(key.protocol, key.port);
            set(names::SERVICE_PORTS, &mut self.service_ports, at, true)?;
        }
        match is_one(entry) {
            true => {
                let at = host_port_bit(key.port);
                set(names::HOST_PORTS, &mut self.host_ports, at, true)
            }
            false => Ok(()),
        }
    }

    /// A row of the port has gone: it is one as long as another row has it.
    pub(super) fn unmark_host_port(&mut self, port: Port) -> Result<(), MapError> {
        for row in self.services.iter() {
            let (key, row) = row.map_err(|source| read(names::SERVICES, source))?;
            if key.port == port && is_one(&row.entry) {
                return Ok(());
            }
        }
        let at = host_port_bit(port);
        set(names::HOST_PORTS, &mut self.host_ports, at, false)
    }

    /// Marks the ports of all rows that are there.
    pub(super) fn mark_ports(&mut self) -> Result<(), MapError> {
        let rows: Result<Vec<_>, _> = self.services.iter().collect();
        let rows = rows.map_err(|source| read(names::SERVICES, source))?;
        let mut rows = rows.iter();
        rows.try_for_each(|(key, row)| self.mark_port(key, &row.entry))
    }

    pub(super) fn is_host_port(&self, port: Port) -> bool {
        let (word, bit) = host_port_bit(port);
        // What cannot be read is as if it were not there.
        let word = self.host_ports.get(&word, 0);
        word.is_ok_and(|word| word & bit != 0)
    }

    /// In ascending order.
    pub(super) fn marked_host_ports(&self) -> Result<Vec<u16>, MapError> {
        let words: Result<Vec<u64>, _> = self.host_ports.iter().collect();
        let words = words.map_err(|source| read(names::HOST_PORTS, source))?;
        let is_marked = |port: &u16| {
            let (word, bit) = host_port_bit(port.to_be_bytes());
            words.get(word as usize).is_some_and(|word| word & bit != 0)
        };
        Ok((0..=u16::MAX).filter(is_marked).collect())
    }

    /// The ports of services, whose bits stay when they go.
    pub(super) fn marked_service_ports(&self) -> Result<u32, MapError> {
        let words: Result<Vec<u64>, _> = self.service_ports.iter().collect();
        let words = words.map_err(|source| read(names::SERVICE_PORTS, source))?;
        Ok(words.iter().map(|word| word.count_ones()).sum())
    }

    /// Pods' links at which packets were translated.
    pub(super) fn translating(&self) -> Result<Vec<u32>, MapError> {
        let all: Result<Vec<u32>, _> = self.translating.iter().collect();
        let all = all.map_err(|source| read(names::TRANSLATING, source))?;
        let seen = (0..).zip(all).filter(|(_, seen)| *seen != 0);
        Ok(seen.map(|(link, _)| link).collect())
    }
}

/// Sets a bit, or clears it.
fn set(
    map: &'static str,
    words: &mut Array<MapData, u64>,
    (at, bit): (u32, u64),
    is_set: bool,
) -> Result<(), MapError> {
    let before = words.get(&at, 0).map_err(|source| read(map, source))?;
    let after = match is_set {
        true => before | bit,
        false => before & !bit,
    };
    match after == before {
        true => Ok(()),
        false => words
            .set(at, after, 0)
            .map_err(|source| MapError::Put { map, source }),
    }
}
