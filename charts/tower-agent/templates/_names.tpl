{{- define "tower-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tower-agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 51 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 51 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 51 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tower-agent.selector" -}}
app.kubernetes.io/name: {{ include "tower-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tower-agent.labels" -}}
{{ include "tower-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tower
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tower-agent.serviceAccount" -}}
{{- default (include "tower-agent.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "tower-agent.credentials" -}}
{{- default (printf "%s-credentials" (include "tower-agent.fullname" .)) .Values.credentials.secretName -}}
{{- end -}}

{{- define "tower-agent.joinSecret" -}}
{{- default (printf "%s-join" (include "tower-agent.fullname" .)) .Values.join.existingSecret -}}
{{- end -}}

{{- define "tower-agent.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- /* Names of a list, or no resourceNames at all where `*` is among them. */ -}}
{{- define "tower-agent.resourceNames" -}}
{{- if not (has "*" .) }}
resourceNames: {{ toJson . }}
{{- end -}}
{{- end -}}
