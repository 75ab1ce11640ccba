//! Figures of all rounds, and the table made of them.

use crate::rig::Peer;

/// One line of the table: what was measured, and each peer's figures, one a round.
struct Line {
    section: &'static str,
    name: &'static str,
    values: Vec<(Peer, Vec<f64>)>,
}

/// All lines, in the order they were first measured in.
#[derive(Default)]
pub struct Figures {
    lines: Vec<Line>,
    noisy: usize,
}

impl Figures {
    /// Adds what `peer` showed in this round.
    pub fn add(&mut self, section: &'static str, name: &'static str, peer: Peer, value: f64) {
        let found = self.lines.iter().position(|line| line.section == section && line.name == name);
        let index = found.unwrap_or_else(|| {
            // With its section, also where an earlier peer has shown less of it.
            let after = self.lines.iter().rposition(|line| line.section == section);
            let index = after.map_or(self.lines.len(), |last| last + 1);
            self.lines.insert(index, Line { section, name, values: vec![] });
            index
        });
        let values = &mut self.lines[index].values;
        match values.iter_mut().find(|(of, _)| *of == peer) {
            Some((_, values)) => values.push(value),
            None => values.push((peer, vec![value])),
        }
    }

    /// Counts a figure that others disturbed to the last.
    pub fn disturbed(&mut self) {
        self.noisy += 1;
    }

    /// Prints the table.
    pub fn print(&self, peers: &[Peer]) {
        let mut section = "";
        for line in &self.lines {
            if line.section != section {
                section = line.section;
                let heads: String = peers.iter().map(|peer| format!("{:>28}", peer.to_string())).collect();
                println!("\n{section:<30}{heads}{:>22}", "heddle : envoy");
            }
            let cells: String = peers.iter().map(|&peer| format!("{:>28}", spread(line.of(peer)))).collect();
            let ratio = spread(&line.ratios(Peer::Heddle, Peer::Envoy));
            println!("  {:<28}{cells}{ratio:>22}", line.name);
        }
        println!(
            "\nmedian over the rounds [lowest–highest]; CPU is on-CPU time of the whole process; ratios are within a round"
        );
        if self.noisy > 0 {
            println!("{} figures were taken while other programs used more than 0.3 processors", self.noisy);
        }
    }
}

impl Line {
    fn of(&self, peer: Peer) -> &[f64] {
        self.values.iter().find(|(of, _)| *of == peer).map_or(&[], |(_, values)| values)
    }

    /// Round by round.
    fn ratios(&self, one: Peer, other: Peer) -> Vec<f64> {
        self.of(one).iter().zip(self.of(other)).map(|(one, other)| one / other).collect()
    }
}

/// Median, lowest and highest.
fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
        return "–".into();
    };
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    format!("{} [{}–{}]", short(median), short(*first), short(*last))
}

/// About three digits.
fn short(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
