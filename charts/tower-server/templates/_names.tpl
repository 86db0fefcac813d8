{{- define "tower-server.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tower-server.fullname" -}}
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

{{- define "tower-server.selector" -}}
app.kubernetes.io/name: {{ include "tower-server.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tower-server.labels" -}}
{{ include "tower-server.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tower
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tower-server.serviceAccount" -}}
{{- default (include "tower-server.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "tower-server.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "tower-server.publicHost" -}}
{{- regexReplaceAll ":[0-9]+$" .Values.publicAddress "" -}}
{{- end -}}

{{- define "tower-server.caSecret" -}}
{{- if .Values.ca.certManager.enabled -}}
{{ include "tower-server.fullname" . }}-ca
{{- else -}}
{{ .Values.ca.existingSecret }}
{{- end -}}
{{- end -}}
