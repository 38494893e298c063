//! Which vnode is served on which port (PX-210). Pure.

use std::collections::BTreeMap;

use super::Vnode;

/// Lowest port that is opened: what is below belongs to the system.
const LOWEST: u16 = 1024;

/// The ports of a vnode: that of its label and that of its endpoint, which differ while one of them is repaired.
pub(crate) fn ports_of(label: Option<&str>, endpoint: Option<i64>) -> Vec<u16> {
    let label = label.and_then(|text| text.parse::<u16>().ok());
    let endpoint = endpoint.and_then(|port| u16::try_from(port).ok());
    let mut ports: Vec<u16> =
        [label, endpoint].into_iter().flatten().filter(|port| *port >= LOWEST).collect();
    ports.dedup();
    ports
}

/// A port that two vnodes want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) port: u16,
    /// Who is served there.
    pub(crate) owner: String,
    /// Who is not.
    pub(crate) loser: String,
}

/// The owner of each port. Of two that want one port the older has it, then the first by name; `shared` is nobody's.
pub(crate) fn owners<'a, V: AsRef<Vnode> + 'a>(
    vnodes: impl IntoIterator<Item = &'a V>,
    shared: u16,
) -> (BTreeMap<u16, &'a V>, Vec<Conflict>) {
    let mut all: Vec<&V> = vnodes.into_iter().collect();
    all.sort_by(|a, b| {
        let key = |vnode: &V| (vnode.as_ref().created, vnode.as_ref().name.clone());
        key(a).cmp(&key(b))
    });
    let mut owners: BTreeMap<u16, &V> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for vnode in all {
        let this = vnode.as_ref();
        for port in this.ports.iter().copied().filter(|port| *port != shared) {
            match owners.get(&port) {
                None => {
                    owners.insert(port, vnode);
                }
                Some(owner) => conflicts.push(Conflict {
                    port,
                    owner: owner.as_ref().name.to_string(),
                    loser: this.name.to_string(),
                }),
            }
        }
    }
    (owners, conflicts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::sync::Arc;

    #[rstest]
    #[case::both_alike(Some("20000"), Some(20000), &[20000])]
    #[case::while_they_differ(Some("20000"), Some(20001), &[20000, 20001])]
    #[case::only_the_label(Some("20000"), None, &[20000])]
    #[case::only_the_endpoint(None, Some(10250), &[10250])]
    #[case::no_number(Some("kubelet"), Some(10250), &[10250])]
    #[case::out_of_range(Some("80"), Some(70000), &[])]
    #[case::neither(None, None, &[])]
    fn ports(#[case] label: Option<&str>, #[case] endpoint: Option<i64>, #[case] expected: &[u16]) {
        assert_eq!(ports_of(label, endpoint), expected);
    }

    fn vnode(name: &str, created: i64, ports: &[u16]) -> Arc<Vnode> {
        Arc::new(Vnode::for_tests(name, created, ports))
    }

    #[test]
    fn the_older_vnode_keeps_a_port_and_the_other_is_named() {
        let vnodes = [vnode("b", 2, &[20000, 20001]), vnode("a", 1, &[20000]), vnode("c", 3, &[10250])];
        let (owners, conflicts) = owners(&vnodes, 10250);
        let served: Vec<(u16, &str)> = owners.iter().map(|(port, vnode)| (*port, &*vnode.name)).collect();
        assert_eq!(served, [(20000, "a"), (20001, "b")]);
        let conflict = Conflict { port: 20000, owner: "a".to_owned(), loser: "b".to_owned() };
        assert_eq!(conflicts, [conflict]);
    }

    #[test]
    fn of_two_of_an_age_the_first_by_name_has_it() {
        let vnodes = [vnode("b", 1, &[20000]), vnode("a", 1, &[20000])];
        assert_eq!(&*owners(&vnodes, 0).0[&20000].name, "a");
    }
}
