package simulate

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain checks that no goroutine of a run is left after the run has ended.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
