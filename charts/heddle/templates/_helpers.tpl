{{/* Names are fixed: one mesh a cluster, and certificates name the control plane by them. */}}
{{- define "heddle.name" -}}heddle-control-plane{{- end }}

{{- define "heddle.selector" -}}
app.kubernetes.io/name: heddle-control-plane
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "heddle.labels" -}}
{{ include "heddle.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: heddle
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Called with a list of the root and one of images.controlPlane, images.proxy. */}}
{{- define "heddle.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- with $root.Values.images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "heddle.host" -}}
heddle-control-plane.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Namespaces that no webhook of ours may block: the cluster's own, and the one the control plane starts in. */}}
{{- define "heddle.excludedNamespaces" -}}
{{- concat (list "kube-system" "kube-public" "kube-node-lease" .Release.Namespace) .Values.injector.excludedNamespaces | uniq | toJson }}
{{- end }}
