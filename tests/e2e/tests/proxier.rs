//! The kubelet API of vnodes: `kubectl logs`, `exec` and `port-forward` through a real API server, who is let in and who
//! is not, and whose pods one can reach. What streams cost and how they end is in `streams`, limits in `limits`.
//!
//! In: one binding with a Syncer and a Proxier that most tests share, kwok's kubelet behind it. What kwok's kubelet cannot
//! do (exit codes, end of input, attach) is tested on a real one.

#[path = "proxier/limits.rs"]
mod limits;
#[path = "proxier/streams.rs"]
mod streams;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Method;
use kubeocean_api::keys::annotation;
use kubeocean_e2e::kubelet::Kubelet;
use kubeocean_e2e::pods::{DEADLINE, Scene, Stage};
use kubeocean_e2e::rights::{assert_proxier_rights, assert_rights};
use kubeocean_harness::{BindingSpec, Program, wait_until};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

struct Served {
    stage: Stage,
    proxier: Program,
}

async fn served() -> &'static Served {
    static SERVED: OnceCell<Served> = OnceCell::const_new();
    SERVED
        .get_or_init(async || {
            let (stage, proxier) = Stage::start_with_proxier(BindingSpec::new("proxier"), 2, &[]).await;
            Served { stage, proxier }
        })
        .await
}

impl Served {
    /// A namespace with a running pod, whose vnode is known to the Proxier.
    async fn scene(&self, namespace: &str, pod: &str) -> Scene<'_> {
        let scene = self.stage.scene(namespace).await;
        let (vpod, _) = scene.run_pod(pod, json!({})).await;
        self.listening(port_of(&scene, &vpod).await).await;
        scene
    }

    /// Waits until a vnode's port is open.
    async fn listening(&self, port: u16) {
        let address = SocketAddr::new(self.proxier.ip(), port);
        wait_until("the vnode's port", DEADLINE, async || {
            TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    async fn caller(&self, port: u16, kubeconfig: Option<&str>) -> Kubelet {
        Kubelet::at(SocketAddr::new(self.proxier.ip(), port), kubeconfig).await.expect("a caller")
    }
}

/// The port of the vnode a pod runs on, as the API server reads it.
async fn port_of(scene: &Scene<'_>, vpod: &Value) -> u16 {
    let path = format!("/api/v1/nodes/{}", vpod["spec"]["nodeName"].as_str().expect("a node"));
    let vnode = scene.computing.get(&path).await.expect("the vnode");
    let port = vnode["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().expect("a port");
    u16::try_from(port).expect("a port")
}

/// The client certificate of the API server.
fn apiserver(scene: &Scene<'_>) -> String {
    let computing = scene.stage.binding.computing();
    computing.user_kubeconfig("kube-apiserver-kubelet-client", "system:masters").expect("a certificate")
}

async fn kubectl(scene: &Scene<'_>, args: &[&str]) -> Result<String, String> {
    let args = [&["-n", scene.namespace.as_str()], args].concat();
    let output = scene.stage.binding.computing().kubectl(&args).await.expect("kubectl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Makes all containers of kwok's nodes write a line.
fn write_log(scene: &Scene<'_>, text: &str) {
    use std::io::Write as _;
    let path = scene.stage.binding.worker().pod_log_path();
    let mut file = std::fs::File::options().append(true).open(path).expect("the log");
    writeln!(file, "2026-01-02T03:04:06.000000000Z stdout F {text}").expect("a written line");
}

#[tokio::test]
async fn logs_and_exec_work_through_the_api_server() {
    let served = served().await;
    let scene = served.scene("through", "web").await;
    let logs = kubectl(&scene, &["logs", "web"]).await.expect("logs");
    assert!(logs.contains("hello from a fake container"), "{logs}");
    let stamped = kubectl(&scene, &["logs", "web", "--tail=1", "--timestamps"]).await.expect("logs");
    assert!(stamped.starts_with("2026-01-02T03:04:"), "{stamped}");

    let computing = scene.stage.binding.computing();
    let mut follow = computing
        .kubectl_command(&["-n", "through", "logs", "web", "-f", "--tail=0"])
        .expect("kubectl")
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(follow.stdout.take().expect("its output")).lines();
    served.wait_streams("logs", "1").await;
    let written = Instant::now();
    write_log(&scene, "news for the follower");
    loop {
        // All containers of kwok's nodes write the same log, so another test may be heard as well.
        // kwok may miss a write while it follows for others: it is told again.
        let line = wait_until("a line", DEADLINE, async || {
            let line = tokio::time::timeout(Duration::from_secs(3), lines.next_line()).await;
            line.map_err(|_| {
                write_log(&scene, "news for the follower");
                "none yet"
            })
        })
        .await;
        let line = line.expect("readable").expect("a line");
        assert!(!line.contains("hello from"), "nothing old: {line}");
        if line == "news for the follower" {
            break;
        }
    }
    println!("a written line was seen after {:?}", written.elapsed());
    follow.kill().await.expect("killed");
    served.wait_streams("logs", "0").await;

    // WebSocket between kubectl and the API server, SPDY from there; then SPDY all the way.
    let output = kubectl(&scene, &["exec", "web", "--", "echo", "a b", "c&d"]).await.expect("exec");
    assert_eq!(output, "a b c&d\n");
    let mut old =
        computing.kubectl_command(&["-n", "through", "exec", "web", "--", "echo", "spdy"]).expect("kubectl");
    let output = old.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").output().await.expect("kubectl runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "spdy\n", "{output:?}");

    served.wait_streams("exec", "0").await;
    assert_rights(&served.stage.binding);
    assert_proxier_rights(&served.stage.binding);
}

impl Served {
    /// Waits until the gauge of open streams has a value.
    async fn wait_streams(&self, kind: &str, count: &str) {
        let wanted =
            format!("kubeocean_proxier_streams{{clusterbinding=\"proxier\",kind=\"{kind}\"}} {count}");
        wait_until(&format!("{count} open {kind}"), DEADLINE, async || {
            let text = self.proxier.metrics().await.map_err(|error| error.to_string())?;
            let found = text
                .lines()
                .find(|line| line.starts_with("kubeocean_proxier_streams{") && line.contains(kind));
            if found == Some(&wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn ports_are_forwarded_both_ways() {
    let served = served().await;
    let scene = served.scene("forward", "echo").await;
    for web_sockets in ["true", "false"] {
        let mut forward = scene
            .stage
            .binding
            .computing()
            .kubectl_command(&["-n", "forward", "port-forward", "pod/echo", ":8080"])
            .expect("kubectl")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", web_sockets)
            .spawn()
            .expect("kubectl starts");
        let mut lines = BufReader::new(forward.stdout.take().expect("its output")).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("a line in time");
        let line = line.expect("readable").expect("a line");
        let local: SocketAddr =
            line.split_whitespace().nth(2).and_then(|word| word.parse().ok()).expect("an address");
        let mut stream = TcpStream::connect(local).await.expect("the forwarded port");
        let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut received = vec![0; sent.len()];
        let (mut reading, mut writing) = stream.split();
        let (read, written) = tokio::join!(
            tokio::time::timeout(DEADLINE, reading.read_exact(&mut received)),
            writing.write_all(&sent)
        );
        read.expect("in time").expect("an echo");
        written.expect("written");
        assert!(received == sent, "the bytes came back as they went, WebSockets {web_sockets}");
        drop(stream);
        forward.kill().await.expect("killed");
    }
    served.wait_streams("portforward", "0").await;
    assert_rights(&served.stage.binding);
}

/// A ServiceAccount with rights on all nodes, and its kubeconfig.
async fn account(scene: &Scene<'_>, name: &str, resources: &[&str]) -> String {
    let namespace = &scene.namespace;
    let role = format!("{namespace}-{name}");
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace},
    })];
    if !resources.is_empty() {
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role},
            "rules": [{"apiGroups": [""], "resources": resources, "verbs": ["get"]}],
        }));
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }));
    }
    let computing = scene.stage.binding.computing();
    computing.apply_objects(objects).await.expect("rights");
    computing.service_account_kubeconfig(namespace, name).await.expect("a token")
}

#[tokio::test]
async fn only_callers_with_rights_are_served() {
    let served = served().await;
    let scene = served.scene("callers", "web").await;
    let (vpod, _) = scene.wait_running("web").await;
    let port = port_of(&scene, &vpod).await;
    let logs = "/containerLogs/callers/web/main";
    let exec = "/exec/callers/web/main?command=id&output=1";
    let web_socket = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "v4.channel.k8s.io"),
    ];

    // Nobody.
    for listener in [port, 10250] {
        let nobody = served.caller(listener, None).await;
        for path in
            ["/pods", "/metrics", logs, exec, "/", "/version", "/nothing", "/pods/../exec", "/run/a/b/c"]
        {
            assert_eq!(nobody.get(path).await, (401, "Unauthorized".to_owned()), "{listener} {path}");
        }
        let headers = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
        assert_eq!(nobody.ask(Method::GET, logs, &headers).await.0, 401);
        let expected = if listener == 10250 { 200 } else { 401 };
        for path in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(nobody.get(path).await.0, expected, "{listener} {path}");
        }
        let forged = served.caller(listener, Some(&token_kubeconfig("forged"))).await;
        assert_eq!(forged.get(logs).await, (401, "Unauthorized".to_owned()));
    }

    // Somebody without rights, also one that wants to be somebody else.
    let without = account(&scene, "without", &[]).await;
    for listener in [port, 10250] {
        let without = served.caller(listener, Some(&without)).await;
        let (code, text) = without.get(logs).await;
        let user = "system:serviceaccount:callers:without";
        let expected = format!("Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[proxy])");
        assert_eq!((code, text), (403, expected));
        let as_admin = [("impersonate-user", "admin"), ("impersonate-group", "system:masters")];
        assert_eq!(without.ask(Method::GET, logs, &as_admin).await.0, 403);
        let absent = without.get("/containerLogs/callers/absent/main").await;
        assert_eq!(absent.0, 403, "a caller without rights does not learn which pods there are");
    }

    // A reader of logs is not one who runs commands, whatever the method.
    let reader = account(&scene, "reader", &["nodes/proxy"]).await;
    let reader = served.caller(port, Some(&reader)).await;
    let (code, text) = reader.get(logs).await;
    assert_eq!(code, 200, "{text}");
    assert_eq!(reader.ask(Method::GET, exec, &web_socket).await.0, 403);
    assert_eq!(
        reader.ask(Method::GET, "/%65xec/callers/web/main?command=id&output=1", &web_socket).await.0,
        403
    );
    assert_eq!(reader.ask(Method::POST, exec, &[]).await.0, 403);

    // Finer rights.
    let lister = account(&scene, "lister", &["nodes/pods"]).await;
    let lister = served.caller(port, Some(&lister)).await;
    let (code, text) = lister.get("/pods").await;
    assert_eq!(code, 200, "{text}");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let names: Vec<_> =
        list["items"].as_array().expect("items").iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert!(names.contains(&&json!("web")), "{names:?}");
    assert_eq!(lister.get(logs).await.0, 403);

    what_the_api_server_may(&scene, served, port).await;
    assert_proxier_rights(&served.stage.binding);
}

/// Everything; and what is wrong with a request is said.
async fn what_the_api_server_may(scene: &Scene<'_>, served: &Served, port: u16) {
    let logs = "/containerLogs/callers/web/main";
    let kubeconfig = apiserver(scene);
    let node = served.caller(port, Some(&kubeconfig)).await;
    let shared = served.caller(10250, Some(&kubeconfig)).await;
    for caller in [&node, &shared] {
        assert_eq!(caller.get(logs).await.0, 200);
        for path in ["/pods/../exec", "/metrics/%2e%2e/pods", "//pods", "/pods%00", "/pods%zz"] {
            assert_eq!(caller.get(path).await.0, 400, "{path}");
        }
        for (method, path, code) in [
            (Method::POST, logs, 405),
            (Method::DELETE, "/pods", 405),
            (Method::OPTIONS, "/pods", 405),
            (Method::POST, "/run/callers/web/main", 501),
            (Method::GET, "/configz", 404),
            (Method::GET, "/logs/messages", 404),
            (Method::GET, "/metrics", 404),
            (Method::GET, "/exec/callers/web/main?command=id&output=1", 400),
            (Method::GET, "/containerLogs/callers/web/main?tailLines=x", 400),
            (Method::GET, "/containerLogs/callers/web/main?tailLines=-1", 422),
        ] {
            let (found, text) = caller.ask(method.clone(), path, &[]).await;
            assert_eq!(found, code, "{method} {path}: {text}");
        }
        for (path, text) in [
            ("/containerLogs/callers/absent/main", "pod \"absent\" does not exist"),
            ("/containerLogs/callers/web/side", "container \"side\" not found in pod \"web\""),
        ] {
            assert_eq!(caller.get(path).await, (404, text.to_owned()));
        }
    }
    assert_eq!(shared.get("/pods").await.0, 404, "the shared port has no node");
    assert!(node.get("/version").await.1.contains("kubeletVersion"));
    let root = node.get("/").await.1;
    assert!(root.contains(&port.to_string()) && !root.contains("nodeIP"), "{root}");
}

fn token_kubeconfig(token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\nusers: [{{name: u, user: {{token: {token}}}}}]\n"
    )
}

#[tokio::test]
async fn nobody_reaches_another_pod_by_what_is_written_on_ones_own() {
    let served = served().await;
    let scene = served.scene("forged", "victim").await;
    let (victim, victim_copy) = scene.wait_running("victim").await;
    let port = port_of(&scene, &victim).await;
    let node = served.caller(port, Some(&apiserver(&scene))).await;

    // A pod on the same vnode that never got a copy, because it waits for a ConfigMap, and says that the victim's is its.
    let waiting = json!({
        "nodeName": victim["spec"]["nodeName"],
        "volumes": [{"name": "never", "configMap": {"name": "never"}}],
    });
    scene.create_pod(&scene.pod("attacker", waiting)).await;
    let logs = "/containerLogs/forged/attacker/main";
    let exec = "/exec/forged/attacker/main?command=id&output=1";
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "SPDY/3.1"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
    ];
    let forged = json!({"metadata": {"annotations": {
        annotation::PHYSICAL_POD_NAMESPACE: scene.stage.binding.mount_namespace(),
        annotation::PHYSICAL_POD_NAME: victim_copy["metadata"]["name"],
        annotation::PHYSICAL_POD_UID: victim_copy["metadata"]["uid"],
    }}});
    // The Syncer takes forgeries back at once, so it is stopped for the questions. A write of its that was on the way
    // already may come after the first forgery, none after the second: a round counts if nothing came between.
    let frozen = served.stage.syncer.freeze().expect("a Syncer that runs");
    wait_until("a round in which the forgery was in force", DEADLINE, async || {
        let before = scene.computing.merge(&scene.vpod("attacker"), &forged).await;
        let (log_code, log) = node.get(logs).await;
        let (exec_code, output) = node.ask(Method::POST, exec, &upgrade).await;
        let after = scene.computing.get(&scene.vpod("attacker")).await.expect("the attacker");
        for vpod in [before, after] {
            let named = &vpod["metadata"]["annotations"][annotation::PHYSICAL_POD_NAME];
            if *named != victim_copy["metadata"]["name"] {
                return Err(format!("the copy is {named}"));
            }
        }
        assert_eq!((log_code, &*log), (404, "pod \"attacker\" does not exist"));
        assert_eq!((exec_code, &*output), (404, "pod does not exist"));
        Ok(())
    })
    .await;
    drop(frozen);
    let refused = kubectl(&scene, &["logs", "attacker"]).await.expect_err("no logs");
    assert!(!refused.contains(scene.stage.binding.mount_namespace()), "{refused}");

    // The victim's own name works, its former incarnation's UID does not.
    assert_eq!(node.get("/containerLogs/forged/victim/main").await.0, 200);
    let old = "/exec/forged/victim/00000000-0000-0000-0000-000000000000/main?command=id&output=1";
    assert_eq!(node.ask(Method::POST, old, &upgrade).await, (404, "pod not found".to_owned()));

    // Through another vnode's port there is no such pod.
    let vnodes = served.stage.wait_vnodes().await;
    let other = vnodes.iter().find(|vnode| vnode["metadata"]["name"] != victim["spec"]["nodeName"]);
    let other = &other.expect("another vnode")["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let other = u16::try_from(other.as_u64().expect("a port")).expect("a port");
    served.listening(other).await;
    let other = served.caller(other, Some(&apiserver(&scene))).await;
    let expected = (404, "pod \"victim\" does not exist".to_owned());
    assert_eq!(other.get("/containerLogs/forged/victim/main").await, expected);
    scene.computing.delete(&scene.vpod("attacker"), Some(0)).await;
}
