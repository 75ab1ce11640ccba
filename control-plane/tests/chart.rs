//! The chart's definitions of our kinds are those of the code.

use std::path::Path;
use std::process::Command;

#[test]
fn the_chart_holds_the_definitions_that_the_types_say() {
    let printed = Command::new(env!("CARGO_BIN_EXE_crdgen")).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/heddle/files/crds.yaml");
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        String::from_utf8(printed.stdout).unwrap() == kept,
        "{} is stale: cargo run -p heddle-control-plane --bin crdgen > charts/heddle/files/crds.yaml",
        file.display()
    );
}
