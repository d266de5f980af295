"""Checks docker/ as far as Python can: YAML and JSON parse, what compose.yaml and the dashboard refer to exists.

Needs PyYAML. What a container engine would find beyond that is not found here.
"""

import json
import re
import sys
from pathlib import Path

import yaml

DOCKER = Path("docker")


def main():
    problems = []
    files = [file for file in sorted(DOCKER.rglob("*")) if file.is_file() and "templates" not in file.parts]
    for file in files:
        try:
            if file.suffix in {".yaml", ".yml"}:
                list(yaml.load_all(file.read_text(encoding="utf-8"), Loader=UniqueKeys))
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{file}: {error}")
    if not problems:
        problems += compose(yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8")))
        problems += dashboard(json.loads((DOCKER / "grafana/sealflow.json").read_text(encoding="utf-8")))
    for problem in problems:
        print(f"broken: {problem}")
    print(f"docker: {len(files)} files looked at, {len(problems)} problems")
    return 1 if problems else 0


class UniqueKeys(yaml.SafeLoader):
    """A key that is there twice is an error, as it is for every tool that reads these files."""


def unique(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key} is there twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique)


def compose(document):
    problems = []
    services, volumes = document["services"], document["volumes"]
    for name, service in services.items():
        at = f"compose.yaml: {name}"
        for other in service.get("depends_on", {}):
            if other not in services:
                problems.append(f"{at}: depends on {other}, which is no service")
        mode = service.get("network_mode", "")
        if mode.startswith("service:") and (mode[8:] not in services or "ports" in service):
            problems.append(f"{at}: cannot share the network of {mode[8:]}")
        for volume in service.get("volumes", []):
            source = volume.split(":", 1)[0]
            if source.startswith("."):
                if not (DOCKER / source).exists():
                    problems.append(f"{at}: {source} does not exist")
            elif source not in volumes:
                problems.append(f"{at}: the volume {source} is not declared")
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                problems.append(f"{at}: port {port} is open to the network")
        build = service.get("build")
        if build:
            text = (DOCKER / build["context"] / build["dockerfile"]).read_text(encoding="utf-8")
            target = build.get("target")
            if target and not re.search(rf"^FROM .* AS {target}$", text, re.M):
                problems.append(f"{at}: the Dockerfile has no stage {target}")
        elif not re.search(r":[^:]+$", service["image"]) and service["image"] not in {"sealflow", "sealflow-tools"}:
            problems.append(f"{at}: the image {service['image']} has no version")
    return problems


def dashboard(document):
    problems = []
    identities = [panel["id"] for panel in document["panels"]]
    if len(set(identities)) != len(identities):
        problems.append("dashboard: two panels have one id")
    variables = {variable["name"] for variable in document["templating"]["list"]}
    places = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x >= 24 or (x, y) in places:
                    problems.append(f"dashboard: {panel['title']} lies over another panel or outside")
                    break
                places.add((x, y))
        for target in panel["targets"]:
            for variable in re.findall(r"\$(?!__)\{?(\w+)", target["expr"]):
                if variable not in variables:
                    problems.append(f"dashboard: {panel['title']}: no variable {variable}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
