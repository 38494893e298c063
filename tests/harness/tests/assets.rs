//! The programs are built once: whoever asks again gets the same files.

use std::time::Instant;

use kubeocean_harness::assets::{Binary, ensure, kwok_stages};

#[test]
fn the_second_request_is_answered_from_the_cache() {
    let first = ensure(&Binary::CONTROL_PLANE).unwrap();
    let modified = |path: &std::path::PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
    let times: Vec<_> = first.iter().map(modified).collect();
    let started = Instant::now();
    let second = ensure(&Binary::CONTROL_PLANE).unwrap();
    println!("answered in {:?}", started.elapsed());
    assert_eq!(first, second);
    assert_eq!(times, second.iter().map(modified).collect::<Vec<_>>());
}

#[test]
fn the_stages_cover_nodes_and_pods() {
    let stages = kwok_stages().unwrap();
    for name in ["node-initialize", "node-heartbeat-with-lease", "pod-ready", "pod-complete", "pod-delete"] {
        assert!(stages.contains(&format!("name: {name}\n")), "{name}");
    }
}
