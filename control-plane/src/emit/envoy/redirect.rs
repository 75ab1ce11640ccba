//! RequestRedirect as Envoy answers it.

use envoy_types::pb::envoy::config::route::v3::RedirectAction;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};

use super::path;
use crate::model::route::{PathChange, PathMatch, Redirect, Scheme};

/// The redirect of a route that matches `path`, for clients that dialled `dialled`.
pub fn action(redirect: &Redirect, path: Option<&PathMatch>, dialled: u16) -> RedirectAction {
    RedirectAction {
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: port(redirect, dialled).map_or(0, u32::from),
        scheme_rewrite_specifier: redirect
            .scheme
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme_name(scheme).to_owned())),
        path_rewrite_specifier: redirect.path.as_ref().map(|change| match change {
            PathChange::Full(full) => PathRewriteSpecifier::PathRedirect(full.clone()),
            PathChange::Prefix(_) => PathRewriteSpecifier::RegexRewrite(path::substitution(change, path)),
        }),
        response_code: code(redirect.status) as i32,
        ..RedirectAction::default()
    }
}

/// The port to write into the Location; `None` leaves what the Host has. Envoy writes a port it is given even where it is
/// the scheme's own, so that one is given only to replace another in the Host.
fn port(redirect: &Redirect, dialled: u16) -> Option<u16> {
    let own = match redirect.scheme {
        Some(Scheme::Https) => 443,
        // Between application and sidecar there is plaintext only.
        Some(Scheme::Http) | None => 80,
    };
    let port = match (redirect.port, redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(_)) => own,
        (None, None) => dialled,
    };
    // Envoy itself drops a `:80` from the Host when the scheme turns to https, and the other way round.
    let host_has_another = redirect.hostname.is_none() && dialled != own && dialled != 80;
    (port != own || host_has_another).then_some(port)
}

fn scheme_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    }
}

/// Gateway API allows these five, 302 being its default.
fn code(status: u16) -> RedirectResponseCode {
    match status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(scheme: Option<Scheme>, hostname: Option<&str>, port: Option<u16>) -> Redirect {
        Redirect { scheme, hostname: hostname.map(str::to_owned), path: None, port, status: 302 }
    }

    #[test]
    fn a_port_is_written_where_it_is_not_the_scheme_s_own_or_replaces_another() {
        let cases = [
            (redirect(None, None, None), 80, None),
            (redirect(None, None, None), 8080, Some(8080)),
            (redirect(None, Some("b"), None), 8080, Some(8080)),
            (redirect(None, None, Some(81)), 80, Some(81)),
            (redirect(Some(Scheme::Https), None, None), 80, None),
            (redirect(Some(Scheme::Https), None, None), 8080, Some(443)),
            (redirect(Some(Scheme::Https), Some("b"), None), 8080, None),
            (redirect(Some(Scheme::Https), None, Some(8443)), 80, Some(8443)),
            (redirect(Some(Scheme::Http), None, None), 8080, Some(80)),
        ];
        for (redirect, dialled, expected) in cases {
            assert_eq!(port(&redirect, dialled), expected, "{redirect:?} from port {dialled}");
        }
    }

    #[test]
    fn every_status_of_the_gateway_api_is_kept() {
        assert_eq!([301, 302, 303, 307, 308].map(|status| code(status) as i32), [0, 1, 2, 3, 4]);
    }
}
