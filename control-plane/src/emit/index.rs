//! Which Service or workload a name or an address belongs to, so that a sidecar's question is answered without a walk
//! over the mesh. Pure; kept by `publish` beside the model and changed one Service or workload at a time.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::model::{DirectDestination, Model, OutboundListener, Service, ServiceName, Workload, WorkloadName};

/// Owners by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Services by cluster IP and port. More than one only where somebody gave one address to two of them.
    services: HashMap<SocketAddr, BTreeSet<ServiceName>>,
    /// Workloads by address. More than one where they share their host's.
    workloads: HashMap<IpAddr, BTreeSet<WorkloadName>>,
}

/// What an original destination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination<'m> {
    /// A Service's address and port.
    Service(&'m Service, &'m OutboundListener),
    /// A workload's own address.
    Direct(Box<DirectDestination>),
}

impl Index {
    /// The index of a whole model.
    pub fn new(model: &Model) -> Self {
        let mut index = Self::default();
        for service in model.services.values() {
            index.replace_service(None, Some(service));
        }
        for workload in model.workloads.values() {
            index.replace_workload(None, Some(workload));
        }
        index
    }

    /// One Service changed from `old` to `new`; `None`: there was none, or is none any more.
    pub fn replace_service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        for (address, name) in old.into_iter().flat_map(service_addresses) {
            remove(&mut self.services, address, name);
        }
        for (address, name) in new.into_iter().flat_map(service_addresses) {
            self.services.entry(address).or_default().insert(name.clone());
        }
    }

    /// One workload changed from `old` to `new`; `None`: there was none, or is none any more.
    pub fn replace_workload(&mut self, old: Option<&Workload>, new: Option<&Workload>) {
        for (address, name) in old.into_iter().flat_map(workload_addresses) {
            remove(&mut self.workloads, address, name);
        }
        for (address, name) in new.into_iter().flat_map(workload_addresses) {
            self.workloads.entry(address).or_default().insert(name.clone());
        }
    }

    /// What clients get that dial `address`; `None`: it is not the mesh's. A Service's address is a Service's even if
    /// a workload has it too; of several owners the first by name counts.
    pub fn destination<'m>(&self, model: &'m Model, address: SocketAddr) -> Option<Destination<'m>> {
        let services = self.services.get(&address).into_iter().flatten();
        let service = services.filter_map(|name| model.services.get(name)).find_map(|service| {
            let listener = service.listeners.iter().find(|listener| listener.addresses.contains(&address))?;
            Some(Destination::Service(service, listener))
        });
        service.or_else(|| {
            let workloads = self.workloads.get(&address.ip()).into_iter().flatten();
            let mut workloads = workloads.filter_map(|name| model.workloads.get(name));
            workloads
                .find_map(|workload| workload.destination(address))
                .map(|direct| Destination::Direct(Box::new(direct)))
        })
    }
}

fn service_addresses(service: &Service) -> impl Iterator<Item = (SocketAddr, &ServiceName)> {
    service.listeners.iter().flat_map(|listener| &listener.addresses).map(|address| (*address, &service.name))
}

fn workload_addresses(workload: &Workload) -> impl Iterator<Item = (IpAddr, &WorkloadName)> {
    workload.addresses.iter().map(|address| (*address, &workload.name))
}

fn remove<K: std::hash::Hash + Eq, N: Ord>(owners: &mut HashMap<K, BTreeSet<N>>, key: K, name: &N) {
    if let Some(names) = owners.get_mut(&key) {
        names.remove(name);
        if names.is_empty() {
            owners.remove(&key);
        }
    }
}
