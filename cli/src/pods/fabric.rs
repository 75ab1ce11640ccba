//! The network of all pods: one bridge in a namespace of its own, one veth pair for each pod.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{LinkAttribute, State};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Netns, netns};

/// The bridge's name in its namespace.
const BRIDGE: &str = "br0";
/// The bridge's hardware address, locally administered (IEEE 802, U/L bit). Without one of its own a bridge takes the
/// lowest of its ports', so that a new pod may change it, and older pods send to where nobody is until they ask again.
const BRIDGE_MAC: [u8; 6] = [0x02, 0x68, 0x65, 0x64, 0x64, 0x01];
/// A pod's interface in its namespace, as container runtimes name it.
const POD_LINK: &str = "eth0";
/// `lo` in every network namespace (LOOPBACK_IFINDEX of the kernel's net/flow.h).
const LOOPBACK_INDEX: u32 = 1;
/// Prefix lengths of the pods' networks. Chosen: 254 pods, and what every IPv6 network has (RFC 4291 §2.5.4).
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 64;
/// How often, and at most how many times, a new link is looked at until it is ready: 5 s in all. The kernel notices
/// the carrier of a veth pair and completes an IPv6 address in the background, which takes milliseconds.
const READY_INTERVAL: Duration = Duration::from_millis(2);
const READY_TRIES: u32 = 2500;

/// Why pods cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The kernel refused a step.
    #[error("{place}: cannot {step}: {source}; is the kernel built with bridge, veth and IPv6?")]
    Refused {
        /// Whose network.
        place: String,
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// No runtime to speak netlink with.
    #[error("{place}: cannot speak netlink: {source}")]
    Io {
        /// Whose network.
        place: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A link carried nothing, or an address took nothing.
    #[error("{place}: the link with {address} was not ready within 5 s; is the machine overloaded?")]
    NotReady {
        /// Whose network.
        place: String,
        /// The link's address.
        address: Ipv6Addr,
    },
}

/// The bridge and its namespace. Its addresses are the pods' gateways; processes that are no workload, such as the
/// control plane, can run in it. It forwards nothing out of itself.
#[derive(Debug)]
pub struct Fabric {
    netns: Netns,
    gateway_v4: Ipv4Addr,
    gateway_v6: Ipv6Addr,
    pods: AtomicU32,
}

/// One pod: its addresses and its namespace.
#[derive(Debug)]
pub struct Pod {
    /// Name, for messages.
    pub name: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Its network namespace.
    pub netns: Netns,
}

impl Fabric {
    /// A bridge with these addresses, in networks of /24 and /64.
    ///
    /// # Errors
    /// If namespaces, bridges or IPv6 are not to be had.
    pub fn new(gateway_v4: Ipv4Addr, gateway_v6: Ipv6Addr) -> Result<Self, Error> {
        let netns = Netns::new()?;
        configure("fabric", &netns, async |net: Net<'_>| {
            net.up(LOOPBACK_INDEX).await?;
            let bridge = LinkBridge::new(BRIDGE).address(BRIDGE_MAC.to_vec()).up().build();
            net.step("make a bridge", net.handle.link().add(bridge).execute()).await?;
            let index = net.index(BRIDGE).await?;
            net.add_address(index, gateway_v4.into(), PREFIX_V4).await?;
            net.add_address(index, gateway_v6.into(), PREFIX_V6).await
        })?;
        Ok(Self { netns, gateway_v4, gateway_v6, pods: AtomicU32::new(0) })
    }

    /// The bridge's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A new pod on the bridge: `lo` up, both addresses ready, everything else routed to the gateway, so that an
    /// address nobody has (a Service's) can be connected to and captured.
    ///
    /// # Errors
    /// If the kernel refuses, such as for want of namespaces.
    pub fn add_pod(&self, name: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<Pod, Error> {
        let netns = Netns::new()?;
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        // Interface names have at most 15 bytes (IFNAMSIZ), pods' names may be longer.
        let (port, peer) = (format!("pod{number}"), format!("new{number}"));
        configure(name, &self.netns, async |net: Net<'_>| {
            let links = net.handle.link();
            net.step("make a veth pair", links.add(LinkVeth::new(&port, &peer).build()).execute()).await?;
            let bridge = net.index(BRIDGE).await?;
            let attached = LinkUnspec::new_with_index(net.index(&port).await?).controller(bridge).up().build();
            net.step("attach the pod to the bridge", links.set(attached).execute()).await?;
            let moved = LinkUnspec::new_with_index(net.index(&peer).await?)
                .name(POD_LINK)
                .setns_by_fd(netns.as_fd().as_raw_fd())
                .build();
            net.step("move an interface into the pod", links.set(moved).execute()).await
        })?;
        configure(name, &netns, async |net: Net<'_>| {
            net.up(LOOPBACK_INDEX).await?;
            let index = net.index(POD_LINK).await?;
            net.up(index).await?;
            net.add_address(index, ipv4.into(), PREFIX_V4).await?;
            net.add_address(index, ipv6.into(), PREFIX_V6).await?;
            net.ready(index, ipv6).await?;
            net.route(RouteMessageBuilder::<Ipv4Addr>::new().gateway(self.gateway_v4).build()).await?;
            net.route(RouteMessageBuilder::<Ipv6Addr>::new().gateway(self.gateway_v6).build()).await
        })?;
        // The bridge has had no carrier before its first pod.
        configure("fabric", &self.netns, async |net: Net<'_>| {
            net.ready(net.index(BRIDGE).await?, self.gateway_v6).await
        })?;
        Ok(Pod { name: name.to_owned(), ipv4, ipv6, netns })
    }
}

/// Runs `work` inside `netns` with a netlink connection to it.
fn configure<F>(place: &str, netns: &Netns, work: F) -> Result<(), Error>
where
    F: AsyncFnOnce(Net<'_>) -> Result<(), Error> + Send,
{
    let failed = |source| Error::Io { place: place.to_owned(), source };
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            tokio::spawn(connection);
            work(Net { place, handle }).await
        })
    })?
}

/// A netlink connection into one namespace; errors name `place`.
struct Net<'a> {
    place: &'a str,
    handle: Handle,
}

impl Net<'_> {
    async fn step<T>(
        &self,
        step: &'static str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, Error> {
        request.await.map_err(|source| Error::Refused { place: self.place.to_owned(), step, source })
    }

    async fn up(&self, index: u32) -> Result<(), Error> {
        let up = LinkUnspec::new_with_index(index).up().build();
        self.step("set a link up", self.handle.link().set(up).execute()).await
    }

    async fn index(&self, link: &str) -> Result<u32, Error> {
        let mut found = self.handle.link().get().match_name(link.to_owned()).execute();
        let found = self.step("find a link", found.try_next()).await?;
        // The kernel answers a search by name with that link or an error.
        Ok(found.map_or(0, |link| link.header.index))
    }

    async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            // Nobody else gives out addresses here, so there is no duplicate to wait for (RFC 4862 §5.4).
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.step("add an address", request.execute()).await
    }

    async fn route(&self, route: RouteMessage) -> Result<(), Error> {
        self.step("add the default route", self.handle.route().add(route).execute()).await
    }

    /// Waits until the link carries packets and `address` on it takes them. Before that a first packet would be lost
    /// and sent again only after a second.
    async fn ready(&self, index: u32, address: Ipv6Addr) -> Result<(), Error> {
        for _ in 0..READY_TRIES {
            if self.carries(index).await? && self.takes(address).await? {
                return Ok(());
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        Err(Error::NotReady { place: self.place.to_owned(), address })
    }

    async fn carries(&self, index: u32) -> Result<bool, Error> {
        let link = self.handle.link().get().match_index(index).execute().try_next().await;
        let link = self.step("look at a link", std::future::ready(link)).await?;
        Ok(link.is_some_and(|link| link.attributes.contains(&LinkAttribute::OperState(State::Up))))
    }

    /// Whether the local route is there; the kernel adds it some time after the address.
    async fn takes(&self, address: Ipv6Addr) -> Result<bool, Error> {
        let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let routes: Vec<_> =
            self.step("list routes", self.handle.route().get(all).execute().try_collect::<Vec<_>>()).await?;
        let to = RouteAttribute::Destination(RouteAddress::Inet6(address));
        Ok(routes.iter().any(|route| route.header.kind == RouteType::Local && route.attributes.contains(&to)))
    }
}
