{{/* Name of the chart, at most one label long. */}}
{{- define "kubeocean.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of objects that are named by release: the release's name if it says "kubeocean". */}}
{{- define "kubeocean.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "kubeocean.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The system namespace: where every namespaced object of this chart goes. */}}
{{- define "kubeocean.namespace" -}}
{{- .Values.namespace.name | default (printf "%s-system" (include "kubeocean.fullname" .)) -}}
{{- end -}}

{{/* The Service of the Manager's scheduler extender; its last label is at most 63 characters long. */}}
{{- define "kubeocean.extenderService" -}}
{{- printf "%s-manager-extender" (include "kubeocean.fullname" . | trunc 46 | trimSuffix "-") -}}
{{- end -}}

{{/* Where a kube-scheduler asks: the address that is set, or else that of the Service. */}}
{{- define "kubeocean.extenderURL" -}}
{{- $service := printf "https://%s.%s.svc:8443/scheduler" (include "kubeocean.extenderService" .) (include "kubeocean.namespace" .) -}}
{{- .Values.manager.schedulerExtender.urlPrefix | default $service -}}
{{- end -}}

{{/*
Labels as YAML, one map, so that no key can appear twice. Input: dict "root" $ "component" "syncer" "extra" (dict).
Later sources win: chart labels, component, extra.
*/}}
{{- define "kubeocean.labels" -}}
{{- $labels := dict
      "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
      "app.kubernetes.io/name" (include "kubeocean.name" .root)
      "app.kubernetes.io/instance" .root.Release.Name
      "app.kubernetes.io/version" .root.Chart.AppVersion
      "app.kubernetes.io/managed-by" .root.Release.Service
      "app.kubernetes.io/part-of" "kubeocean" -}}
{{- with .component -}}{{- $_ := set $labels "app.kubernetes.io/component" . -}}{{- end -}}
{{- toYaml (mergeOverwrite $labels (deepCopy (default dict .extra))) -}}
{{- end -}}

{{/* "true" if the live object belongs to this release. Input: dict "root" $ "object" (lookup ...). */}}
{{- define "kubeocean.owned" -}}
{{- $annotations := dig "metadata" "annotations" dict (default dict .object) -}}
{{- if and (eq (get $annotations "meta.helm.sh/release-name") .root.Release.Name)
           (eq (get $annotations "meta.helm.sh/release-namespace") .root.Release.Namespace) -}}true{{- end -}}
{{- end -}}

{{/*
"true" if the Namespace is to be rendered. Input: dict "root" $ "name" "kubeocean-system".
The release's own namespace is made by Helm (--create-namespace, after rendering), so rendering it would collide; one that
this release made stays rendered on upgrades, or Helm would delete it.
*/}}
{{- define "kubeocean.rendersNamespace" -}}
{{- $live := lookup "v1" "Namespace" "" .name -}}
{{- if $live -}}
{{- include "kubeocean.owned" (dict "root" .root "object" $live) -}}
{{- else if ne .name .root.Release.Namespace -}}true{{- end -}}
{{- end -}}

{{/*
A CustomResourceDefinition from files/crds, with labels and the annotation that keeps it on uninstall.
Input: dict "root" $ "name" "clusterbindings.cloud.tencent.com".
*/}}
{{- define "kubeocean.crd" -}}
{{- $file := printf "files/crds/%s.yaml" .name -}}
{{- $crd := .root.Files.Get $file | fromYaml -}}
{{- if ne (dig "metadata" "name" "" $crd) .name -}}
{{- fail (printf "%s does not hold the CustomResourceDefinition %s" $file .name) -}}
{{- end -}}
{{- $labels := include "kubeocean.labels" (dict "root" .root) | fromYaml -}}
{{- $metadata := dict "labels" $labels "annotations" (dict "helm.sh/resource-policy" "keep") -}}
{{- toYaml (mergeOverwrite $crd (dict "metadata" $metadata)) -}}
{{- end -}}

{{/* User name of a component's ServiceAccount, as admission sees it. Input: dict "root" $ "component" "syncer". */}}
{{- define "kubeocean.username" -}}
{{- printf "system:serviceaccount:%s:%s" (include "kubeocean.namespace" .root) (index .root.Values .component "serviceAccount" "name") -}}
{{- end -}}

{{/* A ServiceAccount. Input: dict "root" $ "component" "syncer". */}}
{{- define "kubeocean.serviceAccount" -}}
{{- $account := index .root.Values .component "serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $account.name }}
  namespace: {{ include "kubeocean.namespace" .root }}
  labels:
    {{- include "kubeocean.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/*
Subjects of a component's bindings. An in-process Manager does the work of Syncer and Proxier with its own account.
Input: dict "root" $ "component" "syncer".
*/}}
{{- define "kubeocean.subjects" -}}
{{- $components := list .component -}}
{{- if and (ne .component "manager") (eq .root.Values.manager.runtime "in-process") -}}
{{- $components = append $components "manager" -}}
{{- end -}}
{{- range $components }}
- kind: ServiceAccount
  name: {{ index $.root.Values . "serviceAccount" "name" }}
  namespace: {{ include "kubeocean.namespace" $.root }}
{{- end -}}
{{- end -}}

{{/* ClusterRoleBinding of a component. Input: dict "root" $ "component" "syncer" "name" N "role" R. */}}
{{- define "kubeocean.clusterRoleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "kubeocean.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .role }}
subjects:
  {{- include "kubeocean.subjects" . | trim | nindent 2 }}
{{- end -}}

{{/* RoleBinding of a component. Input: dict "root" $ "component" "syncer" "name" N "namespace" NS "role" R. */}}
{{- define "kubeocean.roleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "kubeocean.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .role }}
subjects:
  {{- include "kubeocean.subjects" . | trim | nindent 2 }}
{{- end -}}

{{/*
"true" if the server has ValidatingAdmissionPolicy. `helm template` knows no server's kinds (not even v1/Pod): then the
version decides.
*/}}
{{- define "kubeocean.admissionPolicies" -}}
{{- if .Values.admissionPolicy.enabled -}}
{{- if .Capabilities.APIVersions.Has "v1/Pod" -}}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}true{{- end -}}
{{- else if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The binding that makes a ValidatingAdmissionPolicy deny. Input: dict "root" $ "name" N. */}}
{{- define "kubeocean.admissionBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "kubeocean.labels" . | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end -}}
