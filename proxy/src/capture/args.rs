//! The command line of `heddle-proxy capture`.

use std::fs::File;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};

use super::check::check;
use super::{Error, Exempt, PROXY_UID, Rules, install, is_installed, remove};

/// Settings of `heddle-proxy capture`. Ports and mark are those of `heddle-proxy run` and read the same environment.
#[derive(Debug, Clone, Args)]
pub struct CaptureArgs {
    /// Network namespace to work in, such as /proc/<pid>/ns/net; the command's own if not given.
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// Remove the rules instead of installing them.
    #[arg(long)]
    pub remove: bool,
    /// Install nothing, but fail unless connections going out are captured. Needs no right; must not run as the sidecar's user.
    #[arg(long, conflicts_with_all = ["netns", "remove"])]
    pub check: bool,
    /// The sidecar's port for outgoing connections.
    #[arg(long, env = "HEDDLE_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// The sidecar's port for incoming connections.
    #[arg(long, env = "HEDDLE_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// The sidecar's port for metrics and probes: reached from outside uncaptured.
    #[arg(long, env = "HEDDLE_METRICS_PORT", default_value_t = 15020)]
    pub metrics_port: u16,
    /// User the sidecar runs as; its connections are not captured.
    #[arg(long, default_value_t = PROXY_UID, conflicts_with = "mark")]
    pub uid: u32,
    /// Mark of the sidecar's sockets, where it cannot be told by its user.
    #[arg(long, env = "HEDDLE_MARK")]
    pub mark: Option<u32>,
    /// Destination ports that go out uncaptured: `3306,8000-8010`.
    #[arg(long, value_delimiter = ',', value_parser = ports, value_name = "PORTS")]
    pub exclude_outbound_ports: Vec<RangeInclusive<u16>>,
    /// Ports that are reached from outside uncaptured: `22,9000-9010`.
    #[arg(long, value_delimiter = ',', value_parser = ports, value_name = "PORTS")]
    pub exclude_inbound_ports: Vec<RangeInclusive<u16>>,
    /// Destinations that go out uncaptured: `169.254.169.254/32,fd00:1::/64`.
    #[arg(long, value_delimiter = ',', value_parser = network, value_name = "CIDRS")]
    pub exclude_outbound_cidrs: Vec<IpNet>,
}

impl CaptureArgs {
    /// The rules these settings ask for.
    pub fn rules(&self) -> Rules {
        Rules {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            metrics_port: self.metrics_port,
            exempt: self.mark.map_or(Exempt::Uid(self.uid), Exempt::Mark),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            exclude_outbound_cidrs: self.exclude_outbound_cidrs.clone(),
        }
    }
}

/// Does what `heddle-proxy capture` was called for.
///
/// # Errors
/// If the namespace cannot be entered, the rules cannot be, or the kernel refuses.
pub fn run(args: &CaptureArgs) -> Result<(), Error> {
    if args.check {
        return check(args.outbound_port);
    }
    let work = || if args.remove { remove() } else { install(&args.rules()) };
    match &args.netns {
        None => work(),
        Some(path) => within(path, work),
    }
}

/// Whether traffic of the network namespace at `path` is captured.
///
/// # Errors
/// If the namespace cannot be entered, or the kernel may not be asked.
pub fn is_installed_at(path: &Path) -> Result<bool, Error> {
    within(path, is_installed)
}

/// Runs `work` in another network namespace: on a thread of its own, so that the caller's stays where it is.
fn within<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |source| Error::Netns { path: path.to_owned(), source };
    let namespace = File::open(path).map_err(failed)?;
    thread::scope(|scope| {
        let enter_and_work = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            work()
        };
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter_and_work);
        match thread.map_err(failed)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// `80` or `80-90`.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| format!("`{text}` is no port: 0 to 65535"));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    if range.is_empty() {
        return Err(format!("`{text}` is empty: the first port must not be above the last"));
    }
    Ok(range)
}

/// `10.0.0.0/8` or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    text.parse().map_err(|_| format!("`{text}` is neither a network such as 10.0.0.0/8 or fd00::/8 nor an address"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: CaptureArgs,
    }

    fn parse(args: &[&str]) -> Result<CaptureArgs, clap::Error> {
        Command::try_parse_from([&["capture"], args].concat()).map(|command| command.args)
    }

    #[test]
    fn without_flags_the_rules_are_the_default_ones() {
        assert_eq!(parse(&[]).unwrap().rules(), Rules::default());
    }

    #[test]
    fn exclusions_are_lists_of_ports_ranges_networks_and_addresses() {
        let rules = parse(&[
            "--exclude-outbound-ports=3306,8000-8010",
            "--exclude-inbound-ports=22",
            "--exclude-outbound-cidrs=10.0.0.0/8,fd00::1",
            "--mark=7",
        ])
        .unwrap()
        .rules();

        assert_eq!(rules.exclude_outbound_ports, [3306..=3306, 8000..=8010]);
        assert_eq!(rules.exclude_inbound_ports, [22..=22]);
        assert_eq!(rules.exclude_outbound_cidrs, ["10.0.0.0/8".parse().unwrap(), "fd00::1/128".parse().unwrap()]);
        assert_eq!(rules.exempt, Exempt::Mark(7));
    }

    #[test]
    fn a_port_that_is_none_and_a_range_that_is_empty_are_refused_by_value() {
        for (flag, value) in [
            ("--exclude-outbound-ports", "65536"),
            ("--exclude-inbound-ports", "9-8"),
            ("--exclude-outbound-cidrs", "10.0.0.0/33"),
        ] {
            let error = parse(&[flag, value]).unwrap_err().to_string();
            assert!(error.contains(value) && error.contains(flag), "{error}");
        }
    }

    #[test]
    fn a_path_that_is_no_namespace_is_named() {
        let args = parse(&["--netns", "/proc/self/status"]).unwrap();

        let error = run(&args).unwrap_err();

        assert!(error.to_string().starts_with("cannot enter network namespace /proc/self/status"), "{error}");
    }
}
