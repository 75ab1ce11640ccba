//! The `heddle` binary, built with the tests, for those that need processes.

fn main() -> anyhow::Result<()> {
    heddle::main()
}
