//go:build tools

// Package tools names the programs that ../../build.sh builds from this module.
package tools

import (
	_ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
)
