"""Renders the Helm chart as a user would and checks what comes out: Kubernetes' own schemas, and what must never be there.

Needs helm-python-sdk (Helm itself, as a library), PyYAML and kubernetes-validate: docker/requirements.txt.
"""

import json
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from helm_python import Chart, HelmError

CHART = "docker/helm/sealflow"
KUBERNETES = ["1.28", "1.34"]
GOOD = {"catalogue": {"existingClaim": "catalogue"}, "pipeline": {"trust": {"owners": ["x"]}}}


def main():
    problems = []
    for title, values in good().items():
        problems += [f"{title}: {problem}" for problem in check(render(values))]
    for title, values in refused().items():
        try:
            render(values)
            problems.append(f"{title}: is rendered, but must be refused")
        except HelmError as error:
            if "Canary" in str(error):
                problems.append(f"{title}: the message repeats the secret")
    for problem in problems:
        print(f"broken: {problem}")
    print(f"chart: {len(good())} renderings checked, {len(refused())} refusals, {len(problems)} problems")
    return 1 if problems else 0


def good():
    sasl = {"security.protocol": "SASL_SSL", "sasl.password": "SECRET[file.kafka-password]"}
    kafka = {"brokers": "kafka:9092", "topics": ["payments"], "properties": sasl}
    return {
        "the least": GOOD,
        "everything": merged(GOOD, {
            "replicas": 3,
            "image": {"digest": "sha256:" + "0" * 64},
            "imagePullSecrets": [{"name": "registry"}],
            "secrets": {"existingSecret": "kafka"},
            "pipeline": {
                "source": {"kafka": kafka},
                "kms": {"credentials": {"secret_access_key": "SECRET[file.kms]"}},
                "telemetry": {"otlp": {"endpoint": "http://collector:4318", "headers": {"x-api-key": "SECRET[file.otlp]"}}},
            },
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/sealflow"}},
            "env": [{"name": "SEALFLOW_LOG", "value": "debug"}],
            "podLabels": {"team": "data"},
            "podAnnotations": {"a": "b"},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "networkPolicy": {"adminFrom": []},
        }),
    }


def refused():
    return {
        "no catalogue that stays": {},
        "a password in the values": merged(GOOD, {"pipeline": {"source": {"kafka": {"properties": {"sasl.password": "Canary"}}}}}),
        "a password behind a placeholder": merged(GOOD, {"pipeline": {"target": {"kafka": {"properties": {"sasl.password": "${X}Canary"}}}}}),
        "credentials in the values": merged(GOOD, {"pipeline": {"kms": {"credentials": {"secret_access_key": "Canary"}}}}),
        "a collector's header in the values": merged(GOOD, {"pipeline": {"telemetry": {"otlp": {"headers": {"x-api-key": "Canary"}}}}}),
        "an instance of one's own": merged(GOOD, {"pipeline": {"instance": "a"}}),
        "an unknown value": merged(GOOD, {"replicaCount": 3}),
    }


def merged(base, more):
    out = json.loads(json.dumps(base))
    for key, value in more.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def render(values):
    with Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(values))
        rendered = chart.render(values=values, name="payments", namespace="sealflow")
    texts = rendered.values() if isinstance(rendered, dict) else [rendered]
    documents = [document for text in texts if "kind:" in str(text) for document in yaml.safe_load_all(text) if document]
    return [document for document in documents if "kind" in document]


def check(documents):
    problems = []
    kinds = {document["kind"]: document for document in documents}
    for kind in ["ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet"]:
        if kind not in kinds:
            problems.append(f"there is no {kind}")
    for document in documents:
        if document["kind"] == "ServiceMonitor":
            continue  # of the Prometheus Operator, not of Kubernetes
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{document['kind']}: {error.message} ({version})")
    if "StatefulSet" in kinds and "ConfigMap" in kinds:
        problems += check_pod(kinds["StatefulSet"], kinds["ConfigMap"])
    return problems


def check_pod(stateful_set, config):
    problems = []
    pod = stateful_set["spec"]["template"]["spec"]
    container = pod["containers"][0]
    pipeline = yaml.safe_load(config["data"]["pipeline.yaml"])
    security = {**pod["securityContext"], **container["securityContext"]}
    for key, wanted in {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}.items():
        if security.get(key) is not wanted:
            problems.append(f"{key} is not {wanted}")
    ports = {port["containerPort"] for port in container["ports"]}
    if int(pipeline["admin"]["listen"].rsplit(":", 1)[1]) not in ports:
        problems.append("the probes ask another port than the pipeline listens on")
    if pipeline["instance"] != "${SEALFLOW_INSTANCE}" or "pod-index" not in str(container["env"]):
        problems.append("the instance is not the pod's ordinal")
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    if volumes != mounts:
        problems.append(f"volumes {volumes} but mounts {mounts}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
