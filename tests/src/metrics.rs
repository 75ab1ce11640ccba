//! Reading a sidecar's metrics page.

use std::net::SocketAddr;

use crate::pods::MeshPod;
use crate::talk;

/// The page.
pub fn page(of: &MeshPod) -> String {
    talk::request(of, SocketAddr::from(([127, 0, 0, 1], 15020)), "GET /metrics HTTP/1.0\r\n\r\n").body
}

/// Sum of the series of `name` whose labels contain all of `labels`, such as `direction="inbound"`.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    let series =
        page.lines().filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
    let wanted = series.filter(|line| labels.iter().all(|label| line.contains(label)));
    wanted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
