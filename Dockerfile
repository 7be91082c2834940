# One image for every pod of portalbd: the controller, the csi node and the node agent with its daemons.
#   make image                    builds it, also where no registry of images can be reached (tools/build-image)
#   docker build -t portalbd .    does what one expects
ARG BASE=debian:12-slim

FROM ${BASE} AS build
ENV DEBIAN_FRONTEND=noninteractive
COPY tools/packages.txt /packages.txt
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make pkg-config protobuf-c-compiler \
        protobuf-compiler $(sed -n '/^# libraries/,/^$/{/^#/d;p}' /packages.txt) \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# build/deps.mk stands for "the packages are there": those of the tests are not wanted here.
RUN mkdir -p build && touch build/deps.mk \
    && make -j"$(nproc)" all \
    && install -s -D -t /out/usr/bin build/bin/portalbd build/bin/portalctl build/bin/node-agent build/bin/portalbd-csi

FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive
# After the libraries: what csi runs on a volume (mkfs, fsck, grow), modprobe for the node agent's nbd.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libblkid1 libcurl4 libexpat1 libgrpc29 libinih1 \
        libisal2 libjansson4 liblz4-1 libmicrohttpd12 libmount1 libnl-3-200 libnl-genl-3-200 libprotobuf-c1 libssl3 \
        libuv1 e2fsprogs kmod xfsprogs \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
    && ln -sf /proc/self/mounts /etc/mtab
COPY --from=build /out/ /
# A program with a library missing, or a tool, is found here and not on a node.
RUN for program in portalbd portalctl node-agent portalbd-csi; do "$program" --version || exit 1; done \
    && for tool in mkfs.ext4 mkfs.xfs e2fsck resize2fs xfs_growfs modprobe; do command -v "$tool" || exit 1; done
# Last, so that another revision builds nothing again.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="portalbd" \
    org.opencontainers.image.description="Kubernetes block volumes on S3: CSI driver, node agent, daemon, portalctl" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# For the controller; pods of nodes ask for root themselves.
USER 65532:65532
CMD ["portalbd-csi", "--help"]
