//! `heddle explain CAUSE`: the page that explains a cause, without a network.

use anyhow::bail;
use heddle_proxy::http::error::Cause;

/// The section of a cause.
///
/// # Errors
/// If there is no such cause, with those that are.
pub(super) fn of(name: &str) -> anyhow::Result<String> {
    match sections().find(|(heading, _)| *heading == name) {
        Some((heading, text)) => Ok(format!("{heading}\n\n{}\n", text.trim())),
        None => {
            let names: Vec<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
            bail!("`{name}` is neither a URL, as http://api.shop/cart, nor a cause: those are {}", names.join(", "))
        }
    }
}

fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.split("\n## ").skip(1).filter_map(|section| section.split_once('\n'))
}

const PAGE: &str = include_str!("../../../docs/causes.md");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_section_and_no_section_is_about_anything_else() {
        let explained: Vec<_> = sections().map(|(heading, _)| heading).collect();
        let causes = Cause::ALL.iter().map(|cause| cause.name()).chain(["redirect", "preflight"]);
        let mut missing: Vec<_> = causes.clone().filter(|cause| !explained.contains(cause)).collect();
        missing.extend(explained.iter().filter(|heading| !causes.clone().any(|cause| cause == **heading)));
        assert!(missing.is_empty(), "docs/causes.md: {missing:?}");
        assert!(sections().all(|(_, text)| text.trim().len() > 40));
    }

    #[test]
    fn a_section_says_the_status_of_its_cause() {
        for cause in Cause::ALL {
            let text = of(cause.name()).unwrap();
            let status = cause.status().as_u16().to_string();
            let answered = text.contains(&status) || text.contains("closed") || cause == Cause::FaultInjected;
            assert!(answered, "{text}");
        }
    }

    #[test]
    fn what_is_no_cause_is_answered_with_those_that_are() {
        let error = of("no-route").unwrap_err().to_string();
        assert!(error.starts_with("`no-route` is neither a URL") && error.contains("no_route"), "{error}");
    }
}
