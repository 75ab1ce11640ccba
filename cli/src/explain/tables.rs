//! What a workload's sidecar is told, put into its tables by the sidecar's own `sync`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::bail;
use heddle_proxy::sync::assemble::{Command, Core};
use heddle_proxy::tables::{Millis, Tables};
use heddle_xds::delta::client::Update;

use super::mesh::Mesh;

/// Tables that were made already.
#[derive(Debug, Default)]
pub struct Cache {
    made: HashMap<(String, Option<SocketAddr>), Arc<Tables>>,
}

impl Cache {
    /// The tables of the sidecar of `client` that knows `destination`, if any.
    ///
    /// # Errors
    /// If the mesh cannot be asked, or says what a sidecar would refuse.
    pub fn tables(
        &mut self,
        mesh: &Mesh,
        client: &str,
        destination: Option<SocketAddr>,
    ) -> anyhow::Result<Arc<Tables>> {
        let key = (client.to_owned(), destination);
        if let Some(made) = self.made.get(&key) {
            return Ok(made.clone());
        }
        let made = Arc::new(assemble(mesh, client, destination)?);
        self.made.insert(key, made.clone());
        Ok(made)
    }
}

fn assemble(mesh: &Mesh, client: &str, destination: Option<SocketAddr>) -> anyhow::Result<Tables> {
    let mut core = Core::new(Arc::default());
    destination.iter().for_each(|destination| core.wish(*destination, Millis(0)));
    loop {
        let commands = core.take_commands();
        if commands.is_empty() {
            // A workload without a sidecar is told nothing of itself.
            return Ok(core.take_tables().unwrap_or_default());
        }
        for Command { kind, name, .. } in commands.into_iter().filter(|command| command.wanted) {
            let found = mesh.resource(client, kind, &name)?;
            let removed = if found.is_none() { vec![name] } else { Vec::new() };
            let update = Update { kind, added: found.into_iter().collect(), removed };
            if let Some(reject) = core.apply(&update, Millis(0)).first() {
                bail!("the sidecar of {client} would refuse what it is told: {reject}");
            }
        }
    }
}
