//! Session persistence (GEP-1619). Nothing is kept anywhere but at the client, who says which endpoint it had.

use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;

use super::filter;
use super::problem::Problem;
use crate::model::route::Session;
use crate::objects::route::SessionPersistence;

/// The session, and what of it is not in force; or what is wrong with it. `own` is the name of a session that was given none.
pub(super) fn session(given: &SessionPersistence, own: &str) -> Result<(Session, Vec<Problem>), Problem> {
    let name = given.session_name.as_deref().unwrap_or(own);
    let absolute = given.absolute_timeout.as_deref().map(|text| duration("absoluteTimeout", text)).transpose()?;
    let mut problems = Vec::new();
    if let Some(text) = &given.idle_timeout {
        duration("idleTimeout", text)?;
        problems.push(Problem::Unsupported(
            "sessionPersistence idleTimeout is not supported, because only the client keeps the session, and does not say \
             when it was last used; the session holds without it"
                .to_owned(),
        ));
    }
    let permanent = match given.cookie_config.as_ref().and_then(|config| config.lifetime_type.as_deref()) {
        None | Some("Session") => false,
        Some("Permanent") => true,
        Some(other) => {
            return Err(
                format!("sessionPersistence cookieConfig.lifetimeType: `{other}`: write Session or Permanent").into()
            );
        }
    };
    let session = match given.r#type.as_deref() {
        None | Some("Cookie") => Session::Cookie { name: cookie(name)?, lifetime: absolute.filter(|_| permanent) },
        Some("Header") => Session::Header { name: filter::name(name)? },
        Some(other) => {
            return Err(format!("sessionPersistence type: `{other}`: write Cookie or Header").into());
        }
    };
    match (absolute, &session) {
        (None, _) if permanent => {
            return Err("sessionPersistence: a Permanent cookie needs an absoluteTimeout: write one".into());
        }
        (Some(_), Session::Header { .. } | Session::Cookie { lifetime: None, .. }) => {
            problems.push(Problem::Unsupported(
                "sessionPersistence absoluteTimeout is supported for cookies with cookieConfig.lifetimeType: Permanent; \
                 the session holds without it"
                    .to_owned(),
            ));
        }
        _ => {}
    }
    Ok((session, problems))
}

/// Names of cookies are tokens as those of headers are (RFC 6265 §4.1.1), and keep their case.
fn cookie(name: &str) -> Result<String, String> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("sessionPersistence sessionName: `{name}` cannot be a cookie's name (RFC 6265 §4.1.1)"))?;
    Ok(name.to_owned())
}

fn duration(field: &str, text: &str) -> Result<Duration, String> {
    let length = crate::api::Duration::from_str(text).ok().map(crate::api::Duration::get);
    length.filter(|length| length.as_secs() > 0).ok_or_else(|| {
        format!("sessionPersistence {field}: `{text}`: write a duration (GEP-2257) of a second or more, as 30m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::route::CookieConfig;

    fn given(name: &str, kind: Option<&str>, absolute: Option<&str>, lifetime: Option<&str>) -> SessionPersistence {
        SessionPersistence {
            session_name: Some(name.to_owned()),
            r#type: kind.map(str::to_owned),
            absolute_timeout: absolute.map(str::to_owned),
            idle_timeout: None,
            cookie_config: lifetime.map(|kind| CookieConfig { lifetime_type: Some(kind.to_owned()) }),
        }
    }

    #[test]
    fn cookies_and_headers_are_told_apart_and_only_a_permanent_cookie_ends() {
        let cookie = |lifetime| Session::Cookie { name: "Cart".into(), lifetime };
        assert_eq!(session(&given("Cart", None, None, None), "own"), Ok((cookie(None), vec![])));
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(session(&given("Cart", None, Some("1h"), Some("Permanent")), "own"), Ok((cookie(hour), vec![])));
        let header = Session::Header { name: "x-cart".into() };
        assert_eq!(session(&given("X-Cart", Some("Header"), None, None), "own"), Ok((header, vec![])));
        let unnamed = SessionPersistence::default();
        assert_eq!(session(&unnamed, "own").unwrap().0, Session::Cookie { name: "own".into(), lifetime: None });
    }

    #[test]
    fn what_is_not_in_force_is_said_and_the_session_holds() {
        for (case, word) in [
            (given("a", None, Some("1h"), None), "absoluteTimeout"),
            (given("a", Some("Header"), Some("1h"), None), "absoluteTimeout"),
            (SessionPersistence { idle_timeout: Some("1h".into()), ..given("a", None, None, None) }, "idleTimeout"),
        ] {
            let (_, problems) = session(&case, "own").unwrap();
            assert!(problems.len() == 1 && problems[0].to_string().contains(word), "{problems:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_value() {
        for (case, word) in [
            (given("a b", None, None, None), "`a b`"),
            (given("connection", Some("Header"), None, None), "connection"),
            (given("a", Some("Basket"), None, None), "`Basket`"),
            (given("a", None, Some("soon"), Some("Permanent")), "`soon`"),
            (given("a", None, Some("0s"), Some("Permanent")), "`0s`"),
            (given("a", None, None, Some("Permanent")), "absoluteTimeout"),
            (given("a", None, None, Some("Forever")), "`Forever`"),
        ] {
            let problem = session(&case, "own").unwrap_err().to_string();
            assert!(problem.contains(word), "{problem}");
        }
    }
}
