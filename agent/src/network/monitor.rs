//! Hears of changes of the node's links, addresses and routes, whoever makes them.

use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use super::netlink::NetlinkError;

/// Changes come in bursts, a new pod's above all: one look after them is enough.
const SETTLE: Duration = Duration::from_millis(300);

/// A subscription to the kernel's announcements for the namespace that it was opened in. It says that something changed, not
/// what: who hears it reads the kernel's tables.
#[derive(Debug)]
pub struct Monitor(watch::Receiver<()>);

impl Monitor {
    /// Begins to listen. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut announcements) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|source| NetlinkError::new("listen for changes of the network", source))?;
        tokio::spawn(connection);
        let (sender, receiver) = watch::channel(());
        tokio::spawn(async move {
            // The connection ends without it.
            let _handle = handle;
            while announcements.next().await.is_some() && sender.send(()).is_ok() {}
        });
        Ok(Monitor(receiver))
    }

    /// Waits for a change since the last call. May be dropped when the caller reads everything afterwards.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nothing more will be heard.
            return std::future::pending().await;
        }
        tokio::time::sleep(SETTLE).await;
        self.0.borrow_and_update();
    }
}
