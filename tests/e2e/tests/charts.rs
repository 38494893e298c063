//! The two charts, as `helm template` renders them.
//!
//! In: `charts/`, the pinned Helm. Out: nothing; needs no cluster. What the rights allow on a real API server is shown by
//! every other test of this crate, which runs the programs with exactly these roles.
//!
//! The rights are a golden table, so that a change to them is a change to a reviewed file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use kubeocean_e2e::{exposition::documented, promql::metrics_asked};
use kubeocean_harness::assets::{self, Binary};
use serde_json::Value;

const COMPUTING: &str = "kubeocean";
const WORKER: &str = "kubeocean-worker";

/// Runs Helm on a chart. `arguments` follow the chart, as `--set` pairs mostly.
fn helm(command: &[&str], chart: &str, arguments: &[&str]) -> Output {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    let helm = HELM.get_or_init(|| assets::ensure(&[Binary::Helm]).expect("Helm").remove(0));
    let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../charts").join(chart);
    Command::new(helm).args(command).arg(chart).args(arguments).output().expect("Helm runs")
}

/// The text of `helm template` for a server of the harness's version.
fn template(chart: &str, arguments: &[&str]) -> Result<String, String> {
    let version = assets::kubernetes_version().expect("a pinned version");
    let output = helm(&["template", "any-name", "--kube-version", &version], chart, arguments);
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("YAML is UTF-8"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The objects a chart renders. The parser refuses duplicate keys, which Helm lets pass.
fn render(chart: &str, arguments: &[&str]) -> Vec<Value> {
    let text = template(chart, arguments);
    assert!(text.is_ok(), "{chart} {arguments:?}: {text:?}");
    let documents = serde_saphyr::from_multiple::<Value>(&text.unwrap_or_default());
    assert!(documents.is_ok(), "{chart} {arguments:?}: {documents:?}");
    documents.unwrap_or_default().into_iter().filter(|document| !document.is_null()).collect()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| text(object, "/kind") == kind)
}

/// Kind, namespace and name: unique in a cluster.
fn identity(object: &Value) -> String {
    format!(
        "{} {}/{}",
        text(object, "/kind"),
        text(object, "/metadata/namespace"),
        text(object, "/metadata/name")
    )
}

fn words(rule: &Value, field: &str) -> Vec<String> {
    let values = rule[field].as_array().map(Vec::as_slice).unwrap_or_default();
    values.iter().map(|value| value.as_str().unwrap_or("?").to_owned()).collect()
}

/// One line per rule of a role: what, on which names, which verbs.
fn rules(role: &Value) -> Vec<String> {
    let rules = role["rules"].as_array().expect("a role has rules");
    rules
        .iter()
        .map(|rule| {
            let urls = words(rule, "nonResourceURLs");
            let mut resources = Vec::new();
            for group in words(rule, "apiGroups") {
                let suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
                resources
                    .extend(words(rule, "resources").iter().map(|resource| format!("{resource}{suffix}")));
            }
            let names = words(rule, "resourceNames");
            let names = if names.is_empty() { String::new() } else { format!(" [{}]", names.join(" ")) };
            format!("{}{names}: {}", [urls, resources].concat().join(" "), words(rule, "verbs").join(" "))
        })
        .collect()
}

/// Every role with its rules and every binding with its subjects, as text.
fn rights(objects: &[Value]) -> String {
    let mut sections = Vec::new();
    for kind in ["ClusterRole", "Role"] {
        for role in of_kind(objects, kind) {
            let mut section = format!("{}\n", identity(role));
            for rule in rules(role) {
                writeln!(section, "  {rule}").expect("a String takes text");
            }
            sections.push(section);
        }
    }
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        for binding in of_kind(objects, kind) {
            let mut section = format!("{} -> {}\n", identity(binding), text(binding, "/roleRef/name"));
            for subject in binding["subjects"].as_array().expect("a binding has subjects") {
                writeln!(section, "  {}/{}", text(subject, "/namespace"), text(subject, "/name"))
                    .expect("a String takes text");
            }
            sections.push(section);
        }
    }
    sections.sort();
    sections.concat()
}

#[test]
fn charts_lint_strictly() {
    for chart in [COMPUTING, WORKER] {
        let output = helm(&["lint", "--strict"], chart, &[]);
        assert!(output.status.success(), "{chart}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn rights_of_the_computing_chart() {
    insta::assert_snapshot!(rights(&render(COMPUTING, &[])));
}

#[test]
fn rights_of_the_worker_chart() {
    insta::assert_snapshot!(rights(&render(WORKER, &[])));
}

#[test]
fn rights_that_values_change() {
    let narrow = render(COMPUTING, &["--set", "kubeconfigNamespaces={team-a,kubeocean-system}"]);
    let manager =
        of_kind(&narrow, "ClusterRole").find(|role| text(role, "/metadata/name") == "kubeocean-manager");
    assert!(!rules(manager.expect("the Manager's role")).iter().any(|rule| rule.contains("secrets")));
    let team_a = of_kind(&narrow, "Role").find(|role| text(role, "/metadata/namespace") == "team-a");
    assert_eq!(rules(team_a.expect("a role in the named namespace"))[0], "secrets: get list watch");

    let in_process = rights(&render(COMPUTING, &["--set", "manager.runtime=in-process"]));
    let syncer = in_process.split("ClusterRoleBinding /kubeocean-syncer -> kubeocean-syncer\n").nth(1);
    let subjects: Vec<&str> = syncer.expect("the Syncer's binding").lines().take(2).map(str::trim).collect();
    assert_eq!(subjects, ["kubeocean-system/kubeocean-syncer", "kubeocean-system/kubeocean-manager"]);

    // One account does the work of all three: each binding of the Syncer and of the Proxier names it, too.
    let objects = render(COMPUTING, &["--set", "manager.runtime=in-process"]);
    let of_component = |binding: &&Value| {
        let component = text(binding, "/metadata/labels/app.kubernetes.io~1component");
        ["syncer", "proxier"].contains(&component)
    };
    let bindings = of_kind(&objects, "ClusterRoleBinding").chain(of_kind(&objects, "RoleBinding"));
    let bindings: Vec<&Value> = bindings.filter(of_component).collect();
    assert!(bindings.len() >= 6, "{bindings:?}");
    for binding in bindings {
        let subjects = binding["subjects"].as_array().expect("a binding has subjects");
        assert!(
            subjects.iter().any(|one| text(one, "/name") == "kubeocean-manager"),
            "{}",
            identity(binding)
        );
    }

    let without_detach = render(COMPUTING, &["--set", "manager.forcedDetach.enabled=false"]);
    assert!(!rights(&without_detach).contains("kubeocean-manager-detach"));

    for chart in [COMPUTING, WORKER] {
        let without_log_config = render(chart, &["--set", "logConfig.enabled=false"]);
        assert!(!rights(&without_log_config).contains("logconfigs"), "{chart}");
    }

    let readable = rights(&render(WORKER, &["--set", "rbac.clusterSecrets=true"]));
    assert!(readable.contains("\n  secrets: get\n"));
}

#[test]
fn a_tenant_gets_its_own_account_and_namespace() {
    let set =
        "tenants[0].name=lessee,tenants[0].namespace=team-b,resourceQuota.hard.pods=10,podSecurity=baseline";
    let objects = render(WORKER, &["--set", set]);
    let identities: BTreeSet<String> = objects.iter().map(identity).collect();
    for wanted in [
        "Namespace /team-b",
        "ServiceAccount team-b/lessee",
        "ServiceAccount team-b/kubeocean-metrics",
        "Role team-b/kubeocean-syncer",
        "RoleBinding team-b/kubeocean-syncer",
        "ResourceQuota team-b/kubeocean",
        "ResourceQuota kubeocean-worker/kubeocean",
    ] {
        assert!(identities.contains(wanted), "{wanted} is missing");
    }
    let rights = rights(&objects);
    assert!(rights.contains("namespaces [kubeocean-worker team-b kube-system]: get"));
    assert!(rights.contains("serviceaccounts/token [lessee kubeocean-metrics]: create"));
    assert!(rights.contains("RoleBinding team-b/kubeocean-syncer -> kubeocean-syncer\n  team-b/lessee\n"));

    let clash = template(WORKER, &["--set", "tenants[0].name=x,tenants[0].namespace=kubeocean-worker"]);
    assert!(clash.unwrap_err().contains("each tenant needs its own"));
    let writable_modules = template(WORKER, &["--set", "policies.namespace=kubeocean-worker"]);
    assert!(writable_modules.unwrap_err().contains("is a mount namespace"));
}

/// Defaults, another release name (always), and every boolean flipped.
#[test]
fn objects_are_unique_and_rights_are_bounded_for_all_values() {
    let computing = [
        "namespace.create",
        "crd.enabled",
        "manager.enabled",
        "manager.forcedDetach.enabled",
        "manager.schedulerExtender.enabled",
        "manager.rbac.create",
        "manager.serviceAccount.create",
        "syncer.enabled",
        "syncer.rbac.create",
        "syncer.serviceAccount.create",
        "proxier.rbac.create",
        "proxier.serviceAccount.create",
        "logConfig.enabled",
        "admissionPolicy.enabled",
        "grafanaDashboard.enabled",
    ];
    let worker = [
        "serviceAccount.create",
        "serviceAccount.staticToken",
        "metricsServiceAccount.create",
        "rbac.clusterSecrets",
        "crd.enabled",
        "features.namespace",
        "features.serviceAccount",
        "features.rbac",
        "logConfig.enabled",
        "admissionPolicy.enabled",
    ];
    for (chart, switches) in [(COMPUTING, computing.as_slice()), (WORKER, worker.as_slice())] {
        check_bounds(chart, &render(chart, &[]));
        for switch in switches {
            for value in ["true", "false"] {
                check_bounds(chart, &render(chart, &["--set", &format!("{switch}={value}")]));
            }
        }
    }
}

fn check_bounds(chart: &str, objects: &[Value]) {
    let identities: BTreeSet<String> = objects.iter().map(identity).collect();
    assert_eq!(identities.len(), objects.len(), "{chart}: an object is rendered twice");
    for role in of_kind(objects, "ClusterRole").chain(of_kind(objects, "Role")) {
        for rule in role["rules"].as_array().expect("a role has rules") {
            for field in ["apiGroups", "resources", "verbs", "nonResourceURLs"] {
                assert!(!words(rule, field).contains(&"*".to_owned()), "{}: * in {field}", identity(role));
            }
            if chart == WORKER
                && text(role, "/kind") == "ClusterRole"
                && words(rule, "resources").contains(&"secrets".to_owned())
            {
                assert_eq!(words(rule, "verbs"), ["get"], "{}: Secrets of the whole worker", identity(role));
            }
        }
    }
    if chart == WORKER {
        let role =
            of_kind(objects, "ClusterRole").find(|role| text(role, "/metadata/name") == "kubeocean-syncer");
        for rule in role.map(rules).unwrap_or_default() {
            assert!(!rule.contains("nodes/status") && !rule.contains("nodes/proxy"), "{rule}");
        }
    }
    for kept in of_kind(objects, "CustomResourceDefinition").chain(of_kind(objects, "Namespace")) {
        let policy = &kept["metadata"]["annotations"]["helm.sh/resource-policy"];
        assert_eq!(policy, "keep", "{} would be deleted with the release", identity(kept));
    }
    for policy in of_kind(objects, "ValidatingAdmissionPolicy") {
        let binding = format!(
            "ValidatingAdmissionPolicyBinding {}",
            &identity(policy)["ValidatingAdmissionPolicy ".len()..]
        );
        assert!(identities.contains(&binding), "{} has no binding", identity(policy));
    }
}

#[test]
fn the_workers_secrets_are_out_of_reach_by_default() {
    for role in of_kind(&render(WORKER, &[]), "ClusterRole") {
        assert!(!rules(role).iter().any(|rule| rule.contains("secrets")), "{}", identity(role));
    }
}

/// Helm itself makes the release's namespace after rendering, so the chart must leave it out.
#[test]
fn the_release_namespace_is_left_to_helm() {
    for (chart, namespace) in [(COMPUTING, "kubeocean-system"), (WORKER, "kubeocean-worker")] {
        let has = |objects: &[Value]| {
            of_kind(objects, "Namespace").any(|object| text(object, "/metadata/name") == namespace)
        };
        assert!(has(&render(chart, &[])), "{chart}");
        assert!(!has(&render(chart, &["--namespace", namespace])), "{chart}");
    }
}

#[test]
fn schemas_reject_unknown_keys_and_accept_documented_ones() {
    for (chart, set) in [
        (COMPUTING, "manger.enabled=false"),
        (COMPUTING, "manager.replica=1"),
        (COMPUTING, "manager.runtime=both"),
        (COMPUTING, "manager.schedulerExtender.urlPrefix=http://manager.example:8443/scheduler"),
        (COMPUTING, "manager.schedulerExtender.urlPrefix=https://manager.example:8443"),
        (WORKER, "permissions.nodes=true"),
        (WORKER, "serviceAccount.static=true"),
        (WORKER, "tenants[0].name=x"),
    ] {
        assert!(template(chart, &["--set", set]).is_err(), "{chart} accepts {set}");
    }
    let computing = "global.imageRegistry=r.example,manager.image.tag=v1,manager.replicas=1,syncer.replicas=null,\
        manager.metrics.service.type=ClusterIP,syncer.kubeClient.virtual.qps=5,proxier.metrics.collection.interval=60,\
        proxier.tls.enabled=true,proxier.enabled=true,crd.names.clusterBinding=x,features.webhooks=false,logging.level=info,\
        syncer.policies.maxModuleSize=8Mi,manager.schedulerExtender.certManagerIssuer=x,componentUpdate.maxParallel=2,\
        timeZone=Europe/Berlin,uninstall.force=true,proxier.healthProbe.livenessProbe.periodSeconds=20";
    let expected: Vec<String> = render(COMPUTING, &[]).iter().map(identity).collect();
    let actual: Vec<String> = render(COMPUTING, &["--set", computing]).iter().map(identity).collect();
    assert_eq!(actual, expected, "keys of programs that the chart does not start change nothing");
    assert!(template(WORKER, &["--set", "namespace.create=true,rbac.create=true"]).is_ok());
}

/// MC-828: the Manager's Service, or the address that whoever installs the chart names.
#[test]
fn the_schedulers_configuration_says_where_the_manager_is() {
    let told = |more: &str| {
        let set = format!("manager.schedulerExtender.enabled=true{more}");
        let objects = render(COMPUTING, &["--set", &set]);
        let map = of_kind(&objects, "ConfigMap").find(|map| map["data"]["kube-scheduler.yaml"].is_string());
        let written = text(map.expect("a scheduler's configuration"), "/data/kube-scheduler.yaml");
        let configuration: Value = serde_saphyr::from_str(written).expect("YAML");
        let service = of_kind(&objects, "Service").next().expect("a Service");
        let (name, namespace) = (text(service, "/metadata/name"), text(service, "/metadata/namespace"));
        let port = &service["spec"]["ports"][0]["port"];
        let of_service = format!("https://{name}.{namespace}.svc:{port}/scheduler");
        (text(&configuration, "/extenders/0/urlPrefix").to_owned(), of_service)
    };
    let (prefix, of_service) = told("");
    assert_eq!(prefix, of_service);
    let outside = "https://[2001:db8::7]:8443/scheduler";
    let (prefix, _) = told(&format!(",manager.schedulerExtender.urlPrefix={outside}"));
    assert_eq!(prefix, outside);
}

/// PO-1501: each panel asks for metrics and labels that a Syncer has, and each metric of policies has a panel.
#[test]
fn the_dashboard_shows_all_metrics_of_policies_and_no_others() {
    let is_dashboard = |object: &&Value| text(object, "/metadata/labels/grafana_dashboard") == "1";
    assert_eq!(render(COMPUTING, &[]).iter().filter(is_dashboard).count(), 0, "off by default");
    let objects = render(COMPUTING, &["--set", "grafanaDashboard.enabled=true"]);
    let map = objects.iter().find(is_dashboard).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(text(map, "/data/kubeocean-policies.json")).expect("JSON");
    let queries = |value: &Value, field: &str| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(|item| Some(item.get(field)?.as_str()?.to_owned())).collect()
    };
    let mut asked = queries(&dashboard["templating"]["list"], "definition");
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let found = queries(&panel["targets"], "expr");
        assert!(!found.is_empty() && !text(panel, "/description").is_empty(), "{}", panel["title"]);
        asked.extend(found);
    }
    let mut shown = BTreeSet::new();
    for query in asked {
        shown.extend(metrics_asked(&query).unwrap_or_else(|wrong| panic!("{query}: {wrong}")));
    }
    let of_policies =
        documented().map(|metric| metric.name).filter(|name| name.starts_with("kubeocean_policy_"));
    let not_shown: Vec<&str> = of_policies.filter(|name| !shown.contains(name)).collect();
    assert!(not_shown.is_empty(), "no panel shows {not_shown:?}");
}
