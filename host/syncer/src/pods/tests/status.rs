//! What goes up, and how a lost pod ends.

use std::sync::Arc;

use kubeocean_api::name::phys_name;
use rstest::rstest;
use serde_json::{Value, json};

use super::builders::*;
use crate::config::StatusMessages;
use crate::pods::action::PodAction;
use crate::pods::plan::plan_pod;
use crate::pods::snapshot::{Absence, PodScope};
use crate::pods::status::{StatusPlan, lost_fields, plan_status};
use crate::pods::wording::{MESSAGE_MAX_BYTES, cut};

fn plan(vpod: &Pod, ppod: &Pod, messages: StatusMessages) -> StatusPlan {
    let (vpod, ppod) = (vpod.vpod(), ppod.ppod());
    let mut snapshot = snapshot(None, None);
    snapshot.scope = Arc::new(PodScope { messages, ..scope() });
    plan_status(&vpod, &ppod.status, &snapshot.wording(&vpod, &ppod.uid), now())
}

/// The fields that are written, as one JSON object, and whether at once.
fn change(vpod: &Pod, ppod: &Pod) -> (Value, bool) {
    match plan(vpod, ppod, StatusMessages::Full) {
        StatusPlan::Change { fields, urgent } => (Value::Object(fields), urgent),
        StatusPlan::Converged => (Value::Null, false),
        StatusPlan::Unread => panic!("the status is there"),
    }
}

#[test]
fn all_that_a_kubelet_reports_goes_up_and_nothing_else() {
    let copy = ppod().set(
        &["status"],
        json!({
            "phase": "Running", "qosClass": "Burstable", "nominatedNodeName": "x", "observedGeneration": 3,
            "hostIP": "10.1.0.1", "podIP": "10.2.0.1", "podIPs": [{"ip": "10.2.0.1"}],
            "startTime": "2026-01-05T11:59:01Z",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "reason": "worker"},
                {"type": "Ready", "status": "True", "observedGeneration": 3},
            ],
            "containerStatuses": [{"name": "main", "ready": true, "state": {"running": {}}, "newerField": 1}],
        }),
    );
    let (fields, urgent) = change(&recorded(), &copy);
    assert!(urgent);
    insta::assert_json_snapshot!(fields, @r#"
    {
      "conditions": [
        {
          "status": "True",
          "type": "PodScheduled"
        },
        {
          "status": "True",
          "type": "Ready"
        }
      ],
      "containerStatuses": [
        {
          "name": "main",
          "newerField": 1,
          "ready": true,
          "state": {
            "running": {}
          }
        }
      ],
      "hostIP": "10.1.0.1",
      "hostIPs": [
        {
          "ip": "10.1.0.1"
        }
      ],
      "phase": "Running",
      "podIP": "10.2.0.1",
      "podIPs": [
        {
          "ip": "10.2.0.1"
        }
      ],
      "startTime": "2026-01-05T11:59:01Z"
    }
    "#);
    let mirrored = recorded().set(&["status"], merge(&recorded().0["status"], &fields));
    assert_eq!(plan(&mirrored, &copy, StatusMessages::Full), StatusPlan::Converged);
}

fn merge(status: &Value, fields: &Value) -> Value {
    let mut merged = status.clone();
    for (field, value) in fields.as_object().unwrap() {
        merged[field.as_str()] = value.clone();
    }
    merged
}

#[rstest]
#[case::failed_stays_failed("Failed", "Running")]
#[case::succeeded_stays("Succeeded", "Failed")]
fn a_terminal_phase_is_final(#[case] before: &str, #[case] reported: &str) {
    let plan =
        plan(&recorded().running().phase(before), &ppod().running().phase(reported), StatusMessages::Full);
    assert_eq!(plan, StatusPlan::Converged);
}

#[rstest]
#[case::restart(&["status", "containerStatuses"], json!([{"name": "main", "restartCount": 2}]), false)]
#[case::address(&["status", "podIP"], json!("10.2.0.9"), true)]
#[case::second_address(&["status", "podIPs"], json!([{"ip": "p"}, {"ip": "fd00::9"}]), true)]
#[case::readiness(&["status", "conditions"], json!([{"type": "Ready", "status": "False"}]), true)]
#[case::other_condition(
    &["status", "conditions"],
    json!([{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}, {"type": "X", "status": "True"}]),
    false
)]
fn what_may_not_wait(#[case] path: &[&str], #[case] value: Value, #[case] urgent: bool) {
    let both = json!({"phase": "Running", "hostIP": "h", "hostIPs": [{"ip": "h"}], "podIP": "p",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]});
    let vpod = recorded().set(&["status"], both.clone());
    let ppod = ppod().set(&["status"], both);
    assert_eq!(change(&vpod, &ppod).0, Value::Null);
    let (fields, at_once) = change(&vpod, &ppod.set(path, value));
    assert_eq!(fields.as_object().unwrap().len(), 1);
    assert_eq!(at_once, urgent);
}

#[test]
fn conditions_of_others_stay_and_the_refusal_goes() {
    let vpod = recorded().set(
        &["status", "conditions"],
        json!([
            {"type": "PodScheduled", "status": "True"},
            {"type": "corp/Gate", "status": "True"},
            {"type": "WorkerPodCreated", "status": "False", "reason": "DependencyMissing"},
            {"type": "PodResizePending", "status": "True", "reason": "Deferred"},
            {"type": "PodResizeInProgress", "status": "True"},
        ]),
    );
    let (fields, _) = change(&vpod, &ppod().running());
    let kinds: Vec<_> =
        fields["conditions"].as_array().unwrap().iter().map(|it| it["type"].clone()).collect();
    assert_eq!(kinds, ["PodScheduled", "Ready", "ContainersReady", "corp/Gate"]);
}

#[rstest]
#[case::gate_missing(json!([]), "False")]
#[case::gate_false(json!([{"type": "corp/Gate", "status": "False"}]), "False")]
#[case::gate_true(json!([{"type": "corp/Gate", "status": "True"}]), "True")]
fn readiness_gates_are_evaluated_on_the_vpod(#[case] conditions: Value, #[case] ready: &str) {
    let vpod = recorded()
        .set(&["spec", "readinessGates"], json!([{"conditionType": "corp/Gate"}]))
        .set(&["status", "conditions"], conditions);
    let (fields, _) = change(&vpod, &ppod().running());
    let conditions = fields["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|it| it["type"] == "Ready").unwrap();
    assert_eq!(found["status"], ready);
    let merged = vpod.clone().set(&["status"], merge(&vpod.0["status"], &fields));
    assert_eq!(plan(&merged, &ppod().running(), StatusMessages::Full), StatusPlan::Converged);
}

/// TD section 16: a copy that vanishes while nobody looks has been there all the same.
#[test]
fn a_copy_that_has_reported_nothing_yet_leaves_a_mark_until_it_does() {
    let (fields, urgent) = change(&recorded(), &ppod());
    let marked = recorded().set(&["status"], merge(&recorded().0["status"], &fields));
    assert!(recorded().vpod().status.blank && !marked.vpod().status.blank && !urgent, "{fields}");
    assert_eq!(plan(&marked, &ppod(), StatusMessages::Full), StatusPlan::Converged);
    let (fields, _) = change(&marked, &ppod().running());
    let kinds: Vec<_> = fields["conditions"].as_array().unwrap().iter().map(|it| &it["type"]).collect();
    assert!(!kinds.contains(&&json!("WorkerPodCreated")), "{kinds:?}");

    // The Syncer begins anew, and the copy is gone.
    let mut snapshot = snapshot(Some(&marked), None);
    snapshot.absence = Absence::Confirmed;
    let actions = plan_pod(&snapshot).actions;
    assert!(matches!(&*actions, [PodAction::FailVpod { .. }]), "{actions:?}");
}

#[test]
fn the_worker_schedulers_word_is_shown() {
    let waiting = json!([{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]);
    let (fields, urgent) = change(&recorded(), &ppod().set(&["status", "conditions"], waiting));
    assert_eq!((fields, urgent), (json!({"message": "0/1 nodes are available"}), false));
}

/// The answer to its binding was lost: the scheduler complains while the kubelet runs the pod.
#[test]
fn the_worker_schedulers_word_is_not_shown_of_a_pod_that_runs() {
    let waiting = json!([{"type": "PodScheduled", "status": "False", "message": "assigned already"}]);
    let (fields, _) = change(&recorded(), &ppod().running().set(&["status", "conditions"], waiting));
    assert_eq!((&fields["phase"], fields.get("message")), (&json!("Running"), None));
}

#[test]
fn messages_are_cut_or_left_out() {
    let long = "ä".repeat(2000);
    let copy = ppod().running().set(&["status", "message"], long.clone()).set(
        &["status", "containerStatuses"],
        json!([{"name": "main", "state": {"terminated": {"reason": "Error", "message": long}}}]),
    );
    let (fields, _) = change(&recorded(), &copy);
    assert!(fields["message"].as_str().unwrap().len() <= MESSAGE_MAX_BYTES);
    let state = &fields["containerStatuses"][0]["state"]["terminated"];
    assert!(state["message"].as_str().unwrap().len() <= MESSAGE_MAX_BYTES);
    let StatusPlan::Change { fields, .. } = plan(&recorded(), &copy, StatusMessages::ReasonOnly) else {
        panic!("the phase changed")
    };
    assert_eq!(fields.get("message"), None);
    assert_eq!(fields["containerStatuses"][0]["state"]["terminated"], json!({"reason": "Error"}));
    assert_eq!(cut("short"), "short");
}

/// Names of the worker cluster mean nothing to the pod's owner. A program's own last words stay what they are.
#[test]
fn messages_have_the_names_of_the_computing_cluster() {
    let secret = phys_name("keys", "default");
    let (pod, worker) = (phys_name("web-0", "default"), format!("node-1 of {MOUNT}"));
    let vpod = recorded().set(&["spec", "volumes"], json!([{"name": "v", "secret": {"secretName": "keys"}}]));
    let back_off = |pod: &str| format!("back-off 5m0s restarting failed container=main pod={pod}");
    let state =
        |state: &str, reason: &str, message: String| json!({state: {"reason": reason, "message": message}});
    let copy = ppod()
        .running()
        .set(&["status", "message"], format!("pod was evicted from {worker}"))
        .set(&["status", "conditions"], json!([{"type": "Ready", "status": "False", "message": format!("{pod} is late")}]))
        .set(
            &["status", "containerStatuses"],
            json!([
                {"name": "main", "state": state("waiting", "CrashLoopBackOff", back_off(&format!("{pod}_{MOUNT}(p1)")))},
                {"name": "a", "state": state("waiting", "CreateContainerConfigError", format!("secret \"{secret}\" not found"))},
                {"name": "b", "lastState": state("terminated", "StartError", format!("no {MOUNT}/{secret}."))},
                {"name": "c", "state": state("terminated", "Error", worker.clone())},
            ]),
        );
    let (fields, _) = change(&vpod, &copy);
    assert_eq!(fields["message"], format!("pod was evicted from {VNODE} of default"));
    assert_eq!(fields["conditions"][1]["message"], "web-0 is late");
    let messages: Vec<_> =
        [("state", "waiting"), ("state", "waiting"), ("lastState", "terminated"), ("state", "terminated")]
            .iter()
            .enumerate()
            .map(|(number, (state, kind))| {
                fields["containerStatuses"][number][state][kind]["message"].as_str().unwrap()
            })
            .collect();
    assert_eq!(
        messages,
        [&*back_off("web-0_default(v1)"), "secret \"keys\" not found", "no default/keys.", &*worker]
    );
}

#[test]
fn a_lost_pod_is_failed_disrupted_and_has_no_running_container() {
    let live = json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "corp/Gate", "status": "True"}],
        "containerStatuses": [
            {"name": "done", "state": {"terminated": {"exitCode": 0}}},
            {"name": "main", "ready": true, "started": true, "state": {"running": {"startedAt": "2026-01-05T11:00:00Z"}}},
        ],
    });
    let fields = lost_fields(&live, "it is gone", now()).unwrap();
    assert_eq!((&fields["phase"], &fields["reason"]), (&json!("Failed"), &json!("PhysicalPodLost")));
    let status = |kind: &str| {
        let list = fields["conditions"].as_array().unwrap();
        list.iter().find(|it| it["type"] == kind).map(|it| it["status"].clone())
    };
    assert_eq!(status("Ready"), Some(json!("False")));
    assert_eq!(status("ContainersReady"), Some(json!("False")));
    assert_eq!(status("DisruptionTarget"), Some(json!("True")));
    assert_eq!(status("corp/Gate"), Some(json!("True")));
    assert_eq!(fields["containerStatuses"][0], live["containerStatuses"][0]);
    let ended = &fields["containerStatuses"][1];
    assert_eq!(ended["state"]["terminated"]["exitCode"], 137);
    assert_eq!(ended["state"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!((&ended["ready"], &ended["started"]), (&json!(false), &json!(false)));
    assert_eq!(lost_fields(&json!({"phase": "Succeeded"}), "x", now()), None);
}
