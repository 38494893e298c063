//! Where policy modules may come from beside ConfigMaps: flags of the Syncer and of the commands that do what it does.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use kubeocean_syncer::config::PolicySources;

use crate::registry::RegistryFlags;

/// See the module documentation.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct SourceFlags {
    /// Folder with trust.yaml and public keys: which signatures policy modules from registries need
    #[arg(long, value_name = "DIR")]
    policy_trust_dir: Option<PathBuf>,
    /// Folder from which policies may load files; for development
    #[arg(long, value_name = "DIR")]
    policy_dev_dir: Option<PathBuf>,
    #[command(flatten)]
    registries: RegistryFlags,
}

impl SourceFlags {
    /// The settings these flags make; what is fetched is kept in `cache_folders`.
    pub(crate) fn sources(&self, cache_folders: Vec<PathBuf>) -> anyhow::Result<PolicySources> {
        Ok(PolicySources {
            registries: self.registries.config()?,
            trust_folder: self.policy_trust_dir.clone(),
            cache_folders,
            dev_folder: self.policy_dev_dir.clone(),
        })
    }
}
