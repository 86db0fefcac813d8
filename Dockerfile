# syntax=docker/dockerfile:1
#
# One image for the server and the agent, with nothing in it but Python, Tower and the libraries
# that they load: no shell, no package manager. For both architectures:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/tower:VERSION .
#
# The work is done by deploy/rootfs.sh, which the tests run too.

ARG PYTHON=3.13
FROM python:${PYTHON}-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils ca-certificates
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE CHANGELOG.md ./
COPY deploy deploy
COPY certs certs
COPY shared shared
COPY tower_agent tower_agent
COPY tower_server tower_server
COPY charts charts
RUN sh deploy/rootfs.sh /rootfs

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
WORKDIR /home/nonroot
CMD ["tower-server", "--help"]
