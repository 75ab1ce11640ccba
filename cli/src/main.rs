//! `heddle`: the tool. All it does is in the library.

fn main() -> anyhow::Result<()> {
    heddle::main()
}
