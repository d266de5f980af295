#!/usr/bin/env bash
# Checks docker/ with what can be had: linters from PyPI (docker/requirements.txt), promtool and systemd-analyze of this
# machine. No image is built and nothing is started; a check whose tool is missing goes into the skip ledger by name.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

LINTERS="$DEPS/lint/bin"
BROKEN=0

main() {
    "$ROOT/scripts/deps.sh" lint
    with_linter files-of-docker python scripts/check_docker.py
    with_linter yaml yamllint --strict -d "$YAML_RULES" docker --no-warnings
    with_linter dockerfile hadolint docker/Dockerfile docker/enclave.Dockerfile
    with_linter helm-chart python scripts/check_chart.py
    alerts
    unit
    compose
    exit "$BROKEN"
}

# Long lines are fine, templates are no YAML.
YAML_RULES='{extends: default, ignore: [templates/], rules: {line-length: disable, document-start: disable, braces: {min-spaces-inside: 0, max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}}}'

# run NAME COMMAND…
run() {
    local name="$1"
    shift
    if "$@"; then say "ok: $name"; else
        say "broken: $name"
        BROKEN=1
    fi
}

# with_linter NAME TOOL ARGUMENTS…: by a tool from PyPI.
with_linter() {
    local name="$1" tool="$2"
    shift 2
    if [ -x "$LINTERS/$tool" ]; then
        run "$name" "$LINTERS/$tool" "$@"
    else
        skip "$name" "$tool could not be fetched from PyPI"
    fi
}

alerts() {
    local promtool
    promtool="$(command -v promtool || true)"
    [ -n "$promtool" ] || promtool="$DEPS/promtool/usr/bin/promtool"
    if [ -x "$promtool" ]; then
        run prometheus "$promtool" check config docker/prometheus/prometheus.yaml
        # Paths in the test are relative to it.
        run alert-rules env -C docker/prometheus "$promtool" test rules alerts_test.yaml
    else
        skip alert-rules "no promtool on this machine (part of Prometheus)"
    fi
}

# A unit must name a program that is there; which one does not matter to the check.
unit() {
    local folder said verdict code=0
    if ! have systemd-analyze; then
        skip systemd-unit "no systemd-analyze on this machine"
        return
    fi
    folder="$(mktemp -d)"
    sed 's|^ExecStart=/usr/local/bin/sealflow|ExecStart=/bin/true|' 'docker/systemd/sealflow@.service' >"$folder/sealflow@.service"
    # What it does not know it only warns about, with code 0; it may also speak of other units of this machine.
    said="$(systemd-analyze verify --man=no "$folder/sealflow@.service" 2>&1)" || code=$?
    verdict="$(grep -F 'sealflow@' <<<"$said" || true)"
    [ "$code" -eq 0 ] || verdict="systemd-analyze ended with code $code: $said"
    [ -z "$verdict" ] || say "$verdict"
    run systemd-unit test -z "$verdict"
    # Out of 10 (unprotected); the unit's own promise.
    run systemd-hardening quiet systemd-analyze security --offline=true --threshold=20 --no-pager "$folder/sealflow@.service"
    rm -r "$folder"
}

quiet() { "$@" >/dev/null; }

compose() {
    if docker compose version >/dev/null 2>&1; then
        run compose docker compose -f docker/compose.yaml --profile '*' config --quiet
    else
        skip compose-file "no docker compose on this machine: only its references were checked"
    fi
    if docker info >/dev/null 2>&1; then
        skip container-image "is not built by lint: docker build -f docker/Dockerfile ."
    else
        skip container-image "no container engine on this machine: the Dockerfile was linted, not built"
    fi
}

main "$@"
