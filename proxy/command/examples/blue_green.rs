//! Replaces one backend of a running proxy by another, without losing a request.
//!
//! ```console
//! $ cargo run -p underpass-command --example blue_green -- /run/underpass/admin.sock app 127.0.0.1:9001 127.0.0.1:9002
//! revision 2: 127.0.0.1:9002 is added, 127.0.0.1:9001 drains
//! 127.0.0.1:9001 has drained: it may be stopped
//! revision 3: 127.0.0.1:9001 is removed
//! ```

use std::error::Error;
use std::net::SocketAddr;

use underpass_command::Client;
use underpass_command::api::{ChangeRequest, EventKind};
use underpass_command::live::Operation;
use underpass_command::state::Backend;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, cluster, blue, green] = words.as_slice() else {
        return Err("usage: blue_green SOCKET CLUSTER BLUE GREEN".into());
    };
    replace(&Client::new(socket), cluster, blue.parse()?, green.parse()?)
}

fn replace(
    client: &Client,
    cluster: &str,
    blue: SocketAddr,
    green: SocketAddr,
) -> Result<(), Box<dyn Error>> {
    // Listening begins before the change, so that its event cannot be missed.
    let events = client.events(None)?;
    let backends = client.cluster(cluster)?.backends;
    let old = backends.iter().find(|backend| backend.address == blue).ok_or("there is no such backend")?;
    let name = || cluster.to_owned();
    // One change: there is no moment in which neither of them serves.
    let operations = vec![
        Operation::AddBackend { cluster: name(), backend: Backend::new(green) },
        Operation::ChangeBackend { cluster: name(), backend: Backend { drain: true, ..old.clone() } },
    ];
    let changed = client.change(&ChangeRequest { operations, ..ChangeRequest::default() })?;
    println!("revision {}: {green} is added, {blue} drains", changed.revision);
    for event in events {
        match event?.kind {
            EventKind::BackendDrained { cluster: of, backend } if of == cluster && backend == blue => break,
            _ => {}
        }
    }
    println!("{blue} has drained: it may be stopped");
    let operations = vec![Operation::RemoveBackend { cluster: name(), address: blue }];
    let changed = client.change(&ChangeRequest { operations, ..ChangeRequest::default() })?;
    println!("revision {}: {blue} is removed", changed.revision);
    Ok(())
}
