//go:build !nextepoch

package rider_test

import (
	"errors"
	"os/exec"
	"testing"

	"tomato/domain"
	"tomato/domain/rider"
)

// TestTheNextEpoch runs the tests of the next build's events (nextepoch_test.go), which
// need the tag.
func TestTheNextEpoch(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "nextepoch", "-run", "^TestUpcast$", ".").CombinedOutput()
	if err != nil {
		t.Errorf("go test -tags nextepoch: %v\n%s", err, out)
	}
}

// A version that a newer build has written is not taken for one that this build knows.
func TestAnUnknownVersionIsNotRead(t *testing.T) {
	t.Parallel()
	e, err := rider.Decode(rider.TypeRiderVerified, 2, []byte(`{"riderId":"rider-5","ctx":{}}`))
	if u := (*domain.UnknownVersion)(nil); !errors.As(err, &u) {
		t.Errorf("version 2 decodes as %#v, %v", e, err)
	}
}
