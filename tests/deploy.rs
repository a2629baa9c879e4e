//! The files with which clusters are deployed: they are valid, and every command in them exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::Place;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// The documents of a YAML file. `None` where Python has no YAML.
fn documents(name: &str) -> Option<Vec<Value>> {
    let python = std::env::var("TWINLENS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = Command::new(&python).args(["-c", script]).arg(folder().join(name)).output().ok()?;
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("No module named 'yaml'") {
        eprintln!("skipped: {python} lacks yaml");
        return None;
    }
    assert!(output.status.success(), "{name}: {error}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// Every verb and option of a command line exists.
#[track_caller]
fn check_command(place: &Place, words: &[&str]) {
    let help = place.done(&[words[0], "--help"]);
    for option in words.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(option), "{words:?}: there is no {option}");
    }
}

#[track_caller]
fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

/// The pod of a Deployment or Job, whose fields are those that the API has.
fn check_pod(place: &Place, template: &Value) {
    let known = BTreeSet::from(["containers", "restartPolicy", "terminationGracePeriodSeconds", "volumes"]);
    let pod = &template["spec"];
    assert!(fields(pod).is_subset(&known), "{pod}");
    let volumes = pod["volumes"].as_array().into_iter().flatten();
    let volumes: BTreeSet<&str> = volumes.map(|volume| volume["name"].as_str().unwrap()).collect();
    let known = BTreeSet::from([
        "args",
        "envFrom",
        "image",
        "name",
        "ports",
        "readinessProbe",
        "resources",
        "volumeMounts",
    ]);
    for container in pod["containers"].as_array().unwrap() {
        assert!(fields(container).is_subset(&known), "{container}");
        check_command(place, &strings(&container["args"]));
        assert_eq!(container["image"], "registry.example.org/twinlens:0.1.0");
        // Kubernetes ends a container that takes more: it should be scheduled with as much.
        let resources = &container["resources"];
        assert_eq!(resources["requests"]["memory"], resources["limits"]["memory"], "{container}");
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            assert!(volumes.contains(mount["name"].as_str().unwrap()), "{mount}");
        }
        for from in container["envFrom"].as_array().into_iter().flatten() {
            assert_eq!(from["secretRef"]["name"], "twinlens");
        }
    }
}

#[test]
fn kubernetes_manifests_are_valid_and_their_commands_exist() {
    let place = Place::new();
    for name in ["kubernetes.yaml", "kubernetes-workers.yaml"] {
        let Some(documents) = documents(name) else { return };
        let (mut labels, mut selectors) = (Vec::new(), Vec::new());
        for document in &documents {
            let (kind, spec) = (document["kind"].as_str().unwrap(), &document["spec"]);
            let expected = BTreeSet::from(["apiVersion", "kind", "metadata", "spec"]);
            assert_eq!(fields(document), expected, "{name}");
            assert!(document["metadata"]["name"].is_string());
            let (version, known): (&str, &[&str]) = match kind {
                "Deployment" => ("apps/v1", &["replicas", "selector", "strategy", "template"]),
                "Job" => ("batch/v1", &["backoffLimit", "completions", "parallelism", "template"]),
                "Service" => ("v1", &["ports", "selector"]),
                "NetworkPolicy" => ("networking.k8s.io/v1", &["ingress", "podSelector", "policyTypes"]),
                other => panic!("{name}: {other}"),
            };
            assert_eq!(document["apiVersion"], version);
            assert!(fields(spec).is_subset(&known.iter().copied().collect()), "{spec}");
            if spec["template"].is_object() {
                check_pod(&place, &spec["template"]);
                labels.push(spec["template"]["metadata"]["labels"].clone());
            }
            match kind {
                "Deployment" => {
                    assert_eq!(spec["selector"]["matchLabels"], *labels.last().unwrap(), "{name}");
                }
                "Service" => selectors.push(spec["selector"].clone()),
                _ => {}
            }
        }
        assert!(selectors.iter().all(|selector| labels.contains(selector)), "{name}");
    }
}

#[test]
fn the_compose_file_is_valid_and_its_commands_exist() {
    let Some(documents) = documents("compose.yaml") else { return };
    let (place, compose) = (Place::new(), &documents[0]);
    assert_eq!(fields(compose), BTreeSet::from(["networks", "services", "volumes"]));
    let services = compose["services"].as_object().unwrap();
    let networks = fields(&compose["networks"]);
    for service in services.values() {
        check_command(&place, &strings(&service["command"]));
        assert_eq!(service["image"], "twinlens");
        assert!(strings(&service["networks"]).iter().all(|network| networks.contains(network)));
        assert!(strings(&service["depends_on"]).iter().all(|other| services.contains_key(*other)));
    }
    // Whoever makes splits, and whoever asks for them.
    for name in ["executor", "run"] {
        assert_eq!(strings(&services[name]["environment"]), ["TWINLENS_CLUSTER_KEY"]);
    }
}

#[test]
fn scripts_are_valid_and_their_commands_exist() {
    let place = Place::new();
    for name in ["slurm.sh", "slurm-workers.sh"] {
        let path = folder().join(name);
        let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        let text = fs::read_to_string(&path).unwrap();
        let calls = text.lines().filter(|line| !line.starts_with('#'));
        let calls = calls.filter_map(|line| Some(line.split_once("twinlens ")?.1));
        let calls: Vec<Vec<&str>> = calls.map(|call| call.split_whitespace().collect()).collect();
        assert!(calls.len() >= 2, "{name}");
        calls.iter().for_each(|words| check_command(&place, words));
    }
}
