//! Puts in force what can be: clusters, then route tables, then listeners.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::entry::{ClusterEntry, LiveRoutes, RouteEntry, Told, is_made_from, make_cluster, unanswered_settings};
use super::{Core, PATIENCE, is_over};
use crate::sync::counts::count;
use crate::sync::{listener, route};
use crate::tables::listener::{Opaque, ServerNames, Share, Shares};
use crate::tables::route::{Backend, Route, RouteMatch, Rule};
use crate::tables::{Answer, Inbound, Listener, Millis, RouteTable};

impl Core {
    /// Puts in force what can be. From the bottom up, so that one pass is enough.
    pub(super) fn settle(&mut self, now: Millis) {
        let mut clusters = self.settle_clusters();
        let asked = |inbound: &Arc<Inbound>| inbound.clusters().any(|name| clusters.contains(name));
        self.unpublished |= self.inbound.as_ref().is_some_and(asked);
        let ready = self.ready_routes(now);
        let routes = self.settle_routes(&ready, &mut clusters);
        self.settle_listeners(now, &routes, &mut clusters);
    }

    /// New settings, and clusters that are answered for the first time. Returns those whose value is another now.
    fn settle_clusters(&mut self) -> HashSet<Arc<str>> {
        let mut changed = HashSet::new();
        for (name, entry) in &mut self.clusters {
            let Told::Is(settings) = &entry.settings else { continue };
            if !entry.endpoints.is_answered() || entry.live.as_ref().is_some_and(|live| is_made_from(live, settings)) {
                continue;
            }
            entry.live = Some(Arc::new(make_cluster(name, settings, entry)));
            changed.insert(name.clone());
        }
        changed
    }

    /// Route tables that are to be put in force now: complete, or waiting too long, or all that a listener has that
    /// waits too long.
    fn ready_routes(&self, now: Millis) -> HashSet<Arc<str>> {
        let waiting =
            self.destinations.values().filter(|wanted| wanted.waiting.is_some_and(|since| is_overdue(since, now)));
        let named = waiting.filter_map(|wanted| wanted.told.as_ref()?.routes.as_ref());
        let overdue: HashSet<&Arc<str>> = named.collect();
        let ready = self.routes.iter().filter(|(name, entry)| {
            let (Some(since), Some(source)) = (entry.waiting, entry.told.as_ref()) else { return false };
            is_overdue(since, now)
                || (entry.live.is_none() && overdue.contains(name))
                || source.clusters.iter().all(|cluster| self.is_answered(cluster))
        });
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Puts `ready` in force, and makes anew what leads to `clusters`. Returns the tables that are others now.
    fn settle_routes(&mut self, ready: &HashSet<Arc<str>>, clusters: &mut HashSet<Arc<str>>) -> HashSet<Arc<str>> {
        for name in ready {
            let Some(source) = self.routes.get(name).and_then(|entry| entry.told.as_ref()).cloned() else { continue };
            if !source.clusters.iter().all(|cluster| self.is_answered(cluster)) {
                count(&self.counts.partial);
                tracing::warn!(routes = %name, "put in force before all its clusters have arrived");
            }
            clusters.extend(source.clusters.iter().filter(|cluster| self.stand_in(cluster)).cloned());
        }
        let mut changed = HashSet::new();
        for (name, entry) in &mut self.routes {
            let source = if ready.contains(name) {
                entry.waiting = None;
                entry.told.as_ref().cloned()
            } else {
                let leads = |live: &&LiveRoutes| live.source.clusters.iter().any(|cluster| clusters.contains(cluster));
                entry.live.as_ref().filter(leads).map(|live| live.source.clone())
            };
            let Some(source) = source else { continue };
            let cluster = |name: &str| self.clusters.get(name).and_then(|entry| entry.live.clone());
            match route::parse(name, &source.bytes, &mut { cluster }) {
                Ok(table) => entry.live = Some(LiveRoutes { source, table: Arc::new(table) }),
                // It was read before, and reading is pure.
                Err(error) => tracing::error!(routes = %name, %error, "cannot be read again"),
            }
            changed.insert(name.clone());
            self.redrawn = true;
        }
        changed
    }

    fn settle_listeners(&mut self, now: Millis, routes: &HashSet<Arc<str>>, clusters: &mut HashSet<Arc<str>>) {
        let ready: Vec<(SocketAddr, listener::Parsed)> = self
            .destinations
            .iter()
            .filter_map(|(address, wanted)| {
                let (since, parsed) = (wanted.waiting?, wanted.told.as_ref()?);
                let ready = is_overdue(since, now) || self.is_complete(parsed);
                ready.then(|| (*address, parsed.clone()))
            })
            .collect();
        for (address, parsed) in &ready {
            if !self.is_complete(parsed) {
                count(&self.counts.partial);
                tracing::warn!(destination = %address, "put in force before all it names has arrived");
            }
            clusters.extend(parsed.tcp_clusters().filter(|cluster| self.stand_in(cluster)).cloned());
        }
        let affected = |parsed: &listener::Parsed| {
            parsed.routes.as_ref().is_some_and(|name| routes.contains(name))
                || parsed.tcp_clusters().any(|name| clusters.contains(name))
        };
        let rebuilt = self.destinations.iter().filter_map(|(address, wanted)| {
            let parsed = wanted.live.as_ref()?.0.as_ref()?;
            affected(parsed).then(|| (*address, parsed.clone()))
        });
        // What is new comes last and so replaces what was made anew for the old.
        let rebuilt: Vec<_> = rebuilt.collect();
        for (address, parsed) in &rebuilt {
            self.put_in_force(*address, parsed);
        }
        for (address, parsed) in &ready {
            self.put_in_force(*address, parsed);
            if let Some(wanted) = self.destinations.get_mut(address) {
                wanted.waiting = None;
            }
        }
    }

    fn put_in_force(&mut self, address: SocketAddr, parsed: &listener::Parsed) {
        let cluster = |name: &Arc<str>| self.clusters.get(name).and_then(|entry| entry.live.clone());
        let share =
            |share: &listener::Share| Share { weight: share.weight, cluster: share.cluster.as_ref().and_then(cluster) };
        let shares = |shares: &[listener::Share]| Shares::new(shares.iter().map(share).collect());
        let tcp = parsed.tcp.as_ref().map(|tcp| match tcp {
            listener::Opaque::Shares(all) => Opaque::Shares(shares(all)),
            listener::Opaque::ServerNames(names) => {
                let mut by_name = ServerNames::default();
                names.iter().for_each(|(name, all)| by_name.add(name, shares(all)));
                Opaque::ServerNames(by_name)
            }
        });
        let listener = Listener {
            address,
            protocol: parsed.protocol,
            http: parsed.routes.as_ref().map(|name| self.table(name)),
            tcp,
            sources: parsed.sources.clone(),
        };
        if let Some(wanted) = self.destinations.get_mut(&address) {
            wanted.live = Some((Some(parsed.clone()), Answer::Exists(Arc::new(listener))));
            self.unpublished = true;
            self.redrawn = true;
        }
    }

    /// A route table in force. One that does not exist has no route (404); one that is not answered leads to a cluster
    /// without endpoints (503).
    fn table(&self, name: &Arc<str>) -> Arc<RouteTable> {
        let entry = self.routes.get(name);
        if let Some(live) = entry.and_then(|entry| entry.live.as_ref()) {
            return live.table.clone();
        }
        let absent = entry.is_some_and(|entry| matches!(entry.told, Told::Absent));
        let routes = if absent { Vec::new() } else { vec![unanswered_route(name)] };
        Arc::new(RouteTable { name: name.clone(), routes, sources: Arc::new([]) })
    }

    fn is_complete(&self, parsed: &listener::Parsed) -> bool {
        let routes = parsed.routes.as_ref().is_none_or(|name| {
            let absent = |entry: &RouteEntry| matches!(entry.told, Told::Absent);
            self.routes.get(name).is_some_and(|entry| entry.live.is_some() || absent(entry))
        });
        routes && parsed.tcp_clusters().all(|name| self.is_answered(name))
    }

    fn is_answered(&self, cluster: &str) -> bool {
        self.clusters.get(cluster).is_some_and(ClusterEntry::is_answered)
    }

    /// Gives a cluster that is not answered a value without endpoints; true if it had none before.
    fn stand_in(&mut self, name: &Arc<str>) -> bool {
        let entry = self.clusters.entry(name.clone()).or_default();
        if entry.live.is_some() || entry.is_answered() {
            return false;
        }
        let settings = entry.settings.as_ref().cloned().unwrap_or_else(unanswered_settings);
        entry.live = Some(Arc::new(make_cluster(name, &settings, entry)));
        true
    }
}

/// Leads to a cluster without endpoints.
fn unanswered_route(table: &Arc<str>) -> Route {
    let cluster = Some(Arc::new(make_cluster(table, &unanswered_settings(), &ClusterEntry::default())));
    let rule = Rule {
        name: "unanswered".into(),
        cors: None,
        fault: None,
        filters: Vec::new(),
        mirrors: Vec::new(),
        backends: vec![Backend { weight: 1, cluster, filters: Vec::new(), mirrors: Vec::new() }],
        total_weight: 1,
        request_timeout: None,
        idle_timeout: None,
        try_timeout: None,
        retry: None,
        hedge: None,
        session: None,
    };
    Route { matches: RouteMatch::default(), rule: Arc::new(rule) }
}

fn is_overdue(since: Millis, now: Millis) -> bool {
    is_over(since, PATIENCE, now)
}
