//! Cases from a seed: what a user could write, and requests that nearly or wholly match it.

use fastrand::Rng;
use serde_json::{Value, json};

use crate::case::{AWAY, Ask, By, CALLS, Case, EMPTY, MANY, MISSING, SERVICES, SHADOW, STORE, object, parent_ref};

/// The case of a seed.
pub fn case(seed: u64) -> Case {
    let mut generator = Generator { rng: Rng::with_seed(seed), weighted: false, slow: false, faults: Vec::new() };
    let mut manifests = Vec::new();
    for number in 0..generator.rng.usize(1..=2) {
        let name = format!("route-{number}");
        manifests.push(generator.route(&name));
    }
    if generator.chance(70) {
        manifests.push(generator.grpc_route());
    }
    if generator.chance(50) {
        manifests.push(object(OURS, "MeshTLSPolicy", "tls", json!({ "mode": generator.one(&MODES) })));
    }
    for service in SERVICES {
        manifests.push(generator.traffic_policy(service));
    }
    if generator.chance(40) {
        manifests.push(generator.route_policy());
    }
    for number in 0..generator.rng.usize(..3) {
        manifests.push(generator.authorization(&format!("policy-{number}")));
    }
    if generator.chance(80) {
        manifests.push(generator.limits());
    }
    manifests.append(&mut generator.faults);
    let asks = generator.asks(&manifests);
    Case { manifests, asks }
}

struct Generator {
    rng: Rng,
    /// Some backend is chosen by weight.
    weighted: bool,
    /// Some rule has a timeout.
    slow: bool,
    /// Named by rules so far.
    faults: Vec<Value>,
}

impl Generator {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.usize(..of.len())]
    }

    fn number(&mut self, of: &[u16]) -> u16 {
        of[self.rng.usize(..of.len())]
    }

    // ---- routes ----

    fn route(&mut self, name: &str) -> Value {
        let parent = self.one(&["alpha", "alpha", "alpha", "beta", AWAY]);
        let rules: Vec<_> = (0..self.rng.usize(1..=3)).map(|_| self.rule()).collect();
        let mut parent = parent_ref(parent);
        if self.chance(40) {
            parent.as_object_mut().unwrap().remove("port");
        }
        let mut route = object(GATEWAY, "HTTPRoute", name, json!({ "parentRefs": [parent], "rules": rules }));
        route["metadata"]["creationTimestamp"] = json!(format!("2026-01-0{}T00:00:00Z", self.rng.u32(1..9)));
        route
    }

    fn grpc_route(&mut self) -> Value {
        let rules: Vec<_> = (0..self.rng.usize(1..=2)).map(|_| self.grpc_rule()).collect();
        object(GATEWAY, "GRPCRoute", "calls", json!({ "parentRefs": [parent_ref(CALLS)], "rules": rules }))
    }

    fn grpc_rule(&mut self) -> Value {
        let mut rule = json!({ "backendRefs": self.backends() });
        if self.chance(90) {
            rule["matches"] = json!([self.grpc_matches()]);
        }
        if self.chance(50) && has_one_backend(&rule) {
            rule["sessionPersistence"] = self.session();
        }
        let mut filters = Vec::new();
        if self.chance(40) {
            filters.push(self.request_headers());
        }
        if self.chance(30) {
            filters.push(self.response_headers());
        }
        if self.chance(35) && rule["backendRefs"].as_array().unwrap().iter().all(serves) {
            filters.push(self.fault(true));
        }
        if !filters.is_empty() {
            rule["filters"] = json!(filters);
        }
        rule
    }

    fn grpc_matches(&mut self) -> Value {
        let mut method = match self.rng.u32(..10) {
            0..=2 => json!({ "service": self.one(&["shop\\.(Cart|Till)", "shop.*"]), "type": "RegularExpression" }),
            3..=4 => json!({ "method": self.one(&["Add", "Pay"]) }),
            _ => json!({ "service": self.one(&["shop.Cart", "shop.Till"]) }),
        };
        if method["method"].is_null() && self.chance(50) {
            method["method"] = json!(self.one(&["Add", "Pay"]));
        }
        if method["type"].is_null() && self.chance(50) {
            method["type"] = json!("Exact");
        }
        let mut matches = json!({ "method": method });
        if self.chance(50) {
            matches["headers"] = self.values_of(&["x-one", "X-Two", "x-three"], &["1", "2", "one two"]);
        }
        matches
    }

    fn rule(&mut self) -> Value {
        let mut rule = json!({});
        let by_prefix = self.chance(50);
        let matches: Vec<_> = match self.rng.u32(..10) {
            0 => vec![],
            1..=6 => vec![self.matches(by_prefix)],
            _ => vec![self.matches(by_prefix), self.matches(by_prefix)],
        };
        if !matches.is_empty() {
            rule["matches"] = json!(matches);
        }
        if self.chance(15) {
            rule["name"] = json!(self.one(&["first", "second"]));
        }
        // A prefix can be replaced only where it is what matches (HTTPRoute, `ReplacePrefixMatch`).
        let replaces = by_prefix && matches.len() == 1;
        let mut filters = Vec::new();
        let redirects = self.chance(25);
        if redirects {
            filters.push(self.redirect(replaces));
        } else if self.chance(35) {
            filters.push(self.rewrite(replaces));
        }
        if self.chance(35) {
            filters.push(self.request_headers());
        }
        if self.chance(30) {
            filters.push(self.response_headers());
        }
        // Ours tells pages of redirects too that they may follow them; Envoy does not.
        if self.chance(15) && !redirects {
            filters.push(self.cors());
        }
        if !redirects {
            let backends = self.backends();
            // Ours copies requests whatever becomes of them; Envoy only those that have an endpoint to go to.
            let all_serve = backends.as_array().unwrap().iter().all(serves);
            if self.chance(25) && all_serve {
                filters.push(mirror(self.number(&[0, 100])));
            }
            // Ours goes wrong before anything else; Envoy does not where it answers by itself.
            if self.chance(20) && all_serve {
                filters.push(self.fault(false));
            }
            rule["backendRefs"] = backends;
        }
        if !filters.is_empty() {
            rule["filters"] = json!(filters);
        }
        if redirects {
            return rule;
        }
        if self.chance(45) && has_one_backend(&rule) {
            rule["sessionPersistence"] = self.session();
        }
        if self.chance(20) {
            self.slow = true;
            rule["timeouts"] = match self.rng.u32(..3) {
                0 => json!({ "request": "300ms" }),
                1 => json!({ "request": "2s", "backendRequest": "300ms" }),
                _ => json!({ "backendRequest": "300ms" }),
            };
        }
        if self.chance(25) {
            let codes: &[u16] = if self.chance(50) { &[503] } else { &[500, 503] };
            rule["retry"] = json!({ "codes": codes, "attempts": self.rng.u32(1..=3), "backoff": "1ms" });
        }
        rule
    }

    fn matches(&mut self, by_prefix: bool) -> Value {
        let mut matches = json!({});
        if by_prefix {
            matches["path"] =
                json!({ "type": "PathPrefix", "value": self.one(&["/", "/a", "/a/b", "/ab", "/v1", "/a/"]) });
        } else if self.chance(70) {
            matches["path"] = match self.rng.u32(..3) {
                0 => json!({ "type": "RegularExpression", "value": self.one(&["/v[0-9]+/.*", "/a.*", "/(a|ab)"]) }),
                _ => json!({ "type": "Exact", "value": self.one(&["/", "/a", "/a/b", "/ab", "/a/"]) }),
            };
        }
        if self.chance(35) {
            matches["headers"] = self.values_of(&["x-one", "X-Two", "x-three"], &["1", "2", "one two"]);
        }
        if self.chance(25) {
            matches["queryParams"] = self.values_of(&["q", "Q", "r"], &["1", "2"]);
        }
        if self.chance(20) {
            matches["method"] = json!(self.one(&["GET", "POST", "PUT", "DELETE"]));
        }
        matches
    }

    /// Matches of one or two of these names, exact by one of these values or by an expression.
    fn values_of(&mut self, names: &[&str], values: &[&str]) -> Value {
        let (first, count) = (self.rng.usize(..names.len()), if self.chance(30) { 2 } else { 1 });
        let matches = (0..count).map(|index| {
            let name = names[(first + index) % names.len()];
            if self.chance(30) {
                json!({ "type": "RegularExpression", "name": name, "value": self.one(&["1|2", "[0-9]", ".+"]) })
            } else {
                json!({ "type": "Exact", "name": name, "value": self.one(values) })
            }
        });
        matches.collect()
    }

    fn backends(&mut self) -> Value {
        let count = if self.chance(75) { 1 } else { self.rng.usize(2..=3) };
        let first = self.rng.usize(..5);
        let all = [SERVICES[0], SERVICES[1], SERVICES[2], EMPTY, MISSING];
        let mut backends = Vec::new();
        for index in 0..count {
            // Mostly one that is there.
            let rare = all[(first + index) % all.len()];
            let name = if self.chance(20) { rare } else { SERVICES[(first + index) % SERVICES.len()] };
            let mut backend = json!({ "name": name, "port": 80 });
            if count > 1 || self.chance(10) {
                backend["weight"] = json!(self.number(&[0, 30, 90]));
            }
            if self.chance(40) {
                backend["filters"] =
                    json!([if self.chance(50) { self.request_headers() } else { self.response_headers() }]);
            }
            backends.push(backend);
        }
        self.weighted |= count > 1;
        json!(backends)
    }

    fn session(&mut self) -> Value {
        let mut session = json!({});
        if self.chance(70) {
            session["sessionName"] = json!(self.one(&["Cart", "x-session"]));
        }
        match self.rng.u32(..3) {
            0 => session["type"] = json!("Header"),
            1 => session["type"] = json!("Cookie"),
            _ => {
                session["absoluteTimeout"] = json!("1h");
                session["cookieConfig"] = json!({ "lifetimeType": "Permanent" });
            }
        }
        session
    }

    // ---- filters ----

    fn request_headers(&mut self) -> Value {
        let changes = self.changes(&["x-one", "X-New", "x-three", "x-gone"]);
        json!({ "type": "RequestHeaderModifier", "requestHeaderModifier": changes })
    }

    fn response_headers(&mut self) -> Value {
        let changes = self.changes(&["x-answer", "X-New", "x-gone"]);
        json!({ "type": "ResponseHeaderModifier", "responseHeaderModifier": changes })
    }

    fn changes(&mut self, names: &[&str]) -> Value {
        let mut changes = json!({});
        let start = self.rng.usize(..names.len());
        for (index, kind) in ["set", "add", "remove"].into_iter().enumerate() {
            if index > 0 && self.chance(50) {
                continue;
            }
            // A name occurs once in a filter.
            let name = names[(start + index) % names.len()];
            changes[kind] = match kind {
                "remove" => json!([name]),
                _ => json!([{ "name": name, "value": self.one(&["ours", "1", "100% %REQ(x)%", "a, b"]) }]),
            };
        }
        changes
    }

    /// `*` beside credentials is left out: Envoy says it to browsers, which take it for a name.
    fn cors(&mut self) -> Value {
        let origins: &[&str] = &["*", ORIGIN, "https://*.example", "http://other.example:8080"];
        let mut cors = json!({ "allowOrigins": [self.one(origins), self.one(origins)] });
        if cors["allowOrigins"][0] == cors["allowOrigins"][1] {
            cors["allowOrigins"] = json!([ORIGIN]);
        }
        let credentials = self.chance(50);
        if credentials {
            cors["allowCredentials"] = json!(true);
        }
        for (field, names) in [
            ("allowMethods", ["GET", "PUT"]),
            ("allowHeaders", ["x-one", "x-two"]),
            ("exposeHeaders", ["x-answer", "x-new"]),
        ] {
            match self.rng.u32(..4) {
                0 => {}
                // Ours says `*` for `*`, Envoy what was asked for.
                1 if !credentials && field == "exposeHeaders" => cors[field] = json!(["*"]),
                _ => cors[field] = json!(names),
            }
        }
        if self.chance(50) {
            cors["maxAge"] = json!(600);
        }
        json!({ "type": "CORS", "cors": cors })
    }

    /// All requests or none: what is drawn for each tells nothing. Delays are too short for any timeout. Of requests that are not
    /// gRPC none gets a gRPC status: Envoy answers them 200. Of those that are none gets 500: gRPC's own table makes UNKNOWN of it, Envoy
    /// UNAVAILABLE.
    fn fault(&mut self, grpc: bool) -> Value {
        let name = format!("fault-{}", self.faults.len());
        let mut spec = json!({});
        if self.chance(60) {
            spec["delay"] = json!({ "duration": "1ms", "percent": self.number(&[0, 100]) });
        }
        if spec == json!({}) || self.chance(60) {
            spec["abort"] = if grpc && self.chance(70) {
                json!({ "grpcStatus": self.rng.u32(1..=16) })
            } else {
                let statuses = [400, 401, 403, 404, 418, 429, 503, 500];
                json!({ "httpStatus": self.number(&statuses[..if grpc { 7 } else { 8 }]) })
            };
            match self.rng.u32(..3) {
                0 => spec["abort"]["fraction"] = json!({ "numerator": self.number(&[0, 1000]), "denominator": 1000 }),
                1 => spec["abort"]["percent"] = json!(self.number(&[0, 100])),
                _ => {}
            }
        }
        if self.chance(40) {
            spec["headers"] = json!([{ "name": self.one(&["x-one", "X-Two"]), "value": self.one(&["1", "2"]) }]);
        }
        self.faults.push(object(OURS, "FaultInjection", &name, spec));
        json!({ "type": "ExtensionRef", "extensionRef": { "group": "heddle.dev", "kind": "FaultInjection", "name": name } })
    }

    fn redirect(&mut self, replaces: bool) -> Value {
        let mut redirect = json!({});
        if self.chance(40) {
            redirect["scheme"] = json!(self.one(&["http", "https"]));
        }
        if self.chance(40) {
            redirect["hostname"] = json!("elsewhere.example");
        }
        if self.chance(30) {
            redirect["port"] = json!(self.number(&[80, 443, 8080]));
        }
        if self.chance(50) {
            redirect["statusCode"] = json!(self.number(&[301, 302, 303, 307, 308]));
        }
        if self.chance(80) {
            redirect["path"] = self.path_change(replaces);
        }
        json!({ "type": "RequestRedirect", "requestRedirect": redirect })
    }

    fn rewrite(&mut self, replaces: bool) -> Value {
        let mut rewrite = json!({});
        if self.chance(50) {
            rewrite["hostname"] = json!("inner.example");
        }
        if rewrite == json!({}) || self.chance(60) {
            rewrite["path"] = self.path_change(replaces);
        }
        json!({ "type": "URLRewrite", "urlRewrite": rewrite })
    }

    fn path_change(&mut self, replaces: bool) -> Value {
        if replaces && self.chance(70) {
            json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": self.one(&["/", "/new", "/new/", ""]) })
        } else {
            json!({ "type": "ReplaceFullPath", "replaceFullPath": self.one(&["/", "/full", "/full/path"]) })
        }
    }

    // ---- policies ----

    /// One for each Service: failures on purpose must not eject anybody.
    fn traffic_policy(&mut self, service: &str) -> Value {
        let mut spec = json!({
            "targetRefs": [{ "group": "", "kind": "Service", "name": service }],
            "outlierDetection": { "maxEjectionPercent": 0 },
        });
        for (field, value) in [
            ("consecutiveFailures", 3),
            ("consecutiveGatewayErrors", 3),
            ("consecutiveLocalOriginFailures", 3),
            ("successRateStdevFactor", 1900),
            ("latencyPercent", 300),
        ] {
            if self.chance(10) {
                spec["outlierDetection"][field] = json!(value);
            }
        }
        if self.chance(80) {
            spec["loadBalancing"] = self.load_balancing();
        }
        if self.chance(20) {
            spec["connectTimeout"] = json!("1s");
        }
        if self.chance(20) {
            spec["circuitBreaker"] =
                json!({ "maxConnections": 100, "maxPending": 100, "maxRequests": 100, "maxRetries": 100 });
        }
        if self.chance(20) {
            spec["healthCheck"] = self.health_check();
        }
        if self.chance(20) {
            spec["connections"] = json!({
                "idleTimeout": "20s", "maxAge": "5s", "maxRequests": self.number(&[1, 7]), "maxStreams": self.number(&[1, 50]),
                "tcpKeepalive": { "time": "30s", "interval": "5s", "probes": 3 },
            });
        }
        self.retry_and_timeouts(&mut spec);
        object(OURS, "TrafficPolicy", service, spec)
    }

    /// One that everybody passes, or with a policy in the way nobody; on a busy machine too, so answers may take long.
    fn health_check(&mut self) -> Value {
        let mut check = match self.rng.u32(..3) {
            0 => json!({ "http": { "path": "/", "codes": [200, 403] } }),
            1 => json!({ "grpc": { "service": "shop.Cart" } }),
            _ => json!({ "tcp": {} }),
        };
        check["timeout"] = json!("10s");
        if self.chance(30) {
            check["interval"] = json!("20s");
            check["unhealthyThreshold"] = json!(2);
            check["healthyThreshold"] = json!(1);
        }
        check
    }

    /// The client's address is left out: it is all that the two clients do not share.
    fn load_balancing(&mut self) -> Value {
        let policy = self.one(&["P2CEWMA", "LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"]);
        let mut balancing = json!({ "policy": policy });
        if ["RingHash", "Maglev"].contains(&policy) {
            let hash_on: Vec<_> = (0..self.rng.usize(1..=2)).map(|_| self.hash_on()).collect();
            balancing["hashOn"] = json!(hash_on);
        } else if policy != "Random" && self.chance(30) {
            balancing["slowStart"] = json!("10s");
        }
        balancing
    }

    fn hash_on(&mut self) -> Value {
        match self.rng.u32(..4) {
            0 => json!({ "type": "Header", "name": self.one(&["x-one", "X-Two"]) }),
            1 => json!({ "type": "Cookie", "name": self.one(&["Cart", "other"]) }),
            2 => json!({ "type": "QueryParam", "name": self.one(&["q", "r"]) }),
            _ => json!({ "type": "Path" }),
        }
    }

    fn route_policy(&mut self) -> Value {
        let target = json!({ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "route-0" });
        let mut spec = json!({ "targetRefs": [target] });
        self.retry_and_timeouts(&mut spec);
        object(OURS, "TrafficPolicy", "of-route", spec)
    }

    fn retry_and_timeouts(&mut self, spec: &mut Value) {
        if self.chance(30) {
            spec["retry"] = json!({ "attempts": self.rng.u32(1..=2), "codes": [503], "backoff": "1ms" });
            if self.chance(50) {
                spec["retry"]["grpcCodes"] = json!([14]);
            }
            if self.chance(30) {
                self.slow = true;
                spec["retry"]["perTryTimeout"] = json!("300ms");
            }
        }
        if self.chance(20) {
            self.slow = true;
            // In the middle of a second try of 300 ms, so that the number of tries is no race.
            spec["timeouts"] = json!({ "request": "450ms", "idle": "10s" });
        }
    }

    fn authorization(&mut self, name: &str) -> Value {
        let action = self.one(&["ALLOW", "DENY"]);
        let mut spec = json!({ "action": action });
        match self.rng.u32(..4) {
            0 => {}
            1 => spec["selector"] = json!({ "matchLabels": { "app": self.one(&SERVICES) } }),
            2 => spec["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": self.one(&SERVICES) }]),
            _ => spec["targetRefs"] = json!([{ "group": "", "kind": "ServiceAccount", "name": self.one(&SERVICES) }]),
        }
        if self.chance(20) {
            spec["dryRun"] = json!(true);
        }
        let rules: Vec<_> = (0..self.rng.usize(1..=2)).map(|_| self.policy_rule()).collect();
        spec["rules"] = json!(rules);
        object(OURS, "AuthorizationPolicy", name, spec)
    }

    /// What is too much depends on who asked before; so these are never reached, or not in force.
    fn limits(&mut self) -> Value {
        let dry_run = self.chance(50);
        let limits: Vec<_> = (0..self.rng.usize(2..=4))
            .map(|_| {
                let mut limit = self.policy_rule();
                limit["requests"] = json!(if dry_run { 1 } else { 1_000_000 });
                limit["per"] = json!("1h");
                match self.rng.u32(..4) {
                    0 => {}
                    1 => limit["by"] = json!({ "type": "Header", "name": "x-user" }),
                    2 => limit["by"] = json!({ "type": "SourceIP" }),
                    _ => limit["by"] = json!({ "type": "Identity" }),
                }
                if self.chance(40) {
                    limit["headers"] = json!([{ "name": "x-plan", "value": self.one(&["free", "paid"]) }]);
                }
                limit
            })
            .collect();
        object(OURS, "RateLimitPolicy", "limits", json!({ "dryRun": dry_run, "limits": limits }))
    }

    fn policy_rule(&mut self) -> Value {
        let mut rule = json!({});
        if self.chance(70) {
            let (field, values): (_, &[&str]) = match self.rng.u32(..7) {
                0 => ("principals", &["shop/client", "shop/other", "shop/*", "*"]),
                1 | 6 => ("notPrincipals", &["shop/client", "shop/other"]),
                2 => ("namespaces", &["shop", "other"]),
                3 => ("notNamespaces", &["shop", "other"]),
                4 => ("ipBlocks", &["10.77.0.0/29", "10.77.0.8/29"]),
                _ => ("notIpBlocks", &["10.77.0.0/29", "192.0.2.0/24"]),
            };
            rule["from"] = json!([{ field: [self.one(values)] }]);
        }
        let mut to = json!({});
        if self.chance(60) {
            let field = self.one(&["paths", "paths", "notPaths"]);
            to[field] = json!([self.one(&["/a", "/a*", "/v1/*", "*b", "/full"])]);
        }
        if self.chance(40) {
            let field = self.one(&["methods", "notMethods"]);
            to[field] = json!([self.one(&["GET", "POST", "P*"])]);
        }
        if self.chance(25) {
            let field = self.one(&["hosts", "notHosts"]);
            to[field] = json!([self.one(&["alpha.shop", "*.shop", "inner.example", "alpha*"])]);
        }
        if self.chance(20) {
            let field = self.one(&["ports", "notPorts"]);
            to[field] = json!([self.number(&[8080, 9090])]);
        }
        if to != json!({}) {
            rule["to"] = json!([to]);
        }
        rule
    }

    // ---- requests ----

    fn asks(&mut self, manifests: &[Value]) -> Vec<Ask> {
        let mut asks = Vec::new();
        // Sessions leave who is not well, which may be so for some seconds because of the case before.
        let sessions = !manifests.iter().any(|manifest| manifest["spec"]["healthCheck"].is_object());
        for route in manifests.iter().filter(|manifest| manifest["spec"]["parentRefs"].is_array()) {
            let by = if route["kind"] == "GRPCRoute" { By::Grpc } else { By::Http };
            let parent = route["spec"]["parentRefs"][0]["name"].as_str().unwrap();
            for rule in route["spec"]["rules"].as_array().unwrap() {
                let weighted = rule["backendRefs"].as_array().is_some_and(|backends| backends.len() > 1);
                let given = rule["matches"].as_array().cloned().unwrap_or_else(|| vec![json!({})]);
                for given in given {
                    let near = self.matching(by, parent, &given);
                    asks.push(self.nearly(near));
                    let times = if weighted { MANY } else { 1 };
                    asks.push(Ask { times, ..self.matching(by, parent, &given) });
                    if let Some(field) = session_field(rule).filter(|_| by == By::Http && !weighted) {
                        let asked = self.matching(by, parent, &given);
                        if sessions {
                            asks.push(Ask { times: 12, session: Some(field), ..asked });
                        }
                    }
                    if rule.to_string().contains("\"CORS\"") {
                        let asked = self.matching(by, parent, &given);
                        asks.push(self.of_a_page(asked));
                    }
                }
            }
        }
        for mut failing in self.some_of(&asks, 2) {
            let codes = if failing.by == By::Grpc { [14, 13, 8] } else { [500, 503, 502] };
            let (code, times) = (self.number(&codes), self.rng.u32(1..=3));
            failing.fields.push(("x-fail".into(), format!("{code}/{times}")));
            asks.push(failing);
        }
        // What waits cannot be asked often enough for shares. Calls are left out: ours says DEADLINE_EXCEEDED, where Envoy makes
        // UNAVAILABLE of its 504.
        let mut waiting: Vec<_> =
            asks.iter().filter(|ask| ask.by == By::Http && ask.session.is_none()).cloned().collect();
        if self.slow && !self.weighted && !waiting.is_empty() && self.chance(50) {
            let mut slow = waiting.swap_remove(self.rng.usize(..waiting.len()));
            slow.times = 1;
            slow.fields.push(("x-slow".into(), "700".into()));
            asks.push(slow);
        }
        for by in [By::Http, By::Stranger] {
            let service = self.one(&SERVICES);
            asks.push(self.matching(by, service, &json!({})));
        }
        asks
    }

    /// So many of the requests, once each.
    fn some_of(&mut self, asks: &[Ask], count: usize) -> Vec<Ask> {
        (0..count).map(|_| Ask { times: 1, session: None, ..asks[self.rng.usize(..asks.len())].clone() }).collect()
    }

    /// A request that `given` lets in, as far as another match does not come first.
    fn matching(&mut self, by: By, service: &str, given: &Value) -> Ask {
        let value = given["path"]["value"].as_str().unwrap_or("/");
        let path = match given["path"]["type"].as_str() {
            _ if by == By::Grpc => self.call_of(&given["method"]),
            Some("PathPrefix") => format!("{}{}", value, self.one(&["", "/x", "x", "/x%20y/z"])),
            Some("RegularExpression") => self.one(&["/v1/items", "/v12/", "/a", "/ab", "/abc"]).to_owned(),
            Some(_) => value.to_owned(),
            None => self.one(&["/", "/a", "/a/b", "/ab", "/v1/items"]).to_owned(),
        };
        let mut fields = Vec::new();
        for header in given["headers"].as_array().into_iter().flatten() {
            let name = header["name"].as_str().unwrap();
            let name = if self.chance(50) { name.to_lowercase() } else { name.to_uppercase() };
            fields.push((name, self.satisfying(header)));
        }
        let query: Vec<_> = given["queryParams"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|parameter| format!("{}={}", parameter["name"].as_str().unwrap(), self.satisfying(parameter)))
            .collect();
        let mut target = path.replace("//", "/");
        if !query.is_empty() {
            target = format!("{target}?{}", query.join("&"));
        } else if self.chance(30) && by != By::Grpc {
            target.push_str(self.one(&["?q=1", "?q=2&r=1", "?", "?x=a%2Fb"]));
        }
        if self.chance(20) {
            fields.push(("x-gone".into(), "theirs".into()));
        }
        let methods: &[&str] = if by == By::Grpc { &["POST"] } else { &["GET", "GET", "POST", "DELETE"] };
        let method = given["method"].as_str().unwrap_or_else(|| self.one(methods));
        if method != "GET" && by != By::Grpc {
            fields.push(("Content-Length".into(), "0".into()));
        }
        let namespace = if service == AWAY { STORE } else { "shop" };
        let host = format!("{service}.{namespace}{}", self.one(&["", ":80"]));
        Ask {
            by,
            service: service.to_owned(),
            method: method.to_owned(),
            target,
            host,
            fields,
            times: 1,
            session: None,
        }
    }

    /// A path that a match of service and method lets in.
    fn call_of(&mut self, given: &Value) -> String {
        let service = given["service"].as_str().filter(|_| given["type"] != "RegularExpression");
        let service = service.unwrap_or_else(|| self.one(&["shop.Cart", "shop.Till", "store.Cart"]));
        let method = given["method"].as_str().unwrap_or_else(|| self.one(&["Add", "Pay", "Drop"]));
        format!("/{service}/{method}")
    }

    fn satisfying(&mut self, given: &Value) -> String {
        let value = given["value"].as_str().unwrap();
        if given["type"] == "RegularExpression" { self.one(&["1", "2"]).to_owned() } else { value.to_owned() }
    }

    /// The same from a page of some origin, or the question whether it may be asked.
    fn of_a_page(&mut self, mut ask: Ask) -> Ask {
        let origin =
            self.one(&[ORIGIN, "https://a.b.example", "http://other.example:8080", "https://evil.example.org"]);
        ask.fields.push(("Origin".into(), origin.into()));
        if self.chance(60) {
            ask.fields
                .push(("Access-Control-Request-Method".into(), std::mem::replace(&mut ask.method, "OPTIONS".into())));
            ask.fields.push(("Access-Control-Request-Headers".into(), "x-one".into()));
        }
        ask
    }

    /// The same with one thing changed.
    fn nearly(&mut self, mut ask: Ask) -> Ask {
        match self.rng.u32(..5) {
            0 if !ask.fields.is_empty() => {
                let index = self.rng.usize(..ask.fields.len());
                if ask.fields[index].0 != "Content-Length" {
                    ask.fields[index].1 = self.one(&["3", "1 ", "one"]).to_owned();
                }
            }
            1 => ask.target = format!("/z{}", ask.target),
            2 => ask.target = ask.target.replacen("/a", "/A", 1).replace("Cart", "Carts"),
            3 => {
                // Ours takes a repeated field for one list (RFC 9110 §5.3), Envoy for several values, any of which may match.
                let name = self.one(&["x-one", "x-two", "x-three"]);
                ask.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
                ask.fields.push((name.into(), self.one(&["1", "2"]).into()));
            }
            _ => ask.target = ask.target.split('?').next().unwrap_or("/").to_owned(),
        }
        ask
    }
}

/// Sessions of several backends come before weights with us (GEP-1619), not with Envoy.
fn has_one_backend(rule: &Value) -> bool {
    rule["backendRefs"].as_array().is_some_and(|backends| backends.len() == 1)
}

/// The field of responses that tells a rule's session. Weights are left out: ours has a session before them, Envoy behind.
fn session_field(rule: &Value) -> Option<String> {
    let name = rule["sessionPersistence"]["sessionName"].as_str()?;
    let in_header = rule["sessionPersistence"]["type"] == "Header";
    Some(if in_header { name.to_lowercase() } else { "set-cookie".to_owned() })
}

/// Whether there are endpoints behind a backend, and a share for it.
fn serves(backend: &Value) -> bool {
    SERVICES.contains(&backend["name"].as_str().unwrap()) && backend["weight"] != 0
}

fn mirror(percent: u16) -> Value {
    json!({ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": SHADOW, "port": 80 }, "percent": percent } })
}

/// Where pages come from.
const ORIGIN: &str = "https://shop.example";
/// API versions.
const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "heddle.dev/v1alpha1";
const MODES: [&str; 3] = ["STRICT", "PERMISSIVE", "DISABLE"];
