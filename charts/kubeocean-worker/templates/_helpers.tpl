{{/* Name of the chart, at most one label long. */}}
{{- define "kubeocean-worker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of objects that are named by release. */}}
{{- define "kubeocean-worker.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "kubeocean-worker.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The mount namespace. */}}
{{- define "kubeocean-worker.namespace" -}}
{{- .Values.namespace.name | default (printf "%s-system" (include "kubeocean-worker.fullname" .)) -}}
{{- end -}}

{{/* Name of the account a computing cluster uses. */}}
{{- define "kubeocean-worker.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "kubeocean-worker.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/*
Labels as YAML, one map, so that no key can appear twice. Input: dict "root" $ "component" "syncer" "extra" (dict).
Later sources win: chart labels, component, extra.
*/}}
{{- define "kubeocean-worker.labels" -}}
{{- $labels := dict
      "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
      "app.kubernetes.io/name" (include "kubeocean-worker.name" .root)
      "app.kubernetes.io/instance" .root.Release.Name
      "app.kubernetes.io/version" .root.Chart.AppVersion
      "app.kubernetes.io/managed-by" .root.Release.Service
      "app.kubernetes.io/part-of" "kubeocean" -}}
{{- with .component -}}{{- $_ := set $labels "app.kubernetes.io/component" . -}}{{- end -}}
{{- toYaml (mergeOverwrite $labels (deepCopy (default dict .extra))) -}}
{{- end -}}

{{/* "true" if the live object belongs to this release. Input: dict "root" $ "object" (lookup ...). */}}
{{- define "kubeocean-worker.owned" -}}
{{- $annotations := dig "metadata" "annotations" dict (default dict .object) -}}
{{- if and (eq (get $annotations "meta.helm.sh/release-name") .root.Release.Name)
           (eq (get $annotations "meta.helm.sh/release-namespace") .root.Release.Namespace) -}}true{{- end -}}
{{- end -}}

{{/*
"true" if the Namespace is to be rendered. Input: dict "root" $ "name" "kubeocean-worker".
The release's own namespace is made by Helm (--create-namespace, after rendering), so rendering it would collide; one that
this release made stays rendered on upgrades, or Helm would delete it.
*/}}
{{- define "kubeocean-worker.rendersNamespace" -}}
{{- $live := lookup "v1" "Namespace" "" .name -}}
{{- if $live -}}
{{- include "kubeocean-worker.owned" (dict "root" .root "object" $live) -}}
{{- else if ne .name .root.Release.Namespace -}}true{{- end -}}
{{- end -}}

{{/*
A CustomResourceDefinition from files/crds, with labels and the annotation that keeps it on uninstall.
Input: dict "root" $ "name" "resourceleasingpolicies.cloud.tencent.com".
*/}}
{{- define "kubeocean-worker.crd" -}}
{{- $file := printf "files/crds/%s.yaml" .name -}}
{{- $crd := .root.Files.Get $file | fromYaml -}}
{{- if ne (dig "metadata" "name" "" $crd) .name -}}
{{- fail (printf "%s does not hold the CustomResourceDefinition %s" $file .name) -}}
{{- end -}}
{{- $labels := include "kubeocean-worker.labels" (dict "root" .root) | fromYaml -}}
{{- $metadata := dict "labels" $labels "annotations" (dict "helm.sh/resource-policy" "keep") -}}
{{- toYaml (mergeOverwrite $crd (dict "metadata" $metadata)) -}}
{{- end -}}

{{/*
Everyone who leases from this cluster, as a YAML list under "tenants": the first is the chart's own account, the others come
from the value `tenants`.
*/}}
{{- define "kubeocean-worker.tenants" -}}
{{- $own := dict "name" (include "kubeocean-worker.serviceAccountName" .) "namespace" (include "kubeocean-worker.namespace" .) -}}
{{- $tenants := concat (list $own) .Values.tenants -}}
{{- $namespaces := list -}}
{{- range $tenants -}}
{{- if has .namespace $namespaces -}}
{{- fail (printf "tenants: the namespace %s is used twice; each tenant needs its own" .namespace) -}}
{{- end -}}
{{- if eq .namespace $.Values.policies.namespace -}}
{{- fail (printf "policies.namespace: %s is a mount namespace, where users of the computing cluster can write" .namespace) -}}
{{- end -}}
{{- $namespaces = append $namespaces .namespace -}}
{{- end -}}
{{- toYaml (dict "tenants" $tenants) -}}
{{- end -}}

{{/* Subjects of a binding: the accounts of all tenants. */}}
{{- define "kubeocean-worker.subjects" -}}
{{- range (include "kubeocean-worker.tenants" . | fromYaml).tenants }}
- kind: ServiceAccount
  name: {{ .name }}
  namespace: {{ .namespace }}
{{- end -}}
{{- end -}}

{{/* User names of the tenants' accounts, as admission sees them: a JSON list. */}}
{{- define "kubeocean-worker.usernames" -}}
{{- $names := list -}}
{{- range (include "kubeocean-worker.tenants" . | fromYaml).tenants -}}
{{- $names = append $names (printf "system:serviceaccount:%s:%s" .namespace .name) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/*
"true" if the server has ValidatingAdmissionPolicy. `helm template` knows no server's kinds (not even v1/Pod): then the
version decides.
*/}}
{{- define "kubeocean-worker.admissionPolicies" -}}
{{- if .Values.admissionPolicy.enabled -}}
{{- if .Capabilities.APIVersions.Has "v1/Pod" -}}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}true{{- end -}}
{{- else if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The binding that makes a ValidatingAdmissionPolicy deny. Input: dict "root" $ "name" N. */}}
{{- define "kubeocean-worker.admissionBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "kubeocean-worker.labels" . | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end -}}
