/* The services of csi.v1 that consist of unary calls (proto/csi.proto). SnapshotMetadata streams;
 * it is not offered. */
#pragma once

#include "csi.pb-c.h"
#include "csi/rpc/service.h"

#define CSI_IDENTITY_METHODS(X, ...)                                                               \
    X(__VA_ARGS__, GetPluginInfo, get_plugin_info)                                                 \
    X(__VA_ARGS__, GetPluginCapabilities, get_plugin_capabilities)                                 \
    X(__VA_ARGS__, Probe, probe)

#define CSI_CONTROLLER_METHODS(X, ...)                                                             \
    X(__VA_ARGS__, CreateVolume, create_volume)                                                    \
    X(__VA_ARGS__, DeleteVolume, delete_volume)                                                    \
    X(__VA_ARGS__, ControllerPublishVolume, controller_publish_volume)                             \
    X(__VA_ARGS__, ControllerUnpublishVolume, controller_unpublish_volume)                         \
    X(__VA_ARGS__, ValidateVolumeCapabilities, validate_volume_capabilities)                       \
    X(__VA_ARGS__, ListVolumes, list_volumes)                                                      \
    X(__VA_ARGS__, GetCapacity, get_capacity)                                                      \
    X(__VA_ARGS__, ControllerGetCapabilities, controller_get_capabilities)                         \
    X(__VA_ARGS__, CreateSnapshot, create_snapshot)                                                \
    X(__VA_ARGS__, DeleteSnapshot, delete_snapshot)                                                \
    X(__VA_ARGS__, ListSnapshots, list_snapshots)                                                  \
    X(__VA_ARGS__, GetSnapshot, get_snapshot)                                                      \
    X(__VA_ARGS__, ControllerExpandVolume, controller_expand_volume)                               \
    X(__VA_ARGS__, ControllerGetVolume, controller_get_volume)                                     \
    X(__VA_ARGS__, ControllerModifyVolume, controller_modify_volume)

#define CSI_NODE_METHODS(X, ...)                                                                   \
    X(__VA_ARGS__, NodeStageVolume, node_stage_volume)                                             \
    X(__VA_ARGS__, NodeUnstageVolume, node_unstage_volume)                                         \
    X(__VA_ARGS__, NodePublishVolume, node_publish_volume)                                         \
    X(__VA_ARGS__, NodeUnpublishVolume, node_unpublish_volume)                                     \
    X(__VA_ARGS__, NodeGetVolumeStats, node_get_volume_stats)                                      \
    X(__VA_ARGS__, NodeExpandVolume, node_expand_volume)                                           \
    X(__VA_ARGS__, NodeGetCapabilities, node_get_capabilities)                                     \
    X(__VA_ARGS__, NodeGetInfo, node_get_info)

RPC_SERVICE_DECLARE(csi_identity, Csi__V1__, CSI_IDENTITY_METHODS)
RPC_SERVICE_DECLARE(csi_controller, Csi__V1__, CSI_CONTROLLER_METHODS)
RPC_SERVICE_DECLARE(csi_node, Csi__V1__, CSI_NODE_METHODS)
