//! Prints our CustomResourceDefinitions as YAML, for the chart and for `kubectl apply -f -`.

use std::io::Write;

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for definition in heddle_control_plane::api::definitions() {
        writeln!(out, "---")?;
        // Through JSON, whose maps are sorted, so that the output is the same every time.
        write!(out, "{}", serde_saphyr::to_string(&serde_json::to_value(&definition)?)?)?;
    }
    Ok(())
}
