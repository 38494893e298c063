use rstest::rstest;

use super::{is_label_key, is_label_value};

#[rstest]
#[case("pool", true)]
#[case("example.com/pool", true)]
#[case("a.b-c.example/pool_1.x", true)]
#[case("", false)]
#[case("/pool", false)]
#[case("example.com/", false)]
#[case("Example.com/pool", false)]
#[case("a..b/pool", false)]
#[case("a/b/c", false)]
#[case("-pool", false)]
#[case("po ol", false)]
fn label_keys(#[case] key: &str, #[case] expected: bool) {
    assert_eq!(is_label_key(key), expected);
}

#[test]
fn lengths() {
    assert!(is_label_key(&"a".repeat(63)) && !is_label_key(&"a".repeat(64)));
    assert!(is_label_value("") && is_label_value(&"a".repeat(63)) && !is_label_value(&"a".repeat(64)));
    assert!(
        is_label_key(&format!("{}/x", "a".repeat(253))) && !is_label_key(&format!("{}/x", "a".repeat(254)))
    );
    assert!(!is_label_value("a b") && !is_label_value("a-") && is_label_value("a-_.b"));
}
