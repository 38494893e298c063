//! Hashes of pod statuses, so that a status need not be kept to know whether it changed.
//!
//! Order of object members, of conditions, and members that are null make no difference: two API servers may print
//! the same status differently.

use std::hash::{BuildHasher, Hasher};

use ahash::{AHasher, RandomState};
use serde_json::{Map, Value};

/// The fields of a pod status that are mirrored (BU-1502), in the order of [`StatusHashes`].
pub const FIELDS: [&str; 12] = [
    "phase",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    CONDITIONS,
];

/// The only list that several writers share.
pub const CONDITIONS: &str = "conditions";

/// One hash per entry of [`FIELDS`]; 0 for an absent or empty field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusHashes([u64; FIELDS.len()]);

impl StatusHashes {
    /// Hash of one of [`FIELDS`].
    pub fn field(&self, name: &str) -> u64 {
        FIELDS.iter().position(|field| *field == name).map_or(0, |at| self.0[at])
    }

    /// One hash for all fields.
    pub fn total(&self) -> u64 {
        let mut hasher = hasher();
        self.0.iter().for_each(|hash| hasher.write_u64(*hash));
        hasher.finish()
    }
}

/// Hashes of the mirrored fields of a status.
pub fn of_fields(status: &Map<String, Value>) -> StatusHashes {
    let mut hashes = StatusHashes::default();
    for (hash, field) in hashes.0.iter_mut().zip(FIELDS) {
        *hash = status.get(field).map_or(0, |value| of_field(field, value));
    }
    hashes
}

/// Hash of the value of one of [`FIELDS`].
pub fn of_field(field: &str, value: &Value) -> u64 {
    match value {
        Value::Null => 0,
        Value::String(text) if text.is_empty() => 0,
        Value::Array(list) if list.is_empty() => 0,
        Value::Array(list) if field == CONDITIONS => {
            list.iter().fold(1, |sum: u64, condition| sum.wrapping_add(of(condition)))
        }
        other => of(other),
    }
}

fn of(value: &Value) -> u64 {
    let mut hasher = hasher();
    feed(value, &mut hasher);
    hasher.finish()
}

fn feed(value: &Value, hasher: &mut AHasher) {
    match value {
        Value::Null => hasher.write_u8(0),
        Value::Bool(flag) => hasher.write_u8(1 + u8::from(*flag)),
        Value::Number(number) => {
            hasher.write_u8(3);
            hasher.write(number.to_string().as_bytes());
        }
        Value::String(text) => {
            hasher.write_u8(4);
            hasher.write(text.as_bytes());
        }
        Value::Array(list) => {
            hasher.write_u8(5);
            hasher.write_usize(list.len());
            for item in list {
                feed(item, hasher);
            }
        }
        Value::Object(members) => {
            hasher.write_u8(6);
            let sum =
                members.iter().filter(|(_, value)| !value.is_null()).fold(0_u64, |sum, (name, value)| {
                    let mut member = self::hasher();
                    member.write(name.as_bytes());
                    feed(value, &mut member);
                    sum.wrapping_add(member.finish())
                });
            hasher.write_u64(sum);
        }
    }
}

fn hasher() -> AHasher {
    // Fixed seeds: the hashes are compared within one process only, but must not differ between two calls.
    RandomState::with_seeds(11, 13, 17, 19).build_hasher()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hashes(status: &Value) -> StatusHashes {
        of_fields(status.as_object().expect("a status is an object"))
    }

    #[test]
    fn order_and_nulls_make_no_difference() {
        let one = hashes(
            &json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B", "lastProbeTime": null}]}),
        );
        let two =
            hashes(&json!({"conditions": [{"type": "B"}, {"status": "True", "type": "A"}], "message": ""}));
        assert_eq!(one, two);
    }

    #[test]
    fn each_field_has_its_own_hash() {
        let one = hashes(&json!({"phase": "Running", "podIP": "10.0.0.1"}));
        let two = hashes(&json!({"phase": "Running", "podIP": "10.0.0.2"}));
        assert_eq!(one.field("phase"), two.field("phase"));
        assert_ne!(one.field("podIP"), two.field("podIP"));
        assert_ne!(one.total(), two.total());
    }
}
