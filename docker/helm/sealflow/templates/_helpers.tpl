{{- define "sealflow.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "sealflow.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sealflow.labels" -}}
{{ include "sealflow.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sealflow.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "sealflow.name" .) -}}
{{- end -}}

{{- define "sealflow.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses secrets that stand in the values: a ConfigMap is readable for many. */}}
{{- define "sealflow.refuseSecrets" -}}
{{- range $side := list "source" "target" -}}
{{- $kafka := dig $side "kafka" dict $.Values.pipeline -}}
{{- range $name, $value := (dig "properties" dict $kafka) -}}
{{- if and (regexMatch "(password|secret|token|assertion|oauthbearer\\.config|key\\.pem)" $name) (not (hasPrefix "sasl.oauthbearer.token.endpoint" $name)) (not (regexMatch "^(SECRET\\[[^]]+\\]|\\$\\{[^}]+\\})$" (toString $value))) -}}
{{- fail (printf "pipeline.%s.kafka.properties.%s holds a secret: write SECRET[file.NAME] and name a Secret in secrets.existingSecret" $side $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := (dig "kms" "credentials" dict .Values.pipeline) -}}
{{- if not (regexMatch "^(SECRET\\[[^]]+\\]|\\$\\{[^}]+\\})$" (toString $value)) -}}
{{- fail (printf "pipeline.kms.credentials.%s holds a secret: use a role of the service account, or SECRET[file.NAME]" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := (dig "telemetry" "otlp" "headers" dict .Values.pipeline) -}}
{{- if not (regexMatch "^(SECRET\\[[^]]+\\]|\\$\\{[^}]+\\})$" (toString $value)) -}}
{{- fail (printf "pipeline.telemetry.otlp.headers.%s may hold a secret: write SECRET[file.NAME] and name a Secret in secrets.existingSecret" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The pipeline file: the user's, with what the pod decides. */}}
{{- define "sealflow.pipeline" -}}
{{- include "sealflow.refuseSecrets" . -}}
{{- $set := dict "instance" "${SEALFLOW_INSTANCE}" "admin" (dict "listen" (printf "0.0.0.0:%d" (int .Values.adminPort))) -}}
{{- $secrets := mergeOverwrite (dict "folder" "/run/secrets") (.Values.pipeline.secrets | default dict) -}}
{{- mergeOverwrite (deepCopy .Values.pipeline) $set (dict "secrets" $secrets) | toYaml -}}
{{- end -}}
