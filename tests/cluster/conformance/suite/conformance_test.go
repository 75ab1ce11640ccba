// Package suite is the Gateway API's conformance suite as one test binary; `../run` builds and runs it.
package suite

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
