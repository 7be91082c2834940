{{/* Names and labels. */}}

{{- define "portalbd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "portalbd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "portalbd.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "portalbd.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "portalbd.driver" -}}csi.portalbd.dev{{- end -}}

{{- define "portalbd.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* What pods are selected by: never to change. Called with (list . "component"). */}}
{{- define "portalbd.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "portalbd.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "portalbd.labels" -}}
{{- $root := index . 0 -}}
{{ include "portalbd.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Called with (list . values-of-the-component "component"). */}}
{{- define "portalbd.serviceAccountName" -}}
{{- $account := (index . 1).serviceAccount -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-%s" (include "portalbd.fullname" (index . 0)) (index . 2)) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Are snapshots wanted, and can the cluster have them? */}}
{{- define "portalbd.snapshots" -}}
{{- $enabled := toString .Values.snapshots.enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (or .Values.snapshotController.enabled (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1/VolumeSnapshot"))) -}}
true
{{- end -}}
{{- end -}}

{{- define "portalbd.leaderElection" -}}
{{- $wanted := toString .Values.controller.leaderElection -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") (gt (int .Values.controller.replicas) 1)) -}}
true
{{- end -}}
{{- end -}}

{{/* --- pools --- */}}

{{- define "portalbd.poolsSecret" -}}
{{- .Values.existingPoolsSecret | default (printf "%s-pools" (include "portalbd.fullname" .)) -}}
{{- end -}}

{{/* All pools, with the demo's: JSON {"pools": [...]}. Refuses what makes no sense. */}}
{{- define "portalbd.pools" -}}
{{- $pools := .Values.pools | default list -}}
{{- if .Values.demo.s3.enabled -}}
{{- $s3 := .Values.demo.s3 -}}
{{- $endpoint := printf "http://%s-demo-s3.%s.svc:7070" (include "portalbd.fullname" .) .Release.Namespace -}}
{{- $pools = append $pools (dict "name" "demo" "url" "s3://demo/portalbd" "endpoint" $endpoint "region" "us-east-1" "addressing" "path" "accessKeyId" $s3.accessKeyId "secretAccessKey" $s3.secretAccessKey) -}}
{{- end -}}
{{- if and .Values.existingPoolsSecret $pools -}}
{{- fail "give either pools or existingPoolsSecret (demo.s3 counts as a pool)" -}}
{{- end -}}
{{- if not (or .Values.existingPoolsSecret $pools) -}}
{{- fail "no pool: set pools[0].name and pools[0].url (s3://bucket/prefix), or existingPoolsSecret, or to try things out demo.s3.enabled=true" -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $pools -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "there are two pools called '%s'" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- if ne (empty .accessKeyId) (empty .secretAccessKey) -}}
{{- fail (printf "pool '%s': accessKeyId and secretAccessKey come together, or neither" .name) -}}
{{- end -}}
{{- if and .existingSecret .accessKeyId -}}
{{- fail (printf "pool '%s': give either existingSecret or the keys themselves" .name) -}}
{{- end -}}
{{- end -}}
{{- range $.Values.storageClasses -}}
{{- if and .pool $seen (not (hasKey $seen .pool)) -}}
{{- fail (printf "StorageClass '%s' wants pool '%s', which is not in pools" .name .pool) -}}
{{- end -}}
{{- if and (not .pool) (gt (len $seen) 1) -}}
{{- fail (printf "StorageClass '%s' has to name one of the %d pools in its value pool" .name (len $seen)) -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "pools" $pools) -}}
{{- end -}}

{{/* The volume at /etc/portalbd. Called with (list . mode). */}}
{{- define "portalbd.poolsVolume" -}}
{{- $root := index . 0 -}}
- name: pools
  projected:
    defaultMode: {{ index . 1 }}
    sources:
      - secret:
          name: {{ include "portalbd.poolsSecret" $root }}
{{- range (include "portalbd.pools" $root | fromJson).pools }}
{{- if .existingSecret }}
      - secret:
          name: {{ .existingSecret }}
          items:
            - key: {{ .accessKeyIdKey | default "access_key_id" }}
              path: keys/{{ .name }}/access_key_id
            - key: {{ .secretAccessKeyKey | default "secret_access_key" }}
              path: keys/{{ .name }}/secret_access_key
{{- end }}
{{- end }}
{{- end -}}

{{/* --- sizes --- */}}

{{/* MiB of a size such as 64Mi or 1Gi. Called with (list "value's name" size). */}}
{{- define "portalbd.mib" -}}
{{- $size := toString (index . 1) -}}
{{- $number := regexFind "^[0-9]+" $size | int64 -}}
{{- $unit := regexReplaceAll "^[0-9]+" $size "" -}}
{{- if eq $unit "Mi" -}}{{ $number }}
{{- else if eq $unit "Gi" -}}{{ mul $number 1024 }}
{{- else -}}{{ fail (printf "%s: '%s' is not a size such as 64Mi or 1Gi" (index . 0) $size) }}
{{- end -}}
{{- end -}}

{{- define "portalbd.cacheMib" -}}{{ include "portalbd.mib" (list "nodeAgent.cacheSize" .Values.nodeAgent.cacheSize) }}{{- end -}}
{{- define "portalbd.journalMib" -}}{{ include "portalbd.mib" (list "nodeAgent.journalSize" .Values.nodeAgent.journalSize) }}{{- end -}}

{{/* The formula of values.yaml: what the daemons may take. */}}
{{- define "portalbd.daemonsMemoryMib" -}}
{{- $volume := add (include "portalbd.cacheMib" . | int64) (mul 2 (include "portalbd.journalMib" . | int64)) 64 -}}
{{- if .Values.nodeAgent.diskCache.path -}}{{- $volume = add $volume 64 -}}{{- end -}}
{{- mul (int64 .Values.csiNode.volumesMax) $volume -}}
{{- end -}}

{{/* Resources of the agent with its limit of memory: given, computed, or none. */}}
{{- define "portalbd.agentResources" -}}
{{- $resources := deepCopy .Values.nodeAgent.resources -}}
{{- $limits := $resources.limits | default dict -}}
{{- if not (hasKey $limits "memory") -}}
{{- $_ := set $limits "memory" (printf "%dMi" (add (include "portalbd.daemonsMemoryMib" . | int64) 256)) -}}
{{- else if not $limits.memory -}}
{{- $limits = omit $limits "memory" -}}
{{- end -}}
{{- $_ := set $resources "limits" $limits -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* What memory.max of the daemons' cgroup is to be. */}}
{{- define "portalbd.daemonsMemoryMax" -}}
{{- $limits := .Values.nodeAgent.resources.limits | default dict -}}
{{- if not (hasKey $limits "memory") -}}
{{ include "portalbd.daemonsMemoryMib" . }}M
{{- else if not $limits.memory -}}
max
{{- else if regexMatch "^[0-9]+[KMGT]i$" (toString $limits.memory) -}}
{{ $limits.memory | trimSuffix "i" }}
{{- else -}}
{{ fail (printf "nodeAgent.resources.limits.memory: '%s' is not a size such as 16Gi" (toString $limits.memory)) }}
{{- end -}}
{{- end -}}

{{- define "portalbd.diskCacheSize" -}}
{{- $size := .Values.nodeAgent.diskCache.sizePerVolume -}}
{{- $mib := include "portalbd.mib" (list "nodeAgent.diskCache.sizePerVolume" $size) | int64 -}}
{{- if or (lt $mib 64) (gt $mib 4194304) -}}
{{- fail (printf "nodeAgent.diskCache.sizePerVolume: %s is not from 64Mi to 4096Gi" $size) -}}
{{- end -}}
{{ $size }}
{{- end -}}

{{- define "portalbd.journalSpace" -}}
{{- if ne (toString .Values.nodeAgent.journalSpace) "" -}}
{{ .Values.nodeAgent.journalSpace }}
{{- else -}}
{{ mul (int64 .Values.csiNode.volumesMax) (add (include "portalbd.journalMib" . | int64) 1) }}Mi
{{- end -}}
{{- end -}}

{{/* --- parts of pods --- */}}

{{/* Where a pod runs, and as who. Called with (list . values-of-the-component). */}}
{{- define "portalbd.scheduling" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Environment of a container of ours: called with the component's values. */}}
{{- define "portalbd.env" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- with .extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Pod metadata: called with (list . values "component" container). */}}
{{- define "portalbd.podMetadata" -}}
{{- $values := index . 1 -}}
metadata:
  annotations:
    kubectl.kubernetes.io/default-container: {{ index . 3 }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "portalbd.labels" (list (index . 0) (index . 2)) | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* A sidecar: called with (dict "root" . "name" "provisioner" "args" (list ...)). */}}
{{- define "portalbd.sidecar" -}}
{{- $all := .root.Values.sidecars -}}
{{- $own := index $all .name -}}
- name: {{ .name }}
  image: {{ $own.image }}
  imagePullPolicy: {{ $all.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ $all.logLevel }}
    - --timeout={{ $all.timeout }}
    - --http-endpoint=:{{ $own.httpPort }}
    {{- if include "portalbd.leaderElection" .root }}
    - --leader-election
    - --leader-election-namespace={{ .root.Release.Namespace }}
    {{- end }}
    {{- range .args }}
    - {{ . }}
    {{- end }}
    {{- range $own.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  ports:
    - {name: {{ .name }}, containerPort: {{ $own.httpPort }}}
  {{- if include "portalbd.leaderElection" .root }}
  livenessProbe: # a leader that cannot renew its lease and does not end
    httpGet: {path: /healthz/leader-election, port: {{ .name }}}
    initialDelaySeconds: 10
    timeoutSeconds: 10
    periodSeconds: 20
  {{- end }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  {{- with ($own.resources | default $all.resources) }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end -}}
