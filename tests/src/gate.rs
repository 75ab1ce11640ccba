//! A TCP relay that can be shut: what goes through it breaks off, and nothing more is let in until it is opened again.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use heddle::pods::Netns;

/// A relay on loopback of a network; it ends with the process.
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Gate {
    /// An open relay to `target`, both in `network`.
    pub fn to(network: &Netns, target: SocketAddr) -> Self {
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let listener = network.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Self { address, open: Arc::clone(&open) };
        let accept = move || {
            for near in listener.incoming() {
                // While it is shut, whoever comes is sent away.
                let (Ok(near), Some(connections)) = (near, &mut *open.lock().unwrap()) else { continue };
                let Ok(far) = TcpStream::connect(target) else { continue };
                connections.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                relay(&near, &far);
            }
        };
        // The thread and its connections stay in the network it is made in.
        network.run(|| thread::spawn(accept)).unwrap();
        gate
    }

    /// Breaks all connections and lets nothing through.
    pub fn shut(&self) {
        for connection in self.open.lock().unwrap().take().into_iter().flatten() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn open(&self) {
        *self.open.lock().unwrap() = Some(Vec::new());
    }
}

fn relay(near: &TcpStream, far: &TcpStream) {
    for (from, to) in [(near, far), (far, near)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
