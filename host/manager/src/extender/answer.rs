//! What the scheduler is told (PO-605). Pure.

use std::collections::HashMap;

use kubeocean_api::place::Fit;

use super::{
    places::Place,
    wire::{Filtered, Priority},
};

/// Sorts candidates; one nobody says anything about passes.
pub fn filter(nodes: &[String], places: Vec<Place>) -> Filtered {
    let mut places: HashMap<String, Place> =
        places.into_iter().map(|place| (place.node.clone(), place)).collect();
    let mut filtered = Filtered::default();
    for node in nodes {
        match places.remove(node) {
            Some(Place { fit: Fit::Reject, why, .. }) => {
                filtered.failed_and_unresolvable_nodes.insert(node.clone(), why);
            }
            Some(Place { fit: Fit::Later, why, .. }) => {
                filtered.failed_nodes.insert(node.clone(), why);
            }
            Some(Place { fit: Fit::Accept, .. }) | None => filtered.node_names.push(node.clone()),
        }
    }
    filtered
}

/// Scores candidates from 0 to 10, halves up; one nobody says anything about gets 0.
pub fn prioritize(nodes: &[String], places: &[Place]) -> Vec<Priority> {
    let scores: HashMap<&str, u8> = places.iter().map(|place| (place.node.as_str(), place.score)).collect();
    let score = |node: &String| i64::from(scores.get(node.as_str()).copied().unwrap_or(0));
    nodes.iter().map(|node| Priority { host: node.clone(), score: (score(node) + 5) / 10 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(node: &str, fit: Fit, score: u8) -> Place {
        Place { node: node.to_owned(), fit, score, why: format!("why {node}") }
    }

    #[test]
    fn candidates_are_sorted_as_the_scheduler_wants_them() {
        let nodes = ["real", "good", "full", "soon"].map(str::to_owned);
        let places = vec![
            place("good", Fit::Accept, 65),
            place("full", Fit::Reject, 0),
            place("soon", Fit::Later, 4),
            place("unasked", Fit::Reject, 0),
        ];
        let scores = prioritize(&nodes, &places);
        let filtered = filter(&nodes, places);
        assert_eq!(filtered.node_names, ["real", "good"]);
        assert_eq!(
            filtered.failed_and_unresolvable_nodes,
            [("full".to_owned(), "why full".to_owned())].into()
        );
        assert_eq!(filtered.failed_nodes, [("soon".to_owned(), "why soon".to_owned())].into());
        let scores: Vec<i64> = scores.iter().map(|one| one.score).collect();
        assert_eq!(scores, [0, 7, 0, 0]);
        assert_eq!(prioritize(&nodes, &[place("good", Fit::Accept, 100)])[1].score, 10);
    }
}
