// Package helm pins the version of helm that renders, checks and installs our charts in tests.
//
//go:build tools

package helm

import _ "helm.sh/helm/v3/cmd/helm"
