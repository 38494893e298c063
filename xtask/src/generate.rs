//! `cargo xtask generate`: rewrites the checked-in files that come from code. Tests compare them.

use std::path::Path;

use anyhow::Context;
use kubeocean_api::crd;

/// Rewrites the CRDs the charts ship.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (definition, file) in [
        (crd::cluster_binding(), "charts/kubeocean/files/crds/clusterbindings.cloud.tencent.com.yaml"),
        (
            crd::resource_leasing_policy(),
            "charts/kubeocean-worker/files/crds/resourceleasingpolicies.cloud.tencent.com.yaml",
        ),
    ] {
        let path = root.join(file);
        std::fs::write(&path, crd::to_yaml(&definition)).with_context(|| format!("cannot write {file}"))?;
        println!("{file}");
    }
    Ok(())
}
