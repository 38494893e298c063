//! Loopback addresses that belong to one program at a time.
//!
//! Vnode ports are fixed numbers, so two programs on one machine need two addresses (MC-138). Linux answers on all of
//! 127.0.0.0/8; which are taken is agreed upon between test processes by file locks.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail};

/// An address of 127.0.0.0/8 that no other holder of this type uses; free again when dropped or when the process ends.
#[derive(Debug)]
pub struct LoopbackAddress {
    address: Ipv4Addr,
    _lock: File,
}

impl LoopbackAddress {
    /// Takes the next free address, from 127.0.0.2 on.
    ///
    /// # Errors
    /// A thousand addresses are taken, or lock files cannot be written.
    pub fn take() -> Result<Self> {
        let folder = std::env::temp_dir().join("kubeocean-loopback");
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        for number in 2..1000_u16 {
            let [high, low] = number.to_be_bytes();
            let address = Ipv4Addr::new(127, 0, high, low);
            let path = folder.join(address.to_string());
            let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok(Self { address, _lock: lock });
            }
        }
        bail!("all loopback addresses are taken, see {}", folder.display())
    }

    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_holders_have_two_addresses() {
        let (a, b) = (LoopbackAddress::take().unwrap(), LoopbackAddress::take().unwrap());
        assert_ne!(a.ip(), b.ip());
        assert!(a.ip().is_loopback() && b.ip().is_loopback());
    }
}
