//! Answers for people: one line a decision, what lost beside what won.

use std::fmt::{self, Write};

use super::answer::{Backend, Ending, Inbound, Outbound, Outcome, Source, Verdict};

/// What the client's sidecar does, each line indented by `indent`.
pub fn outbound(answer: &Outbound, indent: &str) -> String {
    let mut out = Lines { text: String::new(), indent };
    match &answer.listener {
        None => out.line("destination", format_args!("{}: not the mesh's", answer.destination)),
        Some(listener) => {
            let table = listener.table.as_ref().map(|table| format!(", routes {table}")).unwrap_or_default();
            let (declared, read) = (&listener.protocol, &listener.reading);
            out.line("destination", format_args!("{}: declared {declared}, read as {read}{table}", answer.destination));
            out.sources(&listener.sources);
        }
    }
    for route in &answer.routes {
        let (verdict, missed) = match (route.verdict, &route.missed) {
            (Verdict::Won, _) => ("won", String::new()),
            (Verdict::Later, _) => ("later", "; matches too, but an earlier one won".to_owned()),
            (Verdict::Lost, missed) => {
                ("lost", format!("; the {} does not match", missed.as_deref().unwrap_or("request")))
            }
        };
        out.line("route", format_args!("{verdict:<5} {}{}: {}{missed}", route.rule, at(&route.place), route.matches));
    }
    if let Some(rule) = &answer.rule {
        rule.filters.iter().for_each(|filter| out.line("filter", format_args!("{filter}")));
        let limits =
            [("request", &rule.request_timeout), ("attempt", &rule.try_timeout), ("silence", &rule.idle_timeout)];
        let limits = limits.iter().filter_map(|(name, limit)| Some(format!("{name} {}", limit.as_ref()?)));
        let limits: Vec<_> = limits.collect();
        let limits = if limits.is_empty() { "none".to_owned() } else { limits.join(", ") };
        out.line("timeouts", format_args!("{limits}"));
        out.line("retries", format_args!("{}", rule.retry));
        rule.hedge.iter().for_each(|hedge| out.line("hedge", format_args!("{hedge}")));
        rule.session.iter().for_each(|session| out.line("session", format_args!("{session}")));
    }
    answer.backends.iter().for_each(|backend| out.backend(backend));
    for outcome in &answer.outcomes {
        out.line("outcome", format_args!("{}", Shown(outcome)));
        out.page(&outcome.ending);
    }
    out.text
}

/// What the server's sidecar does, each line indented by `indent`.
pub fn inbound(answer: &Inbound, indent: &str) -> String {
    let mut out = Lines { text: String::new(), indent };
    let (declared, read, tls) = (&answer.protocol, &answer.reading, &answer.tls);
    out.line("port", format_args!("{}: declared {declared}, read as {read}, mutual TLS {tls}", answer.port));
    let caller = answer.caller.as_deref().unwrap_or("without mutual TLS");
    out.line("caller", format_args!("{caller} from {}", answer.peer));
    out.sources(&answer.sources);
    for policy in &answer.policies {
        let dry_run = if policy.dry_run { ", dry run" } else { "" };
        out.line("policy", format_args!("{}{} {}{dry_run}", policy.object, at(&policy.place), policy.action));
        for (index, rule) in policy.rules.iter().enumerate() {
            let verdict = match &rule.missed {
                None => "matches".to_owned(),
                Some(part) => format!("`{part}` does not match"),
            };
            out.line("", format_args!("rules[{index}]: {verdict}"));
        }
    }
    match &answer.decision {
        None => out.line("decision", format_args!("no AuthorizationPolicy is asked")),
        Some(decision) => {
            let by = match &decision.rule {
                Some(rule) => format!("by {rule}{}", at(&decision.place)),
                None if decision.verdict == "allow" => "nothing speaks against it".to_owned(),
                None => "no ALLOW policy matches".to_owned(),
            };
            out.line("decision", format_args!("{}: {by}", decision.verdict));
        }
    }
    for limit in &answer.rate_limits {
        let dry_run = if limit.dry_run { ", dry run" } else { "" };
        let room = match (&limit.counts, &limit.service, &limit.full_for) {
            (false, ..) => "does not count it".to_owned(),
            (true, Some(service), _) => format!("is asked of {service}"),
            (true, None, None) => "counts it, and has room".to_owned(),
            (true, None, Some(wait)) => format!("counts it, and has no room for {wait}"),
        };
        out.line("rate limit", format_args!("{}{}{dry_run}: {room}", limit.object, at(&limit.place)));
    }
    for limit in &answer.concurrency {
        let dry_run = if limit.dry_run { ", dry run" } else { "" };
        let open = format!("{} of {} at once", limit.open, limit.limit);
        out.line("concurrency", format_args!("{}{}{dry_run}: {open}", limit.object, at(&limit.place)));
    }
    out.line("outcome", format_args!("{}", answer.ending));
    out.page(&answer.ending);
    out.text
}

struct Lines<'i> {
    text: String,
    indent: &'i str,
}

impl Lines<'_> {
    fn line(&mut self, name: &str, rest: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{}{name:<12} {rest}", self.indent);
    }

    /// Where a refusal is explained.
    fn page(&mut self, ending: &Ending) {
        if let Ending::Refused { cause, .. } = ending {
            self.line("", format_args!("`heddle explain {cause}` says what to look at"));
        }
    }

    fn sources(&mut self, sources: &[Source]) {
        let shown: Vec<_> = sources.iter().map(|source| format!("{}{}", source.object, at(&source.place))).collect();
        if !shown.is_empty() {
            self.line("", format_args!("made from {}", shown.join(", ")));
        }
    }

    fn backend(&mut self, backend: &Backend) {
        let name = backend.cluster.as_deref().unwrap_or("an invalid reference");
        self.line("backend", format_args!("{name}: {}% of requests", rounded(backend.percent)));
        self.sources(&backend.sources);
        backend.filters.iter().for_each(|filter| self.line("", format_args!("filter: {filter}")));
        backend.sent.iter().for_each(|sent| self.line("", format_args!("sent as {sent}")));
        if !backend.balancing.is_empty() {
            self.line("", format_args!("balanced by {}", backend.balancing));
        }
        let open =
            backend.breakers.iter().map(|breaker| format!("{} {}/{}", breaker.kind, breaker.open, breaker.limit));
        let open: Vec<_> = open.collect();
        if !open.is_empty() {
            self.line("", format_args!("open: {}", open.join(", ")));
        }
        for endpoint in &backend.endpoints {
            let verdict = if endpoint.eligible { "may get it" } else { "gets nothing" };
            let tls = match endpoint.identities.as_slice() {
                [] => "plaintext".to_owned(),
                identities => format!("mutual TLS as {}", identities.join(" or ")),
            };
            let because = endpoint.because.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
            let (address, workload, weight) = (endpoint.address, &endpoint.workload, endpoint.weight);
            self.line("endpoint", format_args!("{address} {workload}, weight {weight}, {tls}: {verdict}{because}"));
        }
    }
}

fn at(place: &Option<String>) -> String {
    place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default()
}

fn rounded(percent: f64) -> f64 {
    (percent * 100.0).round() / 100.0
}

/// An outcome with its share, where there are others.
struct Shown<'o>(&'o Outcome);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.percent < 100.0 {
            write!(f, "{}%: ", rounded(self.0.percent))?;
        }
        write!(f, "{}", self.0.ending)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent { cluster } => write!(f, "sent to an endpoint of {cluster}"),
            Self::Delivered => f.write_str("delivered to the application"),
            Self::Answered { by, status, location } => {
                write!(f, "answered {status} by {by}")?;
                location.iter().try_for_each(|location| write!(f, ", to {location}"))
            }
            Self::Refused { cause, status, because } => {
                match status {
                    Some(status) => write!(f, "answered {status}, cause {cause}")?,
                    None => write!(f, "closed, cause {cause}")?,
                }
                because.iter().try_for_each(|because| write!(f, ": {because}"))
            }
            Self::Outside => f.write_str("relayed untouched, as the egress default allows"),
        }
    }
}
