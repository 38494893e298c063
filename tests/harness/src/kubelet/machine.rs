//! What a node's programs run on: namespaces, a place on the network, a directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::network::{Network, Place};
use crate::reaper;

/// A small machine that runs and is connected. Dropping it ends everything on it and removes its traces.
///
/// The order of the fields is that of their ends: cgroups can go when no process is in them, files when none writes.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) namespace: Namespace,
    pub(super) place: Place,
    directory: Directory,
}

impl Machine {
    pub(super) async fn boot(name: &str, network: &Arc<Network>) -> Result<Self> {
        let directory = Directory(reaper::new_directory(name)?);
        let place = network.place(&directory.0)?;
        let namespace = Namespace::create(&directory.0, name, &place.name()).await?;
        place.connect(namespace.process_id(), |line| namespace.ip(line)).context("connecting a node")?;
        Ok(Self { namespace, place, directory })
    }

    /// Its `/var/lib`, `/var/log` and `/run` are folders here, and its logs files.
    pub(super) fn directory(&self) -> &Path {
        &self.directory.0
    }
}

/// Removed when dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        reaper::remove_directory(&self.0);
    }
}
