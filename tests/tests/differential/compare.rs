//! Whether two data planes gave the same.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::case::Ask;
use crate::world::Transcript;

/// Places of the requests whose outcomes differ beyond chance, each with its difference in words.
pub fn differences(asks: &[Ask], one: &Transcript, other: &Transcript) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (place, ((ask, one), other)) in asks.iter().zip(one).zip(other).enumerate() {
        let mut words = String::new();
        let outcomes: BTreeSet<_> = one.seen.keys().chain(other.seen.keys()).collect();
        for outcome in outcomes {
            let [a, b] = [one, other].map(|outcomes| outcomes.seen.get(outcome).copied().unwrap_or(0));
            if !may_be_chance(a, b, ask.times) {
                let Ask { method, target, service, times, .. } = ask;
                writeln!(words, "{method} {target} at {service}: {a} and {b} of {times} times {outcome:?}").unwrap();
            }
        }
        if !words.is_empty() {
            found.push((place, words));
        }
    }
    found
}

/// Whether `a` and `b` of `times` each may come of one probability. One request has one outcome. Of many, both may differ by
/// four and a half standard deviations of their difference: beyond that lies one in 150,000 (normal approximation of the
/// binomial), and a difference is seen several times before it counts.
fn may_be_chance(a: u32, b: u32, times: u32) -> bool {
    if times == 1 || a == 0 || b == 0 {
        return a == b;
    }
    let times = f64::from(times);
    let share = f64::from(a + b) / (2.0 * times);
    f64::from(a.abs_diff(b)) <= 4.5 * (2.0 * times * share * (1.0 - share)).sqrt()
}
